"""What the machine can do at most: a large matrix product, to which everything else is compared."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from .measuring import alternate

SIZE = 4096
"""Rows and columns of the matrices."""
DTYPES = (torch.float32, torch.bfloat16)


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
