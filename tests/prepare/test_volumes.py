"""Volumes of a pair: loading with checks, and one interpolation onto one grid."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from scripts.errors import CaseError
from scripts.prepare import volumes
from scripts.prepare.volumes import Volume, load_volume, smoothed_for
from scripts.volumes.grids import Grid, field_of_view, grid_about, on_grid
from tests.phantoms import centred_affine, write_head_ct

OBLIQUE = nib.affines.from_matvec(Rotation.from_euler("xyz", [8, -5, 11], degrees=True).as_matrix() * 1.5, [-9, 4, 20])


def ramp(points):
    """A linear function of the place: linear interpolation gives it exactly."""
    return points @ np.array([0.3, -0.7, 0.2]) + 5


def places(grid):
    voxels = np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"), axis=-1)
    return nib.affines.apply_affine(grid.affine, voxels)


def test_interpolation_follows_affine_and_rigid_transform():
    own = Grid(OBLIQUE, (30, 34, 28))
    image = nib.Nifti1Image(ramp(places(own)).astype(np.float32), OBLIQUE)
    moved = nib.affines.from_matvec(Rotation.from_euler("z", 20, degrees=True).as_matrix(), [3, -2, 1])
    centre = np.linalg.inv(moved) @ OBLIQUE @ [15, 17, 14, 1]
    grid = Grid(nib.affines.from_matvec(np.eye(3), centre[:3] - 6), (12, 12, 12))
    expected = ramp(nib.affines.apply_affine(moved, places(grid)))
    np.testing.assert_allclose(on_grid(image, grid, moved), expected, atol=1e-4)
    assert field_of_view(image, grid, moved).all()


def test_field_of_view_ends_where_the_voxels_end():
    image = nib.Nifti1Image(np.ones((4, 5, 6), np.float32), np.diag([2.0, 2.0, 2.0, 1.0]))
    grid = Grid(nib.affines.from_matvec(np.eye(3), [-3, -3, -3]), (20, 20, 20))
    expected = ((places(grid) >= -1) & (places(grid) <= [7, 9, 11])).all(axis=-1)
    np.testing.assert_array_equal(field_of_view(image, grid), expected)


def test_a_grid_of_the_references_own_spacing_is_a_part_of_it():
    affine = nib.affines.from_matvec(OBLIQUE[:3, :3] / 1.5, OBLIQUE[:3, 3])
    data = np.random.default_rng(0).random((20, 24, 22)).astype(np.float32)
    mask = np.zeros(data.shape, np.uint8)
    mask[5:12, 6:9, 10:20] = 1
    grid = grid_about(nib.Nifti1Image(mask, affine), affine, spacing=1.0, margin=2.0)
    assert grid.shape == (11, 7, 14)
    np.testing.assert_allclose(on_grid(nib.Nifti1Image(data, affine), grid), data[3:14, 4:11, 8:22], atol=1e-5)


def test_a_grid_holds_the_mask_and_its_margin_in_the_references_space():
    mask = np.zeros((20, 24, 22), np.uint8)
    mask[5:12, 6:9, 10:20] = 1
    to_reference = nib.affines.from_matvec(Rotation.from_euler("y", 30, degrees=True).as_matrix(), [40, 0, -10])
    reference = np.diag([0.8, 0.8, 3.0, 1.0])
    grid = grid_about(nib.Nifti1Image(mask, OBLIQUE), reference, 2.0, 5.0, to_reference)
    np.testing.assert_allclose(nib.affines.voxel_sizes(grid.affine), 2.0)
    points = nib.affines.apply_affine(to_reference @ OBLIQUE, np.argwhere(mask))
    voxels = nib.affines.apply_affine(np.linalg.inv(grid.affine), points)
    assert (voxels.min(axis=0) >= 2.5 - 1e-2).all()
    assert (voxels.min(axis=0) <= 3.5 + 1e-2).all()
    assert (np.array(grid.shape) - 1 - voxels.max(axis=0) >= 2.5 - 1e-2).all()


def test_smoothing_averages_noise_before_a_coarser_grid_and_nothing_else():
    noise = np.random.default_rng(0).normal(100, 10, (40, 40, 10)).astype(np.float32)
    volume = Volume(nib.Nifti1Image(noise, np.diag([0.5, 1.0, 4.0, 1.0])), "T1", Path("a.nii.gz"))
    smooth = smoothed_for(volume, 1.0).data
    assert smooth.std() < 0.85 * noise.std()
    assert smooth.mean() == pytest.approx(noise.mean(), abs=0.1)
    np.testing.assert_array_equal(smoothed_for(volume, 0.5).data, noise)


def test_loads_in_ras_whatever_the_axes(tmp_path):
    axes = np.array([[0, 6.0, 0], [0, 0, -6.0], [-6.0, 0, 0]])
    file = write_head_ct(tmp_path / "head.nii.gz", axes, (32, 34, 40))
    volume = load_volume(file, "CT", tmp_path)
    assert nib.aff2axcodes(volume.image.affine) == ("R", "A", "S")
    assert (volume.path, volume.is_ct, volume.data.dtype) == (file, True, np.float32)
    bleed = nib.affines.apply_affine(volume.image.affine, np.argwhere(volume.data == 70)).mean(axis=0)
    np.testing.assert_allclose(bleed, [-40, 0, 0], atol=3)


def test_a_folder_is_converted_first_and_named_in_what_is_wrong(tmp_path, monkeypatch):
    def convert(folder, output):
        return write_head_ct(output)

    monkeypatch.setattr(volumes, "convert_dicom", convert)
    (tmp_path / "series").mkdir()
    (tmp_path / "working").mkdir()
    volume = load_volume(tmp_path / "series", "CT", tmp_path / "working")
    assert volume.path == tmp_path / "series"
    monkeypatch.setattr(volumes, "convert_dicom", lambda folder, output: _constant(output))
    with pytest.raises(CaseError, match=r"^series is empty"):
        load_volume(tmp_path / "series", "T1", tmp_path / "working")


def _constant(path):
    nib.save(nib.Nifti1Image(np.ones((20, 20, 20), np.float32), centred_affine(np.eye(3) * 4, (20, 20, 20))), path)
    return path


def test_a_ct_in_grey_levels_is_refused_but_an_mri_is_not(tmp_path):
    data = np.random.default_rng(0).integers(0, 256, (20, 20, 20)).astype(np.uint8)
    data[0, 0, :2] = 0, 255
    nib.save(nib.Nifti1Image(data, np.diag([4.0, 4.0, 4.0, 1.0])), tmp_path / "a.nii.gz")
    assert load_volume(tmp_path / "a.nii.gz", "T2", tmp_path).contrast == "T2"
    with pytest.raises(CaseError, match=r"a\.nii\.gz .*grey levels"):
        load_volume(tmp_path / "a.nii.gz", "CT", tmp_path)
