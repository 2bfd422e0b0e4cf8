import os
import stat
import sys

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from scripts.dicom.convert import convert_dicom
from scripts.files import CaseError
from tests.trees import BALLS, tilted, write_dicom_series

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("dcm2niix")

EVEN = [4.0 * i - 20 for i in range(34)]
UNEVEN = [4.0 * i - 20 for i in range(18)] + [52 + 5.0 * i for i in range(12)]


def balls_of(image: nib.Nifti1Image, threshold: float = 750) -> list[np.ndarray]:
    """Centres of the dense balls in LPS mm, highest first."""
    pieces, count = ndimage.label(np.asarray(image.dataobj) > threshold)
    centres = ndimage.center_of_mass(pieces > 0, pieces, range(1, count + 1))
    centres = [nib.affines.apply_affine(image.affine, centre) * (-1, -1, 1) for centre in centres]
    return sorted(centres, key=lambda centre: -centre[2])


def corners_of(image: nib.Nifti1Image) -> np.ndarray:
    return np.asarray(image.dataobj)[np.ix_([0, -1], [0, -1], [0, -1])]


@pytest.mark.parametrize(
    ("heights", "degrees"),
    [(EVEN, 0), (EVEN[::-1], 0), (UNEVEN, 0), (EVEN, 15), (EVEN, -8), (EVEN[::-1], -8), (UNEVEN, 10)],
    ids=["even", "from top", "uneven", "tilt", "tilt back", "tilt from top", "tilt and uneven"],
)
def test_what_was_scanned_comes_out_where_it_was(tmp_path, heights, degrees):
    folder = write_dicom_series(tmp_path / "in", heights, tilted(degrees))
    output = convert_dicom(folder, tmp_path / "out" / "ct.nii.gz")
    image = nib.load(output)
    axes = image.affine[:3, :3] / nib.affines.voxel_sizes(image.affine)
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-3)
    found = balls_of(image)
    assert len(found) == len(BALLS)
    for centre, (truth, _) in zip(found, BALLS, strict=True):
        np.testing.assert_allclose(centre, truth, atol=0.8)
    assert (corners_of(image) == -1000).all()  # what is padded is air, not water
    brain = np.asarray(image.dataobj)[tuple(np.round(np.linalg.inv(image.affine) @ [0, 0, 50, 1]).astype(int)[:3])]
    assert brain == 40
    assert [path.name for path in output.parent.iterdir()] == ["ct.nii.gz"]


def test_an_upright_series_is_not_resampled(tmp_path):
    image = nib.load(convert_dicom(write_dicom_series(tmp_path / "in", EVEN), tmp_path / "ct.nii.gz"))
    assert image.shape == (96, 96, 34)
    assert set(np.unique(image.dataobj)) == {-1000, 40, 1500}
    assert image.get_data_dtype() == np.int16
    assert image.header["sform_code"] == image.header["qform_code"] == 1


def test_files_of_any_name_in_folders_below_and_copies_and_other_files(tmp_path):
    folder = write_dicom_series(tmp_path / "in", EVEN[::2])
    write_dicom_series(folder / "below", EVEN[:1], number=2)  # a single slice is no volume
    (folder / "copy").mkdir()
    (folder / "copy" / "again").write_bytes((folder / "1_003").read_bytes())
    (folder / "notes.txt").write_text("no DICOM")
    (folder / "._1_001").write_bytes(b"\0\5\x16\7")
    image = nib.load(convert_dicom(folder, tmp_path / "ct.nii.gz"))
    assert image.shape == (96, 96, 17)


def test_a_scout_in_the_same_folder_is_left_out(tmp_path):
    folder = write_dicom_series(tmp_path / "in", EVEN)
    write_dicom_series(folder, [0], orientation=(0, 1, 0, 0, 0, -1), number=2)
    assert nib.load(convert_dicom(folder, tmp_path / "ct.nii.gz")).shape == (96, 96, 34)


def test_an_oblique_mri_is_right_angled_already(tmp_path):
    angle = np.radians(15)
    way = (0, np.sin(angle), np.cos(angle))
    folder = write_dicom_series(tmp_path / "in", EVEN, tilted(15), way=way, modality="MR")
    image = nib.load(convert_dicom(folder, tmp_path / "t1.nii.gz"))
    assert image.shape == (96, 96, 34)
    for centre, (truth, _) in zip(balls_of(image, 1750), BALLS, strict=True):
        np.testing.assert_allclose(centre, truth, atol=0.8)


