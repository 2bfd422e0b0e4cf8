"""How a slab changes in training: another contrast, another place, a coil's shading."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from ..conditioning.style_key import style_key_from_histogram


@dataclass(frozen=True)
class ContrastCurve:
    """A rising map of [0, 1] onto itself, linear between knots: another scanner's or sequence's contrast."""

    knots: np.ndarray
    values: np.ndarray

    @classmethod
    def identity(cls) -> "ContrastCurve":
        """The curve that changes nothing."""
        return cls(np.array([0.0, 1.0]), np.array([0.0, 1.0]))

    @classmethod
    def draw(cls, rng: np.random.Generator, spread: float, num_knots: int = 5) -> "ContrastCurve":
        """Draw one: the inner knots move by up to ``spread`` (less than half their distance)."""
        knots = np.linspace(0, 1, num_knots)
        values = knots.copy()
        values[1:-1] += rng.uniform(-spread, spread, num_knots - 2)
        return cls(knots, values)

    def __call__(self, packed: np.ndarray) -> np.ndarray:
        """The curve at packed voxels of any shape, uint8 or uint16: float32 in [0, 1]."""
        top = np.iinfo(packed.dtype).max
        if packed.size < top:
            return np.interp(packed / top, self.knots, self.values).astype(np.float32)
        return np.interp(np.arange(top + 1) / top, self.knots, self.values).astype(np.float32)[packed]

    def style_key(self, histogram: np.ndarray, num_bins: int) -> np.ndarray:
        """(3, num_bins): the key of the volume after the curve, exactly, from the histogram before it."""
        edges = np.linspace(0.001, 1, num_bins + 1)
        before = np.interp(edges, self.values, self.knots)
        cumulative = np.concatenate([[0], np.cumsum(histogram)])
        at_edges = np.interp(before, np.linspace(0, 1, len(cumulative)), cumulative)
        return style_key_from_histogram(np.diff(at_edges))


def affine_slab(slab: torch.Tensor, angle: float, zoom: float, shift: Sequence[float], flip: bool) -> torch.Tensor:
    """Rotate (radians), zoom, shift (pixels) and mirror (C, H, W) in [0, 1] about its centre, zeros outside.

    Bicubic, as a network that learns from bilinearly moved images learns to blur.
    """
    height, width = slab.shape[-2:]
    cos, sin = np.cos(angle) / zoom, np.sin(angle) / zoom
    # affine_grid works in coordinates where both sides are 2 long, x (columns) first
    theta = torch.tensor(
        [[cos, -sin * height / width, 2 * shift[1] / width], [sin * width / height, cos, 2 * shift[0] / height]]
    )
    if flip:
        theta[1] = -theta[1]  # rows of a slab run left to right
    grid = functional.affine_grid(theta[None].float(), [1, *slab.shape], align_corners=False)
    return functional.grid_sample(slab[None], grid, mode="bicubic", align_corners=False)[0].clamp_(0, 1)


def smooth_shading(rng: np.random.Generator, shape: Sequence[int], strength: float, num_knots: int = 4) -> torch.Tensor:
    """A smooth positive field of a plane, as a receive coil leaves it: (H, W), its logarithm U(-strength, strength)
    at num_knots x num_knots places and cubic between them."""
    knots = torch.from_numpy(rng.uniform(-strength, strength, (1, 1, num_knots, num_knots)).astype(np.float32))
    return functional.interpolate(knots, size=tuple(shape), mode="bicubic", align_corners=True)[0, 0].exp()
