"""Sparse scans as a user meets them: what the main job and sparse.json leave of a CT with slices of 6 mm."""

import json

import nibabel as nib
import numpy as np
import pytest

from scripts.dicom.mr_header import series_header
from tests.phantoms import write_head_ct
from tests.test_inference_dicom import head, head_series
from tests.trees import tilted, write_dicom_series

pydicom = pytest.importorskip("pydicom")

SPARSE = ("inference.json", "sparse.json")
THICK, THICK_SHAPE = np.diag([-4.0, 4.0, 6.0]), (48, 56, 31)


def brain_of(image):
    """Voxels, their places in RAS mm, and those well inside the phantom's brain."""
    places = nib.affines.apply_affine(image.affine, np.moveaxis(np.indices(image.shape), 0, -1))
    return image.get_fdata(), places, np.linalg.norm(places / [80, 95, 75], axis=-1) < 0.75


def test_a_dense_volume_lies_beside_that_on_the_scans_own_slices(tmp_path, translate_echo):
    path = write_head_ct(tmp_path / "ct.nii.gz", THICK, THICK_SHAPE)
    assert translate_echo(SPARSE, path, spacing=[3.0, 3.0, 3.0]) is None
    own, dense = (nib.load(tmp_path / "out" / f"ct_t1{ending}.nii.gz") for ending in ("", "_dense"))
    assert own.shape == THICK_SHAPE
    assert dense.shape == (48, 56, 181)
    np.testing.assert_allclose(dense.header.get_zooms(), (4, 4, 1))
    said = bytes(dense.header["descrip"]).decode().rstrip("\0")
    assert said == "sparse CT, gaps of 6 mm: slices between are inferred"
    np.testing.assert_allclose(dense.affine[:3, 3], own.affine[:3, 3])
    for image in (own, dense):
        values, places, inner = brain_of(image)
        bleed = places[inner & (values > 0.65)].mean(axis=0)
        np.testing.assert_allclose(bleed, [-40, 0, 0], atol=1.5)  # left
        assert 900 < (values > 0).sum() * abs(np.linalg.det(image.affine[:3, :3])) / 1000 < 1700  # mL; it has 1520
    inner = brain_of(own)[2]
    assert np.abs(dense.get_fdata()[..., ::6] - own.get_fdata())[inner].mean() < 0.02
    record = json.loads((tmp_path / "out" / "ct_t1.json").read_text())
    assert record["sparse"] == {"gap_mm": 6.0, "spacing_mm": 1.0, "voxels": [48, 56, 181]}


def test_the_main_job_tells_the_network_what_is_missing_and_the_user_that_it_is_inferred(
    tmp_path, translate_echo, caplog
):
    path = write_head_ct(tmp_path / "ct.nii.gz", THICK, THICK_SHAPE)
    shown = {"network_def": {"_target_": "tests.phantoms.MissingNetwork", "slab_size": 3}}
    assert translate_echo(("inference.json",), path, spacing=[3.0, 3.0, 3.0], **shown) is None
    assert "Sparse CT, gaps of 6 mm: slices between are inferred" in caplog.text
    assert not (tmp_path / "out" / "ct_t1_dense.nii.gz").exists()
    values, _, inner = brain_of(nib.load(tmp_path / "out" / "ct_t1.nii.gz"))
    assert values[inner].max() < 0.1  # nothing is missing at the scan's own slices
    assert translate_echo(SPARSE, path, tmp_path / "dense", spacing=[3.0, 3.0, 3.0], **shown) is None
    dense = nib.load(tmp_path / "dense" / "ct_t1_dense.nii.gz")
    values, _, inner = brain_of(dense)
    along = [float(np.median(values[..., z][inner[..., z]])) for z in range(84, 97)]
    np.testing.assert_allclose(along[::6], 0, atol=0.02)
    np.testing.assert_allclose(along[3::6], 0.125, atol=0.03)  # one slice of 3 mm away, of 8


def test_a_dense_scan_is_translated_as_ever(tmp_path, translate_echo):
    path = write_head_ct(tmp_path / "ct.nii.gz", np.diag([4.0, 4.0, 2.5]), (48, 56, 74))
    assert translate_echo(("inference.json",), path) is None
    assert translate_echo(SPARSE, path, tmp_path / "sparse") is None
    assert not list((tmp_path / "sparse").glob("*dense*"))
    first, second = ((tmp_path / folder / "ct_t1.nii.gz").read_bytes() for folder in ("out", "sparse"))
    assert first == second


def test_what_is_done_is_done_again_only_for_another_grid(tmp_path, translate_echo):
    path = write_head_ct(tmp_path / "ct.nii.gz", THICK, THICK_SHAPE)
    written = [0]
    for spacing, again in ((2.0, True), (2.0, False), (3.0, True)):
        assert translate_echo(SPARSE, path, output_spacing=spacing) is None
        written.append((tmp_path / "out" / "ct_t1.json").stat().st_mtime_ns)
        assert (written[-1] != written[-2]) == again
    (tmp_path / "out" / "ct_t1_dense.nii.gz").unlink()
    assert translate_echo(SPARSE, path, output_spacing=3.0) is None
    assert (tmp_path / "out" / "ct_t1_dense.nii.gz").is_file()


