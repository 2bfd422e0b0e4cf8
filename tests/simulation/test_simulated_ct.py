"""The simulated CT: exact where nothing is random, reproducible where everything is."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage

from scripts.simulation.ct import RandSimulateCT, RandSimulateCTd, SimulateCT, hu_to_unit_source, simulate_ct
from scripts.simulation.ct_anatomy import Anatomy, edge_depth
from scripts.simulation.ct_artefacts import (
    MIDLINE_BONES,
    bone_artefacts,
    cupping_field,
    interpetrous_band,
    radial_streaks,
)
from scripts.simulation.ct_parameters import SimulatedCTParameters
from scripts.simulation.tissue import CSF, DEEP_GREY, GREY, WHITE
from scripts.volumes.separable import apply_along_axes, gaussian_matrix

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
    """Twice the noise differs from the noise as much as the noise from none: the rest stays as it was."""
    (none, mask), (once, mask_once), (twice, _) = (
        simulate_ct(*brain, SPACING, replace(drawn[1], noise_hu=noise)) for noise in (0.0, 2.0, 4.0)
    )
    np.testing.assert_array_equal(mask, mask_once)
    np.testing.assert_allclose(twice - once, once - none, atol=1e-3)
    assert (once - none)[mask].std() == pytest.approx(2, rel=0.4)


def test_drawn_parameters_keep_to_the_priors(drawn):
    white, grey, csf = (np.array([getattr(p, f"{t}_hu") for p in drawn]) for t in ("white", "grey", "csf"))
    usual = (grey - white > 5) & (grey - white < 14) & (csf <= white - 8)
    # any grey levels at all are rare
    assert 0.92 < usual.mean() < 0.96
    assert white[usual].min() > 15
    assert white[usual].max() < 56
    assert abs(white[usual].mean() - 24) < 0.5
    assert max(sum(p.cupping_hu) for p in drawn) < 14
    smooth = np.array([p.blur_in_plane_mm > 1.5 for p in drawn])
    assert 0.12 < smooth.mean() < 0.18
    noise = np.array([p.noise_hu for p in drawn])
    assert noise.max() < 10
    distance = np.array([p.slice_distance_mm for p in drawn])
    thick = distance > 0
    assert 0.45 < thick.mean() < 0.55
    assert not thick[smooth].any()
    assert noise[thick].max() < 5
    thickness = np.array([p.slice_thickness_mm for p in drawn])
    assert 0.15 < (thickness > distance)[thick].mean() < 0.25
    assert 0.15 < (thickness < distance)[thick].mean() < 0.25
    upper = distance * np.array([p.upper_slice_factor for p in drawn])
    assert distance[thick].min() > 2.5
    assert upper.max() <= 8
    assert 0.06 < np.mean([p.choroid_hu > 0 for p in drawn]) < 0.1
    assert 0.7 < np.mean([p.mask_of_cavity for p in drawn]) < 0.8


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.0])
def test_blur_keeps_the_sum_of_what_is_inside_and_constants_everywhere(sigma):
    volume = np.zeros((30, 32, 34), np.float32)
    volume[12:18, 12:20, 14:20] = np.random.default_rng(0).uniform(0, 40, (6, 8, 6))
    blurred = apply_along_axes(volume, [gaussian_matrix(n, sigma) for n in volume.shape])
    np.testing.assert_allclose(blurred.sum(), volume.sum(), rtol=1e-4)
    np.testing.assert_allclose(blurred, ndimage.gaussian_filter(volume, sigma, mode="nearest"), atol=1e-3)
    np.testing.assert_allclose(gaussian_matrix(30, sigma) @ np.ones(30), 1, atol=1e-5)


def test_cupping_has_median_zero_and_rises_to_the_edge(brain):
    mask = brain[1]
    field = cupping_field(mask, SPACING, (0.0, 4.0, 6.0))
    assert abs(np.median(field[mask])) < 1e-4
    depth = ndimage.distance_transform_edt(mask) * SPACING[0]
    steps = [field[mask & (depth > a) & (depth <= a + 9)].mean() for a in (0, 9, 18, 27)]
    assert all(np.diff(steps) < 0)
    assert field[mask].max() - field[mask].min() < 14


def test_the_petrous_band_lies_low_between_the_bones_and_is_dark(brain):
    band = interpetrous_band(Anatomy(brain[0], brain[1].astype(np.float32), SPACING), np.random.default_rng(0))
    darkest = np.array(np.unravel_index(band.argmin(), band.shape)) - np.array(band.shape) // 2
    assert -2 < band.min() < -0.5
    assert abs(darkest[0]) < 12
    assert darkest[2] < 0
    assert band.max() > 0.1
    # nothing of it in the upper half
    assert np.abs(band[:, :, 35:]).max() < 0.02


@pytest.mark.parametrize("place", MIDLINE_BONES)
def test_streaks_fade_away_from_their_bone(brain, place):
    anatomy = Anatomy(brain[0], brain[1].astype(np.float32), SPACING)
    streaks = radial_streaks(anatomy, place, np.random.default_rng(1), 20.0, 14.0)
    axes = (np.arange(n) * s - c * s for n, s, c in zip(brain[1].shape, SPACING, anatomy.voxel(place), strict=True))
    x, y, z = np.meshgrid(*axes, indexing="ij")
    radius = np.hypot(x, y)
    spread = [streaks[(radius > a) & (radius < a + 15) & (np.abs(z) < 10)].std() for a in (8, 30, 60)]
    assert spread[0] > 2 * spread[1] > 4 * spread[2]
    assert np.abs(streaks[np.abs(z) > 56]).max() < 0.01


def test_without_bone_artefacts_nothing_is_added(brain):
    anatomy = Anatomy(brain[0], brain[1].astype(np.float32), SPACING)
    assert not bone_artefacts(anatomy, SimulatedCTParameters(), np.random.default_rng(0)).any()


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


def test_the_masks_cavity_holds_the_outer_fluid_up_to_the_bone(brain):
    p = SimulatedCTParameters(csf_hu=5.0, shell_mm=6.0, bone_hu=500.0, mask_of_cavity=True)
    hu, mask = simulate_ct(*brain, SPACING, p)
    assert mask[0][brain[1]].all()
    outer = mask[0] & ~brain[1]
    reach = ndimage.distance_transform_edt(~brain[1])[outer] * SPACING[0]
    assert reach.max() == pytest.approx(6, abs=3)
    assert np.median(hu[0][outer]) == pytest.approx(5, abs=0.1)
    # one voxel further there is bone
    wider = simulate_ct(*brain, SPACING, replace(p, mask_growth_mm=3.0))
    assert np.median(wider[0][0][wider[1][0] & ~mask[0]]) > 100


def test_the_outer_fluid_is_widest_over_the_front_of_the_vertex(brain):
    p = SimulatedCTParameters(shell_mm=2.0, mask_of_cavity=True)
    thin, wide = (simulate_ct(*brain, SPACING, replace(p, shell_vertex_mm=extra))[1][0] for extra in (0.0, 9.0))
    added = np.argwhere(wide & ~thin)
    assert len(added) > 100
    assert added[:, 2].min() > 27
    assert added[:, 1].mean() > 32


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


def test_lesions_replace_tissue_by_fluid_and_add_hu(brain):
    p = SimulatedCTParameters(csf_hu=6.0)
    plain, mask = simulate_ct(*brain, SPACING, p)
    lesions = np.zeros((2, *brain[1].shape), np.float32)
    lesions[0, 20:30], lesions[1, 25:35] = 0.25, 30.0
    changed, _ = simulate_ct(*brain, SPACING, p, lesions)
    np.testing.assert_allclose(changed, (plain + lesions[0] * (6 - plain) + lesions[1]) * mask, atol=1e-3)
    np.testing.assert_array_equal(simulate_ct(*brain, SPACING, p, 0 * lesions)[0], plain)


def test_lesions_are_blurred_like_tissue(brain):
    p = SimulatedCTParameters(blur_in_plane_mm=3.0)
    lesions = np.zeros((2, *brain[1].shape), np.float32)
    lesions[1, 27, 32, 27] = 50.0
    difference = simulate_ct(*brain, SPACING, p, lesions)[0] - simulate_ct(*brain, SPACING, p)[0]
    assert difference.sum() == pytest.approx(50, rel=0.01)
    assert difference.max() < 15


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
    lesions = np.zeros((2, *brain[1].shape), np.float32)
    lesions[1, 20:30] = 9.0
    with_lesions = transform.set_random_state(seed=5)({**data, "ct_lesions": torch.from_numpy(lesions)})
    hu, mask = simulate_ct(*brain, SPACING, transform.simulate.parameters, lesions)
    np.testing.assert_array_equal(with_lesions["source"].numpy(), hu_to_unit_source(hu, mask))
    again = transform.set_random_state(seed=5)(data)
    torch.testing.assert_close(again["source"], result["source"], rtol=0, atol=0)


def test_an_unknown_fixed_parameter_is_named():
    with pytest.raises(ValueError, match="noise_sigma"):
        RandSimulateCT(fixed={"noise_sigma": 1.0})
