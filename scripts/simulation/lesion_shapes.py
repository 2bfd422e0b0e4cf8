"""Shapes of lesions: smooth random fields, cut where they enclose a given volume, in a brain of known tissue.

A score (mm, higher inside) is a distance to a centre, an axis or the ventricles, made ragged by a random field of
several scales. It is cut at the level that encloses the volume asked for, so that sizes are mm whatever the voxels are.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from scipy import ndimage

from ..volumes.separable import apply_along_axes, gaussian_matrix
from .ct_anatomy import Anatomy, midsagittal_distance
from .tissue import CSF, DEEP_GREY, GREY, WHITE

Box = tuple[slice, slice, slice]


def smoothed(volume: np.ndarray, spacing_mm: Sequence[float], sigma_mm: float) -> np.ndarray:
    """Isotropic Gaussian smoothing of (H, W, Z)."""
    matrices = [gaussian_matrix(n, sigma_mm / s) for n, s in zip(volume.shape, spacing_mm, strict=True)]
    return apply_along_axes(np.asarray(volume, np.float32), matrices)


def fractal_field(
    rng: np.random.Generator,
    shape: Sequence[int],
    spacing_mm: Sequence[float],
    scale_mm: float,
    num_octaves: int = 3,
    roughness: float = 0.5,
) -> np.ndarray:
    """Isotropic random field, float32, mean 0 and standard deviation 1.

    Args:
        rng: random numbers.
        shape: of the field.
        spacing_mm: voxel size.
        scale_mm: Gaussian standard deviation of the coarsest of its scales; each next one is half as wide.
        num_octaves: number of scales; those finer than half a voxel are left out.
        roughness: amplitude of a scale relative to the next coarser one.
    """
    field = np.zeros(shape, np.float32)
    for octave in range(num_octaves):
        sigma = scale_mm / 2**octave
        if octave and sigma < min(spacing_mm) / 2:
            break
        part = smoothed(rng.standard_normal(shape, dtype=np.float32), spacing_mm, sigma)
        field += roughness**octave * part / max(float(part.std()), 1e-6)
    field -= field.mean()
    return field / max(float(field.std()), 1e-6)


def ball_volume(diameter_mm: float) -> float:
    """mm^3 of a ball."""
    return np.pi / 6 * diameter_mm**3


def cut_at_volume(
    score: np.ndarray, allowed: np.ndarray, volume_mm3: float, voxel_mm3: float, softness_mm: float
) -> np.ndarray:
    """Share of each voxel, [0, 1], that lies where the score is high; 0 where it is not allowed.

    Args:
        score: (H, W, Z) mm.
        allowed: share of each voxel that the lesion may take, [0, 1].
        volume_mm3: to be enclosed; what is allowed is taken whole where there is less.
        voxel_mm3: volume of a voxel.
        softness_mm: the share falls from 1 to 0 over this much of the score.
    """
    inside = score[allowed > 0.5]
    if not inside.size:
        return np.zeros_like(score)
    count = min(max(round(volume_mm3 / voxel_mm3), 1), inside.size)
    level = np.partition(inside, inside.size - count)[inside.size - count]
    return (np.clip((score - level) / softness_mm + 0.5, 0, 1) * allowed).astype(np.float32)


class Brain:
    """A T1 volume with what lesions need to know of it.

    Args:
        t1: (H, W, Z) float32, [0, 1].
        tissue: (4, H, W, Z) fractions of CSF, cortical grey, white, deep grey matter.
        mask: (H, W, Z), the brain.
        spacing_mm: voxel size.

    Raises:
        ValueError: the mask is empty.
    """

    def __init__(self, t1: np.ndarray, tissue: np.ndarray, mask: np.ndarray, spacing_mm: Sequence[float]) -> None:
        self.t1, self.tissue, self.mask, self.spacing_mm = t1, tissue, mask > 0, tuple(spacing_mm)
        self.anatomy = Anatomy(tissue, self.mask.astype(np.float32), spacing_mm)
        self.coordinates = self.anatomy.coordinates
        self.voxel_mm3 = float(np.prod(spacing_mm))
        self.middle = np.argwhere(self.mask).mean(0)

    @cached_property
    def levels(self) -> tuple[float, float, float]:
        """T1 signal of fluid, grey and white matter: medians of pure voxels, else percentiles of the brain.

        Most of the fluid in a stripped brain shares its voxels with cortex, so its 20th percentile is taken instead.
        """
        levels = []
        for c, quantile, fallback in ((CSF, 20, 3), (GREY, 50, 40), (WHITE, 50, 80)):
            pure = self.t1[(self.tissue[c] > 0.9) & self.mask]
            pure, quantile = (pure, quantile) if pure.size > 20 else (self.t1[self.mask], fallback)
            levels.append(float(np.percentile(pure, quantile)))
        return tuple(levels)

    @cached_property
    def depth(self) -> np.ndarray:
        """mm below the brain's surface, right down to some 6 mm and never more than 9."""
        return self.anatomy.depth

    @cached_property
    def side_mm(self) -> np.ndarray:
        """mm to the right of the plane between the hemispheres."""
        return midsagittal_distance(self.tissue[CSF], self.coordinates, self.anatomy.width_mm).astype(np.float32)

    @cached_property
    def above_tentorium_mm(self) -> np.ndarray:
        """Height above the tentorium."""
        return self.anatomy.above_tentorium_mm().astype(np.float32)

    @cached_property
    def solid(self) -> np.ndarray:
        """Share of tissue."""
        return np.where(self.mask, 1 - self.tissue[CSF], 0).astype(np.float32)

    @cached_property
    def deep_white(self) -> np.ndarray:
        """White matter away from the cortex, [0, 1]."""
        deep = np.clip(2.5 * smoothed(self.tissue[WHITE] + self.tissue[DEEP_GREY], self.spacing_mm, 2.0) - 1.5, 0, 1)
        return deep * self.tissue[WHITE]

    @cached_property
    def noise(self) -> float:
        """Standard deviation of the T1's fine texture in white matter."""
        white = (self.deep_white > 0.9) & self.mask
        fine = self.t1 - smoothed(self.t1, self.spacing_mm, 1.5)
        return float(fine[white].std()) if white.sum() > 100 else 0.0

    @cached_property
    def ventricle_distance(self) -> np.ndarray:
        """mm to the lateral ventricles, negative within; found as wide fluid in the middle of the brain."""
        u, v, w = self.coordinates
        central = (np.abs(u) < 0.22) & (v > -0.32) & (v < 0.26) & (w > -0.45) & (w < -0.18)
        fluid = ndimage.binary_opening(central & (self.tissue[CSF] > 0.5) & (self.depth > 8))
        if not fluid.any():
            fluid = central & (np.abs(u) < 0.08) & (np.abs(w + 0.33) < 0.03)
        return ndimage.distance_transform_edt(~fluid, self.spacing_mm).astype(np.float32)

    def pick(self, rng: np.random.Generator, where: np.ndarray) -> tuple[int, ...]:
        """A voxel drawn where ``where`` is true; of the whole mask where it is nowhere true."""
        candidates = np.flatnonzero(where)
        if not candidates.size:
            candidates = np.flatnonzero(self.mask)
        return tuple(int(i) for i in np.unravel_index(rng.choice(candidates), self.mask.shape))

    def mirrored(self, field: np.ndarray) -> np.ndarray:
        """``field`` with left and right exchanged about the middle of the brain."""
        index = np.round(2 * self.middle[0] - np.arange(field.shape[0])).astype(int)
        return field[np.clip(index, 0, field.shape[0] - 1)]

    def compartment(self, box: Box, centre: Sequence[int]) -> np.ndarray:
        """Share of each voxel that falx and tentorium do not part from ``centre``; the middle belongs to both sides."""
        side, above = self.side_mm[tuple(centre)], self.above_tentorium_mm[tuple(centre)]
        share = np.clip(self.above_tentorium_mm[box] * np.sign(above) / min(self.spacing_mm) + 0.5, 0, 1)
        if abs(side) < 4:
            return share
        # only the cerebrum is parted by a sheet: elsewhere the border is wide
        softness = min(self.spacing_mm) if above > 0 else 10.0
        return share * np.clip(self.side_mm[box] * np.sign(side) / softness + 0.5, 0, 1)

    def box(self, centre: Sequence[int], reach_mm: float) -> Box:
        """The part of the volume up to ``reach_mm`` from a voxel along each axis."""
        reach = [int(np.ceil(reach_mm / s)) + 1 for s in self.spacing_mm]
        return tuple(slice(max(0, c - r), c + r + 1) for c, r in zip(centre, reach, strict=True))

    def offsets(self, box: Box, centre: Sequence[float]) -> np.ndarray:
        """(3, h, w, z) mm from ``centre`` (a voxel) in a box."""
        axes = [
            (np.arange(n, dtype=np.float32)[b] - c) * s
            for n, b, c, s in zip(self.mask.shape, box, centre, self.spacing_mm, strict=True)
        ]
        return np.stack(np.meshgrid(*axes, indexing="ij"))


