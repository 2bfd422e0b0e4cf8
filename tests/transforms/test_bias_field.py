"""Bias correction: a known field goes, the tissues stay."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from scripts.transforms.bias_field import BiasFieldCorrectd, correct_bias
from tests.phantoms import ball_brain

SPACING = 3.0
SHRINK = 2 * SPACING  # N4 on every second voxel of so small a brain


@pytest.fixture(scope="module")
def brain():
    """A ball of white matter with a rim of grey matter, 0 outside, and its mask; voxels of 3 mm."""
    return ball_brain()


@pytest.fixture(scope="module")
def bias():
    """A smooth field that rises from left to right by about a half."""
    return np.broadcast_to(np.exp(np.linspace(-0.25, 0.25, 40))[:, None, None], (40, 48, 44)).astype(np.float32)


def slope(volume, mask):
    """Change of the logarithm across the white matter from left to right, as a share of the field of view."""
    white = mask & (volume > 0)
    position = np.linspace(0, 1, volume.shape[0])[np.nonzero(white)[0]]
    return np.polyfit(position, np.log(volume[white]), 1)[0]


def test_bias_correction_flattens_a_known_field(brain, bias):
    volume, mask = brain
    tilted = slope(volume * bias, mask)
    assert tilted > 0.45
    corrected = correct_bias(volume * bias, mask, [SPACING] * 3, SHRINK)
    assert abs(slope(corrected, mask)) < 0.25 * tilted


def test_bias_correction_keeps_the_tissues_of_an_even_volume(brain):
    volume, mask = brain
    ratio = correct_bias(volume, mask, [SPACING] * 3, SHRINK)[mask] / volume[mask]
    assert ratio.std() < 0.02


def test_bias_correction_is_not_misled_by_voids_in_the_mask(brain, bias):
    volume, mask = brain
    pierced = volume * bias
    pierced[18:22, 22:26, 20:24] = 0
    corrected = correct_bias(pierced, mask, [SPACING] * 3, SHRINK)
    near = mask & (pierced > 0)
    near[:15], near[25:] = False, False
    reference = correct_bias(volume * bias, mask, [SPACING] * 3, SHRINK)
    assert np.abs(np.log(corrected[near] / reference[near])).max() < 0.05


def test_the_unit_of_the_intensities_has_no_say(brain, bias):
    volume, mask = brain
    once, scaled = (correct_bias(volume * bias * f, mask, [SPACING] * 3, SHRINK) / f for f in (1.0, 1 / 900))
    np.testing.assert_allclose(scaled[mask], once[mask], rtol=1e-3)


def test_a_volume_without_anything_in_its_mask_comes_back(brain):
    volume, mask = brain
    np.testing.assert_array_equal(correct_bias(0 * volume, mask, [SPACING] * 3, SHRINK), 0 * volume)


def test_the_transform_keeps_the_grid_and_the_file(brain, bias):
    volume, mask = brain
    affine = torch.diag(torch.tensor([-SPACING, SPACING, SPACING, 1.0], dtype=torch.float64))
    image = MetaTensor(torch.from_numpy(volume * bias)[None], affine=affine, meta={"filename_or_obj": "a.nii.gz"})
    kept = image.clone()
    done = BiasFieldCorrectd("image", shrink_mm=SHRINK)({"image": image, "mask": torch.from_numpy(mask)[None]})["image"]
    expected = correct_bias(volume * bias, mask, [SPACING] * 3, SHRINK)
    np.testing.assert_allclose(done[0].numpy(), expected, rtol=1e-5)
    assert torch.equal(done.affine, affine)
    assert done.meta["filename_or_obj"] == "a.nii.gz"
    assert torch.equal(image, kept)  # the input is left alone
