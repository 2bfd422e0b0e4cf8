"""The part "cohort": many cases in one run of the main job, against the sum of what they have to compute."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

from scripts.benchmark.bundle import Bundle
from scripts.benchmark.children import Run, main_job, run_task
from scripts.benchmark.heads import copies, write_resampled

OVERLAPPED = ("loading", "saving")
"""Phases of a case that another case's computing can hide."""
ALONE = 3
"""Cases that are timed step by step; the first of a run is slower than the others."""


def run_copies(bundle: Bundle, head: Path, number: int, folder: Path) -> Run:
    """The main job on copies of a volume; `folder` is made, and holds them and the outputs."""
    dataset_dir = copies(head, folder / "cases", number)
    settings = {"dataset_dir": dataset_dir, "output_dir": folder / "outputs", "device": bundle.device}
    return main_job(bundle.config_files, {name: str(value) for name, value in settings.items()})


def measure_cohort(bundle: Bundle, cases: int, spacing: float = 1.0) -> dict[str, Any]:
    """Run the main job on copies of the config's sample at `spacing`, mm, and some of them step by step.

    Returns:
        "cases"; "seconds" and "peak_bytes" of the run; "once", seconds of what a run does before its first case;
        "computing", seconds of what all cases have to compute, from those done step by step; "overhead", what the run
        took beyond "once", by "computing".
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        head = write_resampled(bundle.part("cases")[0]["image"], folder / "head.nii.gz", spacing)
        settings = {"dataset_dir": str(copies(head, folder / "some", ALONE)), "output_dir": str(folder / "alone")}
        alone = {"config_files": bundle.config_files, "settings": settings, "device": str(bundle.device)}
        told, _ = run_task("phases", **alone)
        run = run_copies(bundle, head, cases, folder / "all")
    once = sum(told["once"].values())
    first, *others = (
        sum(seconds for phase, seconds in case["phases"].items() if phase not in OVERLAPPED) for case in told["cases"]
    )
    computing = first + (cases - 1) * statistics.mean(others)
    return {
        "cases": cases,
        "seconds": run.seconds,
        "peak_bytes": run.peak_bytes,
        "step_by_step": told,
        "once": once,
        "computing": computing,
        "overhead": (run.seconds - once) / computing,
    }
