"""Figures of a synthetic volume: exact where they must be, worse where the image is."""

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from scripts.evaluation.compare import (
    as_markdown,
    best_pointwise_map,
    compare_volumes,
    figures,
    gradient_energy,
    pearson,
)

SHAPE = (24, 26, 22)


@pytest.fixture(scope="module")
def reference():
    """A smooth image in (0, 1], different on the left and on the right."""
    image = ndimage.gaussian_filter(np.random.default_rng(0).random(SHAPE), 1.5)
    return 0.05 + 0.95 * (image - image.min()) / np.ptp(image)


@pytest.fixture(scope="module")
def mask():
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij"))
    return (grid**2).sum(axis=0) < 0.8


@pytest.fixture
def save(tmp_path):
    def function(name, volume, affine=None):
        nib.save(nib.Nifti1Image(volume, np.diag([2.0, 2.0, 2.0, 1]) if affine is None else affine), tmp_path / name)
        return str(tmp_path / name)

    return function


def test_pearson_knows_no_scale_but_a_sign(reference, mask):
    assert pearson(reference, reference, mask) == pytest.approx(1)
    assert pearson(3 * reference + 7, reference, mask) == pytest.approx(1)
    assert pearson(-reference, reference, mask) == pytest.approx(-1)


def test_map_of_a_function_of_the_source_is_exact(mask):
    source = np.random.default_rng(1).integers(5, 40, SHAPE).astype(float)
    reference = np.sin(source)  # neither rising nor falling
    np.testing.assert_allclose(best_pointwise_map(source, reference, mask), np.where(mask, reference, 0), atol=1e-12)


def test_map_is_the_mean_of_the_reference_at_each_level(reference, mask):
    source = np.random.default_rng(1).integers(0, 4, SHAPE).astype(float)
    made = best_pointwise_map(source, reference, mask)
    for level in range(4):
        here = mask & (source == level)
        np.testing.assert_allclose(made[here], reference[here].mean())


def test_no_function_of_the_source_beats_the_map(reference, mask):
    source = np.round(60 * reference + np.random.default_rng(1).normal(0, 10, SHAPE))
    best = figures(best_pointwise_map(source, reference, mask), reference, mask)
    line = np.polyval(np.polyfit(source[mask], reference[mask], 1), source)
    for rival in (line, source / 60):
        assert figures(rival, reference, mask)["psnr"] < best["psnr"]


def test_gradient_energy_of_a_ramp_is_its_squared_slope(mask):
    ramp = 0.02 * np.arange(SHAPE[1])[None, :, None] * np.ones(SHAPE)
    assert gradient_energy(ramp, mask) == pytest.approx(0.02**2)


def test_figures_fall_with_blur_and_with_a_mirrored_image(reference, mask):
    same, blurred, mirrored = (
        figures(image, reference, mask)
        for image in (reference, ndimage.gaussian_filter(reference, 1), reference[::-1].copy())
    )
    assert (same["pearson"], same["ssim"], same["nrmse"]) == pytest.approx((1, 1, 0), abs=1e-5)
    assert same["psnr"] == np.inf
    assert same["sharpness"] == pytest.approx(1)
    assert blurred["sharpness"] < 0.8
    assert mirrored["sharpness"] == pytest.approx(1, abs=0.2)
    for worse, better in ((blurred, same), (mirrored, blurred)):
        assert worse["pearson"] < better["pearson"]
        assert worse["psnr"] < better["psnr"]
        assert worse["ssim"] < better["ssim"]
        assert worse["nrmse"] > better["nrmse"]


def test_files_of_another_unit_and_order_of_axes_agree(reference, mask, save):
    volume = np.clip(reference * mask / np.percentile(reference[mask], 99.9), 0, 1)
    affine = np.array([[0, -2.0, 0, 50], [2, 0, 0, -20], [0, 0, 2, 0], [0, 0, 0, 1]])
    # `affine` names the first axis P-A and the second one R-L; the same brain in RAS order:
    turned = np.ascontiguousarray(volume[:, ::-1].transpose(1, 0, 2))
    turned_affine = np.array([[2.0, 0, 0, 50 - 2 * (SHAPE[1] - 1)], [0, 2, 0, -20], [0, 0, 2, 0], [0, 0, 0, 1]])
    table = compare_volumes(save("synthetic.nii.gz", turned, turned_affine), save("real.nii.gz", 900 * volume, affine))
    assert table["synthetic"]["pearson"] > 0.9999
    assert table["synthetic"]["psnr"] > 60


def test_a_table_has_the_halves_and_the_source(reference, mask, save):
    damaged = (reference * mask).copy()
    damaged[: SHAPE[0] // 2] = 0.3
    paths = [save(f"{n}.nii.gz", v) for n, v in enumerate((damaged, reference * mask, 10 + 40 * reference))]
    table = compare_volumes(*paths)
    assert list(table) == ["real", "synthetic", "pointwise map", "left half", "right half"]
    assert table["left half"]["psnr"] < table["synthetic"]["psnr"] < table["right half"]["psnr"]
    assert table["pointwise map"]["pearson"] > 0.999
    assert "pointwise map" not in compare_volumes(*paths[:2])


def test_erosion_leaves_the_edge_out(reference, mask, save):
    volume = reference * mask
    inner = ndimage.distance_transform_edt(mask, [2, 2, 2]) > 4
    paths = save("synthetic.nii.gz", np.where(inner, volume, 0)), save("real.nii.gz", volume)
    assert compare_volumes(*paths)["synthetic"]["pearson"] < 0.9
    assert compare_volumes(*paths, erode_mm=4)["synthetic"]["pearson"] > 0.999


def test_refuses_what_cannot_be_compared(reference, mask, save):
    real = save("real.nii.gz", reference * mask)
    with pytest.raises(ValueError, match=r"gone\.nii\.gz is not there"):
        compare_volumes(real, "gone.nii.gz")
    with pytest.raises(ValueError, match="has no voxel above 0"):
        compare_volumes(real, save("empty.nii.gz", np.zeros(SHAPE)))
    with pytest.raises(ValueError, match="lower erode_mm"):
        compare_volumes(real, real, erode_mm=200)


def test_markdown_has_a_row_for_each_image():
    rows = as_markdown({"real": {"psnr": np.inf, "ssim": 1.0}, "synthetic": {"psnr": 20.123456, "ssim": 0.5}}).split(
        "\n"
    )
    assert rows == ["| | psnr | ssim |", "|---|---|---|", "| real | inf | 1.0000 |", "| synthetic | 20.1235 | 0.5000 |"]
