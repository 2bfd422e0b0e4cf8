"""The main job on DICOM: what comes out, where it lies, and that no name gets out with it."""

import filecmp
import gzip
import json
import re
import shutil
import subprocess
import sys
from functools import partial

import nibabel as nib
import numpy as np
import pytest

from scripts.report import report
from tests.phantoms import centred_affine, head_ct, write_head_ct
from tests.trees import tilted, write_dicom_series

pydicom = pytest.importorskip("pydicom")

SUFFIXES = (".json", ".nii.gz", ".png")
HEIGHTS = [6.0 * i - 90 for i in range(31)]
FEWER = [9.0 * i - 90 for i in range(21)]
STUDY = "1.2.826.0.1.3680043.8.498.7"
PLANTED = {"PatientName": "Planted^Petronella", "PatientID": "QX77ZID", "PatientBirthDate": "19450203"}
SECRETS = ("planted", "petronella", "qx77zid", "19450203", "folder_of", "slice_of")


def head(points):
    """HU of the head of `tests.phantoms`, at the points of a slice in LPS mm."""
    points = points * [-1, -1, 1]
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = points[1, 0] - points[0, 0], points[0, 1] - points[0, 0]
    affine[:3, 3] = points[0, 0]
    return np.round(head_ct(affine, (*points.shape[:2], 1)))[..., 0].astype(np.int16)


def head_series(folder, number=1, study=STUDY, heights=HEIGHTS, orientation=(1, 0, 0, 0, 1, 0), modality="CT", **tags):
    """A head of slices at these heights in mm, with the planted names; gives the UID."""

    def change(slice_, _):
        for name, value in {**PLANTED, **tags}.items():
            setattr(slice_, name, value)

    shape = {"voxels": 48, "spacing": 5.0, "hu_of": head, "study": study, "change": change}
    write_dicom_series(folder, heights, orientation, number=number, modality=modality, **shape)
    header = pydicom.dcmread(folder / f"{number}_001")
    for path in folder.glob(f"{number}_*"):
        path.rename(path.with_name(f"Slice_of_Petronella_{path.name}"))
    return str(header.SeriesInstanceUID)


@pytest.fixture
def translate(translate_echo):
    """Run inference.json, or other config files."""
    return lambda dataset_dir, *folders, configs=("inference.json",), **overrides: translate_echo(
        configs, dataset_dir, *folders, **overrides
    )


def case_of(folder):
    """The only case of an output folder, and its record."""
    (path,) = folder.glob("*_t1.json")
    return path.name.removesuffix("_t1.json"), json.loads(path.read_text())


def everything_in(folder):
    """Names and content of all files, unpacked, as small letters."""
    said = ""
    for path in folder.rglob("*"):
        said += path.relative_to(folder).as_posix() + "\n"
        if path.is_file():
            content = path.read_bytes()
            said += (gzip.decompress(content) if path.suffix == ".gz" else content).decode("latin-1")
    return said.lower()


@pytest.mark.parametrize("orientation", [tilted(0), tilted(15)], ids=["upright", "tilted gantry"])
def test_a_series_comes_out_where_it_was_scanned(tmp_path, translate, orientation):
    uid = head_series(tmp_path / "in" / "Folder_of_Petronella", orientation=orientation)
    assert translate(tmp_path / "in") is None
    case, record = case_of(tmp_path / "out")
    assert re.fullmatch("ct_[0-9a-f]{12}", case)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"{case}_t1{suffix}" for suffix in SUFFIXES]
    assert record["source"].keys() == {"series_uid", "study_uid", "files", "sha256"}
    assert (record["source"]["series_uid"], record["source"]["study_uid"]) == (uid, STUDY)
    assert record["source"]["files"] == 31
    assert ("leaning by 15.0 degrees" in record["grid"].get("corrected", "")) == (orientation != tilted(0))
    made = nib.load(tmp_path / "out" / f"{case}_t1.nii.gz")
    values = made.get_fdata()
    places = nib.affines.apply_affine(made.affine, np.moveaxis(np.indices(made.shape), 0, -1))
    inner = np.linalg.norm(places / [80, 95, 75], axis=-1) < 0.75
    np.testing.assert_allclose(places[inner & (values > 0.65)].mean(axis=0), [-40, 0, 0], atol=2.5)  # the bleed, left
    assert 900 < (values > 0).sum() * abs(np.linalg.det(made.affine[:3, :3])) / 1000 < 1700  # mL; the phantom has 1520


