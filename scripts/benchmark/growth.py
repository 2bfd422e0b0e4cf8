"""The part "growth": how time and memory grow with the slices of a volume, and with the cases of a cohort."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .bundle import Bundle
from .children import run_task
from .cohort import run_copies
from .heads import write_resampled
from .measuring import straight_line

CASES = (1, 2, 4)


def measure_growth(bundle: Bundle, slices: Sequence[int]) -> dict[str, Any]:
    """`measure_slices` as "slices", and where there are weights `measure_cases` as "cases"."""
    measured = {"slices": measure_slices(bundle, slices)}
    return {**measured, "cases": measure_cases(bundle)} if bundle.has_weights else measured


def measure_slices(bundle: Bundle, slices: Sequence[int]) -> dict[str, Any]:
    """Sample the config's volume, repeated along z to each number of slices, each in a process of its own.

    Returns:
        "points": what `scripts.benchmark.tasks.growth` tells; "seconds" and "peak_bytes": straight lines against the
        number of slices; "arrays": bytes that memory grows by with each slice, in slices of the volume in float32.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "source.npy"
        np.save(file, bundle.source[0, 0].numpy())
        asked = {"config_files": bundle.config_files, "volume": str(file), "weights": bundle.has_weights}
        points = [run_task("growth", slices=n, device=str(bundle.device), **asked)[0] for n in slices]
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
