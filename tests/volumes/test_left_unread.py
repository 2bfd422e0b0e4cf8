"""No case vanishes: what is not read stands in the list with a reason, and the others go on."""

import gzip
import logging
import os
import tarfile
import zipfile

import nibabel as nib
import numpy as np
import pytest

from scripts.data.datalists import inference_datalist
from scripts.outputs.record import SourceRecorder
from scripts.prepare.layouts import list_pairs
from scripts.volumes.load import LoadVolume
from tests.trees import ixi_tree, write_cube, write_dicom_series

AFFINE = np.array([[-2.0, 0, 0, 7], [0, 3, 0, -8], [0, 0, 4, 9], [0, 0, 0, 1]])
VALUES = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)


def pair(path, kind=nib.Nifti1Pair, code=1):
    """A .hdr and an .img."""
    image = kind(VALUES, AFFINE)
    if kind is nib.Nifti1Pair:
        image.set_sform(AFFINE, code)
        image.set_qform(AFFINE, code)
    nib.save(image, path)


def listed(folder):
    """CASE -> the reason why it fails, None where it does not."""
    return {item["case"]: item.get("failure") for item in inference_datalist(folder)}


def test_a_nifti_pair_is_a_volume_where_it_should_be(tmp_path):
    pair(tmp_path / "anna.hdr")
    write_cube(tmp_path / "bert.nii.gz")
    assert listed(tmp_path) == {"anna": None, "bert": None}
    volume = LoadVolume()(inference_datalist(tmp_path)[0]["image"])
    expected = nib.Nifti1Image(VALUES, AFFINE)
    places = nib.affines.apply_affine(np.asarray(volume.affine), np.argwhere(volume.numpy() >= 0))
    found = dict(zip(map(tuple, np.round(places, 3)), volume.numpy().ravel(), strict=True))
    for index in ((0, 0, 0), (3, 0, 0), (0, 4, 5), (3, 4, 5)):
        place = tuple(np.round(nib.affines.apply_affine(expected.affine, index), 3))
        assert found[place] == VALUES[index]


PAIRS = {
    "Analyze": (lambda folder: pair(folder / "x.hdr", nib.AnalyzeImage), {"x.hdr": "does not say which side is left"}),
    "no orientation": (lambda folder: pair(folder / "x.hdr", code=0), {"x.hdr": "does not say which side is left"}),
    "no .img": (lambda folder: (pair(folder / "x.hdr"), (folder / "x.img").unlink()), {"x.hdr": "whose .img is not"}),
    "no .hdr": (lambda folder: (pair(folder / "x.hdr"), (folder / "x.hdr").unlink()), {"x.img": "whose .hdr is not"}),
    "damaged": (lambda folder: (pair(folder / "x.hdr"), (folder / "x.hdr").write_bytes(b"no")), {"x.hdr": "damaged"}),
    "named twice": (lambda folder: (pair(folder / "x.hdr"), write_cube(folder / "x.nii.gz")), {"x.hdr": "named like"}),
}


@pytest.mark.parametrize("kind", PAIRS)
def test_a_pair_that_cannot_be_read_is_listed(tmp_path, kind):
    make, expected = PAIRS[kind]
    make(tmp_path)
    write_cube(tmp_path / "good.nii.gz")
    found = listed(tmp_path)
    assert found.pop("good") is None
    for case, words in expected.items():
        assert found[case].startswith(f"{case} is" if "side" not in words else case)
        assert words in found[case]


