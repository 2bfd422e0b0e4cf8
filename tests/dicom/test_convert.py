import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

from scripts.dicom.convert import convert_dicom
from scripts.dicom.series import find_series
from scripts.errors import CaseError
from scripts.volumes.load import LoadVolume, LoadVolumed, file_name
from tests.trees import BALLS, tilted, write_dicom_series

pydicom = pytest.importorskip("pydicom")

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


RAMP_HEIGHTS = {
    "even": EVEN,
    "two parts": [*[3.0 * i - 30 for i in range(15)], *[13.1 + 5.0 * i for i in range(16)]],
    "ever wider": (np.cumsum(np.linspace(2, 5, 34)) - 35).tolist(),
    "jitter": [4.0 * i - 20 + 0.15 * (i % 3) for i in range(34)],
    "slow drift": (np.cumsum(np.linspace(3.9, 4.1, 34)) - 25).tolist(),
    "overlapping": (np.cumsum(np.tile([2.0, 1.0, 2.6], 15)) - 30).tolist(),
}


@pytest.mark.parametrize("turn", ["upright", "tilt", "tilt back", "small tilt", "sideways", "turned in plane"])
@pytest.mark.parametrize("heights", RAMP_HEIGHTS)
def test_a_ramp_keeps_its_place(tmp_path, heights, turn):
    """HU that tell the place: 100 + x + y / 2 + z in mm."""
    orientation = {
        "upright": tilted(0),
        "tilt": tilted(17),
        "tilt back": tilted(-24),
        "small tilt": tilted(0.7),
        "sideways": (np.cos(0.2), 0, np.sin(0.2), 0, 1, 0),
        "turned in plane": (np.cos(0.3), np.sin(0.3), 0, -np.sin(0.3), np.cos(0.3), 0),
    }[turn]

    def ramp(points):
        return np.round((100 + points @ [1, 0.5, 1]) * 8).astype(np.int16)

    def eighths(slice_, _):
        slice_.RescaleSlope, slice_.RescaleIntercept = 0.125, -128

    folder = write_dicom_series(
        tmp_path / "in", RAMP_HEIGHTS[heights], orientation, voxels=48, spacing=5, hu_of=ramp, change=eighths
    )
    image = nib.load(convert_dicom(folder, tmp_path / "ct.nii.gz"))
    places = nib.affines.apply_affine(image.affine, np.moveaxis(np.indices(image.shape), 0, -1)) * (-1, -1, 1)
    inner = (np.abs(places[..., :2]) < 60).all(axis=-1) & (np.abs(places[..., 2] - 35) < 25)
    assert inner.sum() > 4000
    np.testing.assert_allclose(image.get_fdata()[inner], 100 + places[inner] @ [1, 0.5, 1], atol=0.26)


@pytest.mark.parametrize("degrees", [0, 14])
def test_rows_and_columns_may_differ(tmp_path, degrees):
    """40 rows of 3 mm, 60 columns of 2 mm; the values are a ramp again."""

    def oblong(slice_, _):
        slice_.Rows, slice_.Columns, slice_.PixelSpacing = 40, 60, [3, 2]
        slice_.RescaleSlope, slice_.RescaleIntercept = 0.125, 0
        row, column = np.array(slice_.ImageOrientationPatient, dtype=float).reshape(2, 3)
        rows, columns = np.mgrid[:40, :60][..., None]
        points = np.array(slice_.ImagePositionPatient, dtype=float) + 2 * columns * row + 3 * rows * column
        slice_.PixelData = np.round((500 + points @ [1, 0.5, 1]) * 8).astype("<i2").tobytes()

    folder = write_dicom_series(tmp_path / "in", EVEN, tilted(degrees), change=oblong)
    image = nib.load(convert_dicom(folder, tmp_path / "ct.nii.gz"))
    assert image.shape[0] == 60
    np.testing.assert_allclose(nib.affines.voxel_sizes(image.affine)[:2], [2, 3])
    places = nib.affines.apply_affine(image.affine, np.moveaxis(np.indices(image.shape), 0, -1)) * (-1, -1, 1)
    middle = np.s_[:, 14:26]
    np.testing.assert_allclose(image.get_fdata()[middle], 500 + places[middle] @ [1, 0.5, 1], atol=0.26)


def test_slices_that_lie_even_within_a_hair_are_not_resampled(tmp_path):
    """0.02 mm beside its place is rounding of a header; the spacing is that of the whole stack."""
    heights = [4.0 * i - 20 + 0.02 * (i % 2) for i in range(34)]
    image = nib.load(convert_dicom(write_dicom_series(tmp_path / "in", heights), tmp_path / "ct.nii.gz"))
    assert set(np.unique(image.dataobj)) == {-1000, 40, 1500}
    assert image.affine[2, 2] == pytest.approx((heights[-1] - heights[0]) / 33)


def test_an_oblique_mri_is_right_angled_already(tmp_path):
    angle = np.radians(15)
    way = (0, np.sin(angle), np.cos(angle))
    folder = write_dicom_series(tmp_path / "in", EVEN, tilted(15), way=way, modality="MR")
    image = nib.load(convert_dicom(folder, tmp_path / "t1.nii.gz"))
    assert image.shape == (96, 96, 34)
    for centre, (truth, _) in zip(balls_of(image, 1750), BALLS, strict=True):
        np.testing.assert_allclose(centre, truth, atol=0.8)


def zigzag(slice_, index):
    x, y, z = slice_.ImagePositionPatient
    slice_.ImagePositionPatient = [x + 5 * (index % 2), y, z]


