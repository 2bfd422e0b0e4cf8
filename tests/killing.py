"""Work in a process that is killed at random moments and started again, until it is done."""

import contextlib
import copy
import importlib
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path

import itk
import numpy as np
import torch
from monai.bundle import run

from scripts.processes import with_own_locks

_CONTEXT = multiprocessing.get_context("forkserver")
_PARTS = ("scripts.cohort.cases", "scripts.data.datalists", "scripts.transforms.steps")  # the config imports them
_PREPARE = "scripts.prepare.command"
_CONTEXT.set_forkserver_preload([__name__, *_PARTS, _PREPARE])


def translate_all(config_file: str, settings: dict) -> None:
    """The main job."""
    run(config_file=config_file, logging_file=False, **copy.deepcopy(settings))


def prepare_all(table: str, output: str, options: dict) -> None:
    """`python -m scripts prepare`, in one process: others would take seconds to start."""
    importlib.import_module(_PREPARE).prepare("csv", table, output, num_workers=0, **options)


def done_with_kills(work: Callable[..., None], arguments: tuple, waits: list[float], look: Callable[[], None]) -> int:
    """Start `work` and kill it (SIGKILL) after each of the waits, s; then let it end. How often it was killed at work.

    Args:
        work: of this module.
        arguments: of it.
        waits: from the first thing that a process does to its end.
        look: called while no process runs.
    """
    killed = 0
    for wait in [*waits, None]:
        process = started(work, *arguments)
        if wait is not None:
            time.sleep(wait)
            killed += process.is_alive()
            process.kill()
        process.join(600)
        assert process.exitcode is not None, "it hangs"
        look()
    return killed


def started(work: Callable[..., None], *arguments: object) -> multiprocessing.process.BaseProcess:
    """A process that has begun with `work`, a function of a module."""
    begun = _CONTEXT.Event()
    process = _CONTEXT.Process(target=_work, args=(work, arguments, begun))
    process.start()
    assert begun.wait(120)
    return process


def _work(work: Callable[..., None], arguments: tuple, begun: multiprocessing.Event) -> None:
    torch.set_num_threads(1)
    with_own_locks()
    itk.MultiThreaderBase.SetGlobalMaximumNumberOfThreads(1)  # its threads do not survive the fork
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        begun.set()
        work(*arguments)


def contents(folder: Path) -> dict[str, bytes]:
    """Path below a folder -> bytes of each file in it, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def random_waits(number: int, longest: float, seed: int) -> list[float]:
    """Waits of up to `longest` s; most are short, because saving takes little of the time of a case."""
    return list(np.random.default_rng(seed).uniform(0.02, longest, number))
