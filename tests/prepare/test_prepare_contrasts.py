"""`prepare` with several contrasts: all of a subject on one grid, and one that fails costs the others nothing."""

import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from scripts.data import training_datalist
from scripts.errors import CaseError
from scripts.prepare import conform
from scripts.prepare.command import prepare
from scripts.prepare.pairs import ContrastSet
from scripts.registration import rigid
from tests.prepare.test_prepare import AFFINE, FOUND, INSIDE, SHAPE, SHIFT, brain
from tests.registration.test_rigid import T1, scan
from tests.trees import contrasts_tree

OPTIONS = {"spacing": 4.0, "margin": 8.0, "bias_correction": False, "num_workers": 0, "registration": False}
STILL = replace(FOUND, matrix=np.eye(4))
T2 = np.array([0.0, 300.0, 60.0, 900.0, 350.0, 450.0, 600.0, 250.0])  # of the tissues of `scan`


def write(path, subject, contrast):
    """A texture of each subject; contrasts are linear in it, but each other in its unit."""
    scale, offset = {"T1": (1, 0), "T2": (-0.8, 1100), "FLAIR": (3, 50), "CT": (0.05, 0)}[contrast]
    path.parent.mkdir(exist_ok=True)
    outside = -1000 if contrast == "CT" else 0
    values = np.where(INSIDE, offset + scale * brain(sum(map(ord, subject))), outside)
    nib.save(nib.Nifti1Image(values.astype(np.float32), AFFINE), path)


@pytest.fixture
def people(tmp_path):
    """Four people, of whom each has what the name tells."""
    subjects = {"anna": ("T1", "T2", "FLAIR"), "bert": ("T1", "FLAIR"), "cleo": ("T2", "FLAIR"), "dora": ("T1", "T2")}
    return contrasts_tree(tmp_path / "scans", subjects, write)


def run(table, out, contrasts="T1,T2,FLAIR", **options):
    prepare("csv", str(table), str(out), contrasts=contrasts, **{**OPTIONS, **options})
    listed = json.loads((out / "datalist.json").read_text())
    return {entry["subject"]: entry for section in ("training", "validation", "test") for entry in listed[section]}


def values(out, name):
    return nib.load(out / name).get_fdata()


def test_every_contrast_of_a_subject_is_listed_and_lies_on_one_grid_in_its_own_unit(people, tmp_path):
    out = tmp_path / "set"
    entries = run(people, out)
    assert entries["anna"] == {
        "subject": "anna",
        "person": "anna",
        "sources": {"T1": "anna_t1.nii.gz", "T2": "anna_t2.nii.gz", "FLAIR": "anna_flair.nii.gz"},
        "mask": "anna_mask.nii.gz",
    }
    assert {name: list(entry["sources"]) for name, entry in entries.items()} == {
        "anna": ["T1", "T2", "FLAIR"],
        "bert": ["T1", "FLAIR"],
        "cleo": ["T2", "FLAIR"],
        "dora": ["T1", "T2"],
    }
    inside = values(out, "anna_mask.nii.gz") > 0
    truth = brain(sum(map(ord, "anna")))[INSIDE]
    for name, expected in (("t1", truth), ("t2", 1100 - 0.8 * truth), ("flair", 50 + 3 * truth)):
        image = nib.load(out / f"anna_{name}.nii.gz")
        np.testing.assert_array_equal(image.affine, nib.load(out / "anna_mask.nii.gz").affine)
        np.testing.assert_allclose(image.get_fdata()[inside], expected, rtol=1e-5)
        assert not image.get_fdata()[~inside].any()
    # what the training reads
    item = training_datalist(str(out), "training", [], ["T1", "T2", "FLAIR"])[0]
    assert {key for key in item if key.startswith("contrast_")} == {
        f"contrast_{n}" for n in entries[item["subject"]]["sources"]
    }


