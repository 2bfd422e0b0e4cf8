"""The slow HU trend: what goes, what stays, and that voxel size and cost-saving have no say."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage

from scripts.transforms.intensity import FlattenHUTrend, FlattenHUTrendd, slow_trend

SPACING = (3.0, 3.0, 3.0)
SHAPE = (50, 60, 44)


def brain(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """An ellipsoid of 26 and 36 HU in equal shares, air around it: HU and mask (1, H, W, Z), mm from its centre."""
    mm = np.stack(np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij")).astype(float)
    mm = (mm - (np.array(SHAPE)[:, None, None, None] - 1) / 2) * np.array(SPACING)[:, None, None, None]
    mask = ((mm[0] / 66) ** 2 + (mm[1] / 82) ** 2 + (mm[2] / 58) ** 2) < 1
    texture = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=SHAPE), 1) > 0
    hu = np.where(mask, 26.0 + 10 * texture, -1000.0)
    return torch.from_numpy(hu).float()[None], torch.from_numpy(mask)[None], mm


def inside_sd(values: torch.Tensor, mask: torch.Tensor) -> float:
    """Standard deviation of what is slower than 15 mm, over the mask."""
    soft = mask[0].numpy()
    weight = ndimage.gaussian_filter(soft.astype(float), 5)
    slow = ndimage.gaussian_filter(np.where(soft, values[0].numpy(), 0), 5) / np.maximum(weight, 1e-6)
    return float(slow[soft].std())


def test_a_slow_trend_goes_and_the_texture_stays():
    hu, mask, mm = brain()
    trend = torch.from_numpy(4 * mm[0] / 66 + 6 * mm[1] / 82).float()[None]
    flat = FlattenHUTrend()(hu + trend, mask, SPACING)
    assert (flat - hu)[mask].std() < 0.45 * trend[mask].std()
    assert torch.corrcoef(torch.stack([flat[mask], hu[mask]]))[0, 1] > 0.95


def test_without_a_trend_only_the_median_moves():
    hu, mask, _ = brain()
    flat = FlattenHUTrend(target_median=40)(hu, mask, SPACING)
    assert flat[mask].median() == pytest.approx(40, abs=0.01)
    assert inside_sd(flat - hu, mask) < 0.35


def test_strength_zero_is_a_shift_and_the_offset_of_the_scanner_drops_out():
    hu, mask, _ = brain()
    shift = (FlattenHUTrend(strength=0)(hu, mask, SPACING) - hu)[mask]
    assert shift.max() - shift.min() < 1e-4
    plain, offset = (FlattenHUTrend()(hu + extra, mask, SPACING) for extra in (0, -6))
    torch.testing.assert_close(plain[mask], offset[mask], atol=0.01, rtol=0)


@pytest.mark.parametrize("lesion_hu", [15.0, 65.0])
def test_a_large_lesion_keeps_its_contrast(lesion_hu: float):
    hu, mask, mm = brain()
    lesion = torch.from_numpy(((mm[0] - 25) ** 2 + mm[1] ** 2 + mm[2] ** 2) < 25**2)[None]
    hurt = torch.where(lesion, lesion_hu, hu)
    contrasts = [v[lesion].mean() - v[mask & ~lesion].mean() for v in (hurt, FlattenHUTrend()(hurt, mask, SPACING))]
    assert contrasts[1] / contrasts[0] == pytest.approx(1, abs=0.12)


def test_wide_ventricles_neither_set_the_level_nor_bend_the_brain_around_them():
    hu, mask, mm = brain()
    fluid = torch.from_numpy(((mm[0] / 54) ** 2 + (mm[1] / 68) ** 2 + (mm[2] / 46) ** 2) < 1)[None]
    assert fluid.sum() > 0.5 * mask.sum()
    wide = torch.where(fluid, 6.0, hu)
    flat = FlattenHUTrend()(wide, mask, SPACING)
    tissue = mask & ~fluid
    assert flat[tissue].median() == pytest.approx(31, abs=0.5)
    assert (flat - wide)[tissue].std() < 1
    assert flat[fluid].mean() < 12


def test_the_coarse_grid_agrees_with_a_dense_gaussian_average():
    hu, mask, mm = brain()
    hu = hu + torch.from_numpy(mm[0] / 10).float()[None]
    weight = (mask & (hu > 5) & (hu < 60))[0].numpy().astype(float)
    dense = ndimage.gaussian_filter(weight * hu[0].numpy(), 10, mode="constant", truncate=3) / np.maximum(
        ndimage.gaussian_filter(weight, 10, mode="constant", truncate=3), 1e-9
    )
    trend = slow_trend(hu, mask, SPACING, 30.0, (5.0, 60.0))
    assert np.abs(trend[0].numpy() - dense)[mask[0].numpy()].max() < 0.6


def test_voxel_size_counts_in_mm():
    hu, mask, _ = brain()
    flat = FlattenHUTrend()(hu, mask, SPACING)
    finer = FlattenHUTrend()(hu.repeat_interleave(2, -1), mask.repeat_interleave(2, -1), (3.0, 3.0, 1.5))
    torch.testing.assert_close(flat[mask], finer[..., ::2][mask], atol=0.3, rtol=0)


def test_dictionary_form_reads_the_voxel_size_and_an_empty_mask_changes_nothing():
    hu, mask, _ = brain()
    volume = MetaTensor(hu, affine=np.diag([*SPACING, 1.0]))
    flat = FlattenHUTrendd("image")({"image": volume, "mask": mask})["image"]
    assert isinstance(flat, MetaTensor)
    torch.testing.assert_close(flat.as_tensor(), FlattenHUTrend()(hu, mask, SPACING))
    untouched = FlattenHUTrendd("image")({"image": volume, "mask": mask & False})["image"]
    assert torch.equal(untouched.as_tensor(), hu)


@pytest.mark.shared_data
def test_on_the_ct_template_the_best_pointwise_map_to_t1_gains(shared_data):
    """SPEC section 9: inside the eroded T1 mask the best pointwise map of the CT correlates with the T1 by 0.53."""
    import nibabel as nib

    folder = shared_data / "ct_t1_templates"
    ct = np.asarray(nib.load(folder / "scct_unsmooth_SS_0.01.nii.gz").dataobj, dtype=np.float32)[::2, ::2, ::2]
    t1 = np.asarray(nib.load(folder / "betsct1_unsmooth.nii.gz").dataobj, dtype=np.float32)[::2, ::2, ::2]
    inside = ndimage.distance_transform_edt(t1 > 0, sampling=2) > 4
    flat = FlattenHUTrend()(torch.from_numpy(ct)[None], torch.from_numpy(ct != 0)[None], (2.0, 2.0, 2.0))[0].numpy()

    def best_map(values: np.ndarray) -> float:
        bins = np.clip(values[inside] * 2, 0, 140).astype(int)
        mean = np.bincount(bins, t1[inside]) / np.maximum(np.bincount(bins), 1)
        return np.corrcoef(mean[bins], t1[inside])[0, 1]

    assert best_map(flat) > best_map(ct) + 0.005
