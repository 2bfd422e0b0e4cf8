"""What passes for Hounsfield units, and the way back from a window."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from scripts.errors import CaseError
from scripts.transforms.hounsfield import CheckHounsfieldd, WindowToHUd
from tests.phantoms import centred_affine, head_ct

SHAPE = (34, 40, 32)
AFFINE = centred_affine(np.diag([6.0, 6.0, 6.0]), SHAPE)
HU = head_ct(AFFINE, SHAPE) + np.random.default_rng(0).normal(0, 5, SHAPE).astype(np.float32)
STRIPPED = np.where((HU > -20) & (HU < 100), HU, 0)


def volume(values):
    meta = {"filename_or_obj": "/data/ct.nii.gz"}
    return {"image": MetaTensor(torch.as_tensor(np.asarray(values, np.float32))[None], affine=AFFINE, meta=meta)}


def windowed(low, high, levels):
    return np.round(np.clip((HU - low) / (high - low), 0, 1) * levels)


@pytest.mark.parametrize(
    "values", [HU, STRIPPED, np.where(STRIPPED == 0, -1024, STRIPPED), np.where(HU < -900, -3024, HU), HU - 15]
)
def test_takes_hounsfield_units(values):
    """Whole heads, stripped ones on either background, padded ones, and ones from a scanner that is off."""
    given = volume(values)
    assert CheckHounsfieldd()(given)["image"] is given["image"]


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ((HU + 1000) / 4000, "too narrow a range"),
        ((HU - HU.mean()) / HU.std(), "too narrow a range"),
        (windowed(0, 80, 255), "values from 0 to 255, which look like 8-bit grey levels"),
        (windowed(-1000, 1000, 255), "values from 0 to 255, which look like 8-bit grey levels"),
        (np.where(STRIPPED == 0, 0, windowed(0, 80, 255)), "8-bit grey levels"),
        (np.maximum(HU + 1024, 0), "soft tissue near 1024"),
        ((HU + 1000) * 30 + 3000, "only 0 mL of soft tissue"),
        (np.where(STRIPPED == 0, 0, 10 * STRIPPED + 150), "mL of soft tissue"),
    ],
)
def test_refuses_other_units_and_names_the_option(values, found):
    with pytest.raises(CaseError, match=found) as caught:
        CheckHounsfieldd()(volume(values))
    assert "--ct_window" in str(caught.value)
    assert str(caught.value).startswith("ct.nii.gz has values from")


CORNERS = np.zeros(SHAPE, bool)
CORNERS[:, :6], CORNERS[:, -6:] = True, True


@pytest.mark.parametrize("padding", [-2000, -1024, -1000, -3024, -500, 0])
@pytest.mark.parametrize("offset", [1024, 1000])
def test_stored_values_are_refused_whatever_the_padding(padding, offset):
    """The smallest value is the padding's; the air about the head is near 0, as soft tissue should be."""
    with pytest.raises(CaseError, match=r"soft tissue near 1024.*--ct_window .\["):
        CheckHounsfieldd()(volume(np.where(CORNERS, padding, HU + offset)))
    assert CheckHounsfieldd()(volume(np.where(CORNERS, padding, HU)))


@pytest.mark.parametrize("bits", [12, 16])
def test_hounsfield_units_that_wrapped_around(bits):
    wrapped = np.mod(np.round(HU), 2**bits)
    with pytest.raises(CaseError, match=f"wrapped around at {2**bits}; .*subtract {2**bits} from the values above"):
        CheckHounsfieldd()(volume(wrapped))
    back = np.where(wrapped > 2 ** (bits - 1) - 1, wrapped - 2**bits, wrapped)
    np.testing.assert_array_equal(back, np.round(HU))


@pytest.mark.parametrize(
    "values", [(HU + 1024) / 2, np.where(CORNERS, -2000, windowed(0, 80, 255)), HU - 1024, HU + 2048, HU + 32768]
)
def test_other_scales_with_air_where_tissue_should_be(values):
    with pytest.raises(CaseError, match="has values from"):
        CheckHounsfieldd()(volume(values))


def test_a_few_voxels_have_no_say():
    """Metal, and a detector's fault, in a head that is in HU."""
    odd = HU.copy()
    odd[15:17, 18:20, 16:18] = 30000
    odd[3, 3, 3] = -32768
    assert CheckHounsfieldd()(volume(odd))


@pytest.mark.parametrize(
    ("stored", "window"),
    [
        (windowed(-1000, 1000, 255), (-1000, 1000)),
        (windowed(0, 80, 255), (0, 80)),
        (np.clip(HU, 0, 80) / 80, (0, 80)),
        (np.maximum(HU, -1000) + 1024, (np.maximum(HU, -1000).min(), HU.max())),
    ],
)
def test_a_window_maps_values_back_within_half_a_level(stored, window):
    restored = WindowToHUd(window=window)(volume(stored))["image"][0].numpy()
    step = (window[1] - window[0]) / 255
    np.testing.assert_allclose(restored, np.clip(HU, *window), atol=0.51 * step)


def test_a_stripped_8_bit_volume_keeps_the_whole_scale():
    """Its brightest voxel is no bone: 255 levels are mapped, not the brightest one found."""
    stored = np.where((HU > -20) & (HU < 50), windowed(0, 80, 255), 0)
    restored = WindowToHUd(window=(0, 80))(volume(stored))["image"][0].numpy()
    brain = (HU > 5) & (HU < 50)
    np.testing.assert_allclose(restored[brain], HU[brain], atol=0.2)


@pytest.mark.parametrize("padding", [-1, -1000, -2000])
@pytest.mark.parametrize("levels", [1, 255])
def test_padding_is_no_part_of_the_scale(padding, levels):
    stored = np.where(CORNERS, padding, np.clip(HU, 0, 80) / 80 if levels == 1 else windowed(0, 80, 255))
    given = WindowToHUd(window=(0, 80))(volume(stored))
    np.testing.assert_allclose(given["image"][0].numpy()[~CORNERS], np.clip(HU, 0, 80)[~CORNERS], atol=0.17)
    assert CheckHounsfieldd()(given)


def test_no_window_changes_nothing():
    given = volume(HU)
    assert WindowToHUd()(given)["image"] is given["image"]


@pytest.mark.parametrize("window", [80, (80, 0), (0, 0), (0, 40, 80), "abc", (float("nan"), 1)])
def test_refuses_a_window_that_is_none(window):
    with pytest.raises(CaseError, match="two increasing numbers"):
        WindowToHUd(window=window)


def test_a_window_is_not_put_on_what_is_in_hounsfield_units_already():
    with pytest.raises(CaseError, match="units already"):
        WindowToHUd(window=(0, 80))(volume(HU))


@pytest.mark.parametrize("padding", [-1, -500, -1000, -1024, -2000])
@pytest.mark.parametrize("window", [(0, 80), (-20, 100), (-150, 250), (-1000, 1000)])
def test_grey_levels_are_refused_whatever_the_padding(padding, window):
    with pytest.raises(CaseError, match="which look like 8-bit grey levels"):
        CheckHounsfieldd()(volume(np.where(CORNERS, padding, windowed(*window, 255))))
