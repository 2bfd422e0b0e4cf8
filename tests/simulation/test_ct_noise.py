"""Noise of the simulated CT: its spectrum in the slice and its correlation along z."""

from dataclasses import replace

import numpy as np
import pytest

from scripts.simulation.ct_noise import noise_field, noise_power
from scripts.simulation.ct_parameters import SimulatedCTParameters

SHAPE, SPACING = (64, 60, 40), (1.5, 1.5, 1.5)


def drawn(p: SimulatedCTParameters) -> np.ndarray:
    return noise_field(SHAPE, SPACING, p, np.random.default_rng(0))


@pytest.mark.parametrize(("cutoff", "flatness"), [(0.15, 0.0), (0.3, 0.5), (0.6, 1.0)])
def test_thin_slices_have_the_standard_deviation_and_the_spectrum_asked_for(cutoff, flatness):
    p = SimulatedCTParameters(noise_hu=3.0, noise_cutoff_per_mm=cutoff, noise_flatness=flatness)
    noise = drawn(p)
    assert noise.std() == pytest.approx(3.0, rel=0.03)
    frequency = np.hypot(np.fft.fftfreq(64, 1.5)[:, None], np.fft.fftfreq(60, 1.5))
    seen = (np.abs(np.fft.fft2(noise, axes=(0, 1))) ** 2).mean(-1)
    expected = noise_power(frequency, p)
    for low in (0.02, 0.1, 0.2, 0.3):
        band = (frequency >= low) & (frequency < low + 0.05)
        ratio = seen[band].sum() / seen.sum() / (expected[band].sum() / expected.sum())
        assert ratio == pytest.approx(1, abs=0.12), low


def test_a_ramp_has_no_slow_noise():
    p = SimulatedCTParameters(noise_hu=3.0, noise_flatness=0.0)
    np.testing.assert_allclose(drawn(p).mean((0, 1)), 0, atol=1e-4)


def test_noise_along_z_is_correlated_by_its_gaussian():
    noise = drawn(SimulatedCTParameters(noise_hu=3.0, noise_axial_mm=0.9))
    neighbours = np.corrcoef(noise[..., :-1].ravel(), noise[..., 1:].ravel())[0, 1]
    assert neighbours == pytest.approx(np.exp(-0.25 * (1.5 / 0.9) ** 2), abs=0.06)


def test_noise_of_thick_slices_is_independent_from_slice_to_slice_and_lower_between_them():
    p = SimulatedCTParameters(noise_hu=3.0, slice_distance_mm=6.0, slice_thickness_mm=6.0, slice_phase=0.0)
    noise = drawn(p)
    spread = noise.std((0, 1))
    on_slice, between = spread[4:36].max(), spread[4:36].min()
    assert on_slice == pytest.approx(3.0, rel=0.1)
    assert between == pytest.approx(3.0 / np.sqrt(2), rel=0.2)
    assert abs(np.corrcoef(noise[..., 8:20].ravel(), noise[..., 16:28].ravel())[0, 1]) < 0.1
    overlapping = drawn(replace(p, slice_thickness_mm=10.0))
    assert np.corrcoef(overlapping[..., 8:28].ravel(), overlapping[..., 12:32].ravel())[0, 1] > 0.2


def test_there_is_more_noise_at_the_base():
    noise = drawn(SimulatedCTParameters(noise_hu=2.0, noise_fall=0.4))
    assert noise[..., :4].std() == pytest.approx(2 * 1.2, rel=0.1)
    assert noise[..., -4:].std() == pytest.approx(2 * 0.8, rel=0.1)
