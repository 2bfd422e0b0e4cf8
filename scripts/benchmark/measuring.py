"""How things are measured: alternating clocks, FLOP, memory, a straight line, and how alike two results are."""

from __future__ import annotations

import ctypes
import gc
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.metrics import PSNRMetric
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

_PROCESS = Path("/proc/self")  # of Linux; elsewhere the memory of a call is not known


def synchronize(device: torch.device | str) -> None:
    """Wait until a GPU has done what it was asked; a CPU has done it already."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(call: Callable[[], Any], device: torch.device | str = "cpu") -> float:
    """Wall time of one call, s, the GPU's work included."""
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - start


def alternate(
    calls: Mapping[str, Callable[[], Any]], rounds: int, device: torch.device | str = "cpu"
) -> dict[str, list[float]]:
    """Wall times of calls that take turns, so that what else the machine does falls on all of them alike.

    Args:
        calls: name -> what is timed; each has been called before, so that nothing is timed that happens once only.
        rounds: times that each is called.
        device: where they compute.

    Returns:
        name -> seconds, one for each round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            seconds[name].append(seconds_of(call, device))
    return seconds


def times_faster(baseline: Sequence[float], seconds: Sequence[float]) -> dict[str, float]:
    """How many times faster than the baseline, round by round: median, lowest and highest."""
    ratios = [a / b for a, b in zip(baseline, seconds, strict=True)]
    return {"median": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}


def count_flop(call: Callable[[], Any]) -> int:
    """Floating point operations of a call's matrix products and convolutions; a multiplication with its sum is two."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def memory_of(call: Callable[[], Any], device: torch.device | str = "cpu") -> tuple[Any, int | None]:
    """Result of a call, and how many bytes the memory rose during it at most.

    On a GPU these are PyTorch's tensors, on a CPU the process's pages (Linux; elsewhere None).
    """
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = call()
        synchronize(device)
        return result, torch.cuda.max_memory_allocated(device) - before
    try:
        ctypes.CDLL(None).malloc_trim(0)  # pages that are free already would hide what the call takes
        (_PROCESS / "clear_refs").write_text("5")  # from here on, the peak is counted anew
    except (OSError, AttributeError):
        return call(), None
    before = peak_memory()
    result = call()
    return result, peak_memory() - before


def peak_memory() -> int:
    """The most bytes of memory that this process has had so far (Linux)."""
    lines = (_PROCESS / "status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def memory_there_is() -> int:
    """Bytes of the machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def psnr(result: Tensor, reference: Tensor) -> float:
    """Peak signal-to-noise ratio in dB; the peak is the reference's range. Infinite where both are the same."""
    result, reference = (a.detach().double().cpu() for a in (result, reference))
    span = float(reference.max() - reference.min())
    return float(PSNRMetric(max_val=span or 1.0)(result[None], reference[None]))


def straight_line(x: Sequence[float], y: Sequence[float]) -> dict[str, float]:
    """Least squares y = intercept + slope x, and the largest deviation from it as a share of y."""
    slope, intercept = np.polyfit(x, y, 1)
    deviation = max(abs(b - (intercept + slope * a)) / b for a, b in zip(x, y, strict=True))
    return {"slope": float(slope), "intercept": float(intercept), "deviation": float(deviation)}


def as_json(value: Any) -> Any:
    """Values as JSON takes them: it has no infinity, which the PSNR of a result with itself is; it becomes None."""
    if isinstance(value, Mapping):
        return {str(name): as_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
