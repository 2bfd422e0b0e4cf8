"""Targets without a source, `prepare --layout t1`: the brain stays, and nobody is on two sides."""

import json

import nibabel as nib
import numpy as np
import pytest

from scripts.errors import CaseError
from scripts.prepare import brain as brain_module
from scripts.prepare.command import prepare
from scripts.prepare.conform import Recipe, prepare_target
from scripts.prepare.pairs import Pair
from scripts.prepare.volumes import convert_npz, load_volume
from tests.phantoms import ball_brain

SPACING = 3.0


@pytest.fixture(scope="module")
def brain():
    """A ball of white matter with a rim of grey matter, 0 outside, and its mask; voxels of 3 mm."""
    return ball_brain()


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
        path = save(f"scan{number}.nii.gz", brain[0] * (1 + number))
        entries.append({"id": f"s{number}", "person": person, "T1": path.name, "skull_stripped": True})
    (tmp_path / "subjects.json").write_text(json.dumps(entries))
    return str(tmp_path / "subjects.json")


@pytest.fixture
def target_of(tmp_path):
    """Prepares one target in the test's folder and gives its record."""

    def function(subject, path, recipe=None, **about):
        return prepare_target(Pair(subject, subject, None, path, None, "T1", **about), recipe or Recipe(), tmp_path)

    return function


@pytest.fixture
def without_extractor(monkeypatch):
    def extractor(image):
        raise AssertionError("the brain is known")

    monkeypatch.setattr(brain_module, "hd_bet_mask", extractor)


def run(listed, out, **options):
    prepare("t1", listed, str(out), num_workers=0, **options)
    return json.loads((out / "datalist.json").read_text())


def names_of(datalist):
    return {name: [entry["subject"] for entry in datalist[name]] for name in ("training", "validation", "test")}


def test_an_npz_is_converted_by_the_axes_that_are_named(tmp_path):
    volume = np.random.default_rng(0).random((13, 14, 15))
    np.savez(tmp_path / "a.npz", vol=volume)
    # L, I, A -> R, A, S: the first axis turns round, the second one too and becomes the third
    expected = volume[::-1, ::-1].transpose(0, 2, 1).astype(np.float32)
    np.testing.assert_array_equal(load_volume(tmp_path / "a.npz", "T1", tmp_path).data, expected)
    np.savez(tmp_path / "b.npz", other=volume)
    with pytest.raises(CaseError, match=r"b\.npz holds no array vol"):
        convert_npz(tmp_path / "b.npz", tmp_path / "b.nii")


def test_subject_is_cropped_in_place_and_zero_outside_its_brain(save, brain, tmp_path, target_of, monkeypatch):
    volume, mask = brain
    head = save("head.nii.gz", volume + 400)
    seen = []

    def extractor(image):
        seen.append(image)
        return mask

    monkeypatch.setattr(brain_module, "hd_bet_mask", extractor)
    record = target_of("anna", head)
    assert len(seen) == 1
    assert record["weight"] == 1.0
    assert record["brain"]["from"] == "hd-bet, target"
    made, made_mask = (nib.load(tmp_path / f"anna_{key}.nii.gz") for key in ("target", "mask"))
    np.testing.assert_array_equal(made.get_fdata() > 0, made_mask.get_fdata() > 0)
    # the voxels that are left lie where they lay
    found = nib.affines.apply_affine(made.affine, np.argwhere(made_mask.get_fdata() > 0))
    expected = nib.affines.apply_affine(nib.load(head).affine, np.argwhere(mask))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert made.shape < volume.shape


@pytest.mark.usefixtures("without_extractor")
def test_values_keep_their_unit_and_only_the_bias_field_goes(save, brain, tmp_path, target_of):
    volume, mask = brain
    path = save("t1.nii.gz", volume)
    target_of("anna", path, Recipe(bias_correction=False), stripped=True)
    made = nib.load(tmp_path / "anna_target.nii.gz").get_fdata()
    np.testing.assert_allclose(np.sort(made[made > 0]), np.sort(volume[mask]), rtol=1e-6)
    target_of("anna", path, stripped=True)
    corrected = nib.load(tmp_path / "anna_target.nii.gz").get_fdata()
    assert not np.array_equal(corrected, made)
    assert np.median(corrected[made > 0]) == pytest.approx(np.median(made[made > 0]), rel=0.15)


