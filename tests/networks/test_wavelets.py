"""Wavelets: nothing is lost, edges lie where they should, and Haar's are those of PyWavelets."""

import pytest
import pywt
import torch
from torch import Tensor

from scripts.networks import a_trous, haar, inverse_haar
from scripts.networks.wavelets import B3_SPLINE

ASYMMETRIC = (0.7, -0.1, 0.9)


def features(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def filtered_slowly(x: Tensor, taps: tuple[float, ...], distance: int, axis: int) -> Tensor:
    """Pixel by pixel, the outermost ones repeated."""
    out, size = torch.zeros_like(x), x.shape[axis]
    for i in range(size):
        for k, tap in enumerate(taps):
            j = min(max(i + distance * (k - len(taps) // 2), 0), size - 1)
            out.select(axis, i).add_(x.select(axis, j), alpha=tap)
    return out


@pytest.mark.parametrize("levels", [0, 1, 2, 3])
@pytest.mark.parametrize("taps", [B3_SPLINE, ASYMMETRIC])
def test_the_bands_add_up_to_the_features_for_any_low_pass(levels, taps):
    x = features(2, 3, 7, 8)
    torch.testing.assert_close(sum(a_trous(x, levels, taps)), x, rtol=0, atol=1e-14)


@pytest.mark.parametrize("taps", [B3_SPLINE, ASYMMETRIC])
def test_bands_are_the_sums_over_levels_of_filters_written_out(taps):
    x = features(1, 2, 9, 6)
    a, h, v, d = x, 0, 0, 0
    for distance in (1, 2):
        low, low_y = (filtered_slowly(a, taps, distance, axis) for axis in (3, 2))
        both = filtered_slowly(low, taps, distance, 2)
        h, v, d, a = h + low - both, v + low_y - both, d + a - low - low_y + both, both
    for found, expected in zip(a_trous(x, 2, taps), (a, h, v, d), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


def test_a_constant_has_no_details():
    bands = a_trous(torch.full((1, 2, 8, 9), 3.7, dtype=torch.float64), 3)
    torch.testing.assert_close(bands.approximation, torch.full_like(bands.approximation, 3.7))
    assert all(float(band.abs().max()) < 1e-14 for band in bands[1:])


@pytest.mark.parametrize("transform", [lambda x: a_trous(x, 3), haar])
def test_a_change_along_the_width_lies_in_v_alone(transform):
    edge = (torch.arange(16) > 6).double().expand(1, 1, 12, 16)
    _, horizontal, vertical, diagonal = transform(edge)
    assert float(vertical.abs().max()) > 0.1
    assert float(horizontal.abs().max()) < 1e-14
    assert float(diagonal.abs().max()) < 1e-14
    _, horizontal, vertical, _ = transform(edge.mT)
    assert float(horizontal.abs().max()) > 0.1
    assert float(vertical.abs().max()) < 1e-14


def test_shifted_features_have_shifted_bands_inside():
    x = features(1, 1, 40, 40)
    for band, shifted in zip(a_trous(x, 2), a_trous(x.roll((3, 5), (2, 3)), 2), strict=True):
        inside = (..., slice(12, 28), slice(12, 28))  # two levels of the spline reach 6 pixels
        torch.testing.assert_close(shifted[inside], band.roll((3, 5), (2, 3))[inside], rtol=0, atol=1e-14)


def test_haar_is_that_of_pywavelets():
    x = features(2, 3, 8, 10)
    approximation, details = pywt.dwt2(x.numpy(), "haar")
    for found, expected in zip(haar(x), (approximation, *details), strict=True):
        torch.testing.assert_close(found, torch.from_numpy(expected), rtol=0, atol=1e-14)


def test_haar_keeps_energy_and_has_an_inverse():
    x = features(2, 3, 6, 4)
    bands = haar(x)
    torch.testing.assert_close(sum(band.square().sum() for band in bands), x.square().sum())
    torch.testing.assert_close(inverse_haar(bands), x, rtol=0, atol=1e-14)


def test_what_cannot_be_transformed_is_refused():
    with pytest.raises(ValueError, match="7 x 8; the Haar transform takes even sizes"):
        haar(torch.zeros(1, 1, 7, 8))
    with pytest.raises(ValueError, match="taps are 2; a low-pass with a centre has an odd number"):
        a_trous(torch.zeros(1, 1, 8, 8), taps=(0.5, 0.5))
