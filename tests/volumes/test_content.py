"""Files are read by what they hold; what is no volume is named for what it is.

Each was reported of another program: renamed and doubly packed files, pointers instead of files, damaged checksums.
"""

import gzip
import os

import nibabel as nib
import numpy as np
import pytest

from scripts.errors import CaseError
from scripts.volumes.load import read_volume

VALUES = np.arange(6 * 7 * 8, dtype=np.int16).reshape(6, 7, 8) - 100
AFFINE = np.diag([6.0, 6.0, 6.0, 1.0])
PLAIN = nib.Nifti1Image(VALUES, AFFINE).to_bytes()
PACKED = gzip.compress(PLAIN, mtime=0)
MGH = nib.MGHImage(VALUES.astype(np.float32), AFFINE).to_bytes()


def changed(**fields):
    """The NIfTI file with other fields in its header."""
    header = np.frombuffer(PLAIN[:348], nib.Nifti1Header.template_dtype).copy()
    for name, value in fields.items():
        header[name] = value
    return header.tobytes() + PLAIN[348:]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.nii", PACKED),
        ("a.nii.gz", PLAIN),
        ("a.Nii", PLAIN),
        ("a.NII.Gz", PACKED),
        ("twice.nii.gz", gzip.compress(PACKED, mtime=0)),
        ("members.nii.gz", gzip.compress(PLAIN[:500], mtime=0) + gzip.compress(PLAIN[500:], mtime=0)),
        ("trailing.nii", PLAIN + b"more"),
        ("trailing.nii.gz", PACKED + b"more than a checksum"),
        ("padded.nii.gz", PACKED + bytes(512)),
        ("two.nii", nib.Nifti2Image(VALUES, AFFINE).to_bytes()),
        ("swapped.nii", nib.Nifti1Image(VALUES, AFFINE, nib.Nifti1Header(endianness=">")).to_bytes()),
        ("complex.nii", nib.Nifti1Image(VALUES.astype(np.complex64), AFFINE).to_bytes()),
        ("slope.nii", changed(scl_slope=0, scl_inter=-1024)),
        ("is_mgz.nii.gz", MGH),
        ("is_mgz.nii", gzip.compress(MGH, mtime=0)),
        ("plain.mgz", MGH),
        ("is_nifti.mgz", PACKED),
        ("is_nifti.nrrd", PACKED),
        ("is_nifti.mha", PLAIN),
    ],
)
def test_the_same_volume_whatever_the_name(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    image = read_volume(tmp_path / name)
    np.testing.assert_array_equal(image.dataobj, VALUES)
    np.testing.assert_allclose(image.affine, AFFINE)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n", "is a pointer of Git LFS"),
        (b"/annex/objects/MD5E-s12--ab.nii.gz\n", "is a pointer of git-annex"),
        (b"../../.git/annex/objects/X/Y/MD5E-s12--ab.nii.gz", "is a pointer of git-annex"),
        (b"\n<!DOCTYPE html><html>Log in</html>", "is a web page"),
        (b"PK\x03\x04 and more", "is a zip archive"),
        (b"\x89PNG\r\n", "is a picture"),
        (bytes(128) + b"DICM\2\0", "is a DICOM file"),
        (b"NRRD0004\ntype: short\n", "is an NRRD file"),
        (gzip.compress(b"ObjectType = Image\n", mtime=0), "is a MetaImage"),
    ],
)
def test_what_is_no_volume_of_its_name_is_named(tmp_path, content, sentence):
    (tmp_path / "a.nii.gz").write_bytes(content)
    with pytest.raises(CaseError, match=rf"^a\.nii\.gz {sentence}.*; .*\.$|^a\.nii\.gz {sentence}.*: .*\.$"):
        read_volume(tmp_path / "a.nii.gz")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (PACKED[:-8] + bytes(4) + PACKED[-4:], "is damaged, truncated or no image"),  # the checksum is another
        (PACKED[:-4] + b"\1\0\0\0", "is damaged, truncated or no image"),  # the length is another
        (PACKED[:-3], "is damaged, truncated or no image"),
        (PACKED[: len(PACKED) // 2], "is damaged, truncated or no image"),
        (changed(vox_offset=0), "voxels begin at byte 0"),
        (changed(pixdim=[1, 0, 0, 0, 0, 0, 0, 0], qform_code=1, sform_code=0), "voxel sizes .* of 0 x 0 x 0 mm"),
        (changed(dim=[3, 6, -7, 8, 1, 1, 1, 1]), "6 x -7 x 8 voxels by its header"),
        (changed(dim=[4, 6, 7, 8, 0, 1, 1, 1]), "6 x 7 x 8 x 0 voxels by its header"),
        (nib.Nifti1Image((VALUES * np.exp(0.5j)).astype(np.complex64), AFFINE).to_bytes(), "complex numbers"),
    ],
)
def test_damage_that_a_reader_would_pass_over(tmp_path, content, sentence):
    (tmp_path / "a.nii.gz").write_bytes(content)
    with pytest.raises(CaseError, match=rf"^a\.nii\.gz .*{sentence}.*; .*\.$"):
        read_volume(tmp_path / "a.nii.gz")


def test_a_link_to_nothing_and_a_pipe_are_no_volumes(tmp_path):
    os.symlink("gone/a.nii.gz", tmp_path / "a.nii.gz")
    os.mkfifo(tmp_path / "b.nii")
    with pytest.raises(CaseError, match=r"a\.nii\.gz is a link to a file that is not there"):
        read_volume(tmp_path / "a.nii.gz")
    with pytest.raises(CaseError, match=r"b\.nii is no file but a pipe"):
        read_volume(tmp_path / "b.nii")
