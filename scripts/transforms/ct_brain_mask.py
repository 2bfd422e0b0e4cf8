"""The brain in a CT of a head, found by classical image analysis on a coarse grid.

Soft tissue that lies deep inside bone is the core of the brain. Grown back to the skull it fills the cavity without
passing through the foramina, which are narrower than the core is deep. Everything in the cavity belongs to the mask:
outer fluid, cysts and defects at the edge, blood. Lengths are in mm and volumes in mL, so that spacing and axes of the
scan have no say.
"""

from __future__ import annotations

import nibabel as nib
import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional

from ..errors import CaseError

__all__ = ["block_means", "close_mask", "ct_brain_mask", "foreground", "is_stripped"]

SOFT_TISSUE = -15.0  # HU; 0 with room for noise and the dark bands of the skull base
BONE = 150.0  # HU; the mean of a coarse voxel that is a third bone
BONE_IN_WINDOW = 0.83  # of the largest value, at which all bone lies in a volume that is cut to a window
AIR = -150.0  # HU; anything lighter is outside the head or in a sinus
LEAST_BONE = 55.0  # HU; a window that ends at less shows brain and bone alike, and noise is no bone
EDGE = 100.0  # HU; the fall at the skull within which the border is interpolated
SMOOTHING = 0.8  # mm, the Gaussian's standard deviation
SCALP = 5.0  # mm; no brain lies nearer to the air, also where a piece of skull is missing
CORE_DEPTH = 10.0  # mm; wider than half a spinal canal, an orbit's apex or a fissure of the skull base
PASSAGE = 4.0  # mm; half the width of what is cut off the cavity: nerves' and vessels' ways out, the sella
FORAMEN = 12.0  # cm2; a foramen magnum has 6 to 10
BRAIN_VOLUME = (500.0, 2200.0)  # mL; a child's brain, a large skull


def ct_brain_mask(
    hu: np.ndarray, affine: np.ndarray, name: str = "the volume", working_spacing: float = 2.0
) -> np.ndarray:
    """Mask of the brain, its ventricles and sulci included, down to the foramen magnum.

    Args:
        hu: (H, W, Z) CT of a head with its skull, in HU, in any orientation.
        affine: (4, 4), voxels to RAS mm.
        name: the file's name, for the error.
        working_spacing: edge of the voxels that the mask is found on, mm.

    Returns:
        (H, W, Z) bool.

    Raises:
        CaseError: no cavity of a brain's volume within a skull.
    """
    axes = nib.io_orientation(affine)
    canonical = nib.apply_orientation(hu, axes)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)[np.argsort(axes[:, 0])]
    coarse, coarse_spacing = block_means(canonical, spacing, working_spacing)
    level = _brain(coarse, coarse_spacing, name)
    fine = functional.interpolate(torch.from_numpy(level)[None, None], canonical.shape, mode="trilinear") > 0
    back = nib.orientations.ornt_transform(np.array([[0, 1], [1, 1], [2, 1]]), axes)
    return np.ascontiguousarray(nib.apply_orientation(fine[0, 0].numpy(), back))


def foreground(volume: np.ndarray) -> np.ndarray:
    """Everything but the constant background, holes filled; all of a volume without such a background.

    The background is the value that most of the eight corners have.

    Args:
        volume: (H, W, Z), any unit.

    Returns:
        (H, W, Z) bool.
    """
    inside = _not_background(volume, _background(volume))
    if inside.mean() > 0.99 or not inside.any():
        return np.ones(volume.shape, dtype=bool)
    box = ndimage.find_objects(inside.astype(np.int8))[0]
    inside[box] = ndimage.binary_fill_holes(inside[box])
    return inside


def is_stripped(hu: np.ndarray) -> bool:
    """Whether a CT is a brain on a constant background already: next to no bone, fat or air in the foreground.

    A whole head that was clipped to a brain window has none of them either; its bone all lies at the largest value.

    Args:
        hu: (H, W, Z) HU.
    """
    sample = hu[::2, ::2, ::2]  # an eighth of the voxels tells as much
    inside = sample[_not_background(sample, _background(hu))]
    if not 0.01 * sample.size < inside.size < 0.9 * sample.size:
        return False
    soft = np.mean((inside > -50) & (inside < 150))
    clipped = np.mean(inside > inside.max() - 1)
    return bool(soft > 0.85 and np.mean(inside > 200) < 0.01 and clipped < 0.1)


def _background(volume: np.ndarray) -> float:
    corners, counts = np.unique(volume[np.ix_([0, -1], [0, -1], [0, -1])], return_counts=True)
    return corners[counts.argmax()]


def _not_background(volume: np.ndarray, background: float) -> np.ndarray:
    return np.abs(volume - background) > 1e-2


def block_means(hu: np.ndarray, spacing: np.ndarray, working_spacing: float) -> tuple[np.ndarray, np.ndarray]:
    """HU on voxels of about `working_spacing`, and their edges: means where they are larger, linear where smaller.

    Both keep the field of view and treat its two ends alike, so that a mirrored volume gives a mirrored result.
    """
    size = [max(1, round(n * s / working_spacing)) for n, s in zip(hu.shape, spacing, strict=True)]
    means = _area_means(hu, [min(n, m) for n, m in zip(hu.shape, size, strict=True)])
    volume = functional.interpolate(means[None, None], size, mode="trilinear")
    return volume[0, 0].numpy(), spacing * np.array(hu.shape) / np.array(size)