@pytest.mark.usefixtures("without_extractor")
def test_labels_make_the_mask_and_are_kept(save, brain, tmp_path, target_of):
    volume, mask = brain
    labels = np.where(volume > 750, 7, 3).astype(np.int16) * mask
    target_of("bert", save("t1.nii.gz", volume + 400), labels=save("labels.nii.gz", labels))
    kept = nib.load(tmp_path / "bert_labels.nii.gz").get_fdata()
    np.testing.assert_array_equal(nib.load(tmp_path / "bert_mask.nii.gz").get_fdata() > 0, kept > 0)
    assert {value: (kept == value).sum() for value in (3, 7)} == {value: (labels == value).sum() for value in (3, 7)}


def test_fine_volumes_weigh_more(save, brain, target_of):
    fine = save("fine.nii.gz", brain[0], np.diag([1.5, 1.5, 1.5, 1]))
    thick = save("thick.nii.gz", brain[0], np.diag([1.5, 1.5, 1.7, 1]))
    assert target_of("cleo", fine, stripped=True)["weight"] == 2.0
    assert target_of("cleo", thick, stripped=True)["weight"] == 1.0


def test_refuses_labels_of_another_grid_and_a_volume_without_brain(save, brain, target_of):
    volume, mask = brain
    t1 = save("t1.nii.gz", volume)
    shifted = save("shifted.nii.gz", mask.astype(np.int16), nib.affines.from_matvec(np.eye(3) * SPACING, [0, 9, 0]))
    with pytest.raises(CaseError, match=r"labels of t1\.nii\.gz lie on another grid"):
        target_of("anna", t1, labels=shifted)
    with pytest.raises(CaseError, match=r"No brain was found in dark\.nii\.gz"):
        target_of("anna", save("dark.nii.gz", -np.random.default_rng(0).random((8, 8, 8))), stripped=True)


def test_splits_by_person_and_goes_on_where_it_stopped(listed, tmp_path):
    out = tmp_path / "set"
    datalist = run(listed, out, validation_people="cleo", test_people=("bert",), leave_out=["s2"])
    assert names_of(datalist) == {"training": ["s0"], "validation": ["s3"], "test": ["s1"]}
    entry = datalist["training"][0]
    files = {"target": "s0_target.nii.gz", "mask": "s0_mask.nii.gz"}
    assert entry == {"subject": "s0", "person": "anna", "weight": 1.0, **files}
    assert "ct_window" not in datalist
    assert all((out / entry["target"]).is_file() for split in names_of(datalist) for entry in datalist[split])
    before = (out / "s0_target.nii.gz").stat().st_mtime_ns
    again = run(listed, out, test_people=("bert",))
    assert names_of(again) == {"training": ["s0", "s3"], "validation": [], "test": ["s1", "s2"]}
    assert (out / "s0_target.nii.gz").stat().st_mtime_ns == before  # what is done is not made again


def test_whoever_fails_is_named_and_the_page_shows_the_others(listed, tmp_path, capsys):
    (tmp_path / "scan0.nii.gz").unlink()
    (tmp_path / "scan3.nii.gz").write_bytes(b"torn")
    datalist = run(listed, tmp_path / "set")
    assert {entry["subject"] for name in names_of(datalist) for entry in datalist[name]} == {"s1", "s2"}
    failures = {one["subject"]: one["reason"] for one in json.loads((tmp_path / "set" / "failures.json").read_text())}
    assert failures["s0"].startswith("s0: scan0.nii.gz is not there")
    assert failures["s3"].startswith("scan3.nii.gz cannot be read")
    assert 'src="quality/s1.png"' in (tmp_path / "set" / "quality.html").read_text()
    assert (tmp_path / "set" / "quality" / "s1.png").is_file()
    assert "['configs/train.json','configs/simulated_ct.json']" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"validation_people": "cle"}, "validation_people names cle"),
        ({"leave_out": ["s9"]}, "leave_out names s9"),
        ({"test_people": "cleo", "leave_out": "s3"}, "test_people names cleo"),
        (
            {"validation_people": "bert", "test_people": ["anna", "bert"]},
            "bert is both in validation_people and in test_people",
        ),
    ],
)
def test_refuses_names_that_would_leak_silently(listed, tmp_path, options, sentence):
    with pytest.raises(CaseError, match=sentence):
        run(listed, tmp_path / "set", **options)
    assert not (tmp_path / "set").exists()