def mixed(folder):
    """A study with a bone kernel and a scout, a tilted one, one without CT, one that is truncated, and a NIfTI."""
    first, series = folder / "Folder_of_Petronella", partial(head_series, heights=FEWER)
    series(first, 1, ConvolutionKernel="H70s")
    series(first, 2, ConvolutionKernel="H30s", SeriesDescription="Kopf Planted Petronella")
    series(first, 3, heights=FEWER[:1], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    series(folder / "Folder_of_Doe" / "deep", 4, STUDY + ".2", orientation=tilted(-12))
    series(folder / "Folder_of_Jane", 5, STUDY + ".3", modality="MR")
    series(folder / "Folder_of_Jane" / "more", 6, STUDY + ".4")
    damaged = sorted((folder / "Folder_of_Jane" / "more").iterdir())[9]
    damaged.write_bytes(damaged.read_bytes()[:-999])
    write_head_ct(folder / "a.nii.gz")
    return folder


def test_no_name_gets_out(tmp_path, bundle_root, echo_settings):
    """The command itself, with its own log; names in odd elements, where pydicom would quote them, too."""
    data = mixed(tmp_path / "Folder_of_Planted")
    for path in data.rglob("*_2_*"):
        slice_ = pydicom.dcmread(path)
        slice_.add_new("PatientBirthDate", "DA", "Planted")
        slice_["PatientBirthDate"]._value = "Planted Petronella, 19450203"
        slice_.add_new("SeriesNumber", "IS", "2")
        slice_.PatientComments = slice_.OperatorsName = "Petronella" * 20
        slice_.save_as(path)
    overlay = tmp_path / "overlay.json"
    overlay.write_text(json.dumps(echo_settings))
    configs = [str(bundle_root / "configs" / "inference.json"), str(overlay)]
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(configs)]
    command += ["--dataset_dir", str(data), "--output_dir", str(tmp_path / "out")]
    ended = subprocess.run(command, cwd=bundle_root, capture_output=True, text=True)
    assert ended.returncode == 1
    said = ended.stdout + ended.stderr
    assert "2 of 5 cases failed" in said
    assert "not: 1 a localizer, 1 sharp kernel" in said
    assert "leaning by 12.0 degrees" in said
    failures = json.loads((tmp_path / "out" / "failures.json").read_text())
    assert "modality MR" in failures[0]["reason"]
    assert "truncated" in failures[1]["reason"]
    report(str(tmp_path / "out"), dataset_dir=str(data))
    written = everything_in(tmp_path / "out")
    for secret in SECRETS:
        assert secret not in said.lower()
        assert secret not in written


def test_names_are_kept_where_that_is_asked_for(tmp_path, translate):
    head_series(tmp_path / "in" / "Folder_of_Petronella" / "ct")
    assert translate(tmp_path / "in", keep_names=True) is None
    case, record = case_of(tmp_path / "out")
    assert case == "Folder_of_Petronella_ct"
    assert record["source"]["file"] == "Folder_of_Petronella/ct"
    assert (record["source"]["patient_name"], record["source"]["patient_id"]) == ("Planted^Petronella", "QX77ZID")
    before = (tmp_path / "out" / f"{case}_t1.nii.gz").stat().st_mtime_ns
    assert translate(tmp_path / "in", keep_names=True) is None
    assert (tmp_path / "out" / f"{case}_t1.nii.gz").stat().st_mtime_ns == before


def test_what_is_done_is_not_done_again_and_what_failed_is(tmp_path, translate):
    data = mixed(tmp_path / "in")
    assert translate(data).startswith("2 of 5 cases failed")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    for path in (data / "Folder_of_Jane" / "more").iterdir():
        path.unlink()
    head_series(data / "Folder_of_Jane" / "more", 6, STUDY + ".4", FEWER)
    assert translate(data).startswith("1 of 5 cases failed")
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert len(after) == len(before) + 3
    assert all(after[name] == before[name] for name in before if name != "failures.json")
    # moved and renamed, it is the same series
    shutil.move(data / "Folder_of_Doe" / "deep", data / "elsewhere")
    translate(data)
    assert all((tmp_path / "out" / name).stat().st_mtime_ns == after[name] for name in before if "fail" not in name)
    # another pixel is another series
    path = sorted((data / "elsewhere").iterdir())[15]
    slice_ = pydicom.dcmread(path)
    slice_.PixelData = bytes(2) + slice_.PixelData[2:]
    slice_.save_as(path)
    translate(data)
    changed = {path.name for path in (tmp_path / "out").iterdir() if path.stat().st_mtime_ns != after.get(path.name)}
    assert len(changed - {"failures.json"}) == 3