def _area_means(hu: np.ndarray, size: list[int]) -> torch.Tensor:
    """`interpolate` to a smaller size by mode "area", a layer of the result at a time, so that no volume is copied."""
    layers = []
    for layer in range(size[0]):
        first, last = layer * len(hu) // size[0], -(-(layer + 1) * len(hu) // size[0])
        part = torch.from_numpy(np.array(hu[first:last], dtype=np.float32, order="C"))
        # neither padding of -3024 nor dense bone and metal may outweigh their neighbours in a mean
        layers.append(functional.adaptive_avg_pool3d(part.clamp_(-200, 400)[None], (1, *size[1:])))
    return torch.cat(layers, dim=1)[0]


def _brain(hu: np.ndarray, spacing: np.ndarray, name: str) -> np.ndarray:
    """(H, W, Z) HU in RAS order -> float, -1 to 1: above 0 in the brain, at the skull with the slope of HU."""
    bone = min(BONE, max(LEAST_BONE, BONE_IN_WINDOW * hu.max()))
    head = _largest(ndimage.binary_opening(hu > max(AIR, hu.min() + 5)))
    level = np.full(hu.shape, -1, dtype=np.float32)
    if head.any():
        box = _box(head)
        smooth = ndimage.gaussian_filter(hu[box], SMOOTHING / spacing)
        soft = (smooth > SOFT_TISSUE) & (smooth < bone)
        cavity = _cavity(soft, smooth < bone, head[box], spacing)
        if cavity.any():
            level[box] = _level(_trim(cavity, spacing), smooth, bone)
    volume = (level > 0).sum() * spacing.prod() / 1000
    low, high = BRAIN_VOLUME
    if not low <= volume <= high:
        raise CaseError(
            f"{name} shows no brain: the soft tissue enclosed by bone measures {volume:.0f} mL where {low:.0f} to "
            f"{high:.0f} mL are expected; check that it is a CT of a whole head in Hounsfield units, or give a mask or "
            "a command as the skull-strip method."
        )
    return level


def _box(mask: np.ndarray) -> tuple[slice, ...]:
    """The mask's bounding box with a voxel of what surrounds it."""
    return tuple(slice(max(0, side.start - 1), side.stop + 1) for side in ndimage.find_objects(mask.astype(np.int8))[0])


def _cavity(soft: np.ndarray, no_bone: np.ndarray, head: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """The inside of the skull, empty where there is none."""
    filled = np.stack([ndimage.binary_fill_holes(head[..., z]) for z in range(head.shape[2])], axis=2)
    tissue = filled & soft & (_depth(filled, spacing) > SCALP)
    tissue |= ~_without_small(~tissue, 1000 / spacing.prod())  # calcified plexus, clips and noise are no wall
    depth = _depth(tissue, spacing)
    core = _enclosed(depth > CORE_DEPTH, depth, _depth(no_bone, spacing), spacing)
    if not core.any():
        return core
    grown = tissue & (_depth(~core, spacing) < CORE_DEPTH + 2)
    closed = close_mask(_largest(ndimage.binary_opening(grown)), 4.0, spacing)
    return ndimage.binary_fill_holes(closed)


def _enclosed(core: np.ndarray, depth: np.ndarray, to_bone: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """The largest part of the core with bone right behind most of the tissue around it: muscle and bowel have none."""
    labels, _ = ndimage.label(core)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    for label in np.argsort(sizes)[:0:-1]:
        if sizes[label] * spacing.prod() / 1000 < 50:
            break
        part = labels == label
        surface = part & (depth < CORE_DEPTH + 2.5)
        if np.mean(to_bone[surface] < CORE_DEPTH + 5) > 0.5:
            return part
    return np.zeros_like(core)


def _trim(cavity: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Without the passages through the skull and the canal below the foramen magnum."""
    brain = _largest(_open(cavity, PASSAGE, spacing))
    area = brain.sum(axis=(0, 1)) * spacing[0] * spacing[1] / 100
    narrow = np.flatnonzero(area[: area.argmax()] < FORAMEN)
    brain[..., : narrow.max() + 1 if narrow.size else 0] = False
    return _largest(brain)


def _level(cavity: np.ndarray, smooth: np.ndarray, bone: float) -> np.ndarray:
    """-1 to 1, above 0 in the cavity; at the skull it falls like HU, which puts the border between two voxels."""
    hard = smooth > bone
    parts, _ = ndimage.label(hard)
    islands = hard & ~np.isin(parts, np.unique(parts[~cavity]))  # calcifications and metal in the brain are no wall
    level = ((bone - smooth) / EDGE).clip(-1, 1)
    level[islands] = 1
    level[~cavity & ~hard] = -1
    return level


def _depth(mask: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Distance in mm to the nearest voxel that is not in the mask; the field of view's border is no such voxel."""
    if mask.all():
        return np.full(mask.shape, np.inf)
    return ndimage.distance_transform_edt(mask, sampling=spacing)


def close_mask(mask: np.ndarray, radius: float, spacing: np.ndarray) -> np.ndarray:
    """Closing with a ball; beyond the field of view the mask goes on as at its border."""
    border = int(np.ceil(radius / spacing.min())) + 1
    padded = np.pad(mask, border, mode="edge")
    closed = _depth(_depth(~padded, spacing) <= radius, spacing) > radius
    return closed[tuple(slice(border, -border) for _ in range(3))] | mask


def _open(mask: np.ndarray, radius: float, spacing: np.ndarray) -> np.ndarray:
    """Opening with a ball: the complement's closing."""
    return ~close_mask(~mask, radius, spacing)


def _largest(mask: np.ndarray) -> np.ndarray:
    labels, count = ndimage.label(mask)
    return labels == 1 + np.bincount(labels.ravel())[1:].argmax() if count > 1 else mask


def _without_small(mask: np.ndarray, voxels: float) -> np.ndarray:
    labels, _ = ndimage.label(mask)
    keep = np.bincount(labels.ravel()) >= voxels
    keep[0] = False
    return keep[labels]
