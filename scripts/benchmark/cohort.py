"""The part "cohort": many cases in one run of the main job, against the sum of what they have to compute."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from .bundle import Bundle
from .children import Run, main_job, run_task
from .heads import copies, write_resampled

COMPUTING = ("preprocessing", "sampling")
"""Phases of a case that are its computing: skull strip, resampling and intensities; the network."""


def run_copies(bundle: Bundle, head: Path, number: int, folder: Path) -> Run:
    """The main job on copies of a volume; `folder` is made, and holds them and the outputs."""
    dataset_dir = copies(head, folder / "cases", number)
    settings = {"dataset_dir": dataset_dir, "output_dir": folder / "outputs", "device": bundle.device}
    return main_job(bundle.config_files, {name: str(value) for name, value in settings.items()})


def measure_cohort(bundle: Bundle, cases: int, spacing: float = 1.0) -> dict[str, Any]:
    """Run the main job's evaluator on copies of the config's sample at `spacing`, mm, in a process of its own.

    Returns:
        "cases"; "phases", seconds of each phase of all cases, as the evaluator of that very run counts them;
        "seconds" from the first case to the last; "peak_bytes" of the process; "computing", seconds of `COMPUTING`;
        "overhead", the first by the last.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        head = write_resampled(bundle.part("cases")[0]["image"], folder / "head.nii.gz", spacing)
        settings = {"dataset_dir": str(copies(head, folder / "cases", cases)), "output_dir": str(folder / "outputs")}
        asked = {"config_files": bundle.config_files, "settings": settings, "device": str(bundle.device)}
        told, run = run_task("cohort", **asked)
    seconds = told["phases"].pop("run")
    computing = sum(told["phases"][phase] for phase in COMPUTING)
    return {
        "cases": cases,
        "phases": told["phases"],
        "seconds": seconds,
        "peak_bytes": run.peak_bytes,
        "computing": computing,
        "overhead": seconds / computing,
    }
