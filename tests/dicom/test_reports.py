"""What people report of the DICOM files of their heads: the main job makes of them what it makes of clean ones."""

import numpy as np
import pytest

from scripts.data.datalists import inference_datalist
from scripts.volumes.load import LoadVolume
from tests.dicom.test_pixels import with_commas, written
from tests.test_inference_dicom import HEIGHTS, head
from tests.trees import write_dicom_series

pydicom = pytest.importorskip("pydicom")

STUDY, SERIES = "1.2.826.0.1.3680043.8.498.77", "1.2.826.0.1.3680043.8.498.77.1"
NAMES = [("", "Pl\xe4nted^Petra"), ("ISO_IR 100", "Pl\xe4nted^Petra"), ("ISO_IR 192", "Pl\xc3\xa4nted^Petra")]


def head_series(folder, heights=HEIGHTS, number=1, trouble=None, **options):
    def change(slice_, index):
        slice_.SeriesInstanceUID, slice_.SeriesNumber, slice_.FrameOfReferenceUID = SERIES, 1, f"{SERIES}.9"
        if trouble is not None:
            trouble(slice_, index)

    shape = {"voxels": 48, "spacing": 5.0, "hu_of": head, "study": STUDY}
    return write_dicom_series(folder, heights, number=number, change=change, **shape, **options)


def troubled(slice_, index):
    """A name in three character sets, decimals with commas, every second slice reconstructed later, overlapping."""
    with_commas(slice_, index)
    encoding, name = NAMES[index % 3]
    written(slice_, "SpecificCharacterSet", encoding, "CS")
    written(slice_, "PatientName", name, "PN")
    written(slice_, "SeriesNumber", "1.0", "IS")
    written(slice_, "AcquisitionDate", "31.01.2020", "DA")
    slice_.AcquisitionNumber, slice_.ContentTime, slice_.SliceThickness = 1 + index % 2, f"12000{index % 2}", 12
    slice_.InstanceNumber, slice_.SpacingBetweenSlices = index - 1, -6


def no_slice(slice_, index):
    slice_.ImageType, slice_.InstanceNumber = ["ORIGINAL", "PRIMARY", "LOCALIZER"], 100 + index
    slice_.PatientName = ""


def test_the_same_image_as_of_the_clean_files(tmp_path, translate_echo, caplog):
    clean = LoadVolume()(head_series(tmp_path / "clean"))
    head_series(tmp_path / "in", trouble=troubled)
    head_series(tmp_path / "in", [-120.0, -3.0, 120.0], 2, no_slice)
    (item,) = inference_datalist(tmp_path / "in")
    volume = LoadVolume()(item["image"])
    np.testing.assert_allclose(volume.affine, clean.affine, atol=1e-4)
    np.testing.assert_array_equal(volume.numpy(), clean.numpy())
    assert translate_echo(("inference.json", "dicom.json"), tmp_path / "in") is None
    assert not (tmp_path / "out" / "failures.json").exists()
    slices = [pydicom.dcmread(path) for path in sorted((tmp_path / "out").glob("*_t1_dicom/*.dcm"))]
    assert [float(one.ImagePositionPatient[2]) for one in slices] == HEIGHTS
    assert {(one.StudyInstanceUID, one.PatientID, tuple(map(float, one.PixelSpacing))) for one in slices} == {
        (STUDY, "PX4711", (5.0, 5.0))
    }
    assert len({str(one.PatientName) for one in slices}) == 1
    (record,) = (tmp_path / "out").glob("*_t1.json")
    assert "Petra" not in caplog.text + record.read_text()
