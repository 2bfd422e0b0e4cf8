"""Slices wherever they were scanned, as one volume on an even grid with right angles.

Linear interpolation from the positions in the headers: between neighbouring slices along their normal, and within a
slice where it is moved against its neighbours, as under a tilted gantry. dcm2niix 1.0.20260724 does the same, but where
gaps differ by less than it heeds, the first one becomes the spacing of all, which adds up over the slices.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from scipy.ndimage import shift

from .stack import Stack

TOLERANCE_MM = 0.1
"""How far slices may lie from an even, upright stack without being resampled."""
_LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])


def even_volume(
    slices: Sequence[np.ndarray], stack: Stack, background: float, tolerance_mm: float = TOLERANCE_MM
) -> tuple[np.ndarray, np.ndarray, str | None]:
    """One upon the other where they lie so already, else resampled.

    Args:
        slices: (rows, columns) each, of one type, in the order of the stack.
        stack: where they lie.
        background: value where nothing was scanned.
        tolerance_mm: how far slices may lie from an even, upright stack without being resampled.

    Returns:
        volume (columns, rows, N) of the slices' type, its affine to RAS+ mm, and what was corrected in words (None:
        nothing).
    """
    height, across, down = ((stack.positions - stack.positions[0]) @ axis for axis in stack.axes)
    line = np.linspace(height[0], height[-1], len(height))
    even = np.abs(height - line).max() <= tolerance_mm
    upright = max(np.ptp(across), np.ptp(down)) <= tolerance_mm
    between_rows, between_columns = stack.spacing
    if even and upright:
        across, down = across[:1], down[:1]
        volume = np.stack(slices, axis=-1).swapaxes(0, 1)
    else:
        line = line if even else _even_heights(height)
        moved = np.stack([(down - down.min()) / between_rows, (across - across.min()) / between_columns], axis=-1)
        volume = _resampled(slices, height, moved, line, background)
    step = (line[-1] - line[0]) / (len(line) - 1)
    axes = np.stack([stack.row * between_columns, stack.column * between_rows, stack.normal * step], axis=-1)
    affine = np.eye(4)
    affine[:3, :3] = _LPS_TO_RAS[:, None] * axes
    affine[:3, 3] = _LPS_TO_RAS * (stack.positions[0] + across.min() * stack.row + down.min() * stack.column)
    return volume, affine, _correction(stack, even, upright)


def _even_heights(height: np.ndarray) -> np.ndarray:
    """Heights of an even grid over the same range, as fine as the finest part of the stack, or twice as fine.

    A slice that lies between two heights is blurred into both: the less, the finer they are.
    """
    gaps = np.diff(height)
    finest = gaps[gaps > np.median(gaps) / 2].min()  # a gap where two parts of a scan meet may be tiny
    finest = finest / 2 if finest > 2 else finest
    return np.linspace(height[0], height[-1], max(round((height[-1] - height[0]) / finest), 2) + 1)


def _resampled(
    slices: Sequence[np.ndarray], height: np.ndarray, moved: np.ndarray, line: np.ndarray, background: float
) -> np.ndarray:
    """(columns, rows, len(line)): each height from the two slices next to it, moved by (N, 2) rows and columns."""
    rows, columns = (n + int(np.ceil(most - 1e-3)) for n, most in zip(slices[0].shape, moved.max(axis=0), strict=True))
    kind = slices[0].dtype
    volume = np.empty((columns, rows, len(line)), dtype=kind)

    @lru_cache(maxsize=2)  # the next height often lies between the same two
    def placed(number: int) -> np.ndarray:
        larger = np.full((rows, columns), background, dtype=np.float32)
        larger[: slices[number].shape[0], : slices[number].shape[1]] = slices[number]
        return shift(larger, moved[number], order=1, mode="grid-constant", cval=background)

    for index, z in enumerate(line):
        below = int(np.clip(np.searchsorted(height, z, side="right") - 1, 0, len(height) - 2))
        weight = np.clip((z - height[below]) / (height[below + 1] - height[below]), 0, 1)
        values = (1 - weight) * placed(below) + weight * placed(below + 1)
        volume[..., index] = (np.round(values) if kind == np.int16 else values).T
    return volume


def _correction(stack: Stack, even: bool, upright: bool) -> str | None:
    corrections = []
    if not upright:
        lean = max(abs(angle) for angle in stack.lean_deg)
        corrections.append(
            f"slices leaning by {lean:.1f} degrees (gantry tilt)" if lean >= 0.1 else "slices out of line"
        )
    if not even:
        corrections.append(f"gaps of {stack.gaps.min():.1f} to {stack.gaps.max():.1f} mm between the slices")
    return " and ".join(corrections) or None
