"""Metrics against their definitions and scikit-image."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.metrics import structural_similarity

from scripts.evaluation import metrics


@pytest.fixture(scope="module")
def pair():
    """A smooth reference, a noisy and darker image of it, and a ball as the mask, (16, 18, 14)."""
    rng = np.random.default_rng(0)
    reference = ndimage.gaussian_filter(rng.random((16, 18, 14)), 1)
    reference = (reference - reference.min()) / (reference.max() - reference.min())
    image = np.clip(0.9 * reference + 0.08 * rng.standard_normal(reference.shape), 0, 1)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in reference.shape), indexing="ij"))
    mask = (grid**2).sum(0) < 0.25
    return tuple(torch.from_numpy(a).float() for a in (image, reference, mask))


def test_psnr_is_minus_ten_log_of_the_mean_squared_error(pair):
    image, reference, mask = pair
    for inside in (torch.ones_like(mask), mask):
        error = ((image - reference) ** 2)[inside > 0].mean().item()
        assert metrics.psnr(image, reference, inside).item() == pytest.approx(-10 * math.log10(error), rel=1e-5)
    assert metrics.psnr(reference + 0.1, reference).item() == pytest.approx(20, abs=1e-4)


def test_nrmse_divides_by_the_range_of_the_reference(pair):
    image, reference, mask = pair
    assert metrics.nrmse(reference / 2 + 0.1, reference / 2).item() == pytest.approx(0.2, rel=1e-5)
    inside = mask > 0
    root = (image - reference)[inside].square().mean().sqrt()
    spread = reference[inside].max() - reference[inside].min()
    assert metrics.nrmse(image, reference, mask).item() == pytest.approx((root / spread).item(), rel=1e-5)
    assert metrics.nrmse(image, reference) != metrics.nrmse(reference, image / 2)


def test_ssim_agrees_with_scikit_image(pair):
    image, reference, mask = pair
    whole, of_each = structural_similarity(image.numpy(), reference.numpy(), win_size=7, data_range=1, full=True)
    assert metrics.ssim(image, reference).item() == pytest.approx(whole, abs=1e-4)
    # the ball stays clear of the border, where scikit-image makes values of windows that leave the volume
    assert metrics.ssim(image, reference, mask).item() == pytest.approx(of_each[mask.numpy() > 0].mean(), abs=1e-4)


def test_inter_slice_ssim_is_the_mean_over_adjacent_slices(pair):
    image, _, mask = pair
    pairs = list(zip(image.numpy().T, image.numpy().T[1:], strict=False))
    # of the 49 pixels of a window, variances divided by 48 (scikit-image's default) or by 49 make 3e-4 here
    options = {"win_size": 7, "data_range": 1, "use_sample_covariance": False, "full": True}
    values, maps = zip(*(structural_similarity(a.T, b.T, **options) for a, b in pairs), strict=True)
    assert metrics.inter_slice_ssim(image).item() == pytest.approx(np.mean(values), abs=1e-4)
    both = (mask[..., :-1] * mask[..., 1:]).numpy() > 0
    inside = metrics.inter_slice_ssim(image, mask=mask).item()
    assert inside == pytest.approx(np.stack(maps, -1)[both].mean(), abs=1e-4)


def test_identical_slices_have_inter_slice_ssim_one(pair):
    image, reference, mask = pair
    same = image[..., :1].expand_as(image)
    assert metrics.inter_slice_ssim(same).item() == pytest.approx(1, abs=1e-6)
    assert metrics.inter_slice_ssim(same, reference, mask).item() == pytest.approx(1, abs=1e-6)
    assert metrics.inter_slice_ssim(image) < 0.9


@pytest.mark.parametrize("metric", [metrics.psnr, metrics.nrmse])
def test_what_lies_outside_the_mask_does_not_count(pair, metric):
    image, reference, mask = pair
    elsewhere = torch.where(mask > 0, image, torch.rand_like(image))
    assert metric(elsewhere, reference, mask) == metric(image, reference, mask)
    assert metric(elsewhere, reference) != metric(image, reference)


def test_an_empty_mask_is_refused(pair):
    image, reference, mask = pair
    with pytest.raises(ValueError, match="mask is empty"):
        metrics.psnr(image, reference, torch.zeros_like(mask))


def test_the_monai_metric_clips_and_takes_the_mask_from_the_label(pair):
    image, reference, mask = pair
    label = torch.stack([reference, mask])
    metric = metrics.VolumeMetric(metrics.psnr)
    too_bright = torch.where(image >= 1, 7.0, image)  # what is above 1 is clipped to 1
    metric(y_pred=[image[None], too_bright[None]], y=[label, label])
    assert metric.get_buffer().shape == (2, 1)
    torch.testing.assert_close(metric.aggregate(), metrics.psnr(image, reference, mask))