def turned(slice_, index):
    if index == 9:
        slice_.ImageOrientationPatient = [np.cos(0.005), np.sin(0.005), 0, -np.sin(0.005), np.cos(0.005), 0]


def darker_later(slice_, index):
    if index > len(EVEN):
        slice_.RescaleIntercept -= 5


@pytest.mark.parametrize(
    ("series", "reason"),
    [
        ([{"heights": EVEN, "orientation": tilted(50)}], "lean by 50.0 degrees"),
        ([{"heights": [*EVEN[:10], *EVEN[20:]]}], "a gap of 44.0 mm"),
        ([{"heights": [*EVEN[:10], *EVEN[11:]]}], "slices 10 and 11 .* gap of 8.0 mm, .* are 4.0 mm"),
        ([{"heights": [h for i, h in enumerate(EVEN) if i not in (10, 12)]}], "slices 10 and 11 .* gap of 8.0 mm"),
        ([{"heights": [EVEN[0], *EVEN[3:]]}], "slices 1 and 2 .* is a gap of 12.0 mm"),
        ([{"heights": [*EVEN, *EVEN], "change": darker_later}], "several slices lie at one place"),
        ([{"heights": [*EVEN, *np.add(EVEN, 0.02)], "change": darker_later}], "several slices lie at one place"),
        ([{"heights": EVEN, "change": zigzag}], "do not lie on one line"),
        ([{"heights": EVEN, "change": turned}], "turned against each other by 0.4 degrees"),
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


def test_a_part_that_was_scanned_thicker_is_no_hole(tmp_path):
    heights = [*EVEN[:8], *EVEN[9:25:2], *EVEN[25:]]
    image = nib.load(convert_dicom(write_dicom_series(tmp_path / "in", heights), tmp_path / "ct.nii.gz"))
    assert image.header.get_zooms()[2] == pytest.approx(2)


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


def test_a_loaded_series_is_a_volume_like_any_other(tmp_path):
    folder = write_dicom_series(tmp_path / "Doe", UNEVEN)
    files = [str(path) for path in find_series(folder)[0].files]
    for given in (files, str(folder)):
        volume = LoadVolumed("image")({"image": given})["image"]
        assert volume.dtype == torch.float32
        assert volume.meta["dicom_files"] == files
        assert volume.meta["filename_or_obj"] == files[0]
        assert file_name(volume) == f"the DICOM series {volume.meta['series_uid']}"
        assert volume.meta["corrected"] == "gaps of 4.0 to 5.0 mm between the slices"
        np.testing.assert_array_equal(volume.affine, volume.meta["original_affine"])
    volume, header = LoadVolume(image_only=False)(files)
    assert header["series_uid"] == volume.meta["series_uid"]


def test_a_loaded_series_that_is_no_longer_whole_is_refused(tmp_path):
    folder = write_dicom_series(tmp_path / "Doe", EVEN)
    files = [str(path) for path in find_series(folder)[0].files]
    (folder / "1_003").unlink()
    for given in (files, [*files, files[4]]):
        with pytest.raises(CaseError, match="some are missing, damaged, twice there") as caught:
            LoadVolumed("image")({"image": given})
        assert "Doe" not in str(caught.value)
    with pytest.raises(CaseError, match="no image of that name"):
        LoadVolumed("image")({"image": ""})


def test_no_name_gets_out(tmp_path, capfd):
    folder = write_dicom_series(tmp_path / "Doe", EVEN)
    output = convert_dicom(folder, tmp_path / "ct.nii")
    assert b"Doe" not in output.read_bytes()
    assert b"120001" not in output.read_bytes()
    assert capfd.readouterr() == ("", "")


def test_without_pydicom_the_command_to_install_it_is_named(tmp_path, monkeypatch):
    folder = write_dicom_series(tmp_path / "in", EVEN[:2])
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(CaseError, match=r"pip install -r requirements\.txt"):
        convert_dicom(folder, tmp_path / "ct.nii.gz")


@pytest.mark.shared_data
def test_the_gantry_tilt_patient(shared_data, tmp_path):
    """Each pixel that was scanned is found at its place; 3 mm beside it, less so."""
    folder = shared_data / "ct_dicom_gantry_tilt"
    image = nib.load(convert_dicom(folder, tmp_path / "ct.nii.gz"))
    data = np.asarray(image.dataobj, dtype=np.float32)
    assert data.min() == -1500  # padding and values as they were
    assert image.shape[2] == 73
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


@pytest.mark.shared_data
def test_the_gantry_tilt_patient_as_dcm2niix_has_it(shared_data, tmp_path):
    """An independent program puts the same values at the same places."""
    program = pytest.importorskip("dcm2niix").bin
    folder = shared_data / "ct_dicom_gantry_tilt"
    ours = nib.load(convert_dicom(folder, tmp_path / "ct.nii.gz"))
    (tmp_path / "other").mkdir()
    command = [str(program), "-g", "i", "-b", "n", "-z", "n", "-f", "ct", "-o", str(tmp_path / "other"), str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    other = nib.load(next((tmp_path / "other").glob("*_Tilt_Eq*.nii")))
    to_other = np.linalg.inv(other.affine) @ ours.affine
    there = ndimage.affine_transform(
        np.clip(np.squeeze(other.get_fdata()), -100, 200), to_other, output_shape=ours.shape, order=1, cval=-100
    )
    inner = np.s_[60:-60:3, 100:-100:3, 6:-6]
    assert np.corrcoef(np.clip(ours.get_fdata(), -100, 200)[inner].ravel(), there[inner].ravel())[0, 1] > 0.97
