"""The cavity of the skull: on the sample, and in heads that a window has robbed of air and bone."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from scripts.transforms.ct_brain_mask import ct_brain_mask, is_stripped
from tests.phantoms import centred_affine, head_ct

SHAPE = (34, 40, 32)
AFFINE = centred_affine(np.diag([6.0, 6.0, 6.0]), SHAPE)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.fixture(scope="module")
def sample() -> tuple[np.ndarray, np.ndarray]:
    """HU and affine of the sample."""
    ct = nib.load(Path(__file__).parents[2] / "docs" / "sample" / "head_ct.nii.gz")
    return ct.get_fdata(dtype=np.float32), ct.affine


def ring_filled(hu: np.ndarray, bone: float = 150.0) -> np.ndarray:
    """What a closed ring of bone surrounds in each slice: the slow and obvious cavity above the base of the skull."""
    inside = [ndimage.binary_fill_holes(layer) & ~layer for layer in np.moveaxis(hu > bone, 2, 0)]
    labels, _ = ndimage.label(np.stack(inside, axis=2))
    return labels == 1 + np.bincount(labels.ravel())[1:].argmax()


@pytest.mark.parametrize("window", [(-1024, 3000), (0, 80)], ids=["HU", "window"])
def test_the_mask_of_the_sample_fills_the_skull(sample, window):
    hu, affine = sample
    mask = ct_brain_mask(hu.clip(*window), affine)
    vault = affine[2, 2] * np.arange(hu.shape[2]) + affine[2, 3] > 0  # mm; the base, with its holes, lies below
    cavity = ring_filled(hu)[..., vault]
    assert dice(mask[..., vault], cavity) > 0.97
    top = [np.flatnonzero(m.any(axis=(0, 1))).max() for m in (mask[..., vault], cavity)]
    assert abs(top[0] - top[1]) <= 1


@pytest.mark.parametrize("window", [(0, 80), (-20, 100), (0, 100)])
def test_a_windowed_head_has_the_brain_of_the_head(window):
    head = head_ct(AFFINE, SHAPE)
    assert not is_stripped(head.clip(*window))
    assert dice(ct_brain_mask(head.clip(*window), AFFINE), ct_brain_mask(head, AFFINE)) > 0.97


@pytest.mark.parametrize("window", [(-1024, 3000), (0, 80)])
def test_a_stripped_brain_is_stripped_in_any_window_that_shows_it(window):
    brain = np.where(ct_brain_mask(head_ct(AFFINE, SHAPE), AFFINE), head_ct(AFFINE, SHAPE), 0)
    noise = np.random.default_rng(0).normal(0, 5, SHAPE)
    assert is_stripped((brain + noise * (brain != 0)).clip(*window))
