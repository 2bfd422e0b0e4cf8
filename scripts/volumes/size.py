"""Volumes that are too large to work on are refused before they are read."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ..devices import available_memory
from ..errors import CaseError

__all__ = ["check_size"]

BYTES_A_VOXEL = 20  # measured of the whole translation at its peak
MOST_BYTES = 4 * 2**30
BASE_BYTES = 2**29  # network and slabs


def check_size(shape: Sequence[int], name: str, most: int = MOST_BYTES) -> None:
    """Refuse a volume that would take more memory than there is, or than a head scan should.

    Args:
        shape: of the voxels, from the header.
        name: how the sentence calls the volume.
        most: bytes that a volume may take, however many are free.

    Raises:
        CaseError: it would.
    """
    if min(shape, default=0) < 1:
        raise CaseError(
            f"{name} has {_by(shape)} voxels by its header, which is no size; repair the header, or export it again."
        )
    needed = BYTES_A_VOXEL * math.prod(int(n) for n in shape)
    free = available_memory(torch.device("cpu"))
    limit = most if free is None else min(most, max(free - BASE_BYTES, BASE_BYTES))
    if needed > limit:
        raise CaseError(
            f"{name} has {_by(shape)} voxels, which would take about "
            f"{needed / 2**30:.1f} GB of memory where {limit / 2**30:.1f} GB can be had; resample it to larger voxels, "
            "or cut it to the head."
        )


def _by(shape: Sequence[int]) -> str:
    return " x ".join(str(int(n)) for n in shape)
