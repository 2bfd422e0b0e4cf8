"""Where it was measured; nothing that names the machine or its user."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from .measuring import memory_there_is

PACKAGES = ("torch", "monai", "numpy")


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