def test_what_may_hold_a_case_is_listed_and_what_holds_none_is_counted(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    write_cube(tmp_path / "good.nii.gz")
    folder = tmp_path / "more"
    folder.mkdir()
    whole = (tmp_path / "good.nii.gz").read_bytes()
    with zipfile.ZipFile(folder / "scans.zip", "w") as packed:
        packed.writestr("../../outside.nii.gz", whole)
    with tarfile.open(folder / "scans.tar.gz", "w:gz") as packed:
        packed.add(tmp_path / "good.nii.gz", "/outside.nii.gz")
    for name in ("a.nii.bz2", "a.nii.xz", "b.mgh", "c.MNC", "d.rar", "e.img.gz", "f.nrrd.gz", "g.PAR"):
        (folder / name).write_bytes(b"something")
    for name in ("notes.txt", "table.csv", "table.csv.gz", "picture.png", "g.json", "README", "empty"):
        (folder / name).touch()
    (folder / "._good.nii.gz").write_bytes(b"\0\5\x16\7")
    (folder / ".DS_Store").touch()
    os.symlink(tmp_path / "nowhere", folder / "link")
    found = listed(tmp_path)
    assert found.pop("good") is None
    unread = ("scans.zip", "scans.tar.gz", "a.nii.bz2", "a.nii.xz", "b.mgh", "c.MNC", "d.rar", "e.img.gz", "f.nrrd.gz")
    assert found.keys() == {f"more_{name}" for name in (*unread, "g.PAR")}
    for case, why in found.items():
        assert case.removeprefix("more_") in why
        assert "unpack it" in why or "convert it" in why
        assert why.count(".") < 14
    assert "8 files are no volumes and were passed over" in caplog.text
    assert "2 hidden files and folders" in caplog.text
    assert not list(tmp_path.parent.glob("outside*"))


def test_what_is_counted_has_no_name_in_place_of_a_suffix(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    write_dicom_series(tmp_path / "series", [0, 4, 8, 12], voxels=8, spacing=30)
    for name in ("IM0001.Doe", "Letter to Dr. Petronella", "notes.txt"):
        (tmp_path / name).touch()
    listed(tmp_path)
    assert "3 files are no volumes and were passed over (2 of other kinds, 1 .txt)." in caplog.text
    assert "petronella" not in caplog.text.lower()


def test_empty_volumes_and_links_to_nowhere_are_cases(tmp_path):
    (tmp_path / "empty.nii.gz").touch()
    os.symlink(tmp_path / "nowhere", tmp_path / "link.nii")
    assert listed(tmp_path) == {"empty": None, "link": None}  # loading tells why they fail


def test_a_folder_that_may_not_be_read_is_listed(tmp_path, monkeypatch):
    (tmp_path / "locked").mkdir()
    write_cube(tmp_path / "good.nii.gz")
    scandir = os.scandir

    def locked(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    assert listed(tmp_path) == {"good": None, "locked": "The folder locked may not be read; change its permissions."}


def test_damaged_dicom_is_one_line_without_names(tmp_path):
    pytest.importorskip("pydicom")
    write_dicom_series(tmp_path / "DOE", [0, 4, 8, 12], voxels=8, spacing=30)
    write_cube(tmp_path / "good.nii.gz")
    first = (tmp_path / "DOE" / "1_001").read_bytes()
    (tmp_path / "DOE" / "JANE").write_bytes(first[:200])
    (tmp_path / "DOE" / "JANE.dcm").touch()
    (tmp_path / "DOE" / "JANE.IMA").write_bytes(b"nothing")
    (tmp_path / "DOE" / "JANE.dcm.gz").write_bytes(gzip.compress(first)[:90])
    found = listed(tmp_path)
    assert found.pop("good") is None
    assert found.pop("damaged_dicom").startswith("4 files are marked or named as DICOM and cannot be read")
    (why,) = found.values()
    assert why is None


def test_beside_dicom_an_archive_keeps_no_name(tmp_path):
    write_dicom_series(tmp_path / "series", [0, 4, 8, 12], voxels=8, spacing=30)
    with zipfile.ZipFile(tmp_path / "DOE^JANE.zip", "w") as archive:
        archive.writestr("1", "1")
    found = listed(tmp_path)
    assert (
        found.pop("unread_1.zip")
        == "unread_1.zip is packed, and archives are not opened; unpack it and give what is in it."
    )
    assert list(found.values()) == [None]
    named = {item["case"] for item in inference_datalist(tmp_path, keep_names=True)}
    assert named == {"series", "DOE^JANE.zip"}


@pytest.mark.parametrize("beside_dicom", [False, True])
def test_a_folder_that_may_be_listed_and_not_entered_does_not_end_the_run(tmp_path, monkeypatch, beside_dicom):
    """Its files (mode 444) can be named and not looked at; the others go on."""
    write_cube(tmp_path / "anna.nii.gz")
    if beside_dicom:
        write_dicom_series(tmp_path / "series", [0, 4, 8, 12], voxels=8, spacing=30)
    (tmp_path / "closed").mkdir()
    for name in ("bert.par", "carl.img", "dora.hdr"):
        (tmp_path / "closed" / name).write_bytes(b"1")
    stat = os.stat

    def closed(path, *args, **kwargs):
        if f"closed{os.sep}" in os.fspath(path):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return stat(path, *args, **kwargs)

    monkeypatch.setattr(os, "stat", closed)
    found = listed(tmp_path)
    assert found["anna"] is None
    assert any(found.values())
    assert all("closed" not in case for case in found) or not beside_dicom


def test_beside_dicom_no_part_of_an_item_that_is_not_read_has_a_name(tmp_path, monkeypatch):
    """failures.json says of which file it speaks: neither its name may stand there nor that of its folder."""
    write_dicom_series(tmp_path / "DOE" / "series", [0, 4, 8, 12], voxels=8, spacing=30)
    (tmp_path / "DOE" / "JANE.par").write_bytes(b"1")
    (tmp_path / "locked.JANE").mkdir()
    scandir = os.scandir

    def locked(path):
        if str(path).endswith("locked.JANE"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    for damage in (False, True):  # what is damaged is hardly less a patient's
        if damage:
            for path in (tmp_path / "DOE" / "series").iterdir():
                path.write_bytes(path.read_bytes()[:140])
        recorder = SourceRecorder(tmp_path)
        unread = [item for item in inference_datalist(tmp_path) if item["case"].startswith("unread_")]
        said = [*unread, *(recorder.name(item["image"]) for item in unread)]
        assert len(unread) == 2
        assert "JANE" not in str(said)
        assert "DOE" not in str(said)


def test_nothing_but_what_is_not_read_is_still_listed(tmp_path):
    (tmp_path / "scans.7z").write_bytes(b"7z")
    assert list(listed(tmp_path)) == ["scans.7z"]


def test_preparing_warns_of_what_is_not_read(tmp_path, caplog):
    ixi_tree(tmp_path)
    (tmp_path / "IXI-T1" / "IXI099-HH-1-T1.nii.bz2").write_bytes(b"BZh")
    (tmp_path / "IXI-T1.tar").write_bytes(b"packed")
    assert len(list_pairs("ixi", tmp_path)[0]) == 3
    assert len(caplog.messages) == 2
    for name in ("IXI099-HH-1-T1.nii.bz2", "IXI-T1.tar"):
        assert f"{name} is packed, and archives are not opened; unpack it" in caplog.text