def test_overlap_and_order_change_no_byte(tmp_path, translate):
    data = mixed(tmp_path / "in")
    assert translate(data, tmp_path / "none", overlap="none").startswith("2 of 5")
    for number, path in enumerate(sorted(data.rglob("Slice*"), reverse=True)):
        path.rename(path.with_name(f"{number}"))
    assert translate(data, tmp_path / "all", overlap="all").startswith("2 of 5")
    names = sorted(path.name for path in (tmp_path / "none").iterdir())
    assert len(names) == 10
    assert filecmp.cmpfiles(tmp_path / "none", tmp_path / "all", names, shallow=False) == (names, [], [])


def test_the_series_that_is_asked_for(tmp_path, translate):
    uids = [
        head_series(tmp_path / "in", number, ConvolutionKernel=kernel) for number, kernel in ((1, "FC21"), (2, "FC30"))
    ]
    assert translate(tmp_path / "in", series_uid=uids[1]) is None
    assert case_of(tmp_path / "out")[1]["source"]["series_uid"] == uids[1]
    assert translate(tmp_path / "in") is None
    made = {json.loads(path.read_text())["source"]["series_uid"] for path in (tmp_path / "out").glob("*.json")}
    assert made == set(uids)


def test_a_flair_of_dicom(tmp_path, translate, bundle_root):
    """Brain alone on a background of zero, as the overlay wants it without a skull strip."""

    def brain(points):
        return np.where((head(points) >= 0) & (head(points) < 100), head(points) + 300, -1000)

    def change(slice_, _):
        slice_.SeriesDescription = "t2_flair_tra of Petronella"
        for name, value in PLANTED.items():
            setattr(slice_, name, value)

    shape = {"voxels": 48, "spacing": 5.0, "hu_of": brain, "study": STUDY, "change": change}
    write_dicom_series(tmp_path / "in", HEIGHTS, modality="MR", **shape)
    head_series(tmp_path / "in" / "ct", 2)
    keys = {"style_keys_file": str(bundle_root / "models" / "flair_to_t1_style_keys.json"), "skull_strip": "none"}
    assert translate(tmp_path / "in", configs=("inference.json", "flair_to_t1.json"), **keys) is None
    case, record = case_of(tmp_path / "out")
    assert case.startswith("mr_")
    assert record["source_contrast"] == "FLAIR"
    assert "petronella" not in everything_in(tmp_path / "out")


def test_a_mask_is_found_by_the_case_or_the_uid(tmp_path, translate):
    uid = head_series(tmp_path / "in")
    assert translate(tmp_path / "in") is None
    case, _ = case_of(tmp_path / "out")
    shape = (48, 48, 40)
    affine = centred_affine(np.diag([4.0, 4.0, 4.0]), shape)
    ball = np.linalg.norm(nib.affines.apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1)), axis=-1) < 50
    (tmp_path / "masks").mkdir()
    for name in (uid, case):
        nib.save(nib.Nifti1Image(ball.astype(np.uint8), affine), tmp_path / "masks" / f"{name}.nii.gz")
        assert translate(tmp_path / "in", tmp_path / name, skull_strip=str(tmp_path / "masks")) is None
        assert case_of(tmp_path / name)[1]["mask_from"] == f"{name}.nii.gz"
        before = (tmp_path / name / f"{case}_t1.json").stat().st_mtime_ns
        assert translate(tmp_path / "in", tmp_path / name, skull_strip=str(tmp_path / "masks")) is None
        assert (tmp_path / name / f"{case}_t1.json").stat().st_mtime_ns == before
        (tmp_path / "masks" / f"{name}.nii.gz").unlink()
    assert translate(tmp_path / "in", tmp_path / "no", skull_strip=str(tmp_path / "masks")) is not None
    (failure,) = json.loads((tmp_path / "no" / "failures.json").read_text())
    assert f"named like the case or the series, for example {case}.nii.gz" in failure["reason"]


def test_the_report_shows_a_dicom_source(tmp_path, translate, capsys):
    head_series(tmp_path / "in")
    assert translate(tmp_path / "in") is None
    report(str(tmp_path / "out"), dataset_dir=str(tmp_path / "in"))
    page = (tmp_path / "out" / "report" / "case-001.html").read_text()
    assert "source CT" in page
    assert "not shown" not in page
    path = next((tmp_path / "in").iterdir())
    path.write_bytes(path.read_bytes()[:-2] + b"\1\1")
    report(str(tmp_path / "out"), dataset_dir=str(tmp_path / "in"))
    assert "DICOM series of that UID is another one" in (tmp_path / "out" / "report" / "case-001.html").read_text()
    report(str(tmp_path / "out"))
    assert "the folder of its DICOM series was not given" in (tmp_path / "out" / "report" / "case-001.html").read_text()
