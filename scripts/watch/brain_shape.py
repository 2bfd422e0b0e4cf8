"""Whether a brain lies as its header says, by its shape: front, back, top and sides of a brain are unlike.

A brain is longer than wide, its sides mirror each other, its occipital end is blunter than its frontal one, and the
cerebellum hangs below its back. Moments of the brain's mask up to the third order say so: under a wrong orientation
they are those of other axes. The orientation is chosen under which they are the likeliest. Left and right look alike.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

__all__ = ["ShapeOrientation", "moments_of", "orientation_by_shape"]

MOMENTS_FILE = Path(__file__).with_name("brain_shape.json")
MOST_POINTS = 5_000
# Orders along x, y and z of the moments; with those of odd order in x last, which are 0 in a symmetric brain.
EVEN = ((2, 1, 0), (2, 0, 1), (0, 3, 0), (0, 2, 1), (0, 1, 2), (0, 0, 3), (0, 1, 1))
ODD = ((3, 0, 0), (1, 2, 0), (1, 1, 1), (1, 0, 2), (1, 1, 0), (1, 0, 1))


@dataclass(frozen=True)
class ShapeOrientation:
    """How a brain lies by its shape.

    Attributes:
        front: axis (1, 2, 3 for x, y, z) to which the forehead points, negative where it points against it; 2 is right.
        top: the same of the crown; 3 is right.
        margin: how much likelier this is than what the header says, as a logarithm; 0 where it is the same.
        log_likelihood: of this orientation, up to a constant; low where the mask is hardly a whole brain's.
    """

    front: int
    top: int
    margin: float
    log_likelihood: float


def moments_of(points: np.ndarray) -> np.ndarray:
    """Moments of a brain, (15,): two ratios of lengths as logarithms, then `EVEN` and `ODD`, each axis in its own unit.

    Args:
        points: (N, 3), mm.
    """
    centred = points - points.mean(axis=0)
    spread = centred.std(axis=0)
    powers = (centred / spread)[..., None] ** np.arange(4)
    orders = (*EVEN, *ODD)
    mixed = [np.mean(powers[:, 0, i] * powers[:, 1, j] * powers[:, 2, k]) for i, j, k in orders]
    return np.array([np.log(spread[0] / spread[1]), np.log(spread[2] / spread[1]), *mixed])


def orientation_by_shape(mask: np.ndarray, affine: np.ndarray) -> ShapeOrientation | None:
    """The orientation that suits a brain best.

    Args:
        mask: (H, W, Z) bool.
        affine: (4, 4), voxel to RAS mm as the header says.

    Returns:
        None where the mask has too few voxels to have a shape.
    """
    places = np.flatnonzero(mask)
    places = places[:: max(1, len(places) // MOST_POINTS)]
    voxels = np.transpose(np.unravel_index(places, mask.shape))
    if len(voxels) < 1000 or not np.ptp(voxels, axis=0).all():
        return None
    points = voxels @ np.asarray(affine, dtype=np.float64)[:3, :3].T
    best, found = None, []
    for order in itertools.permutations(range(3)):
        for front, top in itertools.product((1, -1), repeat=2):
            likelihood = _log_likelihood(points[:, order] * (1, front, top))
            found.append((likelihood, front * (order[1] + 1), top * (order[2] + 1)))
    best = max(found)
    as_stored = next(likelihood for likelihood, front, top in found if (front, top) == (2, 3))
    return ShapeOrientation(best[1], best[2], best[0] - as_stored, best[0])


def _log_likelihood(points: np.ndarray) -> float:
    mean, precision = _usual()
    away = moments_of(points) - mean
    return float(-0.5 * away @ precision @ away)


@cache
def _usual() -> tuple[np.ndarray, np.ndarray]:
    """Mean and inverse covariance of the moments of 55 brains of adults, each turned and cropped a little at random."""
    stored = json.loads(MOMENTS_FILE.read_text(encoding="utf-8"))
    return np.array(stored["mean"]), np.linalg.inv(np.array(stored["covariance"]))
