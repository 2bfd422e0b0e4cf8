"""Noise of a CT: the spectrum of a reconstruction kernel in the slice, and what the slices make of it along z."""

from collections.abc import Sequence

import numpy as np
import torch

from ..volumes.separable import apply_along_z
from .ct_parameters import SimulatedCTParameters
from .ct_slices import AxialResponse, axial_response


def noise_power(frequency: np.ndarray, p: SimulatedCTParameters) -> np.ndarray:
    """Noise power in the slice, up to a factor, at spatial frequencies in 1/mm.

    Filtered back-projection gives a ramp times the squared apodisation of its kernel (Riederer et al. 1978, Phys Med
    Biol 23:446), here a Gaussian. Resampling to larger voxels folds high frequencies back and fills the dip at 0, which
    is the share ``noise_flatness``.
    """
    relative = frequency / p.noise_cutoff_per_mm
    return (p.noise_flatness + (1 - p.noise_flatness) * relative) * np.exp(-(relative**2))


def _filter_in_plane(volume: np.ndarray, spacing_mm: Sequence[float], p: SimulatedCTParameters) -> np.ndarray:
    """White noise (H, W, Z) to the kernel's spectrum; the standard deviation stays."""
    h, w = volume.shape[:2]
    rows, columns = np.fft.fftfreq(h, spacing_mm[0]), np.fft.fftfreq(w, spacing_mm[1])
    power = noise_power(np.hypot(rows[:, None], columns), p)
    response = np.sqrt(power / power.mean())[:, : w // 2 + 1, None].astype(np.float32)
    spectrum = torch.fft.rfft2(torch.from_numpy(volume), dim=(0, 1)) * torch.from_numpy(response)
    return torch.fft.irfft2(spectrum, s=(h, w), dim=(0, 1)).numpy()


def noise_field(
    shape: Sequence[int],
    spacing_mm: Sequence[float],
    p: SimulatedCTParameters,
    rng: np.random.Generator,
    axial: AxialResponse | None = None,
) -> np.ndarray:
    """(H, W, Z) float32 noise, HU; its standard deviation on the slices is ``noise_hu``, less between thick ones.

    It falls in a straight line from the base, where there is more bone, to the top by ``noise_fall`` of its mean.
    """
    axial = axial or axial_response(shape, spacing_mm, p)
    noise = apply_along_z(rng.standard_normal(shape, dtype=np.float32), axial.noise)
    fall = 1 + p.noise_fall * (0.5 - np.linspace(0, 1, shape[2]))
    return _filter_in_plane(noise, spacing_mm, p) * (p.noise_hu * fall).astype(np.float32)
