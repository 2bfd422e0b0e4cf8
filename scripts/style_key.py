"""Style keys: the intensity histogram of a target volume as conditioning (CT2MRI, style key conditioning).

A key is a (3, B) array [h, c, d]: the histogram h of B bins that sums to 10, its cumulative sum c, and ten times its
first difference d. It is computed from a skull-stripped volume scaled to [0, 1] as in training.
"""

from __future__ import annotations

import numpy as np
import torch

_FOREGROUND = 0.001  # intensities up to here are background and not counted
_TOTAL = 10.0
# An 8-bit image has at most 256 levels. With fewer than 16 it is a label map, whose levels are meant as they are.
_FEW_LEVELS = range(16, 257)


def compute_style_key(image: np.ndarray | torch.Tensor, num_bins: int = 128) -> np.ndarray:
    """Style key of one image.

    Images of few grey levels (an 8-bit source) would leave empty bins: each level is spread evenly half-way to its
    neighbours, which is what a uniform dither does on average.

    Args:
        image: skull-stripped volume of any shape, scaled to [0, 1] as in training; values beyond are clipped.
        num_bins: number of bins B.

    Returns:
        (3, num_bins) float32: histogram (sum 10), cumulative histogram (ends at 10), ten times the first difference.

    Raises:
        ValueError: when no voxel is above the background, or a voxel is not finite.
    """
    values = torch.as_tensor(image).detach().cpu().double().numpy().ravel()
    if not np.isfinite(values).all():
        raise ValueError("The image of a style key has voxels that are NaN or infinite; repair it first.")
    values = np.clip(values, 0.0, 1.0)
    values = values[values > _FOREGROUND]
    if values.size == 0:
        raise ValueError(
            f"The image of a style key is empty: no voxel is above {_FOREGROUND}; give a volume in [0, 1]."
        )
    return style_key_from_histogram(_histogram(values, num_bins))


def style_key_from_histogram(histogram: np.ndarray) -> np.ndarray:
    """Style key of a histogram of the foreground, (B,) counts of any total, as (3, B) float32."""
    h = np.asarray(histogram, dtype=np.float64)
    h = _TOTAL * h / h.sum()
    slope = np.diff(h)
    d = 10.0 * np.concatenate([slope[:1], slope])
    return np.stack([h, np.cumsum(h), d]).astype(np.float32)


def _histogram(values: np.ndarray, num_bins: int) -> np.ndarray:
    """Counts in equal bins over (0.001, 1)."""
    edges = np.linspace(_FOREGROUND, 1.0, num_bins + 1)
    levels, counts = np.unique(values, return_counts=True)
    if len(levels) not in _FEW_LEVELS or values.size < 4 * len(levels):
        return np.histogram(values, edges)[0]
    middles = (levels[1:] + levels[:-1]) / 2
    first, last = 2 * levels[0] - middles[0], 2 * levels[-1] - middles[-1]
    borders = np.clip(np.concatenate([[first], middles, [last]]), _FOREGROUND, 1.0)
    return np.diff(np.interp(edges, borders, np.concatenate([[0], np.cumsum(counts)])))
