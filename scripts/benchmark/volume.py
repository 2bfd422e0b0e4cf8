"""The part "volume": the main job on whole volumes as a user runs it, and what its time is spent on."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from ..data.datalists import inference_datalist
from .bundle import Bundle
from .children import main_job, run_task
from .heads import write_resampled


def measure_volumes(bundle: Bundle, dataset_dir: str | None = None, spacing: float = 1.0) -> list[dict[str, Any]]:
    """Run the main job on the config's sample at `spacing`, then on each volume of a folder.

    Args:
        bundle: what is measured.
        dataset_dir: volumes of the user's own, None for none.
        spacing: edge of the voxels of the resampled sample, mm.

    Returns:
        for each volume "name" (never a file's), "seconds" of wall time and "peak_bytes" of the main job, and what
        `scripts.benchmark.tasks.phases` tells of it; "rest" is what the wall time has beyond the phases.
    """
    own = [] if dataset_dir is None else [item["image"] for item in inference_datalist(dataset_dir)]
    own = [path for path in own if isinstance(path, str)]  # a DICOM series is a list
    with tempfile.TemporaryDirectory() as folder:
        sample = write_resampled(bundle.part("cases")[0]["image"], Path(folder) / "head.nii.gz", spacing)
        named = [("sample", str(sample)), *((f"volume {n}", path) for n, path in enumerate(own, 1))]
        return [{"name": name, **_measured(bundle, path, f"{folder}/{n}")} for n, (name, path) in enumerate(named)]


def _measured(bundle: Bundle, path: str, output_dir: str) -> dict[str, Any]:
    """One volume: the main job, and then its steps one by one."""
    settings = {"dataset_dir": str(Path(path).absolute()), "output_dir": output_dir, "device": str(bundle.device)}
    run = main_job(bundle.config_files, settings)
    told, _ = run_task("phases", config_files=bundle.config_files, settings=settings, device=str(bundle.device))
    case = told["cases"][0]
    phases = {**told["once"], **case["phases"]}
    phases["rest"] = run.seconds - sum(phases.values())
    return {"seconds": run.seconds, "peak_bytes": run.peak_bytes, **case, "phases": phases}
