"""Sparse scans: where slices were acquired, masks between them, results on a dense grid."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from scripts.transforms.sparse import AcquiredSlices, DenseVolumed, MaskByShaped, MissingSlicesd, mask_by_shape

GRID = np.diag([1.5, 1.5, 1.5, 1.0])
SHAPE = (24, 24, 40)


def scan(gap: float, count: int, axis: int = 2, turned: float = 0.0, **meta) -> MetaTensor:
    """A scan of the same 36 x 36 x 60 mm whose slices are that far apart, turned about x by degrees."""
    edges, shape = [1.0, 1.0, 1.0], [36, 36, 60]
    edges[axis], shape[axis] = gap, count
    affine = np.diag([*edges, 1.0])
    cos, sin = np.cos(np.deg2rad(turned)), np.sin(np.deg2rad(turned))
    affine[:3, :3] = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ affine[:3, :3]
    return MetaTensor(torch.ones(1, *shape), affine=torch.from_numpy(affine), meta=meta)


def missing_of(source: MetaTensor, **options) -> torch.Tensor:
    image = MetaTensor(torch.rand(1, *SHAPE), affine=torch.from_numpy(GRID))
    made = MissingSlicesd(**options)({"image": image, "source": source})["image"]
    torch.testing.assert_close(made[:1], image)
    assert made.shape == (2, *SHAPE)
    np.testing.assert_array_equal(made.affine, image.affine)
    return made[1].as_tensor()


def test_slices_of_6_mm_leave_three_of_four_places_of_the_grid_missing():
    along_z = missing_of(scan(6.0, 10))[0, 0]
    np.testing.assert_allclose(along_z[:9] * 8, [0, 1, 2, 1, 0, 1, 2, 1, 0], atol=1e-5)


@pytest.mark.parametrize("gap", [1.0, 1.5, 2.5])
def test_nothing_is_missing_in_a_dense_scan(gap):
    assert not missing_of(scan(gap, 24)).any()


def test_the_gap_from_which_on_a_scan_is_sparse_can_be_set():
    assert missing_of(scan(5.0, 12)).any()
    assert not missing_of(scan(5.0, 12), smallest_gap=6.0).any()


def test_slices_that_do_not_follow_each_other_along_z_leave_the_condition_empty():
    assert not missing_of(scan(5.0, 7, axis=1)).any()


def test_a_turned_scan_is_missing_between_its_own_planes():
    source = scan(6.0, 10, turned=20)
    missing = missing_of(source)
    there = np.argwhere(missing.numpy() == 0)
    index = (np.linalg.inv(np.asarray(source.affine)) @ GRID @ np.c_[there, np.ones(len(there))].T)[2]
    index = index.clip(0, 9)  # beyond the first and last slice it is far from them
    assert np.abs(index - np.rint(index)).max() * 6.0 <= 0.75 + 1e-6
    assert missing.max() > 0.24


def test_slices_at_uneven_places_are_where_the_loader_says():
    source = scan(1.0, 60, acquired_places=[0.0, 3.0, 6.0, 15.0, 24.0, 59.0])
    assert AcquiredSlices.of(source).gap_mm == 35.0
    along_z = missing_of(source)[0, 0]
    assert list(np.flatnonzero(along_z == 0)) == [0, 2, 4, 10, 16, 39]


def test_a_network_without_the_condition_gets_the_volume_as_it_is():
    image = MetaTensor(torch.rand(1, *SHAPE), affine=torch.from_numpy(GRID))
    made = MissingSlicesd(enabled=False)({"image": image, "source": scan(6.0, 10)})
    assert made["image"] is image


def ball(source: MetaTensor, radius: float = 15.0) -> MetaTensor:
    """A ball in the middle of the scan, on its grid."""
    places = np.indices(source.shape[1:]).reshape(3, -1)
    mm = (np.asarray(source.affine)[:3, :3] @ places).T - [18, 18, 30]
    inside = (np.linalg.norm(mm, axis=1) <= radius).reshape(source.shape[1:])
    return MetaTensor(torch.from_numpy(inside)[None].float(), affine=source.affine)


def volume_of(radius: float) -> float:
    return 4 / 3 * np.pi * radius**3


def test_a_ball_on_slices_of_6_mm_becomes_a_ball_without_steps():
    made = mask_by_shape(ball(scan(6.0, 10)), np.diag([1.0, 1.0, 1.0, 1.0]), (36, 36, 60))
    true = np.asarray(ball(scan(1.0, 60))[0]) > 0
    dice = 2 * (made & true).sum() / (made.sum() + true.sum())
    steps = np.repeat(np.asarray(ball(scan(6.0, 10))[0]) > 0, 6, axis=2)
    steps = np.roll(steps, -3, axis=2)
    assert dice > 0.96 > 0.02 + 2 * (steps & true).sum() / (steps.sum() + true.sum())
    assert abs(made.sum() / volume_of(15.0) - 1) < 0.05
    np.testing.assert_array_equal(made[:, :, ::6], np.asarray(ball(scan(6.0, 10))[0]) > 0)  # acquired ones stay


def test_masks_of_dense_scans_stay_as_they_are_and_empty_ones_empty():
    mask = MetaTensor(torch.ones(1, *SHAPE), affine=torch.from_numpy(GRID))
    assert MaskByShaped()({"grid_mask": mask, "mask": ball(scan(1.0, 60))})["grid_mask"] is mask
    nothing = ball(scan(6.0, 10), radius=-1)
    assert not MaskByShaped()({"grid_mask": mask, "mask": nothing})["grid_mask"].any()


@pytest.mark.parametrize("flip", [False, True])
def test_the_dense_result_lies_where_the_scan_lies(flip):
    source = scan(6.0, 10)
    if flip:  # slices stored from the top downwards, left to right
        affine = np.asarray(source.affine) @ np.array([[-1, 0, 0, 35], [0, 1, 0, 0], [0, 0, -1, 9], [0, 0, 0, 1.0]])
        source = MetaTensor(source.as_tensor(), affine=torch.from_numpy(affine))
    mask = MetaTensor(torch.ones(1, *source.shape[1:]), affine=source.affine)
    places = np.indices(SHAPE)[2] * 1.5  # mm along z
    ramp = MetaTensor(torch.from_numpy(places).float()[None] / 100, affine=torch.from_numpy(GRID))
    dense = DenseVolumed(spacing=1.0)({"pred": ramp, "source": source, "mask": mask})["dense"]
    assert dense.shape == (1, 36, 36, 55)
    np.testing.assert_allclose(np.asarray(dense.affine)[:3, 3], np.asarray(source.affine)[:3, 3])
    mm = np.asarray(dense.affine) @ np.r_[5, 5, 20, 1.0]
    assert float(dense[0, 5, 5, 20]) == pytest.approx(mm[2] / 100, abs=1e-3)


def test_the_dense_result_is_background_outside_of_the_brain():
    source = scan(6.0, 10)
    pred = MetaTensor(torch.ones(1, *SHAPE), affine=torch.from_numpy(GRID))
    dense = DenseVolumed(spacing=1.0)({"pred": pred, "source": source, "mask": ball(source)})["dense"]
    assert abs(float(dense.sum()) / volume_of(15.0) - 1) < 0.05


def test_nothing_is_made_of_a_dense_scan():
    source = scan(2.5, 24)
    pred = MetaTensor(torch.ones(1, *SHAPE), affine=torch.from_numpy(GRID))
    assert "dense" not in DenseVolumed()({"pred": pred, "source": source, "mask": ball(source)})


@pytest.mark.parametrize("spacing", [0, -1, True, "1", 11])
def test_spacings_that_make_no_grid_are_refused(spacing):
    with pytest.raises(ValueError, match="output_spacing is"):
        DenseVolumed(spacing=spacing)