def test_a_ct_among_the_contrasts_stays_in_hounsfield_units(tmp_path):
    table = contrasts_tree(tmp_path / "scans", {"anna": ("T1", "CT")}, write)
    run(table, tmp_path / "set", contrasts=["T1", "CT"])
    inside = values(tmp_path / "set", "anna_mask.nii.gz") > 0
    hu = 0.05 * brain(sum(map(ord, "anna")))[INSIDE]
    np.testing.assert_allclose(values(tmp_path / "set", "anna_ct.nii.gz")[inside], hu, rtol=1e-5)


def test_each_contrast_is_moved_by_its_own_registration_to_the_first(people, tmp_path, monkeypatch):
    """The T2 is elsewhere; the FLAIR is where the T1 is, and each registration is asked for once."""
    path = people.parent / "anna_T2.nii.gz"
    data = nib.load(path).get_fdata().astype(np.float32)
    nib.save(nib.Nifti1Image(data, SHIFT @ AFFINE), path)
    asked = []

    def registered(source, target):
        asked.append(source.affine[0, 3] - target.affine[0, 3])
        return FOUND if asked[-1] else STILL

    monkeypatch.setattr(rigid, "register_rigid", registered)
    monkeypatch.setattr(rigid, "check_registration", lambda registration, name: None)
    out = tmp_path / "set"
    run(people, out, registration=True, leave_out="bert,cleo,dora")
    assert asked == [SHIFT[0, 3], 0]
    t1, t2, inside = (values(out, f"anna_{key}.nii.gz") for key in ("t1", "t2", "mask"))
    np.testing.assert_allclose(t2[inside > 0], 1100 - 0.8 * t1[inside > 0], rtol=1e-4)
    record = json.loads((out / "prepare.json").read_text())["subjects"]["anna"]
    assert record["registrations"]["T1"] is None
    np.testing.assert_allclose(record["registrations"]["T2"]["matrix"], SHIFT)


def test_a_contrast_that_fails_is_left_out_and_the_subject_stays_with_two(people, tmp_path, monkeypatch, capsys):
    def refused(registration, name):
        if name in ("anna, T2 to T1", "bert, FLAIR to T1"):
            raise CaseError(f"{name}: the two seem to show different people.")

    monkeypatch.setattr(rigid, "register_rigid", lambda source, target: STILL)
    monkeypatch.setattr(rigid, "check_registration", refused)
    out = tmp_path / "set"
    entries = run(people, out, registration=True)
    assert entries.keys() == {"anna", "cleo", "dora"}
    assert list(entries["anna"]["sources"]) == ["T1", "FLAIR"]
    assert not (out / "anna_t2.nii.gz").exists()
    failures = json.loads((out / "failures.json").read_text())
    assert failures[0] == {
        "subject": "anna",
        "contrast": "T2",
        "reason": "T2: anna, T2 to T1: the two seem to show different people.",
    }
    assert failures[1]["reason"].startswith(
        "bert has T1 left, and two contrasts are needed. FLAIR: bert, FLAIR to T1: the two"
    )
    printed = capsys.readouterr().out
    assert "Contrasts that were left out: 1;" in printed
    assert "1 of 4 subjects failed" in printed
    # typed again: what was left out stays so, and nothing is made again
    made = {path.name: path.stat().st_mtime_ns for path in out.glob("*.nii.gz")}
    run(people, out, registration=True, seed=3)
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("*.nii.gz")} == made


def test_a_contrast_that_shows_less_than_half_of_the_brain_is_left_out(people, tmp_path):
    path = people.parent / "anna_FLAIR.nii.gz"
    shown = nib.load(path).slicer[:, :, 30:]
    nib.save(nib.Nifti1Image(shown.get_fdata().astype(np.float32), shown.affine), path)
    out = tmp_path / "set"
    assert list(run(people, out)["anna"]["sources"]) == ["T1", "T2"]
    assert (values(out, "anna_mask.nii.gz") > 0).sum() == INSIDE.sum()
    [failure] = json.loads((out / "failures.json").read_text())
    assert failure["contrast"] == "FLAIR"
    assert failure["reason"].startswith("FLAIR: Only 16 % of the brain of anna lies in both scans")


