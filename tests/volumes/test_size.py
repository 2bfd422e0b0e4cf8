"""A volume that memory would not hold is refused by its header, before a voxel is read."""

import nibabel as nib
import numpy as np
import pytest

from scripts.errors import CaseError
from scripts.volumes.load import LoadVolume
from scripts.volumes.size import check_size
from tests.trees import write_dicom_series


@pytest.mark.parametrize("shape", [(1024, 1024, 600), (2048, 2048, 2048), (32767, 32767, 32767)])
@pytest.mark.parametrize("name", ["ct.nii", "ct.nrrd"])
def test_refused_by_the_header_alone(tmp_path, shape, name):
    if name.endswith(".nii"):
        header = nib.Nifti1Header()
        header.set_data_shape(shape)
        header.set_data_dtype(np.int16)
        header.set_sform(np.eye(4), 1)
        (tmp_path / name).write_bytes(header.binaryblock + bytes(400))
    else:
        sizes = " ".join(map(str, shape))
        text = f"NRRD0004\ntype: short\ndimension: 3\nsizes: {sizes}\nencoding: raw\nendian: little\n\n"
        (tmp_path / name).write_text(text)
    with pytest.raises(CaseError, match=rf"^{name} has {' x '.join(map(str, shape))} voxels, which would take about"):
        LoadVolume()(tmp_path / name)


def test_an_ordinary_head_is_no_matter():
    check_size((512, 512, 700), "ct.nii")


def test_less_is_taken_where_less_is_free(monkeypatch):
    monkeypatch.setattr("scripts.volumes.size.available_memory", lambda device: 2 * 2**30)
    check_size((512, 512, 200), "ct.nii")
    with pytest.raises(CaseError, match=r"where 1\.5 GB can be had"):
        check_size((512, 512, 400), "ct.nii")


@pytest.mark.parametrize("rows", [64, 8192])
def test_a_dicom_series_by_its_headers(tmp_path, rows):
    pydicom = pytest.importorskip("pydicom")
    write_dicom_series(tmp_path, [4.0 * i for i in range(6)], voxels=64)
    paths = sorted(map(str, tmp_path.iterdir()))
    if rows == 64:
        assert LoadVolume()(paths).shape == (64, 64, 6)
        return
    for path in paths:
        changed = pydicom.dcmread(path)
        changed.Rows = changed.Columns = rows
        changed.save_as(path)
    with pytest.raises(CaseError, match=rf"^The DICOM series has {rows} x {rows} x 6 voxels, which would"):
        LoadVolume()(paths)
