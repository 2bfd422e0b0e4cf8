"""Reading a volume outside MONAI's pipelines, what it is called, and the percentile of its brain."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scripts.errors import CaseError
from scripts.transforms.hounsfield import WindowToHUd
from scripts.volumes.find import case_name, stem_of
from scripts.volumes.load import read_volume
from scripts.volumes.scaling import percentile_of_brain, scaled_by_percentile


def test_reads_any_orientation_as_ras(tmp_path):
    volume = np.random.default_rng(0).random((5, 6, 7)).astype(np.float32)
    turned = nib.Nifti1Image(
        volume[::-1, ::-1].transpose(2, 0, 1).copy(),
        nib.affines.from_matvec(np.array([[0, -2.0, 0], [0, 0, -3.0], [4.0, 0, 0]]), [8, 15, 0]),
    )
    nib.save(turned, tmp_path / "a.nii.gz")
    image = read_volume(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(image.dataobj, volume)
    np.testing.assert_allclose(image.affine, np.diag([2.0, 3.0, 4.0, 1.0]), atol=1e-6)


def test_steps_are_taken_and_several_volumes_refused(tmp_path):
    volume = np.random.default_rng(0).random((5, 6, 7)).astype(np.float32)
    nib.save(nib.Nifti1Image(volume, np.eye(4)), tmp_path / "a.nii")
    hu = read_volume(tmp_path / "a.nii", WindowToHUd("image", (0, 80))).get_fdata()
    np.testing.assert_allclose(hu, 80 * volume, rtol=1e-6)
    nib.save(nib.Nifti1Image(np.stack([volume, volume], axis=-1), np.eye(4)), tmp_path / "b.nii")
    with pytest.raises(CaseError, match=r"b\.nii is not one 3D volume"):
        read_volume(tmp_path / "b.nii")
    with pytest.raises(CaseError, match=r"c\.nii is not there"):
        read_volume(tmp_path / "c.nii")


def test_no_folder_stands_in_what_a_reader_says(tmp_path):
    """The sentence goes into a JSON and to a server's clients; of a pair the other file is what is cut off."""
    folder = tmp_path / "Doe_Jane"
    folder.mkdir()
    nib.save(nib.Nifti1Pair(np.ones((4, 5, 6), np.int16), np.eye(4)), folder / "a.hdr")
    (folder / "a.img").write_bytes(bytes(9))
    lines = "NRRD0004\ntype: short\ndimension: 3\nsizes: 4 5 6\nencoding: raw\nendian: little\ndata file: gone\n"
    (folder / "b.nhdr").write_text(lines)
    for name in ("a.hdr", "b.nhdr"):
        with pytest.raises(CaseError, match=f"^{name} cannot be read") as refused:
            read_volume(folder / name)
        assert "Doe" not in str(refused.value)
        assert "ITK" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "stem"), [("a.b.nii.gz", "a.b"), ("A.MGZ", "A"), ("a.txt", "a.txt"), ("x/y.nhdr", "y")]
)
def test_stem(name, stem):
    assert stem_of(name) == stem


def test_a_case_is_named_by_all_its_path():
    assert case_name(Path("sub-1/anat/t1.nii.gz")) == "sub-1_anat_t1"


def test_percentile_is_a_voxel_of_the_brain():
    values = np.arange(1, 1001, dtype=np.float32).reshape(10, 10, 10)
    mask = np.ones(values.shape, dtype=bool)
    assert percentile_of_brain(values, mask) == 999
    mask[5:] = False
    scaled = scaled_by_percentile(values, mask, 50)
    np.testing.assert_allclose(scaled[mask], np.minimum(values[mask] / 250, 1), rtol=1e-6)
    assert not scaled[~mask].any()
    with pytest.raises(CaseError, match=r"brain mask of a\.nii is empty"):
        percentile_of_brain(values, np.zeros_like(mask), name="a.nii")
    with pytest.raises(CaseError, match="not positive"):
        percentile_of_brain(-values, mask)
