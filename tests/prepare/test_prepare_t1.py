"""Raw T1 volumes to a training set: the brain stays, and nobody is on two sides."""

import json

import nibabel as nib
import numpy as np
import pytest

from scripts.errors import CaseError
from scripts.prepare.prepare_t1 import load_ras, prepare_listed, prepare_subject

SPACING = 3.0


@pytest.fixture(scope="module")
def brain():
    """A ball of white matter with a rim of grey matter, 0 outside, and its mask; voxels of 3 mm."""
    shape = (40, 48, 44)
    grid = np.stack(np.meshgrid(*[np.arange(n) - (n - 1) / 2 for n in shape], indexing="ij"))
    radius = np.sqrt((grid**2).sum(axis=0))
    noise = np.random.default_rng(0).normal(0, 8, shape)
    volume = np.where(radius < 12, 900.0, 600.0) + noise
    mask = radius < 17
    return (volume * mask).astype(np.float32), mask


@pytest.fixture
def save(tmp_path):
    """Writes a volume as NIfTI and gives its path."""

    def function(name, volume, affine=None):
        nib.save(nib.Nifti1Image(volume, np.diag([SPACING] * 3 + [1]) if affine is None else affine), tmp_path / name)
        return tmp_path / name

    return function


@pytest.fixture
def listed(save, brain, tmp_path):
    """A subjects.json of three persons, one of them scanned twice."""
    entries = []
    for number, person in enumerate(["anna", "bert", "bert", "cleo"]):
        path = save(f"scan{number}.nii.gz", brain[0])
        entries.append({"id": f"s{number}", "person": person, "T1": path.name, "skull_stripped": True})
    (tmp_path / "subjects.json").write_text(json.dumps(entries))
    return str(tmp_path / "subjects.json")


def test_loads_any_orientation_as_ras(save, brain):
    volume, _ = brain
    flipped = save("lpi.nii.gz", volume[::-1, ::-1, ::-1].copy(), np.diag([-SPACING, -SPACING, -SPACING, 1]))
    image = load_ras(flipped)
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    np.testing.assert_array_equal(image.get_fdata(), volume)


def test_loads_an_npz_in_the_axes_that_are_named(tmp_path):
    volume = np.random.default_rng(0).random((3, 4, 5))
    np.savez(tmp_path / "a.npz", vol=volume)
    # L, I, A -> R, A, S: the first axis turns round, the second one too and becomes the third
    expected = volume[::-1, ::-1].transpose(0, 2, 1).astype(np.float32)
    np.testing.assert_array_equal(load_ras(tmp_path / "a.npz").get_fdata(), expected)


def test_subject_is_cropped_in_place_and_zero_outside_its_brain(save, brain, tmp_path):
    volume, mask = brain
    head = save("head.nii.gz", volume + 400)
    seen = []

    def extractor(image):
        seen.append(image)
        return mask

    entry = prepare_subject("anna", head, tmp_path, stripped=False, extractor=extractor)
    assert len(seen) == 1
    assert entry == {"subject": "anna", "weight": 1.0, "target": "anna_t1.nii.gz", "mask": "anna_mask.nii.gz"}
    made, made_mask = (nib.load(tmp_path / entry[key]) for key in ("target", "mask"))
    np.testing.assert_array_equal(made.get_fdata() > 0, made_mask.get_fdata() > 0)
    # the voxels that are left lie where they lay
    found = nib.affines.apply_affine(made.affine, np.argwhere(made_mask.get_fdata() > 0))
    expected = nib.affines.apply_affine(nib.load(head).affine, np.argwhere(mask))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert made.shape < volume.shape


def test_labels_make_the_mask_and_are_kept(save, brain, tmp_path):
    volume, mask = brain
    labels = np.where(volume > 750, 7, 3).astype(np.int16) * mask
    paths = save("t1.nii.gz", volume + 400), save("labels.nii.gz", labels)

    def extractor(image):
        raise AssertionError("the labels tell where the brain is")

    entry = prepare_subject("bert", paths[0], tmp_path, False, paths[1], extractor)
    kept = nib.load(tmp_path / entry["labels"]).get_fdata()
    np.testing.assert_array_equal(nib.load(tmp_path / entry["mask"]).get_fdata() > 0, kept > 0)
    assert {value: (kept == value).sum() for value in (3, 7)} == {value: (labels == value).sum() for value in (3, 7)}


def test_fine_volumes_weigh_more(save, brain, tmp_path):
    path = save("fine.nii.gz", brain[0], np.diag([1.5, 1.5, 1.5, 1]))
    assert prepare_subject("cleo", path, tmp_path, stripped=True)["weight"] == 2.0
    assert prepare_subject("cleo", path, tmp_path, stripped=True, fine_mm=1.0)["weight"] == 1.0


def test_refuses_labels_of_another_grid_and_a_volume_without_brain(save, brain, tmp_path):
    volume, mask = brain
    t1 = save("t1.nii.gz", volume)
    shifted = save("shifted.nii.gz", mask.astype(np.int16), nib.affines.from_matvec(np.eye(3) * SPACING, [0, 9, 0]))
    with pytest.raises(CaseError, match=r"labels of t1\.nii\.gz lie on another grid"):
        prepare_subject("anna", t1, tmp_path, stripped=True, labels=shifted)
    with pytest.raises(CaseError, match=r"No brain was found in empty\.nii\.gz"):
        prepare_subject("anna", save("empty.nii.gz", np.zeros((8, 8, 8), np.float32)), tmp_path, stripped=True)


def test_splits_by_person_and_goes_on_where_it_stopped(listed, tmp_path):
    datalist = prepare_listed(listed, str(tmp_path / "set"), validation="cleo", test=("bert",), leave_out=["s2"])
    splits = json.loads(datalist.read_text())
    assert {name: [entry["subject"] for entry in split] for name, split in splits.items()} == {
        "training": ["s0"],
        "validation": ["s3"],
        "test": ["s1"],
    }
    assert all((datalist.parent / entry["target"]).is_file() for split in splits.values() for entry in split)
    (tmp_path / "scan0.nii.gz").unlink()  # what is done is not read again
    again = prepare_listed(listed, str(tmp_path / "set"), test=("bert",))
    assert {e["subject"] for e in json.loads(again.read_text())["test"]} == {"s1", "s2"}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"validation": "cle"}, "validation names cle"),
        ({"leave_out": ["s9"]}, "leave_out names s9"),
        ({"test": "cleo", "leave_out": "s3"}, "test names cleo"),
        ({"validation": "bert", "test": ["anna", "bert"]}, "bert is both in validation and in test"),
    ],
)
def test_refuses_names_that_would_leak_silently(listed, tmp_path, options, sentence):
    with pytest.raises(CaseError, match=sentence):
        prepare_listed(listed, str(tmp_path / "set"), **options)
    assert not (tmp_path / "set").exists()
