"""What a scanner would have shown another time: the source with noise of its own level again, its slices elsewhere."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor
from monai.networks.layers import GaussianFilter
from scipy import ndimage
from torch import Tensor

_MEDIAN_OF_NORMAL = 0.6745  # median of |z|, z standard normal
_MOST_CORRELATED = 0.8  # neighbours that agree more than that are anatomy
_LOCAL = 5.0  # standard deviation of the window in which noise is local, voxels
_THICK = 1.6  # slices from so many voxels on have a phase that matters


class Noise(NamedTuple):
    """Noise of a volume.

    Attributes:
        level: standard deviation at each voxel, (H, W, Z), in the volume's unit.
        correlation: of neighbouring voxels along each axis, 0 to 0.8.
    """

    level: Tensor
    correlation: tuple[float, ...]


@dataclass(frozen=True)
class Evidence:
    """A source volume, and how it might have come out otherwise.

    Attributes:
        image: (H, W, Z), [0, 1], background 0.
        inside: (H, W, Z) bool.
        noise: see `measure_noise`.
        thickness: from one slice of the source as scanned to the next, along each axis, in voxels of the image.
    """

    image: Tensor
    inside: Tensor
    noise: Noise
    thickness: tuple[float, ...]

    @classmethod
    def of(cls, image: Tensor, thickness: tuple[float, ...] = (1.0, 1.0, 1.0)) -> Evidence:
        """The evidence of an image (H, W, Z), [0, 1], background 0."""
        filled = ndimage.binary_fill_holes((image > 0).cpu().numpy())
        inside = torch.as_tensor(filled, device=image.device)
        return cls(image, inside, measure_noise(image, inside), thickness)

    def drawn(self, generator: torch.Generator) -> Tensor:
        """The image with slices at another phase and noise of the measured level added; shape, range and background
        stay."""
        image = self.image
        for axis, thickness in enumerate(self.thickness):
            if thickness > _THICK:
                phase = float(torch.rand(1, generator=generator))
                image = slices_at(image, self.inside, axis, thickness, phase)
        noise = correlated_noise(image.shape, self.noise.correlation, generator).to(image)
        return (image + self.noise.level * noise).clamp(0, 1) * self.inside


def slice_thickness(volume: Tensor) -> tuple[float, float, float]:
    """Distance of the slices as scanned along each axis of a volume (B, C, H, W, Z), in its voxels; 1 where unknown."""
    meta = volume.meta if isinstance(volume, MetaTensor) else {}
    if "original_affine" not in meta:
        return (1.0, 1.0, 1.0)
    now, before = (
        np.asarray(a, dtype=np.float64).reshape(-1, 4, 4)[0] for a in (volume.affine, meta["original_affine"])
    )
    steps = np.linalg.solve(now[:3, :3], before[:3, :3])
    thickness = np.ones(3)
    for step in steps.T:
        axis = np.abs(step).argmax()
        thickness[axis] = np.abs(step[axis])
    return tuple(thickness)


def measure_noise(image: Tensor, inside: Tensor) -> Noise:
    """Level and correlation of the noise, from how much voxels one and two apart differ (the semivariogram).

    Noise that was smoothed by a Gaussian has the correlation rho^(d^2) at distance d, hence differences of the variance
    2 s^2 (1 - rho) and 2 s^2 (1 - rho^4). Medians leave out edges; along each axis anatomy can only add, so that the
    least of the three is the level. Where it differs from place to place is told by the local mean of the root of the
    differences.

    Args:
        image: (H, W, Z), [0, 1].
        inside: (H, W, Z) bool, where it shows the brain.
    """
    levels, correlations = [], []
    for axis in range(3):
        one, two = (_spread(image, inside, axis, lag) for lag in (1, 2))
        rho = _correlation(one, two)
        correlations.append(rho)
        levels.append(one / math.sqrt(2 * (1 - rho)))
    return Noise(min(levels) * _relative_level(image, inside), tuple(correlations))


def _pairs(volume: Tensor, axis: int, lag: int) -> tuple[Tensor, Tensor]:
    length = volume.shape[axis] - lag
    return volume.narrow(axis, 0, length), volume.narrow(axis, lag, length)


def _spread(image: Tensor, inside: Tensor, axis: int, lag: int) -> float:
    """Standard deviation of the difference of voxels so far apart, by the median."""
    first, second = _pairs(image, axis, lag)
    difference = (second - first)[torch.logical_and(*_pairs(inside, axis, lag))]
    return float(difference.abs().median()) / _MEDIAN_OF_NORMAL if difference.numel() else 0.0


def _correlation(one: float, two: float) -> float:
    """rho of (1 - rho) / (1 - rho^4) = one^2 / two^2, 0 to 0.8."""
    rho = np.linspace(0, _MOST_CORRELATED, 161)
    ratio = 1 / (1 + rho + rho**2 + rho**3)
    return float(np.interp((one / two) ** 2, ratio[::-1], rho[::-1])) if two > 0 else 0.0


def _relative_level(image: Tensor, inside: Tensor) -> Tensor:
    """How strong the noise is at each voxel, against the whole's."""
    roots, weights = torch.zeros_like(image), torch.zeros_like(image)
    for axis in range(3):
        both = torch.logical_and(*_pairs(inside, axis, 1))
        first, second = _pairs(image, axis, 1)
        roots.narrow(axis, 0, both.shape[axis]).add_((second - first).abs().sqrt() * both)
        weights.narrow(axis, 0, both.shape[axis]).add_(both)
    whole = roots.sum() / weights.sum().clamp(min=1)
    smooth = GaussianFilter(3, _LOCAL)(torch.stack([roots, weights])[None].float())[0].to(image)
    local = smooth[0] / smooth[1].clamp(min=1e-3)
    return (local / whole.clamp(min=1e-6)).square() * inside


