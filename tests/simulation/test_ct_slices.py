"""Slices along z: averages, gaps, overlap, tilt, and the reading back."""

from dataclasses import replace

import numpy as np
import pytest

from scripts.simulation.ct_parameters import SimulatedCTParameters
from scripts.simulation.ct_slices import axial_response, slice_positions
from scripts.volumes.separable import apply_along_z, averaging_matrices, interpolation_matrices

SHAPE, SPACING = (5, 30, 40), (1.5, 1.5, 1.5)
THICK = SimulatedCTParameters(slice_distance_mm=5.0, slice_thickness_mm=5.0, slice_phase=0.3)


def test_averages_are_means_over_the_part_of_each_voxel_that_a_slice_covers():
    average = averaging_matrices(np.array([1.0, 4.5]), np.array([1.0, 2.0]), 8)
    np.testing.assert_allclose(average, [[0, 1, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0.5, 0.5, 0, 0]])


def test_a_slice_beyond_the_ends_shows_the_last_voxel():
    average = averaging_matrices(np.array([-9.0, 11.0]), np.array([2.0, 2.0]), 4)
    np.testing.assert_allclose(average, [[1, 0, 0, 0], [0, 0, 0, 1]])


def test_interpolation_agrees_with_numpy_for_uneven_slices():
    centres, values = np.array([0.4, 2.0, 5.5, 7.1]), np.array([3.0, -1.0, 4.0, 2.0])
    back = interpolation_matrices(centres, 9)
    np.testing.assert_allclose(back @ values, np.interp(np.arange(9), centres, values))
    rows = np.stack([centres, centres + 0.7])
    np.testing.assert_allclose(interpolation_matrices(rows, 9)[1], interpolation_matrices(rows[1], 9))


CHANGES = [{}, {"slice_thickness_mm": 3.0}, {"slice_thickness_mm": 8.0}, {"slice_tilt_deg": 15.0}]


@pytest.mark.parametrize("change", CHANGES)
def test_thick_slices_keep_constants_and_ramps_and_lose_detail(change):
    p = replace(THICK, **change)
    matrix = axial_response(SHAPE, SPACING, p).signal.astype(np.float64)
    ramp = np.arange(40.0)
    np.testing.assert_allclose(matrix.sum(-1), 1, atol=1e-5)
    inner = (matrix @ ramp)[..., 6:-6]
    np.testing.assert_allclose(inner, np.broadcast_to(ramp[6:-6], inner.shape), atol=0.35)
    assert np.linalg.matrix_rank(matrix.reshape(-1, 40, 40)[0], tol=1e-5) <= np.ceil(40 * 1.5 / 5) + 2
    assert np.abs((matrix @ (-1.0) ** ramp)[..., 6:-6]).max() < 0.6


def test_distances_grow_from_the_change_upwards():
    centres, thickness = slice_positions(SHAPE, SPACING, replace(THICK, slice_change=0.5, upper_slice_factor=1.6))
    steps = np.diff(centres) * 1.5
    np.testing.assert_allclose(steps[centres[:-1] < 15], 5)
    np.testing.assert_allclose(steps[centres[:-1] > 20], 8)
    np.testing.assert_allclose(thickness[centres < 15] * 1.5, 5)
    np.testing.assert_allclose(thickness[centres > 25] * 1.5, 8)


def test_tilted_slices_leave_alone_what_is_constant_along_them():
    p = replace(THICK, slice_tilt_deg=20.0)
    y, z = np.meshgrid(np.arange(30), np.arange(40), indexing="ij")
    along = z - np.tan(np.deg2rad(20)) * (y - 14.5)
    centres = slice_positions(SHAPE, SPACING, p)[0]
    assert np.ptp(centres[:, 0]) == pytest.approx(29 * np.tan(np.deg2rad(20)))
    wave = np.cos(2 * np.pi * along / 24)[None].astype(np.float32)
    seen = apply_along_z(wave, axial_response(SHAPE, SPACING, p).signal)[0]
    # all rows see the same, shifted by the tilt
    inner = (z > 8) & (z < 32)
    loss = [seen[inner & (np.abs(along - a) < 0.5)].std() for a in (18, 20, 22)]
    assert max(loss) < 0.3
    assert seen[inner].std() == pytest.approx(wave[0][inner].std(), rel=0.15)


def test_no_thick_slices_and_no_blur_change_nothing():
    response = axial_response(SHAPE, SPACING, SimulatedCTParameters())
    np.testing.assert_array_equal(response.signal, np.eye(40))
    np.testing.assert_array_equal(response.noise, np.eye(40))


def test_matrices_for_each_row_are_applied_to_their_row():
    rng = np.random.default_rng(0)
    volume, matrices = (rng.standard_normal(s, dtype=np.float32) for s in ((2, 3, 4), (3, 4, 4)))
    expected = np.einsum("yzk,xyk->xyz", matrices, volume)
    np.testing.assert_allclose(apply_along_z(volume, matrices), expected, atol=1e-5)
    np.testing.assert_allclose(apply_along_z(volume, matrices[0]), volume @ matrices[0].T, atol=1e-5)