def test_lesion_and_labels_go_along(people, tmp_path):
    lesion = (INSIDE & (np.arange(SHAPE[0]) < 18)[:, None, None]).astype(np.uint8) * 4
    nib.save(nib.Nifti1Image(lesion, AFFINE), people.parent / "lesion.nii.gz")
    first, *lines = people.read_text().splitlines()
    people.write_text("\n".join([first + ",lesion,labels", lines[0] + ",lesion.nii.gz,lesion.nii.gz"]) + "\n")
    out = tmp_path / "set"
    entry = run(people, out)["anna"]
    assert (entry["lesion"], entry["labels"]) == ("anna_lesion.nii.gz", "anna_labels.nii.gz")
    assert np.unique(values(out, entry["lesion"])).tolist() == [0, 1]
    assert (values(out, entry["lesion"]) > 0).sum() == (lesion > 0).sum()
    np.testing.assert_array_equal(values(out, entry["labels"]), 4 * values(out, entry["lesion"]))


def with_lesion(people):
    """The table with a lesion for anna alone, and her T1."""
    lesion = (INSIDE & (np.arange(SHAPE[0]) < 18)[:, None, None]).astype(np.uint8)
    nib.save(nib.Nifti1Image(lesion, AFFINE), people.parent / "lesion.nii.gz")
    first, *lines = people.read_text().splitlines()
    people.write_text("\n".join([first + ",lesion", lines[0] + ",lesion.nii.gz", *(f"{line}," for line in lines[1:])]))
    return people.parent / "anna_T1.nii.gz"


@pytest.mark.parametrize("damage", ["empty", "torn"])
def test_masks_are_lost_with_the_contrast_in_whose_space_they_are(people, tmp_path, damage):
    """They must not pass to the T2, whose head may lie elsewhere; found by the listing, or when it is loaded."""
    t1 = with_lesion(people)
    t1.write_bytes(b"" if damage == "empty" else t1.read_bytes()[:200])
    (people.parent / "bert_T1.nii.gz").write_bytes(b"")  # no mask: he has his FLAIR alone
    (people.parent / "dora_T1.nii.gz").unlink()
    out = tmp_path / "set"
    assert run(people, out, contrasts="T1,T2,FLAIR").keys() == {"cleo"}
    reasons = {one["subject"]: one["reason"] for one in json.loads((out / "failures.json").read_text())}
    assert reasons["anna"].startswith("anna: its lesion lies where the T1 does, which cannot be used; give another T1")
    assert "anna_T1.nii.gz" in reasons["anna"]
    assert not list(out.glob("anna_*"))


def test_masks_that_lie_where_every_contrast_does_stay_without_the_first(people, tmp_path):
    t1 = with_lesion(people)
    names = {name: people.parent / f"anna_{name}.nii.gz" for name in ("T1", "T2", "FLAIR")}
    t1.write_bytes(t1.read_bytes()[:200])
    subject = ContrastSet("anna", "anna", names, lesion=people.parent / "lesion.nii.gz", masks_of_all=True)
    (tmp_path / "set").mkdir()
    recipe = conform.Recipe(registration=False, spacing=4.0, margin=8.0, bias_correction=False)
    record = conform.prepare_contrasts(subject, recipe, tmp_path / "set")
    assert list(record["contrasts"]) == ["T2", "FLAIR"]
    lesion = nib.load(people.parent / "lesion.nii.gz").get_fdata()
    assert values(tmp_path / "set", "anna_lesion.nii.gz").sum() == lesion.sum()
    with pytest.raises(CaseError, match=r"^anna: its lesion lies where the T1 does"):
        conform.prepare_contrasts(replace(subject, masks_of_all=False), recipe, tmp_path / "set")


