"""Wavelet transforms of feature maps: undecimated (a trous) and Haar's.

H is low along the width and high along the height, V is high
along the width, D is high along both. Source of the first: Shensa (1992), CoLa-Diff's reference [24].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["B3_SPLINE", "Bands", "a_trous", "haar", "inverse_haar"]

B3_SPLINE = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)
"""Low-pass of the B3 spline."""


class Bands(NamedTuple):
    """Approximation A and details H, V and D, each (B, C, h, w)."""

    approximation: Tensor
    horizontal: Tensor
    vertical: Tensor
    diagonal: Tensor


def a_trous(x: Tensor, levels: int = 2, taps: Sequence[float] = B3_SPLINE) -> Bands:
    """Undecimated wavelet transform, whose details are summed over the levels; the sum of the four bands is x.

    With l_x and l_y the low-pass along width and height, its taps 2^(j-1) pixels apart at level j, `A_j = l_x l_y A`,
    `H_j = l_x (1 - l_y) A`, `V_j = (1 - l_x) l_y A` and `D_j = (1 - l_x)(1 - l_y) A` of A = A_{j-1}. Whatever the taps,
    they add up to A_{j-1}. Beyond the borders, x goes on with its outermost pixels.

    Args:
        x: features, (B, C, H, W).
        levels: 0 or more.
        taps: of the low-pass, an odd number of them; they sum to 1, so that a constant has no details.

    Returns:
        bands of the shape of x.

    Raises:
        ValueError: an even number of taps.
    """
    if len(taps) % 2 == 0:
        raise ValueError(f"taps are {len(taps)}; a low-pass with a centre has an odd number.")
    approximation = x
    horizontal, vertical, diagonal = (torch.zeros_like(x) for _ in range(3))
    for level in range(levels):
        down, across = (_low_pass(size, taps, 2**level).to(x) for size in x.shape[-2:])
        low = approximation @ across.mT
        high = approximation - low
        approximation, low_of_high = down @ low, down @ high
        horizontal = horizontal + (low - approximation)
        vertical = vertical + low_of_high
        diagonal = diagonal + (high - low_of_high)
    return Bands(approximation, horizontal, vertical, diagonal)


def _low_pass(size: int, taps: Sequence[float], distance: int) -> Tensor:
    """(size, size) matrix that filters a column of pixels, the first and the last repeated beyond its ends.

    A product with it takes a tenth of the time of a convolution of each channel by itself, above all backward.
    """
    offsets = distance * (torch.arange(len(taps)) - len(taps) // 2)
    read = (torch.arange(size)[:, None] + offsets).clamp(0, size - 1)
    weights = torch.tensor(taps, dtype=torch.float64).expand(size, -1)
    return torch.zeros(size, size, dtype=torch.float64).scatter_add(1, read, weights)


def haar(x: Tensor) -> Bands:
    """One level of the orthonormal Haar transform: features (B, C, H, W) to bands of (B, C, H/2, W/2).

    Raises:
        ValueError: an odd height or width.
    """
    if x.shape[-2] % 2 or x.shape[-1] % 2:
        raise ValueError(f"The features are {x.shape[-2]} x {x.shape[-1]}; the Haar transform takes even sizes.")
    low, high = _sum_and_difference(x[..., ::2], x[..., 1::2])
    (a, h), (v, d) = (_sum_and_difference(part[..., ::2, :], part[..., 1::2, :]) for part in (low, high))
    return Bands(a, h, v, d)


def inverse_haar(bands: Bands) -> Tensor:
    """Features (B, C, H, W) from their bands (B, C, H/2, W/2)."""
    a, h, v, d = bands
    low, high = (torch.stack(_sum_and_difference(*pair), dim=-2).flatten(-3, -2) for pair in ((a, h), (v, d)))
    return torch.stack(_sum_and_difference(low, high), dim=-1).flatten(-2)


def _sum_and_difference(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    return (first + second) * 0.5**0.5, (first - second) * 0.5**0.5
