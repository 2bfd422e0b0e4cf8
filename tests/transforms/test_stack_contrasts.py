"""Contrasts as channels: where each voxel comes from, in which order, and what an absent one is."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd, Orientationd, Spacingd

from scripts.errors import CaseError
from scripts.transforms.stack_contrasts import StackContrastsd
from scripts.volumes.scaling import ScaleByBrainPercentiled

KEYS = ("contrast_T2", "contrast_FLAIR", "contrast_PD")
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


def volume(seed: int, affine: np.ndarray = AFFINE, shape: tuple[int, ...] = (12, 14, 10)) -> MetaTensor:
    values = torch.rand((1, *shape), generator=torch.Generator().manual_seed(seed)) * 100 * (seed + 1) + 1
    return MetaTensor(values, affine=affine, meta={"filename_or_obj": f"/in/{seed}.nii.gz"})


def mask_of(image: MetaTensor) -> MetaTensor:
    mask = torch.zeros(image.shape)
    mask[:, 2:9, 3:11, 1:8] = 1
    return MetaTensor(mask, affine=image.affine)


def item(**contrasts: MetaTensor) -> dict:
    reference = volume(0)
    return {"image": reference, "mask": mask_of(reference), "case": "anna", **contrasts}


def test_channels_are_the_contrasts_in_the_order_of_the_keys_each_scaled_alone():
    given = item(contrast_FLAIR=volume(1), contrast_T2=volume(2), contrast_PD=volume(3))
    made = StackContrastsd(KEYS)(given)
    assert made["image"].shape == (3, 12, 14, 10)
    assert made["image"].dtype == torch.float32
    assert made.keys() == {"image", "mask", "case"}
    for channel, key in enumerate(KEYS):
        alone = ScaleByBrainPercentiled(key)(dict(given))[key]
        np.testing.assert_allclose(made["image"][channel], alone[0], atol=1e-6)
    # another unit changes nothing
    scaled = StackContrastsd(KEYS)({**given, "contrast_T2": 7 * given["contrast_T2"]})
    np.testing.assert_allclose(scaled["image"], made["image"], atol=1e-6)


@pytest.mark.parametrize("absent", KEYS)
def test_an_absent_contrast_is_a_channel_of_zeros_and_changes_no_other(absent: str):
    given = item(**{key: volume(n) for n, key in enumerate(KEYS)})
    full = StackContrastsd(KEYS)(dict(given))
    del given[absent]
    without = StackContrastsd(KEYS)(given)
    for channel, key in enumerate(KEYS):
        expected = 0 * full["image"][channel] if key == absent else full["image"][channel]
        np.testing.assert_array_equal(without["image"][channel], expected)
    assert without["image"][KEYS.index(absent)].abs().max() == 0


def test_a_contrast_on_a_grid_of_its_own_lies_where_the_reference_does():
    """A field that is linear in mm is the same on any grid, whatever the axes' order and direction."""

    def linear(affine: np.ndarray, shape: tuple[int, ...]) -> MetaTensor:
        voxels = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
        mm = voxels @ affine[:3, :3].T + affine[:3, 3]
        return MetaTensor(torch.as_tensor(50 + mm @ [1.0, 2.0, 0.5], dtype=torch.float32)[None], affine=affine)

    turned = np.array([[0, -1.5, 0, 26.0], [1.5, 0, 0, -3.0], [0, 0, 3.0, -4.0], [0, 0, 0, 1]])
    reference = linear(AFFINE, (12, 14, 10))
    given = {"image": reference, "mask": mask_of(reference), "contrast_T2": linear(turned, (24, 22, 12))}
    made = StackContrastsd(["contrast_T2"], output_key="source")(given)
    inside = given["mask"][0] > 0
    expected = reference[0] / np.sort(reference[0][inside])[-1]
    np.testing.assert_allclose(made["source"][0][inside], expected[inside], atol=2e-3)
    assert made["image"] is reference


def test_the_stack_goes_back_as_the_reference_does():
    before = Compose([Orientationd("image", "RAS", labels=None), Spacingd("image", (3, 3, 3))])
    given = before({"image": volume(4, np.diag([-2.0, 2.0, 2.0, 1.0]))})
    shape = given["image"].shape
    made = StackContrastsd(["image_copy"], "image")({**given, "mask": given["image"] > 0, "image_copy": given["image"]})
    assert made["image"].shape == shape
    back = Invertd("image", before, orig_keys="image", nearest_interp=False)(made)["image"]
    assert back.shape == (1, 12, 14, 10)
    np.testing.assert_allclose(back.affine, np.diag([-2.0, 2.0, 2.0, 1.0]))


def test_a_contrast_is_scaled_by_the_part_that_it_shows_which_is_told_in_further_channels():
    """Zeros beyond the field of view would move its percentile."""
    given = item(contrast_T2=volume(1), contrast_FLAIR=volume(2))
    shown = torch.zeros(given["mask"].shape, dtype=torch.bool)
    shown[..., 5:] = True
    made = StackContrastsd(KEYS, percentile=50.0)({**given, "shown_contrast_FLAIR": shown})
    assert made["image"].shape[0] == 6
    whole = StackContrastsd(KEYS, percentile=50.0)(given)["image"]
    assert torch.equal(made["image"][0], whole[0])
    part = (given["mask"] > 0) & shown
    values = torch.as_tensor(volume(2))
    expected = (values / np.percentile(values[part], 50)).clamp(0, 1) * part
    torch.testing.assert_close(torch.as_tensor(made["image"][1]), expected[0], atol=3e-3, rtol=0)
    there = [torch.ones_like(shown), shown, torch.zeros_like(shown)]
    assert torch.equal(torch.as_tensor(made["image"][3:]), torch.cat(there).float())
    assert not any(str(key).startswith("shown") for key in made)


def test_no_contrast_at_all_is_refused():
    with pytest.raises(CaseError, match="None of the contrasts contrast_T2, contrast_FLAIR, contrast_PD is there"):
        StackContrastsd(KEYS)(item())


def test_a_contrast_without_a_brain_is_named():
    with pytest.raises(CaseError, match=r"^1\.nii\.gz has 0 as the 99\.9 percentile"):
        StackContrastsd(KEYS)(item(contrast_T2=0 * volume(1)))


def test_what_is_windowed_already_is_not_scaled_again():
    ct = MetaTensor(volume(3) / 1000, affine=AFFINE)
    given = item(contrast_T2=volume(1), contrast_CT=ct)
    made = StackContrastsd(("contrast_T2", "contrast_CT"), windowed="contrast_CT")(given)
    inside = given["mask"][0] > 0
    torch.testing.assert_close(torch.as_tensor(made["image"][1]), torch.as_tensor(ct[0]) * inside)
    assert made["image"][0].max() == 1
    assert made["image"][1].max() < 0.5
