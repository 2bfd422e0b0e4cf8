"""The brain mask of a pair comes from the best source there is."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scripts.errors import CaseError
from scripts.prepare import brain as brain_module
from scripts.prepare.brain import crop_to, fill_slices, find_brain, largest_component, mask_from_background
from scripts.prepare.volumes import Volume
from tests.phantoms import centred_affine, head_ct

SHAPE = (34, 40, 32)
AFFINE = centred_affine(np.diag([6.0, 6.0, 6.0]), SHAPE)


def ball(radius_mm, centre=(0, 0, 0)):
    voxels = np.stack(np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij"), axis=-1)
    return np.linalg.norm(nib.affines.apply_affine(AFFINE, voxels) - centre, axis=-1) < radius_mm


def volume(data, contrast):
    return Volume(nib.Nifti1Image(data.astype(np.float32), AFFINE), contrast, Path(f"anna_{contrast}.nii.gz"))


BRAIN = ball(65)
MRI_HEAD = 200.0 * ball(90) + 400 * BRAIN + np.random.default_rng(0).uniform(1, 9, SHAPE)
HEAD = volume(MRI_HEAD, "T1")
STRIPPED_T1 = volume(MRI_HEAD * BRAIN, "T1")
CT = volume(head_ct(AFFINE, SHAPE), "CT")
STRIPPED_CT = volume(np.where(BRAIN, 2 * MRI_HEAD - 1170, -1000), "CT")  # 32 to 48 HU


@pytest.fixture
def saved(tmp_path):
    """Writes a mask or labels and gives the path."""

    def function(data, name):
        nib.save(nib.Nifti1Image(data.astype(np.int16), AFFINE), tmp_path / name)
        return tmp_path / name

    return function


@pytest.fixture
def without_hd_bet(monkeypatch):
    monkeypatch.setattr(brain_module, "find_spec", lambda name: None)


def found(brain):
    return np.asarray(brain.mask.dataobj) > 0


def test_the_pairs_own_mask_goes_before_everything(saved):
    own, labels = saved(ball(50), "mask.nii.gz"), saved(ball(40), "labels.nii.gz")
    brain = find_brain(STRIPPED_CT, STRIPPED_T1, "none", own, labels)
    np.testing.assert_array_equal(found(brain), ball(50))
    assert (brain.of_source, brain.origin) == (False, "the pair's mask")


@pytest.mark.parametrize(
    ("source", "target", "of_source"), [(CT, STRIPPED_T1, False), (STRIPPED_CT, HEAD, True), (STRIPPED_T1, CT, True)]
)
def test_a_stripped_volume_goes_before_labels(saved, source, target, of_source):
    brain = find_brain(source, target, "none", labels=saved(ball(40), "labels.nii.gz"))
    np.testing.assert_array_equal(found(brain), BRAIN)
    assert brain.of_source == of_source


def test_labels_go_before_a_skull_strip_and_are_filled(saved):
    labels = 5 * (ball(60) & ~ball(12))
    labels[0, 0, 0] = 1
    brain = find_brain(CT, HEAD, "none", labels=saved(labels, "labels.nii.gz"))
    np.testing.assert_array_equal(found(brain), ball(60))


def test_builtin_looks_at_the_ct_on_either_side():
    for source, target in ((CT, HEAD), (HEAD, CT)):
        brain = find_brain(source, target, "builtin")
        assert brain.of_source == source.is_ct
        assert (found(brain) & BRAIN).sum() > 0.9 * BRAIN.sum()


def test_other_methods_look_at_the_mri(saved):
    mask = saved(ball(55), "mask.nii.gz")
    assert not find_brain(CT, HEAD, str(mask)).of_source
    assert find_brain(HEAD, CT, str(mask)).of_source


def test_auto_without_hd_bet_takes_the_ct_or_says_what_to_do(without_hd_bet):
    assert find_brain(CT, HEAD, "auto").origin == "builtin, source"
    with pytest.raises(CaseError, match=r"anna_T1\.nii\.gz still has its skull; pip install -r requirements-prepare"):
        find_brain(volume(MRI_HEAD, "FLAIR"), HEAD, "auto")


def test_auto_asks_hd_bet_about_the_mri_where_it_is_there(monkeypatch):
    monkeypatch.setattr(brain_module, "find_spec", lambda name: True)
    monkeypatch.setattr("scripts.transforms.skull_strip.mri_brain_mask", lambda data, affine: ball(61))
    brain = find_brain(CT, HEAD, "auto")
    np.testing.assert_array_equal(found(brain), ball(61))
    assert (brain.of_source, brain.origin) == (False, "hd-bet, target")


def test_builtin_is_refused_without_a_ct_and_empty_labels_are(saved):
    with pytest.raises(CaseError, match=r"builtin is for CT, and anna_T1\.nii\.gz is a T1"):
        find_brain(volume(MRI_HEAD, "FLAIR"), HEAD, "builtin")
    with pytest.raises(CaseError, match=r"labels labels\.nii\.gz are empty"):
        find_brain(CT, HEAD, "none", labels=saved(0 * BRAIN, "labels.nii.gz"))


def test_mask_of_a_stripped_volume_is_one_piece_without_holes():
    mask = ball(65)
    speckled = np.where(mask, 900.0, 0.0)
    speckled[0, 0, :3] = 500  # a stray piece
    speckled[16:19, 19:22, 15:18] = 0  # a ventricle as dark as the background
    np.testing.assert_array_equal(mask_from_background(nib.Nifti1Image(speckled, np.eye(4))), mask)


def test_largest_component_and_holes_of_slices():
    mask = np.zeros((6, 7, 8), dtype=bool)
    mask[1:5, 1:6, 1:7] = True
    whole = mask.copy()
    mask[2:4, 2:5, 3:] = False  # a tunnel to the outside: no hole in 3D, but one in axial slices
    stray = mask.copy()
    stray[0, 0, 0] = True
    np.testing.assert_array_equal(largest_component(stray), mask)
    np.testing.assert_array_equal(fill_slices(mask), whole)
    assert not largest_component(np.zeros((2, 2, 2), dtype=bool)).any()


def test_crop_keeps_the_mask_and_stays_in_the_volume():
    mask = np.zeros((20, 20, 20), dtype=bool)
    mask[1:5, 8:10, 17:20] = True
    assert mask[crop_to(mask, 2)].sum() == mask.sum()
    assert mask[crop_to(mask, 2)].shape == (7, 6, 5)
