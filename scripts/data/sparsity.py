"""Sparse scans for training: which slices of a dense volume a slab is given, and what fills the places between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import CaseError
from ..slabs import missing_share
from ..volumes.separable import averaging_matrices, interpolation_matrices

Distances = int | Sequence[float]
"""Of acquired slices, in slices of the volume: a whole number k is every k-th slice as it is; a pair (low, high) is a
real scan, whose slices are any distance apart, drawn between the two, and up to that thick."""

_LEAST_SEEN = 0.05
"""Share of a filled voxel that has to come from inside the brain."""


def check_sparsity(sparsity: Sequence[Distances]) -> tuple[Distances, ...]:
    """`sparsity` as a tuple.

    Raises:
        CaseError: distances below one slice, or no such list.
    """
    known = []
    for one in sparsity if isinstance(sparsity, list | tuple) else [None]:
        pair = isinstance(one, list | tuple) and len(one) == 2 and 0 < one[0] < one[1]
        if not pair and not (isinstance(one, int) and one >= 1):
            raise CaseError(
                f"sparsity is {sparsity!r}; give a list of whole numbers from 1 (each slice, every second one, ...) "
                "and of pairs [least, most] of distances, in slices."
            )
        known.append(tuple(map(float, one)) if pair else one)
    if not known:
        raise CaseError("sparsity is empty; give [1] for dense scans.")
    return tuple(known)


@dataclass(frozen=True)
class SparseScan:
    """Where the acquired slices of a scan lie along z.

    Attributes:
        distance: from one to the next, in slices of the volume; 1 at phase 0 is the volume itself.
        phase: where the first one lies, 0 to `distance`.
        thickness: what a slice averages over, in slices of the volume; below 1 is one slice.
    """

    distance: float = 1.0
    phase: float = 0.0
    thickness: float = 0.0

    @classmethod
    def draw(cls, rng: np.random.Generator, sparsity: Sequence[Distances]) -> SparseScan:
        """One of `sparsity`, each as likely, with a random phase."""
        chosen = sparsity[int(rng.integers(len(sparsity)))]
        if isinstance(chosen, int):
            return cls(float(chosen), float(rng.integers(chosen)))
        low, high = np.log(chosen)
        distance = float(np.exp(rng.uniform(low, high)))
        # most real slices touch, some leave gaps
        thickness = distance * (1.0 if rng.random() < 0.6 else rng.uniform(0.2, 1.0))
        return cls(distance, distance * rng.random(), thickness)

    @property
    def is_dense(self) -> bool:
        """Whether all slices are there as they are."""
        return self.distance == 1 and self.thickness <= 1 and self.phase % 1 == 0

    def centres(self, count: int) -> np.ndarray:
        """(K,) places of the acquired slices of a volume of `count` slices, in slices; two at least."""
        first = self.phase % self.distance
        centres = np.arange(first, count - 1 + 1e-6, self.distance)
        return centres if len(centres) > 1 else first + self.distance * np.arange(2)

    def reading(self, places: np.ndarray, count: int) -> np.ndarray:
        """(len(places), count) float32: from the volume's slices to what a sparse scan shows at these.

        Between acquired slices it is linear, beyond the first and the last constant.
        """
        centres = self.centres(count)
        averages = averaging_matrices(centres, np.full(len(centres), max(self.thickness, 1.0)), count)
        return (interpolation_matrices(centres, count)[places] @ averages).astype(np.float32)

    def missing(self, places: np.ndarray, count: int) -> np.ndarray:
        """(len(places),) float32, see `missing_share`; beyond the volume's ends as there."""
        distance = np.abs(places.clip(0, count - 1)[:, None] - self.centres(count)).min(axis=1)
        return missing_share(distance).astype(np.float32)


def filled_slab(volume: np.ndarray, inside: np.ndarray, reading: np.ndarray, within: np.ndarray) -> np.ndarray:
    """What a sparse scan shows at some places of a volume, packed or floating, of its type.

    As in a scan whose brain was cut out of it, what is outside of the brain is not mixed in.

    Args:
        volume: (C, Z, H, W), whose background is 0.
        inside: (Z, H, W) bool.
        reading: (K, Z), from `SparseScan.reading`.
        within: (K, H, W) bool: the brain at these places.

    Returns:
        (C, K, H, W); 0 beyond `within`, and where hardly anything of the brain was seen.
    """
    used = np.flatnonzero(reading.any(axis=0))
    rows, brain = reading[:, used], inside[used]
    total = np.tensordot(rows, brain.astype(np.float32), 1)
    mixed = np.stack(
        [np.tensordot(rows, np.where(brain, channel[used], 0).astype(np.float32), 1) for channel in volume]
    )
    filled = np.divide(mixed, total, out=np.zeros_like(mixed), where=within & (total > _LEAST_SEEN))
    return (filled if np.issubdtype(volume.dtype, np.floating) else np.rint(filled)).astype(volume.dtype)