@pytest.mark.parametrize(
    ("series", "reason"),
    [
        ([{"heights": EVEN, "orientation": tilted(15), "modality": "MR"}], "lean by 15.0 degrees"),
        ([{"heights": EVEN, "orientation": (np.cos(0.2), 0, np.sin(0.2), 0, 1, 0)}], "sideways by 11.5 degrees"),
        ([{"heights": [*EVEN[:10], *EVEN[20:]]}], "a gap of 44.0 mm"),
        ([{"heights": [*EVEN, EVEN[7]]}], "several slices at one place"),
        ([{"heights": EVEN}, {"heights": EVEN[::2], "number": 2}], "holds 2 volumes; give the folder of one series"),
        ([{"heights": [0]}], "No volume"),
    ],
)
def test_what_cannot_be_corrected_is_refused(tmp_path, series, reason):
    for one in series:
        write_dicom_series(tmp_path / "Doe", **one)
    with pytest.raises(CaseError, match=reason) as caught:
        convert_dicom(tmp_path / "Doe", tmp_path / "out" / "ct.nii.gz")
    assert "Doe" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [None, b"no DICOM"], ids=["empty", "other files"])
def test_a_folder_without_dicom_is_refused(tmp_path, content):
    folder = tmp_path / "in"
    folder.mkdir()
    if content:
        (folder / "a.dcm").write_bytes(content)
    with pytest.raises(CaseError, match="No volume"):
        convert_dicom(folder, tmp_path / "ct.nii.gz")


def test_a_damaged_slice_is_refused(tmp_path):
    folder = write_dicom_series(tmp_path / "in", EVEN)
    whole = (folder / "1_010").read_bytes()
    (folder / "1_010").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CaseError, match="truncated, damaged or compressed in an unknown way; export the series again"):
        convert_dicom(folder, tmp_path / "ct.nii.gz")


def test_no_name_gets_out(tmp_path, capfd):
    folder = write_dicom_series(tmp_path / "Doe", EVEN)
    output = convert_dicom(folder, tmp_path / "ct.nii")
    assert b"Doe" not in output.read_bytes()
    assert b"120001" not in output.read_bytes()
    assert capfd.readouterr() == ("", "")


def test_without_the_program_the_command_to_install_it_is_named(tmp_path, monkeypatch):
    folder = write_dicom_series(tmp_path / "in", EVEN[:2])
    monkeypatch.setitem(sys.modules, "dcm2niix", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CaseError, match=r"pip install -r requirements\.txt"):
        convert_dicom(folder, tmp_path / "ct.nii.gz")


@pytest.mark.skipif(os.name == "nt", reason="a shell script")
def test_a_program_that_hangs_is_stopped(tmp_path, monkeypatch):
    folder = write_dicom_series(tmp_path / "in", EVEN[:2])
    program = tmp_path / "bin" / "dcm2niix"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setitem(sys.modules, "dcm2niix", None)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    with pytest.raises(CaseError, match=r"longer than 0\.2 s"):
        convert_dicom(folder, tmp_path / "ct.nii.gz", timeout_s=0.2)


@pytest.mark.shared_data
def test_the_gantry_tilt_patient(shared_data, tmp_path):
    """Each pixel that was scanned is found at its place; 3 mm beside it, less so."""
    folder = shared_data / "ct_dicom_gantry_tilt"
    image = nib.load(convert_dicom(folder, tmp_path / "ct.nii.gz"))
    data = np.asarray(image.dataobj, dtype=np.float32)
    assert data.min() == -1500  # padding and values as they were
    assert image.shape[2] == 56
    inverse = np.linalg.inv(image.affine)
    for number in (1, 13, 16, 22, 28):
        header = pydicom.dcmread(folder / f"{number:02d}.dcm")
        rows, columns = np.mgrid[100:400:4, 100:400:4]
        row, column = np.array(header.ImageOrientationPatient, dtype=float).reshape(2, 3)
        points = np.array(header.ImagePositionPatient, dtype=float)
        points = points + 0.4882812 * (columns[..., None] * row + rows[..., None] * column)
        scanned = np.clip(header.pixel_array[rows, columns], -100, 200)

        def likeness(offset, points=points, scanned=scanned):
            voxels = nib.affines.apply_affine(inverse, points * (-1, -1, 1) + offset)
            there = ndimage.map_coordinates(data, np.moveaxis(voxels, -1, 0), order=1, mode="nearest")
            return np.corrcoef(np.clip(there, -100, 200).ravel(), scanned.ravel())[0, 1]

        assert likeness((0, 0, 0)) > 0.95
        assert likeness((0, 0, 0)) > max(likeness((0, 3, 0)), likeness((0, -3, 0)))
