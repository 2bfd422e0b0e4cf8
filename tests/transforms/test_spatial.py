"""Resampling beside plain texts, smoothing before it, and the background outside a mask."""

import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Flip, Invertd, Spacingd

from scripts.transforms.spatial import BackgroundOutsided, SmoothForSpacingd, VolumeSpacingd


def volume(values, spacing=(1.0, 1.0, 1.0)):
    meta = {"filename_or_obj": "ct.nii.gz"}
    return MetaTensor(torch.as_tensor(values, dtype=torch.float32)[None], affine=np.diag([*spacing, 1.0]), meta=meta)


NOISE = np.random.default_rng(0).normal(30, 5, (24, 26, 20))


def test_resamples_beside_a_text_of_the_same_prefix():
    given = {"image": volume(NOISE), "image_path": "/in/ct.nii.gz", "case": "ct", 5: None}
    spacing = VolumeSpacingd("image", pixdim=(2, 2, 2))
    made = spacing(given)
    np.testing.assert_array_equal(made["image"], Spacingd("image", pixdim=(2, 2, 2))({"image": volume(NOISE)})["image"])
    assert {k: v for k, v in made.items() if k != "image"} == {k: v for k, v in given.items() if k != "image"}
    np.testing.assert_allclose(spacing.inverse({"image": made["image"]})["image"].affine, given["image"].affine)


def test_a_header_beside_it_is_kept_up_to_date():
    """What MONAI means to do for dictionaries of that prefix."""
    made = VolumeSpacingd("image", pixdim=(2, 2, 2))({"image": volume(NOISE), "image_meta_dict": {}})
    np.testing.assert_allclose(np.diag(made["image_meta_dict"]["affine"]), [2, 2, 2, 1])


@pytest.mark.parametrize("spacing", [(1.5, 1.5, 1.5), (2, 3, 5)])
def test_smoothing_does_nothing_where_voxels_shrink(spacing):
    given = volume(NOISE, spacing)
    np.testing.assert_array_equal(SmoothForSpacingd("image", pixdim=(1.5, 1.5, 1.5))({"image": given})["image"], given)


def test_smoothing_averages_noise_along_the_axes_that_grow_only():
    given = volume(NOISE, (0.5, 1.5, 5))
    made = SmoothForSpacingd("image", pixdim=(1.5, 1.5, 1.5))({"image": given})["image"]
    assert made.mean() == pytest.approx(30, abs=0.3)
    # a Gaussian of 1 voxel leaves 1/(2 sqrt(pi)) of the variance
    ratio = made[:, 4:-4].std() / given[:, 4:-4].std()
    assert ratio == pytest.approx((1 / (2 * np.pi**0.5)) ** 0.5, rel=0.03)
    alone = SmoothForSpacingd("image", pixdim=(1.5, 1.5, 1.5))({"image": volume(NOISE[:, 3:4, 4:5], (0.5, 1.5, 5))})
    np.testing.assert_allclose(made[:, :, 3:4, 4:5], alone["image"], rtol=1e-5)


def test_smoothing_keeps_the_grid_and_what_was_done_before():
    given = Flip(0)(volume(NOISE, (0.5, 0.5, 0.5)))
    made = SmoothForSpacingd("image", pixdim=(1.5, 1.5, 1.5))({"image": given})["image"]
    np.testing.assert_array_equal(made.affine, given.affine)
    assert made.applied_operations == given.applied_operations


def test_a_constant_stays_a_constant_to_the_edges():
    made = SmoothForSpacingd("image", pixdim=(3, 3, 3))({"image": volume(np.full((9, 9, 9), -1000.0))})["image"]
    np.testing.assert_allclose(made, -1000, rtol=1e-6)


def test_background_outside_the_mask():
    given = Flip(0)(volume(NOISE))
    mask = MetaTensor((given > 30).as_tensor(), affine=torch.eye(4))
    made = BackgroundOutsided("image", mask_key="mask", background=-7)({"image": given, "mask": mask})["image"]
    np.testing.assert_array_equal(made, np.where(given > 30, given, -7))
    np.testing.assert_array_equal(made.affine, given.affine)
    assert made.applied_operations == given.applied_operations
    assert (given != made).any()


TURNED = nib.eulerangles.euler2mat(0.1, -0.2, 0.3)
GRIDS = {
    "anisotropic": np.diag([0.5, 0.7, 2.0]),
    "flipped": np.diag([-0.6, 0.7, -2.0]),
    "oblique": TURNED @ np.diag([0.6, -0.8, 1.2]),
    "sheared": TURNED @ np.array([[0.6, 0.004, 0], [0, 0.8, 0], [0, 0, 1.2]]),
    "coarse": np.diag([3.0, 2.5, 5.0]),
    "unchanged": np.diag([1.5, 1.5, 1.5]),
}


