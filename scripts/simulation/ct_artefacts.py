"""What bone does to the HU of the brain around it: beam hardening and streaks."""

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional

from .ct_anatomy import Anatomy
from .ct_parameters import SimulatedCTParameters

# Places (u, v, w) in brain coordinates, from their positions in MNI space: the petrous bones' ridges, the frontal crest
# and the internal occipital protuberance
PETROUS_BONES = ((-0.2, -0.08, -0.66), (0.2, -0.08, -0.66))
MIDLINE_BONES = ((0.0, 0.49, -0.46), (0.0, -0.48, -0.50))
_CUPPING_SCALES_MM = (5.0, 10.0, 20.0)


def cupping_field(mask: np.ndarray, spacing_mm: Sequence[float], cupping_hu: Sequence[float]) -> np.ndarray:
    """Beam hardening's brightening towards the skull, on scales of 5, 10 and 20 mm; its median in the mask is 0."""
    small = [max(1, round(4 / s)) for s in spacing_mm]
    size = [max(2, -(-n // k)) for n, k in zip(mask.shape, small, strict=True)]
    coarse = functional.interpolate(torch.from_numpy(mask[None, None].astype(np.float32)), size=size, mode="area")
    field = np.zeros(size, np.float32)
    for amplitude, scale_mm in zip(cupping_hu, _CUPPING_SCALES_MM, strict=True):
        sigma = [scale_mm * m / (n * s) for m, n, s in zip(size, mask.shape, spacing_mm, strict=True)]
        smoothed = ndimage.gaussian_filter(coarse[0, 0].numpy(), sigma, mode="constant")
        field += amplitude * 2 * (1 - smoothed)
    full = functional.interpolate(
        torch.from_numpy(field[None, None]), size=tuple(mask.shape), mode="trilinear", align_corners=False
    )[0, 0].numpy()
    return full - np.median(full[mask > 0])


def _uneven_along_z(rng: np.random.Generator, distance_mm: np.ndarray, height_mm: float, count: int) -> np.ndarray:
    """(count, Z) random profiles along z that change every 5 mm, under a Gaussian of ``height_mm`` about 0."""
    knots = np.arange(distance_mm[0] - 5, distance_mm[-1] + 10, 5.0)
    values = rng.standard_normal((count, len(knots)))
    profiles = np.stack([np.interp(distance_mm, knots, row) for row in values])
    return profiles * np.exp(-0.5 * (distance_mm / height_mm) ** 2)


def radial_streaks(
    anatomy: Anatomy, place: Sequence[float], rng: np.random.Generator, reach_mm: float, height_mm: float
) -> np.ndarray:
    """Streaks of random sign that start at a bone and fade within ``reach_mm``; standard deviation at most about 1.

    Args:
        anatomy: of the brain.
        place: of the bone, (u, v, w).
        rng: of the streaks' strengths.
        reach_mm: distance at which they have faded to 1/e.
        height_mm: standard deviation of their extent along z.

    Returns:
        (H, W, Z) float32.
    """
    grid = zip(anatomy.mask.shape, anatomy.voxel(place), anatomy.spacing_mm, strict=True)
    axes = [(np.arange(n) - c) * s for n, c, s in grid]
    x, y = np.meshgrid(*axes[:2], indexing="ij")
    num_angles = 48
    table = _uneven_along_z(rng, axes[2], height_mm, num_angles).astype(np.float32)
    turn = (np.arctan2(y, x) / (2 * np.pi) % 1) * num_angles
    before = turn.astype(int) % num_angles
    share = (turn - np.floor(turn)).astype(np.float32)[..., None]
    radius = np.hypot(x, y)
    # near the bone the angle changes from voxel to voxel
    fade = (np.exp(-radius / reach_mm) * np.clip(radius / 8, 0, 1)).astype(np.float32)[..., None]
    return fade * ((1 - share) * table[before] + share * table[(before + 1) % num_angles])


def interpetrous_band(anatomy: Anatomy, rng: np.random.Generator) -> np.ndarray:
    """The dark band between the petrous bones with bright ones beside it (Hounsfield bar): float32, lowest about -1."""
    u, v, w = anatomy.coordinates
    u, v, w = u[:, :1, 0], v[:1, :, 0], w[0, 0]
    _, v0, w0 = PETROUS_BONES[0] + rng.normal(0, (0, 0.02, 0.025))
    squared = ((v - v0 - rng.normal(0, 0.1) * u) / rng.uniform(0.02, 0.045)) ** 2
    in_plane = -(1 - squared) * np.exp(-0.5 * squared - 0.5 * (u / 0.2) ** 4)
    heights_mm = (w - w0) * anatomy.length_mm
    along_z = np.exp(-0.5 * (heights_mm / rng.uniform(5, 11)) ** 2)
    along_z = along_z + 0.5 * _uneven_along_z(rng, heights_mm, 12.0, 1)[0]
    return (in_plane[..., None] * along_z).astype(np.float32)


def bone_artefacts(anatomy: Anatomy, p: SimulatedCTParameters, rng: np.random.Generator) -> np.ndarray:
    """(H, W, Z) HU: the band between the petrous bones, and streaks from them and from the crests at the midline."""
    field = np.zeros(anatomy.mask.shape, np.float32)
    if p.petrous_hu:
        field += p.petrous_hu * interpetrous_band(anatomy, rng)
        for place in PETROUS_BONES:
            field += 0.4 * p.petrous_hu * radial_streaks(anatomy, place, rng, 25.0, 9.0)
    if p.midline_streaks_hu:
        for place in MIDLINE_BONES:
            field += p.midline_streaks_hu * radial_streaks(anatomy, place, rng, 25.0, 14.0)
    return field
