"""Linear filters along the axes of a volume as small dense matrices: much faster on a CPU than sliding windows."""

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from scipy.interpolate import CubicSpline


def gaussian_matrix(size: int, sigma: float) -> np.ndarray:
    """(size, size) float32 Gaussian smoothing along an axis, sigma in voxels; rows sum to 1, the edge is continued."""
    if sigma < 1e-3:
        return np.eye(size, dtype=np.float32)
    return ndimage.gaussian_filter1d(np.eye(size), sigma, axis=0, mode="nearest").astype(np.float32)


def spline_matrix(size: int, places: np.ndarray) -> np.ndarray:
    """(len(places), size) float32: values at the voxels of an axis -> the cubic spline through them at places.

    Args:
        size: voxels of the axis.
        places: (N,), in voxels; the first or last voxel stands for what lies beyond it.
    """
    if size == 1:
        return np.ones((len(places), 1), dtype=np.float32)
    return CubicSpline(np.arange(size), np.eye(size))(np.clip(places, 0, size - 1)).astype(np.float32)


def averaging_matrices(centres: np.ndarray, thickness: np.ndarray, size: int) -> np.ndarray:
    """(..., K, Z): the mean of each slice over the voxels that it covers; rows sum to 1.

    Args:
        centres: (..., K) of the slices, in voxels.
        thickness: (K,) in voxels.
        size: Z, voxels along the axis; the object goes on beyond the first and last one as there.
    """
    edges = np.arange(size + 1) - 0.5
    edges[0], edges[-1] = -np.inf, np.inf
    half = thickness[:, None] / 2
    overlap = np.minimum(edges[1:], centres[..., None] + half) - np.maximum(edges[:-1], centres[..., None] - half)
    overlap = overlap.clip(0)
    return overlap / overlap.sum(-1, keepdims=True)


def interpolation_matrices(centres: np.ndarray, size: int) -> np.ndarray:
    """(..., Z, K): linear interpolation at the voxels from slices at ``centres`` (..., K), constant beyond the ends."""
    first, last = centres[..., :-1], centres[..., 1:]
    places = np.arange(size).reshape(-1, 1)
    passed = ((places - first[..., None, :]) / (last - first)[..., None, :]).clip(0, 1)
    ones, zeros = np.ones_like(passed[..., :1]), np.zeros_like(passed[..., :1])
    return np.concatenate([ones, passed], -1) - np.concatenate([passed, zeros], -1)


def apply_along_axes(volume: np.ndarray, matrices: Sequence[np.ndarray]) -> np.ndarray:
    """Apply one matrix (N, n) along each of the first axes of (H, W, Z), two or three, of n voxels each."""
    h, w, *z = (torch.from_numpy(np.ascontiguousarray(m)) for m in matrices)
    result = torch.from_numpy(np.ascontiguousarray(volume))
    if z:
        result = result @ z[0].T
    result = torch.matmul(w, result)
    return torch.tensordot(h, result, dims=1).numpy()


def apply_along_z(volume: np.ndarray, matrices: np.ndarray) -> np.ndarray:
    """Apply (Z, Z) to each line along z of (H, W, Z), or the one of (W, Z, Z) that belongs to its row."""
    lines, response = torch.from_numpy(np.ascontiguousarray(volume)), torch.from_numpy(matrices)
    if response.ndim == 2:
        return (lines @ response.T).numpy()
    return (lines.transpose(0, 1) @ response.transpose(1, 2)).transpose(0, 1).numpy()
