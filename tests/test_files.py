"""Files: whole or not at all, on machines that refuse: full, read-only, without renaming, without permission."""

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from scripts import files
from scripts.errors import CaseError, MachineError, RefusedError
from scripts.files import check_folder, longest_name, move, temporary_folder, write_whole, writing_into, written_whole


def refuse(monkeypatch, number, what="replace", module=os, only=""):
    """Have a function of a module refuse with an error number, for paths with `only` in them."""
    original = getattr(module, what)

    def refusing(path, *args, **kwargs):
        if only in os.fspath(path):
            raise OSError(number, os.strerror(number), os.fspath(path))
        return original(path, *args, **kwargs)

    monkeypatch.setattr(module, what, refusing)


@pytest.mark.parametrize(
    ("number", "kind", "sentence"),
    [
        (errno.ENOSPC, MachineError, "The disk of {} is full"),
        (errno.EDQUOT, MachineError, "The quota on the disk of {} is used up"),
        (errno.EROFS, MachineError, "The disk of {} can only be read"),
        (errno.EFBIG, RefusedError, "A file is larger than the disk of {} allows"),
        (errno.EIO, MachineError, "The disk of {} reports an error"),
        (errno.EACCES, RefusedError, "There is no permission for {}"),
        (errno.ENAMETOOLONG, RefusedError, "A name at {} is longer than the disk allows"),
    ],
)
def test_what_the_machine_refuses_is_a_sentence_with_a_remedy(tmp_path, monkeypatch, number, kind, sentence):
    """It names the folder and what to do, nothing of the file stays, and the old file is as it was."""
    write_whole(tmp_path / "a.txt", "old")
    refuse(monkeypatch, number, "write_bytes", Path)
    with pytest.raises(RefusedError) as error:
        write_whole(tmp_path / "a.txt", "new")
    assert type(error.value) is kind
    assert str(error.value).startswith(sentence.format(tmp_path))
    assert str(error.value).count(";") == 1
    assert isinstance(error.value, OSError)  # who writes what can be done without goes on as before
    assert (tmp_path / "a.txt").read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.ENOTSUP])
def test_where_nothing_can_be_renamed_it_is_copied(tmp_path, monkeypatch, number):
    refuse(monkeypatch, number)
    write_whole(tmp_path / "a.txt", "new")
    (tmp_path / "folder" / "below").mkdir(parents=True)
    (tmp_path / "folder" / "below" / "b.txt").write_text("b")
    move(tmp_path / "folder", tmp_path / "moved")
    assert (tmp_path / "a.txt").read_text() == "new"
    assert (tmp_path / "moved" / "below" / "b.txt").read_text() == "b"
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "moved"]
    assert check_folder(tmp_path) == tmp_path


def _write_half(path):
    path.write_text("half")
    raise RuntimeError("PytorchStreamWriter failed writing file")


def test_a_writer_that_does_not_say_why_is_on_a_full_disk_where_none_is_left(tmp_path, monkeypatch):
    """NumPy says how many items it wrote, and torch nothing at all; the file that filled the disk is half there."""
    usage = shutil.disk_usage(tmp_path)
    for free, expected in ((100, MachineError), (2**30, RuntimeError)):
        monkeypatch.setattr(
            shutil, "disk_usage", lambda _, free=free: usage._replace(free=free if os.listdir(tmp_path) else 2**30)
        )
        with pytest.raises(expected), written_whole(tmp_path / "a.npy") as temporary:
            _write_half(temporary)
        assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["source.nii", "out_of_last_year/source.nii"])
def test_an_error_of_a_file_elsewhere_is_not_the_folder_s(tmp_path, name):
    with pytest.raises(PermissionError) as caught, writing_into(tmp_path / "out"):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / name))
    assert not isinstance(caught.value, CaseError)


def test_a_folder_is_tried_before_anything_is_computed(tmp_path, monkeypatch):
    assert check_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert os.listdir(tmp_path / "a" / "b") == []
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(MachineError, match=r"no folder.*give another folder"):
            check_folder(folder)
    refuse(monkeypatch, errno.ENOENT, "mkdir", Path)  # as below /proc
    with pytest.raises(MachineError, match=r"new cannot be made \(.*\); give another folder"):
        check_folder(tmp_path / "new")
    refuse(monkeypatch, errno.EACCES, "mkdir", Path)
    with pytest.raises(MachineError, match=r"no permission for .*; ask for it, or give another folder"):
        check_folder(tmp_path / "a")


def test_a_full_disk_is_told_by_the_trial(tmp_path, monkeypatch):
    refuse(monkeypatch, errno.ENOSPC, "write_bytes", Path)
    with pytest.raises(MachineError, match="is full"):
        check_folder(tmp_path)
    assert os.listdir(tmp_path) == []


def test_what_killed_programs_left_is_removed_and_what_is_being_written_stays(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    ours, theirs = files._HOST, "00000000"
    gone = [f".{ended.pid}-{ours}.partial.a.json", f".1-{theirs}.partial.old.json"]
    kept = [f".{os.getpid()}-{ours}.partial.b.json", f".1-{theirs}.partial.c.json", ".hidden", "a.partial.json"]
    for name in [*gone, *kept]:
        (tmp_path / name).write_text("")
    os.utime(tmp_path / gone[1], (0, 0))
    (tmp_path / f".{ended.pid}-{ours}.partial.trial").mkdir()
    check_folder(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(kept)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_full_disk_of_temporary_files_is_told_with_the_way_out(monkeypatch, number):
    """One case alone fails: others may need no temporary file."""
    with pytest.raises(CaseError, match=r"The disk of the temporary files \(.*TMPDIR.*\)") as error, temporary_folder():
        raise OSError(number, os.strerror(number))
    assert not isinstance(error.value, MachineError)
    with monkeypatch.context() as patch:
        refuse(patch, number, "write_bytes", Path)
        with pytest.raises(CaseError, match="TMPDIR"), temporary_folder() as folder:
            write_whole(folder / "a", "content")


def test_without_any_folder_for_temporary_files(monkeypatch):
    def none():
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    with pytest.raises(CaseError, match="set TMPDIR"), temporary_folder():
        pass


def test_the_longest_name_is_that_of_the_disk(tmp_path):
    longest = longest_name(tmp_path / "not" / "there")
    (tmp_path / ("a" * longest)).touch()
    with pytest.raises(OSError, match="too long"):
        (tmp_path / ("a" * (longest + 1))).touch()
