"""Where it was measured, without what names the machine or its user, and what the machine can do at most."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from .measuring import alternate, memory_there_is

PACKAGES = ("torch", "monai", "numpy")
SIZE = 4096
"""Rows and columns of the matrices whose product is the limit, to which everything else is compared."""
DTYPES = (torch.float32, torch.bfloat16)


def machine(device: torch.device) -> dict[str, Any]:
    """Processor, cores, threads, memory and GPU."""
    gpu = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "memory_bytes": memory_there_is(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": device.type,
        "gpu": gpu and gpu.name,
        "gpu_memory_bytes": gpu and gpu.total_memory,
        # of convolutions; where it is True, float32 on a GPU is faster than its matrix product and less exact
        "tf32_convolutions": gpu and torch.backends.cudnn.allow_tf32,
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that compute."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def _processor() -> str:
    """Name of the processor as Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def matrix_products(device: torch.device, dtypes: Sequence[torch.dtype] = DTYPES) -> dict[str, Callable[[], Any]]:
    """Floating type -> a product of two matrices of that type, called once already."""
    generator = torch.Generator().manual_seed(0)
    calls = {}
    for dtype in dtypes:
        a, b = (torch.randn(SIZE, SIZE, generator=generator).to(device, dtype) for _ in range(2))
        calls[name_of(dtype)] = partial(torch.matmul, a, b)
        calls[name_of(dtype)]()
    return calls


def name_of(dtype: torch.dtype) -> str:
    """A floating type as tables call it, such as "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def rates(seconds: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Floating type -> FLOP per second (2 for each multiplication with its sum), from the times of its products."""
    types = {
        name: {"flop_per_second": 2 * SIZE**3 / statistics.median(times), "seconds": list(times)}
        for name, times in seconds.items()
    }
    return {"size": SIZE, "products": types}


def measure_limit(device: torch.device, rounds: int) -> dict[str, Any]:
    """The part "limit" alone: `rates` of products that take turns."""
    return rates(alternate(matrix_products(device), rounds, device))
