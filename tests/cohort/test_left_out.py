"""The main job on a folder of which not all can be read: each case has a line, and the others are done."""

import json
import os

import pytest

from tests.phantoms import write_head_ct
from tests.trees import write_cube, write_dicom_series

pytest.importorskip("pydicom")


def test_what_cannot_be_read_stands_in_the_failures_and_the_others_are_done(tmp_path, translate_echo):
    folder = tmp_path / "in"
    folder.mkdir()
    write_head_ct(folder / "good.nii.gz")
    (folder / "scans.zip").write_bytes(b"PK\3\4")
    (folder / "empty.nii").touch()
    os.symlink(tmp_path / "nowhere", folder / "link.mha")
    (folder / "cut_off.dcm").write_bytes(bytes(128) + b"DICM" + bytes(9))
    (folder / "notes.txt").touch()
    with open(os.fsencode(folder) + b"/M\xfcller.rar", "wb") as file:  # a name in Latin-1
        file.write(b"Rar!")
    write_dicom_series(folder / "two", [0, 4], voxels=8, spacing=30)
    write_cube(folder / "small.nii.gz")
    expected = {"unread_1.rar", "unread_2.zip", "empty", "link", "damaged_dicom", "small"}
    for _ in range(2):
        assert translate_echo(["inference.json"], folder).startswith("7 of 8 cases failed")
        failures = json.loads((tmp_path / "out" / "failures.json").read_text())
        assert {one["case"] for one in failures if not one["case"].startswith("study_")} == expected
        assert len(failures) == 7
        for one in failures:
            assert one["reason"].endswith(".")
            assert "Unforeseen" not in one["reason"]
        made = {path.name for path in (tmp_path / "out").iterdir()}
        assert made == {"failures.json", "good_t1.nii.gz", "good_t1.json", "good_t1.png"}


def test_a_source_that_is_gone_after_a_finished_run_fails_alone(tmp_path, translate_echo):
    folder = tmp_path / "in"
    folder.mkdir()
    write_head_ct(folder / "first.nii.gz")
    assert translate_echo(["inference.json"], folder) is None
    (folder / "first.nii.gz").unlink()
    os.symlink(tmp_path / "nowhere", folder / "first.nii.gz")
    write_head_ct(folder / "second.nii.gz")
    assert translate_echo(["inference.json"], folder).startswith("1 of 2 cases failed")
    (failure,) = json.loads((tmp_path / "out" / "failures.json").read_text())
    assert failure["case"] == "first"
    assert (tmp_path / "out" / "second_t1.json").is_file()
