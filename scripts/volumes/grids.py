"""Where voxels lie, and resampling onto a grid by one interpolation."""

from __future__ import annotations

from dataclasses import dataclass

import nibabel as nib
import numpy as np
from scipy import ndimage

__all__ = ["IDENTITY", "Grid", "field_of_view", "grid_about", "on_grid"]


IDENTITY = np.eye(4)


@dataclass(frozen=True)
class Grid:
    """Where voxels lie: (4, 4) voxel to RAS mm, and how many there are."""

    affine: np.ndarray
    shape: tuple[int, int, int]


def on_grid(image: nib.Nifti1Image, grid: Grid, to_image: np.ndarray = IDENTITY, order: int = 1) -> np.ndarray:
    """Interpolate an image at the voxels of a grid.

    Args:
        image: (H, W, Z).
        grid: where to.
        to_image: (4, 4), the grid's RAS mm -> the image's RAS mm.
        order: 1 for linear interpolation, 0 for the nearest voxel.

    Returns:
        Of the grid's shape, float32; beyond the field of view, what lies at its border.
    """
    matrix = np.linalg.inv(image.affine) @ to_image @ grid.affine
    data = np.asarray(image.dataobj, dtype=np.float32)
    return ndimage.affine_transform(data, matrix[:3, :3], matrix[:3, 3], grid.shape, order=order, mode="nearest")


def field_of_view(image: nib.Nifti1Image | Grid, grid: Grid, to_image: np.ndarray = IDENTITY) -> np.ndarray:
    """Which voxels of a grid lie in the voxels of an image, or of its grid, bool; arguments as in `on_grid`."""
    matrix = np.linalg.inv(image.affine) @ to_image @ grid.affine
    voxels = np.ogrid[tuple(slice(n) for n in grid.shape)]
    inside = np.ones(grid.shape, dtype=bool)
    for row, count in zip(matrix[:3], image.shape, strict=True):
        index = sum(step * place for step, place in zip(row[:3], voxels, strict=True)) + row[3]
        inside &= (index > -0.5 - 1e-3) & (index < count - 0.5 + 1e-3)
    return inside


def grid_about(
    mask: nib.Nifti1Image, reference: np.ndarray, spacing: float, margin: float, to_reference: np.ndarray = IDENTITY
) -> Grid:
    """The smallest isotropic grid that holds a mask and a margin, with the axes and through a voxel of a reference.

    Where the reference has voxels of `spacing` already, the grid's are a part of them.

    Args:
        mask: positive inside.
        reference: (4, 4), voxels of the reference -> RAS mm.
        spacing: edge of the grid's voxels, mm.
        margin: mm on each side.
        to_reference: (4, 4), the mask's RAS mm -> the reference's RAS mm.

    Raises:
        ValueError: the mask is empty.
    """
    edges = nib.affines.voxel_sizes(reference)
    affine = reference @ np.diag([*(spacing / edges), 1.0])
    inside = np.argwhere(np.asarray(mask.dataobj) > 0)
    if not len(inside):
        raise ValueError("the mask is empty")
    places = nib.affines.apply_affine(np.linalg.inv(affine) @ to_reference @ mask.affine, inside)
    first = np.floor(places.min(axis=0) - margin / spacing + 1e-3).astype(int)
    last = np.ceil(places.max(axis=0) + margin / spacing - 1e-3).astype(int)
    return Grid(affine @ nib.affines.from_matvec(np.eye(3), first), tuple(int(n) for n in last - first + 1))
