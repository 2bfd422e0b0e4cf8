"""Where a voxel lies in the brain, whatever the grid and the size of the head."""

from collections.abc import Sequence

import numpy as np

__all__ = ["brain_coordinates", "slice_positions"]


def brain_coordinates(mask: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Position relative to the brain: (3, H, W, Z) float32 of a mask (H, W, Z) in RAS order.

    u: from the mean plane to the right in brain widths; v: from the middle to the front in brain lengths; w: from the
    top up (so negative) in brain lengths. The bottom is no reference: it depends on where the brainstem is cut.
    """
    if not mask.any():
        raise ValueError("the brain mask is empty")
    profiles = [mask.sum(axis=tuple(a for a in range(3) if a != axis)) for axis in range(3)]
    grids = [(np.arange(n) * s).astype(np.float64) for n, s in zip(mask.shape, spacing_mm, strict=True)]

    def quantile(axis: int, q: float) -> float:
        share = np.cumsum(profiles[axis]) / profiles[axis].sum()
        return grids[axis][np.searchsorted(share, q)]

    width = max(quantile(0, 0.999) - quantile(0, 0.001), 1e-3)
    back, front = quantile(1, 0.001), quantile(1, 0.999)
    length = max(front - back, 1e-3)
    u = (grids[0] - np.average(grids[0], weights=profiles[0])) / width
    v = (grids[1] - (back + front) / 2) / length
    w = (grids[2] - quantile(2, 0.999)) / length
    return np.stack(np.meshgrid(u, v, w, indexing="ij")).astype(np.float32)


def slice_positions(brain: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """(Z,) float32: w of each slice of a brain (H, W, Z), see `brain_coordinates`; NaN where the brain is empty."""
    if not brain.any():
        return np.full(brain.shape[2], np.nan, dtype=np.float32)
    return brain_coordinates(brain, spacing_mm)[2, 0, 0]
