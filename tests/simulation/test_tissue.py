"""Tissue fractions recover phantoms and, where the real volumes are here, the deep nuclei of labelled people."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage

from scripts.simulation.tissue import (
    CSF,
    DEEP_GREY,
    DEEP_GREY_STRUCTURES,
    GREY,
    WHITE,
    TissueClassesd,
    flatten_white_matter,
    tissue_fractions,
)
from scripts.volumes.brain_coordinates import brain_coordinates, slice_positions

SPACING = (3.0, 3.0, 3.0)
LEVELS = {CSF: 0.2, GREY: 0.5, WHITE: 0.8}


@pytest.fixture(scope="module")
def phantom() -> dict[str, np.ndarray]:
    """Ellipsoid of white matter under grey matter under fluid, with ventricles."""
    x, y, z = np.meshgrid(*(np.arange(n) - n / 2 for n in (50, 60, 50)), indexing="ij")
    radius = np.sqrt((x / 21) ** 2 + (y / 26) ** 2 + (z / 21) ** 2)
    classes = np.select([radius < 0.2, radius < 0.7, radius < 0.87, radius < 1], [CSF, WHITE, GREY, CSF], -1)
    mask = classes >= 0
    t1 = np.select([classes == c for c in LEVELS], list(LEVELS.values()), 0.0)
    t1 = (t1 + np.random.default_rng(1).normal(0, 0.02, t1.shape)) * mask
    return {"t1": t1.astype(np.float32), "mask": mask, "classes": classes}


def test_fractions_recover_the_phantom_and_sum_to_one(phantom):
    nowhere = np.zeros(phantom["mask"].shape, np.int16)
    fractions = tissue_fractions(phantom["t1"], phantom["mask"], SPACING, labels=nowhere)
    assert fractions.dtype == np.float32
    np.testing.assert_allclose(fractions.sum(0), phantom["mask"], atol=1e-5)
    assert fractions.min() >= 0
    for tissue in LEVELS:
        inside = ndimage.binary_erosion(phantom["classes"] == tissue)
        assert inside.sum() > 10
        assert fractions[tissue][inside].mean() > 0.95


def test_labels_make_deep_grey_matter_of_what_looks_white(phantom):
    labels = np.zeros(phantom["mask"].shape, np.int16)
    labels[30:36, 28:34, 22:28] = 59  # thalamus, at the level of white matter
    fractions = tissue_fractions(phantom["t1"], phantom["mask"], SPACING, labels)
    assert fractions[DEEP_GREY][31:35, 29:33, 23:27].min() > 0.8
    assert fractions[DEEP_GREY][ndimage.binary_dilation(labels > 0, iterations=3) == 0].max() < 0.01


def test_without_labels_place_and_signal_make_deep_grey_matter(phantom):
    coordinates = brain_coordinates(phantom["mask"], SPACING)
    thalamus = DEEP_GREY_STRUCTURES[0]
    place = (thalamus.squared_distance(coordinates) < 2) & (phantom["classes"] == WHITE)
    elsewhere = np.roll(place, -12, axis=1) & (phantom["classes"] == WHITE)
    t1 = phantom["t1"].copy()
    t1[place | elsewhere] = LEVELS[GREY] + thalamus.intensity * (LEVELS[WHITE] - LEVELS[GREY])
    deep = tissue_fractions(t1, phantom["mask"], SPACING)[DEEP_GREY]
    assert place.sum() > 50
    assert elsewhere.sum() > 50
    assert deep[place].mean() > 0.7
    assert deep[elsewhere].mean() < 0.2


def test_a_dark_island_in_white_matter_is_part_fluid_not_grey(phantom):
    t1 = phantom["t1"].copy()
    island = (slice(33, 36), slice(30, 33), slice(25, 28))
    t1[island] = LEVELS[GREY]
    fractions = tissue_fractions(t1, phantom["mask"], SPACING, np.zeros(t1.shape))
    assert fractions[GREY][island].max() < 0.05
    # halfway between fluid and white matter in T1
    np.testing.assert_allclose(fractions[CSF][island], 0.5, atol=0.1)


def test_brain_coordinates_follow_the_brain_not_the_grid(phantom):
    mask = phantom["mask"]
    wider = brain_coordinates(np.pad(mask, ((3, 9), (0, 4), (7, 0))), SPACING)[:, 3:-9, :-4, 7:]
    np.testing.assert_allclose(wider, brain_coordinates(mask, SPACING), atol=1e-5)
    np.testing.assert_array_equal(slice_positions(mask, SPACING), brain_coordinates(mask, SPACING)[2, 3, 4])
    assert np.isnan(slice_positions(np.zeros_like(mask), SPACING)).all()
    finer = brain_coordinates(mask.repeat(2, 2), (3.0, 3.0, 1.5))
    np.testing.assert_allclose(finer[..., ::2], brain_coordinates(mask, SPACING), atol=0.02)


def test_flattening_removes_a_slow_trend(phantom):
    trend = 1 + 0.3 * np.linspace(-1, 1, 50)[:, None, None]
    white = ndimage.binary_erosion(phantom["classes"] == WHITE)
    biased = (phantom["t1"] * trend).astype(np.float32)
    flat = flatten_white_matter(biased, phantom["mask"], brain_coordinates(phantom["mask"], SPACING))
    assert flat[white].std() < 0.6 * biased[white].std()


def test_an_empty_mask_is_an_error():
    with pytest.raises(ValueError, match="empty"):
        tissue_fractions(np.zeros((8, 8, 8)), np.zeros((8, 8, 8)), SPACING)


def test_the_transform_takes_the_spacing_from_the_affine(phantom):
    affine = torch.diag(torch.tensor([3.0, 3.0, 3.0, 1.0]))
    data = {
        "target": MetaTensor(torch.from_numpy(phantom["t1"])[None], affine=affine),
        "mask": torch.from_numpy(phantom["mask"])[None],
    }
    result = TissueClassesd()(data)["tissue"]
    np.testing.assert_array_equal(result.numpy(), tissue_fractions(phantom["t1"], phantom["mask"], SPACING))
    with pytest.raises(ValueError, match="voxel size"):
        TissueClassesd()({**data, "target": torch.from_numpy(phantom["t1"])[None]})


@pytest.mark.shared_data
def test_deep_grey_prior_finds_the_nuclei_of_a_labelled_person(shared_data: Path):
    """The prior's constants come from 19 people of whom this is one: this tests the code, not how it generalises."""
    t1 = nib.as_closest_canonical(nib.load(shared_data / "nichart/t1/Subj20_T1.nii.gz"))
    labels = nib.as_closest_canonical(nib.load(shared_data / "nichart/labels/Subj20_T1_DLMUSE.nii.gz"))
    numbers = np.asarray(labels.dataobj).round().astype(np.int16)
    mask = ndimage.binary_fill_holes(ndimage.binary_closing(np.pad(numbers > 0, 6), iterations=4)[6:-6, 6:-6, 6:-6])
    signal = np.asarray(t1.dataobj, np.float32)
    signal = np.clip(signal / np.percentile(signal[mask], 99.9), 0, 1) * mask
    deep = tissue_fractions(signal, mask, t1.header.get_zooms()[:3])[DEEP_GREY] > 0.5
    true = np.isin(numbers, [n for s in DEEP_GREY_STRUCTURES for n in s.labels])
    assert 2 * (deep & true).sum() / (deep.sum() + true.sum()) > 0.6