def test_another_first_contrast_makes_the_set_anew_on_its_grid(people, tmp_path):
    """Typed again with another order: the same files, but the grid is that of the new first contrast."""
    path = people.parent / "anna_T2.nii.gz"
    turned = nib.Nifti1Image(nib.load(path).get_fdata().astype(np.float32), AFFINE @ np.diag([1.0, 1, 1.25, 1]))
    nib.save(turned, path)
    out, fresh = tmp_path / "set", tmp_path / "fresh"
    options = {"leave_out": "bert,cleo,dora"}
    run(people, out, contrasts="T1,T2", **options)
    entry = run(people, out, contrasts="T2,T1", **options)["anna"]
    run(people, fresh, contrasts="T2,T1", **options)
    assert list(entry["sources"]) == ["T2", "T1"]
    record = json.loads((out / "prepare.json").read_text())["subjects"]["anna"]
    assert list(record["registrations"]) == ["T2", "T1"]
    for name in ("t1", "t2", "mask"):
        made, expected = (nib.load(folder / f"anna_{name}.nii.gz") for folder in (out, fresh))
        np.testing.assert_array_equal(made.affine, expected.affine)
        np.testing.assert_array_equal(made.get_fdata(), expected.get_fdata())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"contrasts": "T1"}, "contrasts is T1; give two contrasts or more"),
        ({"contrasts": ("T1", "t1w")}, "contrasts is T1; give two contrasts or more"),
        ({"contrasts": "T1,x-ray"}, "There is no contrast 'x-ray'"),
        ({"source_contrast": "T1"}, "contrasts takes the place of source_contrast and target_contrast"),
    ],
)
def test_contrasts_that_make_no_sense_are_refused(people, tmp_path, options, sentence):
    with pytest.raises(CaseError, match=sentence):
        run(people, tmp_path / "set", **options)
    assert not (tmp_path / "set").exists()


def test_the_next_commands_and_the_page_tell_of_all_contrasts(people, tmp_path, capsys):
    out = tmp_path / "set"
    run(people, out)
    last, one_before = capsys.readouterr().out.strip().splitlines()[:-3:-1]
    assert "['configs/train.json','configs/many_to_one_train.json']" in one_before
    assert "configs/evaluate_many_to_one.json" in last
    page = (out / "quality.html").read_text()
    assert "FLAIR as scanned" in page
    assert 'src="quality/anna.png"' in page


@pytest.mark.slow
def test_a_whole_run_with_a_contrast_on_another_oblique_grid(tmp_path):
    """Real registrations of two phantoms: afterwards the T2 is that of an unmoved scan, but for the interpolation."""
    move = nib.affines.from_matvec(Rotation.from_euler("xyz", [8, -12, 9], degrees=True).as_matrix(), [14, -20, 20])
    oblique = Rotation.from_euler("x", 18, degrees=True).as_matrix() @ np.diag([-5.0, 5.0, 5.0])

    def write_scan(path, subject, contrast):
        path.parent.mkdir(exist_ok=True)
        person = 1 + "ab".index(subject[0])
        image = scan(person, T1) if contrast == "T1" else scan(person, T2, oblique, np.linalg.inv(move))
        nib.save(image, path)

    radius = np.linalg.norm(np.moveaxis(np.indices((38, 46, 36)), 0, -1) - [18.5, 22.5, 17.5], axis=-1) * 5.0
    table = contrasts_tree(
        tmp_path / "scans", {"anna": ("T1", "T2"), "bert": ("T1", "T2")}, write_scan, mask=["mask.nii.gz"] * 2
    )
    image = nib.load(tmp_path / "scans" / "anna_T1.nii.gz")
    nib.save(nib.Nifti1Image((radius < 55).astype(np.uint8), image.affine), tmp_path / "scans" / "mask.nii.gz")
    out = tmp_path / "set"
    entries = run(table, out, contrasts="T1,T2", registration=True, spacing=5.0, margin=0)
    assert entries.keys() == {"anna", "bert"}
    for number, name in enumerate(entries, start=1):
        made, mask = (nib.load(out / f"{name}_{key}.nii.gz") for key in ("t2", "mask"))
        truth = conform.on_grid(scan(number, T2), conform.Grid(mask.affine, mask.shape))
        inside = mask.get_fdata() > 0
        assert np.corrcoef(made.get_fdata()[inside], truth[inside])[0, 1] > 0.9
