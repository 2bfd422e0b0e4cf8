"""What is measured in a process of its own (see `scripts.benchmark.children.run_task`): one task, one JSON result."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..devices import keep_freed_memory
from ..errors import CaseError
from .bundle import Bundle, Way
from .measuring import peak_memory, seconds_of
from .ways import main_job

PHASES = {"LoadVolumed": "loading", "SkullStripd": "skull strip", "Invertd": "inverse", "SaveSyntheticd": "saving"}
"""Class of a transform -> the phase it makes up; the others are "preprocessing" and "postprocessing"."""


class Steps:
    """Wall times of what is done one after the other."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = device
        self.steps: list[dict[str, Any]] = []

    def add(self, name: str, seconds: float, phase: str) -> None:
        """Note a step that has been timed, and the phase that it belongs to."""
        self.steps.append({"name": name, "phase": phase, "seconds": seconds})

    def timed(self, name: str, phase: str, call: Callable[[], Any]) -> Any:
        """Result of a call, whose time is noted."""
        results = []
        self.add(name, seconds_of(lambda: results.append(call()), self.device), phase)
        return results[0]

    def phases(self) -> dict[str, float]:
        """Phase -> seconds of all its steps."""
        sums: dict[str, float] = {}
        for step in self.steps:
            sums[step["phase"]] = sums.get(step["phase"], 0.0) + step["seconds"]
        return sums


def _main_job_with(settings: dict[str, Any], config_files: Sequence[str], device: str | None) -> Bundle:
    """The main job with some settings of the user, and its way with memory."""
    bundle = Bundle(config_files, device)
    for name, value in settings.items():
        bundle.parser[name] = value
    keep_freed_memory()
    return bundle


def phases(config_files: Sequence[str], settings: dict[str, Any], device: str | None, started: float) -> dict[str, Any]:
    """The main job on every volume of its dataset_dir, one after the other, transform by transform.

    Args:
        config_files: of the main job.
        settings: of the config, such as dataset_dir and output_dir.
        device: where the network runs, None for the config's choice.
        started: when the process was started, s since the epoch.

    Returns:
        "once": phase -> seconds of what comes before the first case; "cases": see `_case`.
    """
    bundle = _main_job_with(settings, config_files, device)
    once = Steps(bundle.device)
    once.add("imports", time.time() - started, "imports")
    way = once.timed("network", "network", lambda: main_job(bundle))
    once.timed("evaluator", "evaluator", lambda: bundle.part("evaluator"))
    return {"once": once.phases(), "cases": [_case(bundle, way, dict(item)) for item in bundle.part("cases")]}


def _case(bundle: Bundle, way: Way, item: dict[str, Any]) -> dict[str, Any]:
    """One case: "steps", name, phase (see `PHASES`) and seconds of each; "phases", their sums; "evaluations" and
    "slices" of the sampling; "shape" and "spacing_mm" of the file's volume."""
    steps = Steps(bundle.device)

    def apply(name: str) -> None:
        nonlocal item
        for transform in bundle.part(name).transforms:
            kind = type(transform).__name__
            item = steps.timed(kind, PHASES.get(kind, name), partial(transform, item))

    apply("preprocessing")
    sampling = steps.timed("sampling", "sampling", lambda: bundle.sample(way, item["image"][None]))
    item["pred"] = sampling.volume[0]
    apply("postprocessing")
    spacing = np.linalg.norm(np.asarray(item["source"].affine)[:3, :3], axis=0)
    return {
        "steps": steps.steps,
        "phases": steps.phases(),
        "evaluations": sampling.evaluations,
        "slices": sampling.volume.shape[-1],
        "shape": list(item["source"].shape[1:]),
        "spacing_mm": spacing.round(3).tolist(),
    }


def cohort(config_files: Sequence[str], settings: dict[str, Any], device: str | None, started: float) -> dict[str, Any]:
    """The main job's evaluator on every volume of its dataset_dir.

    Args:
        config_files: of the main job.
        settings: of the config, such as dataset_dir and output_dir.
        device: where the network runs, None for the config's choice.
        started: when the process was started, s since the epoch.

    Returns:
        "phases": see `CaseEvaluator.seconds`.

    Raises:
        CaseError: a case failed, so that the times are not those of the work.
    """
    bundle = _main_job_with(settings, config_files, device)
    evaluator = bundle.part("evaluator")
    bundle.part("load_weights")
    evaluator.run()
    if evaluator.failures:
        raise CaseError(f"A copy of the sample failed: {evaluator.failures[0]['reason']}")
    return {"phases": dict(evaluator.seconds)}


@torch.no_grad()
def growth(
    config_files: Sequence[str], volume: str, slices: int, weights: bool, device: str | None, started: float
) -> dict[str, Any]:
    """Sampling of a volume that repeats another along z.

    Args:
        config_files: of the main job.
        volume: .npy of (H, W, Z), [0, 1].
        slices: of the repeated one.
        weights: whether the network has weights.
        device: where it runs, None for the config's choice.
        started: when the process was started, s since the epoch.

    Returns:
        "seconds" of sampling; "peak_bytes" of the process (of a GPU's tensors); "volume_bytes" of the volume itself.
    """
    bundle = Bundle(config_files, device, weights)
    keep_freed_memory()
    way, piece = main_job(bundle), np.load(volume)
    source = torch.from_numpy(np.take(piece, np.arange(slices) % piece.shape[-1], axis=-1))[None, None]
    # what happens once only happens here
    bundle.sample(way, source[..., : bundle.default_batch_size()])
    seconds = seconds_of(lambda: bundle.sample(way, source), bundle.device)
    gpu = bundle.device.type == "cuda"
    peak = torch.cuda.max_memory_allocated(bundle.device) if gpu else peak_memory()
    return {"slices": slices, "seconds": seconds, "peak_bytes": peak, "volume_bytes": source.nbytes}


TASKS = {"phases": phases, "cohort": cohort, "growth": growth}


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    task, result = TASKS[asked.pop("task")], Path(asked.pop("result"))
    result.write_text(json.dumps(task(**asked)), encoding="utf-8")
