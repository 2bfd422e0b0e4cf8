"""The parts that run the main job on whole volumes: one by one, on ever more slices and cases, and on a cohort."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.processing import resample_to_output

from ..data.datalists import inference_datalist
from .bundle import Bundle
from .measuring import straight_line
from .tasks import Run, main_job, run_task

_NOISE = 4.0
"""HU, standard deviation: a scan is not as smooth, nor its file as small, as a volume that was interpolated."""
CASES = (1, 2, 4)
"""Numbers of cases of the part "growth"."""
COMPUTING = ("preprocessing", "sampling")
"""Phases of a case that are its computing: skull strip, resampling and intensities; the network."""


def measure_volumes(bundle: Bundle, dataset_dir: str | None = None, spacing: float = 1.0) -> list[dict[str, Any]]:
    """Run the main job on the config's sample at `spacing`, then on each volume of a folder.

    Args:
        bundle: what is measured.
        dataset_dir: volumes of the user's own, None for none.
        spacing: edge of the voxels of the resampled sample, mm.

    Returns:
        for each volume "name" (never a file's), "seconds" of wall time and "peak_bytes" of the main job, and what
        `tasks.phases` measures of it; "rest" is what the wall time has beyond the phases.
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
    steps, _ = run_task("phases", config_files=bundle.config_files, settings=settings, device=str(bundle.device))
    case = steps["cases"][0]
    phases = {**steps["once"], **case["phases"]}
    phases["rest"] = run.seconds - sum(phases.values())
    return {"seconds": run.seconds, "peak_bytes": run.peak_bytes, **case, "phases": phases}


def measure_growth(bundle: Bundle, slices: Sequence[int]) -> dict[str, Any]:
    """`measure_slices` as "slices", and where there are weights `measure_cases` as "cases"."""
    measured = {"slices": measure_slices(bundle, slices)}
    return {**measured, "cases": measure_cases(bundle)} if bundle.has_weights else measured


def measure_slices(bundle: Bundle, slices: Sequence[int]) -> dict[str, Any]:
    """Sample the config's volume, repeated along z to each number of slices, each in a process of its own.

    Returns:
        "points": of `tasks.growth`; "seconds" and "peak_bytes": straight lines against the
        number of slices; "arrays": bytes that memory grows by with each slice, in slices of the volume in float32.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "source.npy"
        np.save(file, bundle.source[0, 0].numpy())
        arguments = {"config_files": bundle.config_files, "volume": str(file), "weights": bundle.has_weights}
        points = [run_task("growth", slices=n, device=str(bundle.device), **arguments)[0] for n in slices]
    lines = {key: straight_line(slices, [point[key] for point in points]) for key in ("seconds", "peak_bytes")}
    slice_bytes = points[0]["volume_bytes"] / points[0]["slices"]
    return {"points": points, **lines, "arrays": lines["peak_bytes"]["slope"] / slice_bytes}


def measure_cases(bundle: Bundle, numbers: Sequence[int] = CASES, spacing: float = 1.0) -> dict[str, Any]:
    """The main job on a folder with each number of copies of the config's sample at `spacing`, mm.

    Returns:
        "points": cases, seconds and peak_bytes of each; "seconds" and "peak_bytes": straight lines against the cases.
    """
    points = []
    with tempfile.TemporaryDirectory() as folder:
        head = write_resampled(bundle.part("cases")[0]["image"], Path(folder) / "head.nii.gz", spacing)
        for n in numbers:
            run = run_copies(bundle, head, n, Path(folder) / str(n))
            points.append({"cases": n, "seconds": run.seconds, "peak_bytes": run.peak_bytes})
    lines = {key: straight_line(numbers, [point[key] for point in points]) for key in ("seconds", "peak_bytes")}
    return {"points": points, **lines}


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
        arguments = {"config_files": bundle.config_files, "settings": settings, "device": str(bundle.device)}
        measured, run = run_task("cohort", **arguments)
    seconds = measured["phases"].pop("run")
    computing = sum(measured["phases"][phase] for phase in COMPUTING)
    return {
        "cases": cases,
        "phases": measured["phases"],
        "seconds": seconds,
        "peak_bytes": run.peak_bytes,
        "computing": computing,
        "overhead": seconds / computing,
    }


def write_resampled(source: str | os.PathLike, path: str | os.PathLike, spacing: float = 1.0) -> Path:
    """A head CT on a finer grid, as a scanner stores one: int16, with noise (seed 0).

    Args:
        source: CT in HU.
        path: NIfTI file to write.
        spacing: edge of its voxels, mm.
    """
    resampled = resample_to_output(nib.load(source), (spacing,) * 3, order=1, cval=-1000)
    hu = resampled.get_fdata(dtype=np.float32)
    hu = np.clip(hu + np.random.default_rng(0).normal(0, _NOISE, hu.shape), -1024, 3071)
    nib.save(nib.Nifti1Image(hu.round().astype(np.int16), resampled.affine), path)
    return Path(path)


def copies(path: Path, folder: Path, number: int) -> Path:
    """A folder with a volume under several names; links, so that it takes no room."""
    folder.mkdir(parents=True)
    for n in range(number):
        os.link(path, folder / f"case_{n:03d}.nii.gz")
    return folder
