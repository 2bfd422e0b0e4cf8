"""The simulated CT: exact where nothing is random, reproducible where everything is."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage

from scripts.simulation.ct import (
    RandSimulateCT,
    RandSimulateCTd,
    SimulateCT,
    cupping_field,
    hu_to_unit_source,
    noise_field,
    simulate_ct,
    thick_slice_matrix,
)
from scripts.simulation.ct_anatomy import edge_depth
from scripts.simulation.ct_parameters import SimulatedCTParameters
from scripts.simulation.separable import apply_along_axes, gaussian_matrix
from scripts.simulation.tissue import CSF, DEEP_GREY, GREY, WHITE

SPACING = (3.0, 3.0, 3.0)


@pytest.fixture(scope="module")
def brain() -> tuple[np.ndarray, np.ndarray]:
    """Fractions (4, H, W, Z) and mask of two hemispheres with fluid between and around, ventricle and nuclei."""
    x, y, z = np.meshgrid(*(np.arange(n) - n // 2 for n in (55, 65, 55)), indexing="ij")
    radius = np.sqrt((x / 21) ** 2 + (y / 26) ** 2 + (z / 21) ** 2)
    classes = np.select([radius < 0.2, radius < 0.35, radius < 0.7, radius < 0.9], [CSF, DEEP_GREY, WHITE, GREY], CSF)
    classes[(np.abs(x) < 1) & (radius > 0.5)] = CSF
    mask = radius < 1
    fractions = np.stack([(classes == c) & mask for c in range(4)]).astype(np.float32)
    return fractions, mask


@pytest.fixture(scope="module")
def drawn() -> list[SimulatedCTParameters]:
    rng = np.random.RandomState(0)
    return [SimulatedCTParameters.draw(rng) for _ in range(2000)]


def test_an_ideal_scanner_gives_each_pure_voxel_its_tissues_hu(brain):
    p = SimulatedCTParameters(white_hu=25, grey_hu=36, deep_grey_hu=34, csf_hu=6)
    hu, mask = simulate_ct(*brain, SPACING, p)
    np.testing.assert_array_equal(mask[0], brain[1])
    for tissue, level in {WHITE: 25, GREY: 36, DEEP_GREY: 34, CSF: 6}.items():
        np.testing.assert_allclose(hu[0][brain[0][tissue] == 1], level, atol=1e-4)
    assert not hu[0][~brain[1]].any()


def test_mixed_voxels_get_the_mixtures_hu(brain):
    fractions = np.zeros_like(brain[0])
    fractions[CSF], fractions[WHITE] = 0.25 * brain[1], 0.75 * brain[1]
    hu, _ = simulate_ct(fractions, brain[1], SPACING, SimulatedCTParameters(white_hu=24, csf_hu=4))
    np.testing.assert_allclose(hu[0][brain[1]], 19, atol=1e-4)


def test_same_parameters_give_the_same_bits_another_seed_does_not(brain, drawn):
    first, mask = simulate_ct(*brain, SPACING, drawn[0])
    again, mask_again = simulate_ct(*brain, SPACING, drawn[0])
    other, _ = simulate_ct(*brain, SPACING, replace(drawn[0], seed=drawn[0].seed + 1))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(mask, mask_again)
    assert np.abs(first - other).max() > 1


def test_the_random_transform_hands_over_to_its_twin(brain):
    random = RandSimulateCT().set_random_state(seed=7)
    for _ in range(3):
        hu, mask = random(*brain, SPACING)
        twin_hu, twin_mask = SimulateCT(random.parameters)(*brain, SPACING)
        np.testing.assert_array_equal(hu, twin_hu)
        np.testing.assert_array_equal(mask, twin_mask)
        assert np.isfinite(hu).all()
        assert not hu[~mask].any()


def test_the_random_streams_of_the_stages_are_independent(brain, drawn):
    """Without noise the rest stays as it was: the difference is the noise alone."""
    p = replace(drawn[1], noise_hu=4.0)
    noisy, mask = simulate_ct(*brain, SPACING, p)
    clean, mask_clean = simulate_ct(*brain, SPACING, replace(p, noise_hu=0.0))
    np.testing.assert_array_equal(mask, mask_clean)
    np.testing.assert_allclose((noisy - clean)[0], noise_field(brain[1].shape, SPACING, p) * mask[0], atol=1e-3)


def test_drawn_parameters_keep_to_the_priors(drawn):
    white, grey, csf = (np.array([getattr(p, f"{t}_hu") for p in drawn]) for t in ("white", "grey", "csf"))
    assert white.min() > 16
    assert white.max() < 32
    assert abs(white.mean() - 24) < 0.5
    assert (grey - white).min() > 4.5
    assert (grey - white).max() < 13
    assert np.all(csf <= white - 8)
    assert max(sum(p.cupping_hu) for p in drawn) < 14
    noise = np.array([p.noise_hu for p in drawn])
    assert noise.max() < 10
    smooth = np.array([p.blur_in_plane_mm > 1.5 for p in drawn])
    assert 0.16 < smooth.mean() < 0.24
    assert np.log(noise[~smooth]).mean() == pytest.approx(np.log(np.sqrt(0.6 * 10)), abs=0.1)
    thick = np.array([p.slice_thickness_mm for p in drawn])
    assert thick.max() < 5
    # lesions that the target does not show stay rare
    assert np.mean([p.num_infarcts > 0 for p in drawn]) < 0.15
    assert np.mean([p.num_haemorrhages > 0 for p in drawn]) < 0.05


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.0])
def test_blur_keeps_the_sum_of_what_is_inside_and_constants_everywhere(sigma):
    volume = np.zeros((30, 32, 34), np.float32)
    volume[12:18, 12:20, 14:20] = np.random.default_rng(0).uniform(0, 40, (6, 8, 6))
    blurred = apply_along_axes(volume, [gaussian_matrix(n, sigma) for n in volume.shape])
    np.testing.assert_allclose(blurred.sum(), volume.sum(), rtol=1e-4)
    np.testing.assert_allclose(blurred, ndimage.gaussian_filter(volume, sigma, mode="nearest"), atol=1e-3)
    np.testing.assert_allclose(gaussian_matrix(30, sigma) @ np.ones(30), 1, atol=1e-5)


@pytest.mark.parametrize(("thickness", "phase"), [(1.7, 0.0), (2.0, 0.3), (3.3, 0.9)])
def test_thick_slices_average_and_interpolate(thickness, phase):
    matrix = thick_slice_matrix(40, thickness, phase).astype(np.float64)
    np.testing.assert_allclose(matrix @ np.ones(40), 1, atol=1e-6)
    assert matrix.min() >= 0
    ramp = np.arange(40.0)
    np.testing.assert_allclose((matrix @ ramp)[6:-6], ramp[6:-6], atol=0.5)
    # detail finer than the slices is lost: as many independent values as slices, and alternation averages out
    assert np.linalg.matrix_rank(matrix, tol=1e-5) <= np.ceil(40 / thickness) + 1
    assert np.abs(matrix @ (-1.0) ** ramp).max() < 0.75


def test_slices_as_thin_as_the_voxels_change_nothing():
    np.testing.assert_array_equal(thick_slice_matrix(9, 1.0, 0.4), np.eye(9))


def test_cupping_has_median_zero_and_rises_to_the_edge(brain):
    mask = brain[1]
    field = cupping_field(mask, SPACING, (4.0, 6.0))
    assert abs(np.median(field[mask])) < 1e-4
    depth = ndimage.distance_transform_edt(mask) * SPACING[0]
    steps = [field[mask & (depth > a) & (depth <= a + 9)].mean() for a in (0, 9, 18, 27)]
    assert all(np.diff(steps) < 0)
    assert field[mask].max() - field[mask].min() < 14


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_noise_has_the_standard_deviation_asked_for(share):
    p = SimulatedCTParameters(noise_hu=3.0, correlated_share=share, seed=3)
    noise = noise_field((40, 40, 40), (1.5, 1.5, 1.5), p)
    assert noise.std() == pytest.approx(3.0, rel=0.05)
    neighbours = np.corrcoef(noise[:-1].ravel(), noise[1:].ravel())[0, 1]
    assert neighbours == pytest.approx(share * np.exp(-0.25), abs=0.1)


def test_depth_is_right_at_a_flat_face():
    mask = np.zeros((30, 30, 30))
    mask[15:] = 1
    depth = edge_depth(mask, (1.5, 1.5, 1.5))
    np.testing.assert_allclose(depth[13:17, 15, 15], [-2.25, -0.75, 0.75, 2.25], atol=0.05)


def test_the_cts_mask_grows_and_shrinks_by_what_is_asked(brain):
    def volume(growth_mm: float) -> int:
        return simulate_ct(*brain, SPACING, SimulatedCTParameters(mask_growth_mm=growth_mm))[1].sum()

    assert volume(-3.0) < brain[1].sum() < volume(3.0)
    # one voxel of the surface each way
    shell = (ndimage.binary_dilation(brain[1]) & ~brain[1]).sum()
    assert 0.4 * shell < volume(3.0) - brain[1].sum() < 1.6 * shell
    assert 0.4 * shell < brain[1].sum() - volume(-3.0) < 1.6 * shell


def test_closing_fills_fissures_with_fluid(brain):
    fractions, mask = brain[0].copy(), brain[1].copy()
    mask[:, :, 40:42] = False  # an open cleft
    p = SimulatedCTParameters(csf_hu=5.0, closing_mm=6.0)
    hu, closed = simulate_ct(fractions * mask, mask, SPACING, p)
    cleft = brain[1] & ~mask & (edge_depth(brain[1], SPACING) > 6)
    assert closed[0][cleft].all()
    np.testing.assert_allclose(hu[0][cleft], 5.0, atol=1e-4)


def test_bone_lies_outside_the_t1s_mask_only(brain):
    p = SimulatedCTParameters(mask_growth_mm=4.5, shell_mm=0.5)
    without, _ = simulate_ct(*brain, SPACING, p)
    with_bone, mask = simulate_ct(*brain, SPACING, replace(p, bone_hu=200.0))
    np.testing.assert_array_equal(with_bone[0][brain[1]], without[0][brain[1]])
    assert with_bone[0][mask[0] & ~brain[1]].max() > 80


def test_the_falx_lies_between_the_hemispheres(brain):
    without, _ = simulate_ct(*brain, SPACING, SimulatedCTParameters())
    p = SimulatedCTParameters(dura_weight=1.0, dura_hu=55.0)
    difference = simulate_ct(*brain, SPACING, p)[0][0] - without[0]
    top = difference[:, 32, 44]  # a line across, high in the brain
    assert top.argmax() == 27
    assert top.max() > 30
    assert np.abs(top[: 27 - 4]).max() < 1


def test_lesions_change_tissue_and_leave_fluid(brain):
    plain, _ = simulate_ct(*brain, SPACING, SimulatedCTParameters())
    p = SimulatedCTParameters(num_infarcts=2, infarct_hu=-6.0, infarct_radius_mm=12.0)
    infarct = simulate_ct(*brain, SPACING, p)[0] - plain
    assert infarct.min() == pytest.approx(-6, abs=0.01)
    assert infarct.max() <= 0
    assert not infarct[0][brain[0][CSF] == 1].any()
    p = SimulatedCTParameters(num_haemorrhages=1, haemorrhage_hu=70.0, haemorrhage_radius_mm=9.0)
    assert simulate_ct(*brain, SPACING, p)[0].max() == pytest.approx(70, abs=0.01)


@pytest.mark.parametrize("extra", [{"num_calcifications": 5}, {"vessel_weight": 1.0, "mask_growth_mm": 3.0}])
def test_calcium_and_vessels_only_brighten_a_small_part(brain, extra):
    p = SimulatedCTParameters(calcification_hu=100.0, vessel_hu=55.0, **extra)
    plain, mask = simulate_ct(*brain, SPACING, replace(p, num_calcifications=0, vessel_weight=0.0))
    changed = simulate_ct(*brain, SPACING, p)[0] - plain
    assert changed.min() > -1e-3
    assert changed.max() > 15
    assert 0 < (changed > 1).sum() < 0.1 * mask.sum()


def test_unit_source_maps_the_window_and_blanks_the_outside():
    hu = np.array([-10.0, 0.0, 40.0, 80.0, 200.0, 40.0], np.float32).reshape(1, 6, 1, 1)
    mask = np.array([1, 1, 1, 1, 1, 0], bool).reshape(1, 6, 1, 1)
    np.testing.assert_allclose(hu_to_unit_source(hu, mask).ravel(), [0, 0, 0.5, 1, 1, 0])
    shifted = hu_to_unit_source(hu, mask, postprocess=lambda h, m: h + 20 * m)
    np.testing.assert_allclose(shifted.ravel(), [0.125, 0.25, 0.75, 1, 1, 0])


def test_the_dictionary_transform_agrees_with_the_array_one(brain):
    affine = torch.diag(torch.tensor([3.0, 3.0, 3.0, 1.0]))
    data = {
        "target": MetaTensor(torch.from_numpy(brain[1])[None].float(), affine=affine),
        "tissue": torch.from_numpy(brain[0]),
        "mask": torch.from_numpy(brain[1])[None],
    }
    transform = RandSimulateCTd(fixed={"noise_hu": 1.0}).set_random_state(seed=5)
    result = transform(data)
    assert transform.simulate.parameters.noise_hu == 1.0
    hu, mask = simulate_ct(*brain, SPACING, transform.simulate.parameters)
    np.testing.assert_array_equal(result["source"].numpy(), hu_to_unit_source(hu, mask))
    np.testing.assert_array_equal(result["source_mask"].numpy(), mask)
    again = transform.set_random_state(seed=5)(data)
    torch.testing.assert_close(again["source"], result["source"], rtol=0, atol=0)


def test_an_unknown_fixed_parameter_is_named():
    with pytest.raises(ValueError, match="noise_sigma"):
        RandSimulateCT(fixed={"noise_sigma": 1.0})