@pytest.mark.parametrize("orientation", [tilted(0), tilted(15)], ids=["upright", "tilted gantry"])
def test_the_dense_series_lies_between_the_cts_slices_and_says_what_it_is(tmp_path, translate_echo, orientation):
    head_series(tmp_path / "in", orientation=orientation)
    configs = ("inference.json", "dicom.json", "sparse.json")
    assert translate_echo(configs, tmp_path / "in", output_spacing=2.0) is None
    (folder,) = (tmp_path / "out").glob("*_dicom")
    files = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
    sources = [pydicom.dcmread(path) for path in (tmp_path / "in").iterdir()]
    source = sources[0]
    frames = {str(one.FrameOfReferenceUID) for one in (*files, *sources)}
    assert len(frames) == 1
    normal = np.cross(source.ImageOrientationPatient[:3], source.ImageOrientationPatient[3:])
    heights = np.array([np.dot(one.ImagePositionPatient, normal) for one in files])
    np.testing.assert_allclose(np.diff(heights), 2.0, atol=1e-3)
    given = sorted(np.dot(one.ImagePositionPatient, normal) for one in sources)
    np.testing.assert_allclose([heights[0], heights[-1]], [given[0], given[-1]], atol=2.0)
    assert {float(one.SliceThickness) for one in files} == {2.0}
    assert {one.SourceImageSequence[0].SpatialLocationsPreserved for one in files} == {"NO"}
    assert "sparse CT" in files[0].SeriesDescription
    gap = "6" if orientation == tilted(0) else "5.8"  # across the slices
    assert f"gaps of {gap} mm: slices between are inferred" in files[0].ImageComments
    bleed = np.concatenate([_bleed_of(one, normal) for one in files])
    np.testing.assert_allclose(bleed.mean(axis=0), [40, 0, 0], atol=3)  # LPS: the patient's left


def _bleed_of(one, normal):
    """LPS mm of the bright pixels well inside the brain."""
    rows, columns = np.nonzero(one.pixel_array > 0.65 * 4095)
    row, column = (np.array(part, float) for part in np.split(np.array(one.ImageOrientationPatient, float), 2))
    down, right = map(float, one.PixelSpacing)
    places = np.array(one.ImagePositionPatient, float) + rows[:, None] * down * column + columns[:, None] * right * row
    return places[np.linalg.norm(places / [80, 95, 75], axis=-1) < 0.75]


def test_uneven_gaps_of_a_series_are_known_where_its_volume_is_even(tmp_path, translate_echo):
    """Slices of 3 mm below and 9 mm above, as one even volume of 1.5 mm: what is missing is told by the positions."""
    heights = [*np.arange(-90, 0, 3.0), *np.arange(0, 91, 9.0)]
    write_dicom_series(tmp_path / "in", heights, (1, 0, 0, 0, 1, 0), voxels=48, spacing=5.0, hu_of=head)
    shown = {"network_def": {"_target_": "tests.phantoms.MissingNetwork", "slab_size": 3}}
    assert translate_echo(SPARSE, tmp_path / "in", spacing=[3.0, 3.0, 3.0], **shown) is None
    (record,) = (tmp_path / "out").glob("*.json")
    assert json.loads(record.read_text())["sparse"]["gap_mm"] == pytest.approx(9.0)
    (dense,) = (tmp_path / "out").glob("*_dense.nii.gz")
    values, places, inner = brain_of(nib.load(dense))
    lower, upper = (inner & (np.abs(places[..., 2] - z) < 0.6) for z in (-30.0, 22.5))
    assert values[lower].max() < 0.03
    np.testing.assert_allclose(np.median(values[upper]), 1 / 8, atol=0.04)  # the grid is 3 mm from 18 and 27 there


@pytest.mark.parametrize(("found", "said"), [(3, "; another person's slice was used as a reference"), (0, "")])
def test_a_series_says_that_another_persons_slice_was_used(found, said):
    record = {"bundle": "b", "bundle_version": "1", "weights": "w", "weights_sha256": "0", "target_contrast": "T1"}
    source = pydicom.Dataset()
    source.StudyInstanceUID = source.SeriesInstanceUID = "1.2"
    header = series_header(source, "somebody", {**record, "references": {"missing": 9, "found": found}})
    assert header.ImageComments == f"Synthetic T1, not for diagnostic use{said}"


def test_a_run_without_the_overlay_does_not_take_a_dense_result_for_its_own(tmp_path, translate_echo):
    path = write_head_ct(tmp_path / "ct.nii.gz", THICK, THICK_SHAPE)
    assert translate_echo(SPARSE, path) is None
    assert (tmp_path / "out" / "ct_t1_dense.nii.gz").is_file()
    assert translate_echo(("inference.json",), path) is None
    assert not (tmp_path / "out" / "ct_t1_dense.nii.gz").exists()


def test_a_dense_volume_claims_no_more_of_its_place_than_the_scan(tmp_path, translate_echo):
    image = nib.load(write_head_ct(tmp_path / "ct.nii.gz", THICK, THICK_SHAPE))
    for code, expected in ((4, 4), (0, 2)):
        image.set_sform(image.affine, code=code)
        image.set_qform(image.affine, code=0)
        path = tmp_path / f"c{code}.nii.gz"
        nib.save(image, path)
        assert translate_echo(SPARSE, path, tmp_path / f"out{code}") is None
        dense = nib.load(tmp_path / f"out{code}" / f"c{code}_t1_dense.nii.gz")
        assert int(dense.header["sform_code"]) == expected