def _random_rotation(rng: np.random.Generator) -> np.ndarray:
    """Uniform over all rotations and reflections, (3, 3) float32."""
    q, r = np.linalg.qr(rng.standard_normal((3, 3)))
    return (q * np.sign(np.diag(r))).astype(np.float32)


def ellipsoid_score(
    rng: np.random.Generator, offsets: np.ndarray, spacing_mm: Sequence[float], radius_mm: float, raggedness: float
) -> np.ndarray:
    """Score (mm) of a randomly turned ellipsoid of axes 0.7 to 1.3 about 0; raggedness is relative to the radius."""
    axes = np.exp(rng.uniform(-0.3, 0.3, 3)).astype(np.float32)
    turned = np.tensordot(_random_rotation(rng) / axes[:, None], offsets, 1)
    score = -np.sqrt((turned**2).sum(0))
    if raggedness:
        field = fractal_field(rng, score.shape, spacing_mm, max(0.6 * radius_mm, min(spacing_mm)))
        score += raggedness * radius_mm * field
    return score


def wedge_score(
    rng: np.random.Generator,
    offsets: np.ndarray,
    spacing_mm: Sequence[float],
    inward: np.ndarray,
    radius_mm: float,
    raggedness: float,
) -> np.ndarray:
    """Score (mm) of a wedge with its base at the cortex: wide at 0 and narrower along ``inward``, a direction in mm."""
    axis = np.asarray(inward, np.float32) / max(float(np.linalg.norm(inward)), 1e-6)
    along = np.tensordot(axis, offsets, 1)
    across = np.sqrt(np.maximum((offsets**2).sum(0) - along**2, 0))
    length = radius_mm * rng.uniform(0.9, 1.7)
    width = radius_mm * (1 - 0.6 * np.clip(along / length, 0, 1))
    score = -radius_mm * np.sqrt((across / width) ** 2 + (along / length) ** 2)
    return score + raggedness * radius_mm * fractal_field(rng, score.shape, spacing_mm, 0.5 * radius_mm)
