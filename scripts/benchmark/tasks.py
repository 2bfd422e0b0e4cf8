"""What is measured in a process of its own, with its wall time and peak memory: the main job, and parts of it.

A part is a function of `TASKS`. Each takes `config_files` of the main job, `device`, where the network runs, None for
the config's choice, and `started`, when its process was started, s since the epoch; some take `settings` of the config,
such as dataset_dir and output_dir. Each returns JSON values.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..devices import keep_freed_memory
from ..errors import CaseError
from ..workflow import bundle_root
from . import rows
from .bundle import Bundle, Way
from .measuring import peak_memory, seconds_of

_LAUNCHER = Path(__file__).with_name("launcher.py")
PHASES = {"LoadVolumed": "loading", "SkullStripd": "skull strip", "Invertd": "inverse", "SaveSyntheticd": "saving"}
"""Class of a transform -> the phase it makes up; the others are "preprocessing" and "postprocessing"."""


@dataclass(frozen=True)
class Run:
    """A command that has ended well.

    Attributes:
        seconds: of wall time, from its start to its end.
        peak_bytes: the most memory it had at once.
    """

    seconds: float
    peak_bytes: int


def run_measured(command: Sequence[str], name: str) -> Run:
    """Run a command in the bundle's folder, without output.

    Args:
        command: program and arguments.
        name: what it is called where it fails.

    Raises:
        CaseError: it ended with another status than 0; the error has its last line.
    """
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "figures.json"
        launched = [sys.executable, "-I", "-S", str(_LAUNCHER), str(figures), *command]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([bundle_root(), os.environ.get("PYTHONPATH", "")])}
        ended = subprocess.run(
            launched, cwd=bundle_root(), env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        if ended.returncode:
            lines = (ended.stderr or ended.stdout).strip().splitlines()
            raise CaseError(f"{name} could not be measured; it ended with: {lines[-1] if lines else ended.returncode}")
        return Run(**json.loads(figures.read_text(encoding="utf-8")))


def main_job(config_files: Sequence[str], settings: Mapping[str, str]) -> Run:
    """The bundle's main job as a user types it.

    Args:
        config_files: absolute paths.
        settings: options, such as dataset_dir.
    """
    options = [word for name, value in settings.items() for word in (f"--{name}", value)]
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(list(config_files)), *options]
    return run_measured(command, "The main job")


def run_task(task: str, **arguments: Any) -> tuple[dict[str, Any], Run]:
    """One of `TASKS` in a process of its own, and what it gives.

    Args:
        task: name of the function.
        arguments: of the function, JSON values; it also gets `started`, the time of the process's start.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        call = json.dumps({"task": task, "result": str(result), "started": time.time(), **arguments})
        run = run_measured([sys.executable, "-m", "scripts.benchmark.tasks", call], f"The task {task}")
        return json.loads(result.read_text(encoding="utf-8")), run


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

    Returns:
        "once": phase -> seconds of what comes before the first case; "cases": see `_case`.
    """
    bundle = _main_job_with(settings, config_files, device)
    once = Steps(bundle.device)
    once.add("imports", time.time() - started, "imports")
    way = once.timed("network", "network", lambda: rows.main_job(bundle))
    once.timed("evaluator", "evaluator", lambda: bundle.part("evaluator"))
    return {"once": once.phases(), "cases": [_case(bundle, way, dict(item)) for item in bundle.part("cases")]}


def _case(bundle: Bundle, way: Way, item: dict[str, Any]) -> dict[str, Any]:
    """One case: "steps", name, phase (see `PHASES`) and seconds of each; "phases", their sums; "evaluations" and
    "slices" of the sampling; "shape" and "spacing_mm" of the file's volume."""
    steps = Steps(bundle.device)

    def apply(name: str) -> None:
        nonlocal item
        for transform in bundle.part(name).flatten().transforms:
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
        volume: .npy of (H, W, Z), [0, 1].
        slices: of the repeated one.
        weights: whether the network has weights.

    Returns:
        "seconds" of sampling; "peak_bytes" of the process (of a GPU's tensors); "volume_bytes" of the volume itself.
    """
    bundle = Bundle(config_files, device, weights)
    keep_freed_memory()
    way, piece = rows.main_job(bundle), np.load(volume)
    source = torch.from_numpy(np.take(piece, np.arange(slices) % piece.shape[-1], axis=-1))[None, None]
    # what happens once only happens here
    bundle.sample(way, source[..., : bundle.default_batch_size()])
    seconds = seconds_of(lambda: bundle.sample(way, source), bundle.device)
    gpu = bundle.device.type == "cuda"
    peak = torch.cuda.max_memory_allocated(bundle.device) if gpu else peak_memory()
    return {"slices": slices, "seconds": seconds, "peak_bytes": peak, "volume_bytes": source.nbytes}


TASKS = {"phases": phases, "cohort": cohort, "growth": growth}


if __name__ == "__main__":
    call = json.loads(sys.argv[1])
    task, result = TASKS[call.pop("task")], Path(call.pop("result"))
    result.write_text(json.dumps(task(**call)), encoding="utf-8")
