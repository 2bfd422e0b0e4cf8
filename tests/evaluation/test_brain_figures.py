"""Figures inside the brain, and a case in parts: exact where they must be, worse where the image is."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from scripts.errors import CaseError
from scripts.evaluation.evaluate import evaluate_pairs
from scripts.evaluation.figures import (
    CASE_FIGURES,
    band_correlations,
    best_pointwise_map,
    brain_figures,
    case_table,
    gradient_energy,
    low_pass,
    pearson,
    unsharp_mask,
)
from scripts.evaluation.pairs import ResultPair

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
    best = brain_figures(best_pointwise_map(source, reference, mask), reference, mask)
    line = np.polyval(np.polyfit(source[mask], reference[mask], 1), source)
    for rival in (line, source / 60):
        assert brain_figures(rival, reference, mask)["psnr"] < best["psnr"]


def test_gradient_energy_of_a_ramp_is_its_squared_slope(mask):
    ramp = 0.02 * np.arange(SHAPE[1])[None, :, None] * np.ones(SHAPE)
    assert gradient_energy(ramp, mask) == pytest.approx(0.02**2)


def test_figures_fall_with_blur_and_with_a_mirrored_image(reference, mask):
    same, blurred, mirrored = (
        brain_figures(image, reference, mask)
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


def rows_of(paths, erode_mm=0.0) -> dict[str, dict[str, float]]:
    """A case in parts, of its synthetic image, its real one and perhaps its source."""
    files = dict(zip(("synthetic", "real", "source"), map(Path, paths), strict=False))
    evaluation = evaluate_pairs([ResultPair("anna", **files)], erode_mm=erode_mm)
    if evaluation.failures:
        raise CaseError(evaluation.failures["anna"])
    return evaluation.rows


def test_low_pass_is_the_mean_of_the_brain_s_voxels_alone(mask):
    spacing = (1.0, 2.0, 3.0)
    flat = np.where(mask, 0.7, 0.0)
    np.testing.assert_allclose(low_pass(flat, mask, spacing)[mask], 0.7, atol=1e-6)
    image = np.random.default_rng(0).random(SHAPE)
    there = (12, 13, 11)
    offsets = np.indices(SHAPE) - np.reshape(there, (3, 1, 1, 1))
    distance = (np.reshape(spacing, (3, 1, 1, 1)) * offsets / 3.0) ** 2
    weights = np.exp(-0.5 * distance.sum(axis=0)) * mask
    expected = (weights * image).sum() / weights.sum()
    assert low_pass(image, mask, spacing)[there] == pytest.approx(expected, rel=1e-3)


def test_fine_detail_counts_where_the_reference_has_it(mask):
    rng = np.random.default_rng(0)
    spacing = (2.0, 2.0, 2.0)
    coarse = ndimage.gaussian_filter(rng.random(SHAPE), 4) * 20
    detail, other = (ndimage.gaussian_filter(rng.normal(0, 1, SHAPE), 0.6) for _ in range(2))
    reference = coarse + 0.1 * detail
    same = band_correlations(reference, reference, mask, spacing)
    assert same == pytest.approx({"highpass": 1, "lowpass": 1})
    invented = band_correlations(coarse + 0.1 * other, reference, mask, spacing)
    assert invented["highpass"] < 0.4
    assert invented["lowpass"] > 0.95
    blurred = band_correlations(low_pass(reference, mask, spacing), reference, mask, spacing)
    assert blurred["highpass"] < 0.7
    assert blurred["lowpass"] > 0.95
    # what is invented is as sharp as what is there
    figures = brain_figures(0.2 + 0.1 * other, 0.2 + 0.1 * detail, mask, spacing)
    assert figures["sharpness"] == pytest.approx(1, abs=0.1)
    assert abs(figures["highpass"]) < 0.2


def test_files_of_another_unit_and_order_of_axes_agree(reference, mask, save):
    volume = np.clip(reference * mask / np.percentile(reference[mask], 99.9), 0, 1)
    affine = np.array([[0, -2.0, 0, 50], [2, 0, 0, -20], [0, 0, 2, 0], [0, 0, 0, 1]])
    # `affine` names the first axis P-A and the second one R-L; the same brain in RAS order:
    turned = np.ascontiguousarray(volume[:, ::-1].transpose(1, 0, 2))
    turned_affine = np.array([[2.0, 0, 0, 50 - 2 * (SHAPE[1] - 1)], [0, 2, 0, -20], [0, 0, 2, 0], [0, 0, 0, 1]])
    table = rows_of([save("synthetic.nii.gz", turned, turned_affine), save("real.nii.gz", 900 * volume, affine)])
    assert table["synthetic"]["pearson"] > 0.9999
    assert table["synthetic"]["psnr"] > 60


def test_a_table_has_the_halves_and_the_source(reference, mask, save):
    damaged = (reference * mask).copy()
    damaged[: SHAPE[0] // 2] = 0.3
    paths = [save(f"{n}.nii.gz", v) for n, v in enumerate((damaged, reference * mask, 10 + 40 * reference))]
    table = rows_of(paths)
    assert list(table) == ["real", "synthetic", "unsharp mask", "pointwise map", "left half", "right half"]
    assert table["left half"]["psnr"] < table["synthetic"]["psnr"] < table["right half"]["psnr"]
    assert table["pointwise map"]["pearson"] > 0.999
    assert "pointwise map" not in rows_of(paths[:2])


def test_erosion_leaves_the_edge_out(reference, mask, save):
    volume = reference * mask
    inner = ndimage.distance_transform_edt(mask, [2, 2, 2]) > 4
    paths = save("synthetic.nii.gz", np.where(inner, volume, 0)), save("real.nii.gz", volume)
    assert rows_of(paths)["synthetic"]["pearson"] < 0.9
    assert rows_of(paths, erode_mm=4)["synthetic"]["pearson"] > 0.999


def test_refuses_what_cannot_be_compared(reference, mask, save):
    real = save("real.nii.gz", reference * mask)
    with pytest.raises(CaseError, match=r"gone\.nii\.gz is not there"):
        rows_of([real, "gone.nii.gz"])
    with pytest.raises(CaseError, match=r"empty\.nii\.gz is empty"):
        rows_of([real, save("empty.nii.gz", np.zeros(SHAPE))])
    with pytest.raises(CaseError, match="lower erode_mm"):
        rows_of([real, real], erode_mm=200)


def test_markdown_has_a_row_for_each_image():
    table = {"real": {**dict.fromkeys(CASE_FIGURES, 1.0), "psnr": np.inf}}
    table["synthetic"] = {**dict.fromkeys(CASE_FIGURES, 0.5), "psnr": 20.123456}
    lines = case_table(table).split("\n")
    assert lines[0].startswith("| inside the brain | Pearson | PSNR (dB) | SSIM |")
    assert [line.split(" | ")[:4] for line in lines[2:]] == [
        ["| real", "1.0000", "inf", "1.0000"],
        ["| synthetic", "0.5000", "20.123", "0.5000"],
    ]


def test_an_unsharp_mask_is_as_sharp_as_the_real_image_and_has_no_detail_of_its_own(reference, mask):
    real = reference * mask
    soft = np.where(mask, ndimage.gaussian_filter(real, 1.2), 0)
    sharp = unsharp_mask(soft, real, mask, (2, 2, 2))
    before, after = (brain_figures(image, real, mask, (2, 2, 2)) for image in (soft, sharp))
    assert before["sharpness"] < 0.8
    assert after["sharpness"] == pytest.approx(1, abs=0.1)  # clipping takes some of it
    wrong = np.where(mask, ndimage.gaussian_filter(np.random.default_rng(5).random(SHAPE), 1.2), 0)
    made = brain_figures(unsharp_mask(wrong, real, mask, (2, 2, 2)), real, mask, (2, 2, 2))
    assert abs(made["highpass"]) < 0.15  # sharp, and nothing of it is the real image's
    np.testing.assert_array_equal(unsharp_mask(real, soft, mask, (2, 2, 2)), real)  # sharper already