def after_network(spacing, affine, shape, box):
    """A volume resampled by `spacing`, random within a box and 0 outside of it."""
    d = spacing({"image": MetaTensor(torch.zeros(1, *shape), affine=nib.affines.from_matvec(affine, [1.0, 2.0, 3.0]))})
    made = torch.zeros(d["image"].shape)
    where = (slice(None), *(slice(round(a * n), round(b * n)) for n, (a, b) in zip(made.shape[1:], box, strict=True)))
    made[where] = torch.rand(made[where].shape, generator=torch.Generator().manual_seed(0))
    return {**d, "pred": MetaTensor(made)}


@pytest.mark.parametrize(
    "box",
    [[(0.2, 0.8)] * 3, [(0, 1)] * 3, [(0, 0.3), (0.2, 0.7), (0.6, 1)], [(0.5, 0.5)] * 3],
    ids=["inside", "everywhere", "at the border", "nowhere"],
)
@pytest.mark.parametrize("affine", GRIDS.values(), ids=GRIDS.keys())
def test_the_inverse_by_the_nearest_voxel_is_that_of_monai(affine, box):
    made = []
    for kind in (Spacingd, VolumeSpacingd):
        spacing = kind("image", pixdim=(1.5, 1.5, 1.5), mode="bilinear", dtype=torch.float32)
        d = after_network(spacing, affine, (31, 40, 23), box)
        made.append(Invertd("pred", spacing, orig_keys="image", nearest_interp=True)(d)["pred"])
    theirs, ours = made
    assert ours.shape == (1, 31, 40, 23)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert ours.dtype == theirs.dtype
    np.testing.assert_allclose(ours.affine, theirs.affine)
    assert ours.applied_operations == theirs.applied_operations == []


def waves(affine, shape):
    """Smooth waves of 12 to 18 mm at the voxels of a grid, (1, *shape)."""
    places = nib.affines.apply_affine(affine, np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1))
    return torch.as_tensor(np.sin(places @ (2 * np.pi / np.array([12, 15, 18]))), dtype=torch.float32)[None]


@pytest.mark.parametrize("affine", GRIDS.values(), ids=GRIDS.keys())
def test_the_inverse_of_an_image_is_nearer_to_it_than_linear_interpolation(affine):
    affine, shape = nib.affines.from_matvec(affine, [1.0, 2.0, 3.0]), (37, 40, 29)
    errors = []
    for kind in (Spacingd, VolumeSpacingd):
        spacing = kind("image", pixdim=(1.5, 1.5, 1.5), mode="bilinear", dtype=torch.float32)
        d = spacing({"image": MetaTensor(torch.zeros(1, *shape), affine=affine)})
        d["pred"] = MetaTensor(waves(np.asarray(d["image"].affine), d["image"].shape[1:]))
        made = Invertd("pred", spacing, orig_keys="image", nearest_interp=False)(d)["pred"]
        np.testing.assert_allclose(made.affine, affine)
        assert made.applied_operations == []
        inner = (slice(None), *(slice(n // 5, n - n // 5) for n in shape))
        errors.append(float((made - waves(affine, shape))[inner].abs().max()))
    theirs, ours = errors
    assert ours < max(0.4 * theirs, 1e-5)


def test_the_inverse_of_an_image_stays_in_its_range():
    spacing = VolumeSpacingd("image", pixdim=(1.5, 1.5, 1.5), mode="bilinear", dtype=torch.float32)
    d = after_network(spacing, np.diag([0.5, 0.7, 2.0]), (31, 40, 23), [(0.2, 0.8)] * 3)
    made = Invertd("pred", spacing, orig_keys="image", nearest_interp=False)(d)["pred"]
    assert made.min() == 0
    assert 0.9 < made.max() <= d["pred"].max()
    nothing = {**d, "pred": torch.zeros_like(d["pred"])}
    assert not Invertd("pred", spacing, orig_keys="image", nearest_interp=False)(nothing)["pred"].any()


def resident(field):
    """What the kernel says of this process, bytes."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field)) * 1024


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is reset by Linux alone")
def test_the_inverse_needs_little_more_than_its_result():
    shape = (300, 300, 200)
    spacing = VolumeSpacingd("image", pixdim=(1.5, 1.5, 1.5), mode="bilinear", dtype=torch.float32)
    d = after_network(spacing, np.diag([0.5, 0.5, 0.8]), shape, [(0, 1)] * 3)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    inverse = Invertd("pred", spacing, orig_keys="image", nearest_interp=False)
    made = inverse(d)["pred"]
    assert made.shape == (1, *shape)
    # MONAI's own needs seven times the result
    assert resident("VmHWM") - before < 2.5 * made.numel() * 4


def test_smoothing_needs_one_array():
    given = volume(np.zeros((150, 150, 150)), (0.5, 0.5, 0.5))
    tracemalloc.start()
    SmoothForSpacingd("image", pixdim=(1.5, 1.5, 1.5))({"image": given})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.1 * given.numel() * 4
