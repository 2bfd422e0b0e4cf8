"""Tissue classes of a phantom whose tissues are known, and of a real T1 with hand labels."""

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from scripts.contrasts import CONTRASTS
from scripts.evaluation.tissue_dice import (
    BY_HU,
    POINTWISE,
    REAL,
    SYNTHETIC,
    TISSUES_BY_BRIGHTNESS,
    ct_tissues,
    tissue_agreement,
    tissue_classes,
    tissue_rows,
    tissue_table,
)
from scripts.simulation.tissue_labels import tissue_of_labels

SHAPE = (36, 40, 34)
LEVELS = {"T1ce": (0.2, 0.55, 0.9), "T2": (0.9, 0.55, 0.2), "FLAIR": (0.2, 0.9, 0.55)}


@pytest.fixture(scope="module")
def tissue() -> np.ndarray:
    """Tissue labels: shells of fluid, grey, white around a fluid core; (H, W, Z)."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij"))
    radius = np.sqrt((grid**2).sum(axis=0))
    return np.select([radius < 0.2, radius < 0.6, radius < 0.8, radius < 0.9], [1, 3, 2, 1])


def as_contrast(tissue: np.ndarray, contrast: str, noise: float = 0.03) -> np.ndarray:
    """The phantom with the brightness that fluid, grey and white matter have in a contrast."""
    noisy = np.array([0.0, *LEVELS[contrast]])[tissue] + np.random.default_rng(1).normal(0, noise, tissue.shape)
    return np.clip(noisy, 0.01, 1) * (tissue > 0)


def dice_of(image, reference, tissue, contrast, spacing_mm=(1.5, 1.5, 1.5)) -> dict[str, float]:
    row = tissue_rows(image, reference, tissue > 0, spacing_mm, contrast)[SYNTHETIC]
    return {name: value for name, value in row.items() if name.startswith("dice")}


@pytest.mark.parametrize("contrast", LEVELS)
def test_each_contrast_has_its_own_order_and_another_one_is_wrong(tissue, contrast):
    image = as_contrast(tissue, contrast)
    for order in LEVELS:
        right = (tissue_classes(image, tissue > 0, order) == tissue)[tissue > 0].mean()
        assert right > 0.97 if LEVELS[order] == LEVELS[contrast] else right < 0.7
    assert (tissue_classes(1000 * image, tissue > 0, contrast)[tissue == 0] == 0).all()  # any unit


def test_dice_is_one_for_the_same_image_and_falls_where_a_tissue_is_lost(tissue):
    flair = as_contrast(tissue, "FLAIR")
    same = dice_of(0.7 * flair, flair, tissue, "FLAIR")
    assert same.keys() == {"dice_csf", "dice_gm", "dice_wm"}
    assert min(same.values()) > 0.97  # brightness has no say
    lost = np.where((tissue == 2) & (np.indices(SHAPE)[0] < SHAPE[0] // 2), 0.2, flair)  # half of the cortex is fluid
    dice = dice_of(lost, flair, tissue, "FLAIR")
    assert dice["dice_gm"] < 0.8 < 0.95 < dice["dice_wm"]
    wrong = dice_of(lost, flair, tissue, "T1ce")
    assert wrong["dice_wm"] < 0.8 < 0.95 < wrong["dice_gm"]


def test_volumes_add_up_to_the_brain_and_bias_is_their_signed_error():
    """Two of eight voxels of grey matter are white in the other image, at 3 mL a voxel."""
    real = np.array([0, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3])
    made = np.where(np.arange(12) < 4, np.where(real == 2, 3, real), real)
    row = tissue_agreement(made, real, 3.0)
    assert [row[f"ml_{t}"] for t in ("csf", "gm", "wm")] == [3.0, 18.0, 12.0]
    assert [row[f"bias_{t}"] for t in ("csf", "gm", "wm")] == [0.0, pytest.approx(-25), pytest.approx(100)]
    assert row["dice_gm"] == pytest.approx(2 * 6 / (6 + 8))


@pytest.mark.parametrize("spacing_mm", [(1.5, 1.5, 1.5), (0.75, 1.5, 0.75), (2.0, 2.0, 3.0)])
def test_millilitres_are_those_of_the_brain_on_any_grid(tissue, spacing_mm):
    repeats = [2 if s == 0.75 else 1 for s in spacing_mm]
    fine = tissue
    for axis, count in enumerate(repeats):
        fine = np.repeat(fine, count, axis)
    image = as_contrast(fine, "T2")
    rows = tissue_rows(image, image, fine > 0, spacing_mm, "T2")
    total = sum(rows[REAL][f"ml_{t}"] for t in ("csf", "gm", "wm"))
    assert total == pytest.approx((fine > 0).sum() * np.prod(spacing_mm) / 1000, rel=1e-6)
    truth = [(fine == n).sum() * np.prod(spacing_mm) / 1000 for n in (1, 2, 3)]
    np.testing.assert_allclose([rows[REAL][f"ml_{t}"] for t in ("csf", "gm", "wm")], truth, rtol=0.15)


def test_a_brain_too_small_to_divide_has_no_volumes(tissue):
    mask = np.zeros(SHAPE, dtype=bool)
    mask[10:14, 10:14, 10:14] = True
    flair = as_contrast(tissue, "FLAIR")
    rows = tissue_rows(flair, flair, mask, (1, 1, 1), "FLAIR")
    assert rows.keys() == {REAL, SYNTHETIC}
    assert np.isnan(list(rows[SYNTHETIC].values())).all()


def test_a_contrast_without_an_order_has_no_tissues(tissue):
    flair = as_contrast(tissue, "FLAIR")
    without = [c for c in CONTRASTS if c not in TISSUES_BY_BRIGHTNESS]
    assert without == ["CT", "PD"]
    assert all(tissue_rows(flair, flair, tissue > 0, (2, 2, 2), c) == {} for c in without)
    assert {tuple(sorted(order)) for order in TISSUES_BY_BRIGHTNESS.values()} == {("csf", "gm", "wm")}


def test_a_ct_is_divided_by_hu_whatever_its_trend():
    """Fluid of 8 HU, white matter of 28, grey of 36 in winding patches; 8 HU from side to side have no say."""
    rng = np.random.default_rng(0)
    field = ndimage.gaussian_filter(rng.normal(size=(50, 50, 50)), 3)
    mask = np.sqrt((np.indices(field.shape) - 24.5) ** 2).max(axis=0) < 22
    tissue = np.array([1, 3, 2])[np.digitize(field, np.quantile(field[mask], [0.15, 0.6]))] * mask
    hu = np.array([1000.0, 8, 36, 28])[tissue] + 0.16 * np.indices(field.shape)[0] + rng.normal(0, 2, field.shape)
    classes = ct_tissues(hu, mask, (2, 2, 2))
    assert (classes == tissue)[mask].mean() > 0.8
    assert (classes[~mask] == 0).all()


def test_rows_are_those_of_the_source_where_there_is_one(tissue):
    flair = as_contrast(tissue, "FLAIR")
    source = np.array([0.0, 8, 36, 28])[tissue]
    assert list(tissue_rows(flair, flair, tissue > 0, (2, 2, 2), "FLAIR", source)) == [REAL, SYNTHETIC, POINTWISE]
    rows = tissue_rows(flair, flair, tissue > 0, (2, 2, 2), "FLAIR", source, source_is_ct=True)
    assert list(rows) == [REAL, SYNTHETIC, POINTWISE, BY_HU]
    assert rows[POINTWISE]["dice_gm"] > 0.95  # the source tells everything
    text = tissue_table({"anna": rows, "bert": rows})
    assert text.splitlines()[0].startswith("|  | Dice CSF | Dice GM | Dice WM | CSF (mL) |")
    real = next(line for line in text.splitlines() if line.startswith(f"| {REAL} |"))
    assert [bool(cell.strip()) for cell in real.split("|")[2:-1]] == [False] * 3 + [True] * 3 + [False] * 3


@pytest.mark.parametrize("blur", [0.0, 0.8])
def test_a_t1_is_divided_as_a_human_did(shared_data, blur):
    """A person whom the segmenter never saw; the deep nuclei are grey matter however bright they are."""
    files = [shared_data / "oasis" / f"oasis_1116_{kind}.nii.gz" for kind in ("T1", "tissue_labels")]
    t1, labels = (np.asarray(nib.load(file).dataobj, np.float32) for file in files)
    t1, labels = ndimage.zoom(t1, 2 / 3, order=1), ndimage.zoom(labels, 2 / 3, order=0)
    mask = t1 > 0
    image = np.clip(ndimage.gaussian_filter(t1, blur) / np.percentile(t1[mask], 99.9), 0, 1)
    classes, drawn = tissue_classes(image, mask), tissue_of_labels(labels)
    for number in (2, 3):
        both = ((classes == number) & (drawn == number))[drawn > 0].sum()
        assert 2 * both / ((classes == number)[drawn > 0].sum() + (drawn == number).sum()) > 0.85
    assert (classes[labels == 3] == 2).mean() > 0.7  # by brightness it is hardly a half
    assert (classes[labels == 1] == 1).mean() > 0.7