def correlated_noise(shape: torch.Size, correlation: tuple[float, ...], generator: torch.Generator) -> Tensor:
    """Normal noise (H, W, Z) of variance 1; voxels at distance d along an axis have the correlation rho^(d^2).

    White noise is filtered by the root of that correlation's spectrum, so that it is exact. Opposite faces are
    neighbours, which a brain in the middle does not see.
    """
    spectrum = torch.fft.fftn(torch.randn(shape, generator=generator))
    for axis, (length, rho) in enumerate(zip(shape, correlation, strict=True)):
        distance = torch.arange(length)
        distance = torch.minimum(distance, length - distance)
        power = torch.fft.fft(torch.tensor(rho).double() ** distance**2).real.clamp(min=0)
        spectrum *= power.sqrt().float().reshape([-1 if a == axis else 1 for a in range(3)])
    return torch.fft.ifftn(spectrum).real


def slices_at(image: Tensor, inside: Tensor, axis: int, thickness: float, phase: float) -> Tensor:
    """An image as if its slices had lain elsewhere: read at those places and interpolated linearly between them.

    Args:
        image: (H, W, Z).
        inside: (H, W, Z) bool; what is outside is not mixed in, and stays.
        axis: along which the slices follow each other.
        thickness: from one to the next, in voxels.
        phase: of the first one, 0 to 1, in slices.
    """
    count = image.shape[axis]
    places = torch.arange(-phase * thickness, count - 1 + thickness, thickness, dtype=torch.float64)
    across = _reading(torch.arange(count), places) @ _reading(places, torch.arange(count))
    mixed, total = (
        torch.tensordot(across.to(image), v.movedim(axis, 0), dims=1).movedim(0, axis)
        for v in (image * inside, inside.to(image))
    )
    return torch.where(inside & (total > 1e-3), mixed / total.clamp(min=1e-3), image)


def _reading(at: Tensor, knots: Tensor) -> Tensor:
    """Matrix of linear interpolation, (places, knots), from values at equidistant knots; beyond the ends the last."""
    step = float(knots[1] - knots[0]) if len(knots) > 1 else 1.0
    index = ((at.double() - float(knots[0])) / step).clamp(0, len(knots) - 1)
    return (1 - (index[:, None] - torch.arange(len(knots))).abs()).clamp(min=0)
