"""Tissue classes of a phantom whose tissues are known."""

import numpy as np
import pytest
from scipy import ndimage

from scripts.contrasts import CONTRASTS
from scripts.evaluation.tissue_dice import TISSUES_BY_BRIGHTNESS, tissue_classes, tissue_dice

SHAPE = (36, 40, 34)


@pytest.fixture(scope="module")
def brain() -> tuple[np.ndarray, np.ndarray]:
    """Tissue labels (shells of fluid, grey, white around a fluid core; H, W, Z) and a noisy T1 of them."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij"))
    radius = np.sqrt((grid**2).sum(axis=0))
    tissue = np.select([radius < 0.2, radius < 0.6, radius < 0.8, radius < 0.9], [1, 3, 2, 1])
    levels = np.array([0.0, 0.2, 0.55, 0.9])
    noise = np.random.default_rng(0).normal(0, 0.03, SHAPE)
    return tissue, np.clip(levels[tissue] + noise, 0.01, 1) * (tissue > 0)


def test_classes_are_fluid_grey_white_in_this_order(brain):
    tissue, t1 = brain
    classes = tissue_classes(1000 * t1, tissue > 0)  # any unit
    assert (classes[tissue == 0] == 0).all()
    assert (classes == tissue)[tissue > 0].mean() > 0.97


def test_dice_is_one_for_the_same_image_and_falls_where_a_tissue_is_lost(brain):
    tissue, t1 = brain
    same = tissue_dice(0.7 * t1, t1, tissue > 0, (2.0, 2.0, 2.0))
    assert same.keys() == {"dice_csf", "dice_gm", "dice_wm"}
    assert min(same.values()) > 0.97  # brightness has no say
    thinner = np.where((tissue == 2) & (ndimage.uniform_filter(t1, 3) > 0.5), 0.9, t1)
    lost = tissue_dice(thinner, t1, tissue > 0, (2.0, 2.0, 2.0))
    assert lost["dice_gm"] < 0.8 < lost["dice_csf"]


def test_fine_volumes_are_divided_on_a_coarser_grid_with_the_same_result(brain):
    tissue, t1 = brain
    fine_t1, fine_mask = (np.repeat(np.repeat(a, 2, 0), 2, 2) for a in (t1, tissue > 0))
    blurred = ndimage.gaussian_filter(t1, 0.8) * (tissue > 0)
    fine_blurred = np.repeat(np.repeat(blurred, 2, 0), 2, 2)
    coarse = tissue_dice(blurred, t1, tissue > 0, (2.0, 2.0, 2.0), grid_mm=2)
    fine = tissue_dice(fine_blurred, fine_t1, fine_mask, (1.0, 2.0, 1.0), grid_mm=2)
    assert fine == pytest.approx(coarse, abs=0.06)


def test_a_brain_too_small_to_divide_has_no_dice(brain):
    mask = np.zeros(SHAPE, dtype=bool)
    mask[10:14, 10:14, 10:14] = True
    assert np.isnan(list(tissue_dice(brain[1], brain[1], mask, (1, 1, 1)).values())).all()


LEVELS = {"T1": (0.2, 0.55, 0.9), "T2": (0.9, 0.55, 0.2), "FLAIR": (0.2, 0.9, 0.55)}


def as_contrast(brain, contrast: str) -> np.ndarray:
    """The phantom with the brightness that fluid, grey and white matter have in a contrast."""
    tissue, _ = brain
    noise = np.random.default_rng(1).normal(0, 0.03, SHAPE)
    return np.clip(np.array([0.0, *LEVELS[contrast]])[tissue] + noise, 0.01, 1) * (tissue > 0)


@pytest.mark.parametrize("contrast", LEVELS)
def test_each_contrast_has_its_own_order_and_another_one_is_wrong(brain, contrast):
    tissue, _ = brain
    image = as_contrast(brain, contrast)
    for order in LEVELS:
        right = (tissue_classes(image, tissue > 0, order) == tissue)[tissue > 0].mean()
        assert right > 0.97 if order == contrast else right < 0.7


def test_dice_is_told_of_the_tissue_that_is_lost(brain):
    tissue, _ = brain
    flair = as_contrast(brain, "FLAIR")
    lost = np.where((tissue == 2) & (np.indices(SHAPE)[0] < SHAPE[0] // 2), 0.2, flair)  # half of the cortex is fluid
    dice = tissue_dice(lost, flair, tissue > 0, (2, 2, 2), "FLAIR")
    assert dice["dice_gm"] < 0.8 < 0.95 < dice["dice_wm"]
    wrong = tissue_dice(lost, flair, tissue > 0, (2, 2, 2), "T1")
    assert wrong["dice_wm"] < 0.8 < 0.95 < wrong["dice_gm"]


def test_a_contrast_without_an_order_has_no_dice(brain):
    tissue, t1 = brain
    without = [c for c in CONTRASTS if not tissue_dice(t1, t1, tissue > 0, (2, 2, 2), c)]
    assert without == ["CT", "PD"]
    assert {tuple(sorted(order)) for order in TISSUES_BY_BRIGHTNESS.values()} == {("csf", "gm", "wm")}
