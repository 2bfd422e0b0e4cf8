"""Commands as processes of their own, with their wall time and peak memory: the main job, and parts of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CaseError
from ..workflow import bundle_root

_LAUNCHER = Path(__file__).with_name("launcher.py")


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
        CaseError: it ended with another status than 0; its last line is told.
    """
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "figures.json"
        launched = [sys.executable, "-I", "-S", str(_LAUNCHER), str(figures), *command]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([bundle_root(), os.environ.get("PYTHONPATH", "")])}
        ended = subprocess.run(
            launched, cwd=bundle_root(), env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        if ended.returncode:
            said = (ended.stderr or ended.stdout).strip().splitlines()
            raise CaseError(f"{name} could not be measured; it ended with: {said[-1] if said else ended.returncode}")
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
    """A task of `scripts.benchmark.tasks` in a process of its own, and what it gives.

    Args:
        task: name of the function.
        arguments: of the function, JSON values; it also gets `started`, the time of the process's start.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        asked = json.dumps({"task": task, "result": str(result), "started": time.time(), **arguments})
        run = run_measured([sys.executable, "-m", "scripts.benchmark.tasks", asked], f"The task {task}")
        return json.loads(result.read_text(encoding="utf-8")), run
