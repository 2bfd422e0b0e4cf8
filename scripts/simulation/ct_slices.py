"""Slices of a CT along z: what each averages over, and the reading back onto the grid by linear interpolation."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..volumes.separable import averaging_matrices, gaussian_matrix, interpolation_matrices
from .ct_parameters import SimulatedCTParameters


@dataclass(frozen=True)
class AxialResponse:
    """What a scan does along z to the object and to noise that is white before it.

    Attributes:
        signal: (Z, Z), or (W, Z, Z) where the slices are tilted; rows sum to 1.
        noise: of the same shape; on the slices the noise keeps its standard deviation.
    """

    signal: np.ndarray
    noise: np.ndarray


def slice_positions(
    shape: Sequence[int], spacing_mm: Sequence[float], p: SimulatedCTParameters
) -> tuple[np.ndarray, np.ndarray]:
    """Centres and thickness of the slices, in voxels.

    Args:
        shape: (H, W, Z) of the volume.
        spacing_mm: voxel size.
        p: the scan; from ``slice_change`` of the height upwards, distance and thickness are larger by
            ``upper_slice_factor``.

    Returns:
        (K,) centres, or (W, K) where the slices are tilted, and (K,) thickness.
    """
    rise = np.tan(np.deg2rad(p.slice_tilt_deg)) * spacing_mm[1] / spacing_mm[2]
    rows = rise * (np.arange(shape[1]) - (shape[1] - 1) / 2)
    reach = abs(rows).max()
    distance, thickness = (d / spacing_mm[2] for d in (p.slice_distance_mm, p.slice_thickness_mm))
    change = p.slice_change * shape[2]
    base = np.arange((p.slice_phase - 1) * distance - reach, change, distance)
    wide = p.upper_slice_factor * distance
    centres = np.concatenate([base, np.arange(base[-1] + wide, shape[2] + reach + wide, wide)])
    thick = thickness * np.where(centres <= base[-1], 1.0, p.upper_slice_factor)
    return (centres + rows[:, None] if p.slice_tilt_deg else centres), thick


def _unit_rows(matrices: np.ndarray) -> np.ndarray:
    """Rows scaled to a sum of squares of 1, so that white noise keeps its standard deviation."""
    return matrices / np.sqrt((matrices**2).sum(-1, keepdims=True))


def axial_response(shape: Sequence[int], spacing_mm: Sequence[float], p: SimulatedCTParameters) -> AxialResponse:
    """The scan's response along z.

    Thin slices blur object and noise, each by its Gaussian. Thick ones average over their thickness; noise is white
    from slice to slice where they do not overlap, and the interpolation between them lowers it half-way.
    """
    size, step = shape[2], spacing_mm[2]
    blur = gaussian_matrix(size, p.blur_axial_mm / step)
    if not p.slice_distance_mm:
        return AxialResponse(blur, _unit_rows(gaussian_matrix(size, p.noise_axial_mm / step)))
    centres, thickness = slice_positions(shape, spacing_mm, p)
    average = averaging_matrices(centres, thickness, size)
    back = interpolation_matrices(centres, size)
    return AxialResponse((back @ average @ blur).astype(np.float32), (back @ _unit_rows(average)).astype(np.float32))
