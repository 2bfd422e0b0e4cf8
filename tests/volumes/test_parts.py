"""Volumes of several files: what is read is what is recorded."""

import itk
import nibabel as nib
import numpy as np
import pytest

from scripts.files import sha256_of_file
from scripts.volumes.parts import files_of_volume, sha256_of_volume


def write(path, voxels, compressed=False):
    itk.imwrite(itk.image_from_array(voxels), str(path), compression=compressed)


def names(path):
    return [file.name for file in files_of_volume(path)]


def test_a_volume_in_one_file_has_its_own_digest(tmp_path):
    nib.save(nib.Nifti1Image(np.zeros((2, 3, 4), np.float32), np.eye(4)), tmp_path / "a.nii.gz")
    for name in ("b.mha", "c.nrrd"):
        write(tmp_path / name, np.zeros((4, 3, 2), np.int16))
    for name in ("a.nii.gz", "b.mha", "c.nrrd"):
        assert names(tmp_path / name) == [name]
        assert sha256_of_volume(tmp_path / name) == sha256_of_file(tmp_path / name)


@pytest.mark.parametrize(
    ("written", "given", "others"),
    [
        ("a.mhd", "a.mhd", ["a.raw"]),
        ("a.nhdr", "a.nhdr", ["a.raw.gz"]),
        ("a.img", "a.hdr", ["a.img"]),
        ("a.img", "a.img", ["a.hdr"]),
    ],
)
def test_other_voxels_are_another_digest(tmp_path, written, given, others):
    """The header stays the same where voxels change."""
    voxels = np.zeros((4, 3, 2), np.int16)
    write(tmp_path / written, voxels, given == "a.nhdr")
    assert names(tmp_path / given) == [given, *others]
    header = sha256_of_file(tmp_path / "a.hdr") if written == "a.img" else None
    before = sha256_of_volume(tmp_path / given)
    voxels[1, 1, 1] = 7
    write(tmp_path / written, voxels, given == "a.nhdr")
    assert sha256_of_volume(tmp_path / given) != before
    assert header is None or sha256_of_file(tmp_path / "a.hdr") == header


def test_lists_and_numbered_files_of_a_header(tmp_path):
    for number in range(3):
        (tmp_path / f"s{number:02}.raw").write_bytes(bytes([number]))
    headers = {
        "list.mhd": "ObjectType = Image\r\nElementDataFile = LIST\r\ns00.raw\r\ns02.raw\r\n",
        "numbered.mhd": "NDims = 3\nElementDataFile = s%02d.raw 0 2 1\n",
        "list.nhdr": "NRRD0004\ndata file: LIST 2\ns01.raw\ns02.raw\n",
        "gone.nhdr": "NRRD0004\ndatafile: not_there.raw\n",
        "local.mhd": "ElementDataFile = LOCAL\n",
    }
    for name, text in headers.items():
        (tmp_path / name).write_bytes(text.encode())
    assert names(tmp_path / "list.mhd") == ["list.mhd", "s00.raw", "s02.raw"]
    assert names(tmp_path / "numbered.mhd") == ["numbered.mhd", "s00.raw", "s01.raw", "s02.raw"]
    assert names(tmp_path / "list.nhdr") == ["list.nhdr", "s01.raw", "s02.raw"]
    assert names(tmp_path / "gone.nhdr") == ["gone.nhdr"]
    assert names(tmp_path / "local.mhd") == ["local.mhd"]
