"""Volumes on the grid of another one: where they show nothing there is background."""

import logging

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from scripts.transforms.onto_reference import OntoReferenced, mask_shown

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


def reference() -> MetaTensor:
    return MetaTensor(torch.zeros((1, 10, 10, 10)), affine=AFFINE)


def test_a_field_linear_in_mm_stays_it_and_what_is_not_shown_is_background():
    affine = np.array([[0.0, -4.0, 0, 19.0], [4.0, 0, 0, 1.0], [0, 0, 1.0, 6.0], [0, 0, 0, 1]])
    voxels = np.stack(np.meshgrid(*map(np.arange, (5, 5, 7)), indexing="ij"), axis=-1)
    values = 100 + (voxels @ affine[:3, :3].T + affine[:3, 3]) @ [1.0, 2.0, 3.0]
    volume = MetaTensor(torch.as_tensor(values, dtype=torch.float32)[None], affine=affine)
    given = {"image": reference(), "contrast_T2": volume, "contrast_CT": volume}
    made = OntoReferenced(["contrast_T2", "contrast_CT", "contrast_PD"], background={"contrast_CT": -1000.0})(given)
    places = 2.0 * np.stack(np.meshgrid(*map(np.arange, (10, 10, 10)), indexing="ij"), axis=-1)
    expected = 100 + places @ [1.0, 2.0, 3.0]
    shown = (places[..., 2] >= 5.5) & (places[..., 2] <= 12.5)  # half a voxel about 6 to 12 mm
    inner = shown & (places[..., :2] > 3).all(axis=-1) & (places[..., :2] < 17).all(axis=-1)
    np.testing.assert_allclose(made["contrast_T2"][0][inner], expected[inner], atol=1e-3)
    assert (made["contrast_T2"][0][~shown] == 0).all()
    assert (made["contrast_CT"][0][~shown] == -1000).all()
    np.testing.assert_array_equal(made["contrast_CT"][0][inner], made["contrast_T2"][0][inner])
    assert made.keys() == given.keys()


def test_on_its_own_grid_a_volume_is_itself():
    volume = MetaTensor(torch.rand((1, 10, 10, 10), generator=torch.Generator().manual_seed(0)), affine=AFFINE)
    made = OntoReferenced(["contrast_T2"])({"image": reference(), "contrast_T2": volume})
    torch.testing.assert_close(made["contrast_T2"].as_tensor(), volume.as_tensor(), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("slices", "used"), [(5, True), (4, False)])
def test_what_shows_less_than_half_of_the_brain_is_left_out_and_told(slices, used, caplog):
    """Of a mask of 10 slices the FLAIR shows 5 or 4; that the T2 has them all is told too."""
    source = MetaTensor(torch.zeros((1, 10, 10, 10)), affine=AFFINE, meta={})
    source.meta["contrasts"] = {"T2": {"moved_mm": -1.0}, "FLAIR": {"moved_mm": 4.0}}
    given = {
        "case": "anna",
        "image": reference(),
        "source": source,
        "grid_mask": torch.ones((1, 10, 10, 10)),
        "contrast_T2": MetaTensor(torch.ones((1, 10, 10, 10)), affine=AFFINE),
        "contrast_FLAIR": MetaTensor(torch.ones((1, 10, 10, slices)), affine=AFFINE),
    }
    keys = ["contrast_T1", "contrast_T2", "contrast_FLAIR"]
    with caplog.at_level(logging.WARNING):
        made = OntoReferenced(keys, mask_key="grid_mask")(given)
    assert ("contrast_FLAIR" in made) == used
    assert "contrast_T2" in made
    assert ("anna: the FLAIR shows only 40 % of the brain and is left out." in caplog.text) != used
    assert made["source"].meta["contrasts"] == {
        "T2": {"moved_mm": -1.0, "seen": 1.0, "used": True},
        "FLAIR": {"moved_mm": 4.0, "seen": pytest.approx(slices / 10), "used": used},
    }
    shown = made.get("shown_contrast_FLAIR")
    told = "anna: the FLAIR shows 50.0 % of the brain; what it does not show is made from the others."
    assert (told in caplog.text) == used
    assert "shown_contrast_T2" not in made
    if used:
        assert shown.shape == (1, 10, 10, 10)
        assert shown[..., :5].all()
        assert not shown[..., 5:].any()
        assert torch.equal(mask_shown(made, "contrast_FLAIR", "grid_mask"), shown)
    assert mask_shown(made, "contrast_T2", "grid_mask").all()
    # what was given is as it was
    assert source.meta["contrasts"]["FLAIR"] == {"moved_mm": 4.0}
    assert "contrast_FLAIR" in given
    # without a mask all are kept
    assert "contrast_FLAIR" in OntoReferenced(keys)(given)
