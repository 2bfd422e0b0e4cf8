"""The DICOM series that is written, read back by pydicom with arithmetic of its own and by ITK."""

import json
import re
import shutil
import subprocess
import warnings

import itk
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd

from scripts.dicom.output import CheckDicomSourced, DicomSeriesWriter
from scripts.errors import CaseError
from scripts.outputs import saver as saver_module
from scripts.outputs.picture import three_planes
from scripts.outputs.saver import SaveSyntheticd
from scripts.volumes.load import LoadVolumed
from tests.phantoms import head_ct
from tests.trees import tilted, write_dicom_series

pydicom = pytest.importorskip("pydicom")

RECORD = {
    "bundle": "brain_ct_to_mri",
    "bundle_version": "9.8.7",
    "weights": "model.pt",
    "weights_sha256": "0123456789abcdef" * 4,
    "source_contrast": "CT",
    "target_contrast": "T1",
    "num_inference_steps": 5,
}
HALF_A_STEP = 0.5 / 4095 + 1e-6
EVEN = [4.0 * i - 20 for i in range(20)]
UNEVEN = [4.0 * i - 20 for i in range(12)] + [28 + 5.0 * i for i in range(8)]
TURN = nib.eulerangles.euler2mat(0.2, -0.15, 0.3)
OBLIQUE = {"orientation": tuple(TURN[:, :2].T.ravel()), "way": tuple(TURN[:, 2])}
UPRIGHT = {
    "axial": {"heights": EVEN},
    "from the top": {"heights": EVEN[::-1]},
    "oblique": {"heights": EVEN, **OBLIQUE},
    "feet first": {"heights": EVEN, "orientation": (-1, 0, 0, 0, 1, 0)},
    "sagittal": {"heights": EVEN, "orientation": (0, 1, 0, 0, 0, -1), "way": (1, 0, 0)},
    "not square": {"heights": EVEN, "not_square": True},
    "hardly leaning": {"heights": EVEN, "orientation": tilted(0.05)},
}
CORRECTED = {
    "tilted": {"heights": EVEN, "orientation": tilted(15)},
    "slightly leaning": {"heights": EVEN, "orientation": tilted(0.4)},
    "nearly even": {"heights": [1.5 * i + 0.15 * (i % 3) for i in range(30)]},
    "tilted back, from the top": {"heights": EVEN[::-1], "orientation": tilted(-8)},
    "uneven": {"heights": UNEVEN},
    "tilted, uneven": {"heights": UNEVEN, "orientation": tilted(10)},
    "tilted, not square": {"heights": EVEN, "orientation": tilted(15), "not_square": True},
}


def write_source(folder, not_square=False, change=None, **series):
    """A CT of 48 x 48 pixels of 5 mm; `not_square` leaves 40 rows and every other column, which is 24 of 10 mm."""
    write_dicom_series(folder, **{"heights": EVEN, "voxels": 48, "spacing": 5.0, **series})
    for path in sorted(folder.iterdir()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = pydicom.dcmread(path)
            for place in ("ImagePositionPatient", "ImageOrientationPatient"):  # 16 characters at most
                setattr(header, place, [round(float(value), 9) for value in header[place].value])
            if not_square:
                header.set_pixel_data(np.ascontiguousarray(header.pixel_array[:40, ::2]), "MONOCHROME2", 16)
                header.PixelSpacing = [5.0, 10.0]
            if change is not None:
                change(header)
            header.save_as(path, enforce_file_format=True)
    return folder


def load(folder):
    """The volume as the main job loads it."""
    paths = [path for path in folder.iterdir() if pydicom.misc.is_dicom(path)]
    headers = {path: pydicom.dcmread(path, stop_before_pixels=True) for path in paths}
    first = next(iter(headers.values()))
    normal = np.cross(*np.array(first.ImageOrientationPatient, dtype=float).reshape(2, 3))
    files = sorted(headers, key=lambda path: np.dot(headers[path].ImagePositionPatient, normal))
    transform = Compose([LoadVolumed("image"), EnsureChannelFirstd("image")])
    return transform({"image": [str(path) for path in files]})["image"]


def ramp(points):
    """[0.05, 0.95] within 300 mm of the origin; linear in RAS mm, so that linear interpolation is exact."""
    return 0.5 + np.asarray(points) @ [0.0011, -0.0007, 0.0009] * 0.5


def with_ramp(source):
    voxels = np.moveaxis(np.indices(source.shape[1:]), 0, -1)
    values = ramp(nib.affines.apply_affine(source.affine.numpy(), voxels))
    return MetaTensor(torch.as_tensor(values[None], dtype=torch.float32), meta=source.meta)


def with_noise(source, seed=0):
    values = torch.rand(source.shape, generator=torch.Generator().manual_seed(seed))
    return MetaTensor(values, meta=source.meta)


def save(source, synthetic, folder, record=RECORD, **options):
    """The synthetic volume beside its source, by the saver; returns the files of the series, in order."""
    saver = SaveSyntheticd(output_dir=folder, record=record, dicom=DicomSeriesWriter("The developers"), **options)
    saver({"pred": synthetic, "source": source, "case": "case"})
    return sorted((folder / "case_t1_dicom").iterdir())


def pixels_of(header):
    """RAS mm of each pixel, (rows, columns, 3); PS3.3 C.7.6.2.1.1."""
    row, column = np.array(header.ImageOrientationPatient, dtype=float).reshape(2, 3)
    r, c = np.mgrid[: header.Rows, : header.Columns][..., None]
    lps = np.array(header.ImagePositionPatient, dtype=float)
    lps = lps + row * float(header.PixelSpacing[1]) * c + column * float(header.PixelSpacing[0]) * r
    return lps * (-1, -1, 1)


def by_itk(path):
    """Values and RAS mm of each pixel of a file, (rows, columns) and (rows, columns, 3)."""
    image = itk.imread(str(path), itk.F)
    values = itk.array_from_image(image)[0]
    direction, spacing = itk.array_from_matrix(image.GetDirection()), np.array(image.GetSpacing())
    r, c = np.mgrid[: values.shape[0], : values.shape[1]][..., None]
    lps = np.array(image.GetOrigin()) + c * spacing[0] * direction[:, 0] + r * spacing[1] * direction[:, 1]
    return values, lps * (-1, -1, 1)


@pytest.fixture(scope="module")
def axial(tmp_path_factory):
    return load(write_source(tmp_path_factory.mktemp("axial") / "in"))


@pytest.mark.parametrize("name", [*UPRIGHT, *CORRECTED])
def test_each_slice_lies_where_the_source_s_lies_and_shows_what_lies_there(tmp_path, name):
    """The volume is a ramp in mm: whatever reader, a pixel holds the ramp at its own place."""
    source = load(write_source(tmp_path / "in", **(UPRIGHT | CORRECTED)[name]))
    files = save(source, with_ramp(source), tmp_path / "out")
    scanned = [pydicom.dcmread(path) for path in source.meta["dicom_files"]]
    assert [path.name for path in files] == [f"{i:04d}.dcm" for i in range(1, len(scanned) + 1)]
    made = nib.load(tmp_path / "out" / "case_t1.nii.gz")
    shown = 0
    for path, ct in zip(files, scanned, strict=True):
        mr = pydicom.dcmread(path)
        for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
            assert [str(value) for value in mr[keyword].value] == [str(value) for value in ct[keyword].value]
        assert (mr.Rows, mr.Columns) == (ct.Rows, ct.Columns)
        where = pixels_of(ct)
        itk_values, itk_where = by_itk(path)
        np.testing.assert_array_equal(itk_values, mr.pixel_array)
        np.testing.assert_allclose(itk_where, where, atol=1e-3)
        voxels = nib.affines.apply_affine(np.linalg.inv(made.affine), where)
        inside = ((voxels > -1e-3) & (voxels < np.array(made.shape) - 1 + 1e-3)).all(axis=-1)
        # what leans by less than 0.1 mm stays as it is
        departs = 0.1 * 0.0006 if name == "hardly leaning" else 0
        assert np.abs(mr.pixel_array / 4095 - ramp(where))[inside].max() < HALF_A_STEP + departs
        shown += inside.mean() / len(scanned)
    assert shown > 0.97


@pytest.mark.parametrize("name", UPRIGHT)
def test_an_upright_series_is_not_resampled(tmp_path, name):
    """Of a CT of noise the CT itself is written: each pixel is that pixel, and one voxel of the NIfTI."""
    noise = np.random.default_rng(0)
    series = {**UPRIGHT[name], "hu_of": lambda points: noise.integers(0, 1000, points.shape[:-1])}
    source = load(write_source(tmp_path / "in", **series))
    files = save(source, MetaTensor(source.as_tensor() / 1000, meta=source.meta), tmp_path / "out")
    made = nib.load(tmp_path / "out" / "case_t1.nii.gz")
    values, taken = made.get_fdata(), np.zeros(made.shape, dtype=int)
    for path, scanned in zip(files, source.meta["dicom_files"], strict=True):
        mr, ct = pydicom.dcmread(path), pydicom.dcmread(scanned)
        assert np.abs(mr.pixel_array / 4095 - (ct.pixel_array - 1024.0) / 1000).max() < HALF_A_STEP
        voxels = nib.affines.apply_affine(np.linalg.inv(made.affine), pixels_of(mr))
        nearest = np.round(voxels).astype(int)
        assert np.abs(voxels - nearest).max() < (0.02 if name == "hardly leaning" else 1e-3)
        there = tuple(np.moveaxis(nearest, -1, 0))
        taken[there] += 1
        assert np.abs(mr.pixel_array / 4095 - values[there]).max() < HALF_A_STEP
        assert "one voxel for each source pixel" in mr.DerivationDescription
    assert (taken == 1).all()


@pytest.mark.parametrize("name", [name for name in UPRIGHT if name != "hardly leaning"])
def test_itk_reads_both_series_onto_one_grid(tmp_path, name):
    source = load(write_source(tmp_path / "in", **UPRIGHT[name]))
    save(source, with_noise(source), tmp_path / "out")
    images = []
    for folder in (tmp_path / "in", tmp_path / "out" / "case_t1_dicom"):
        names = itk.GDCMSeriesFileNames.New(Directory=str(folder))
        assert len(names.GetSeriesUIDs()) == 1
        images.append(itk.imread(list(names.GetFileNames(names.GetSeriesUIDs()[0])), itk.F))
    ct, mr = images
    assert mr.GetLargestPossibleRegion() == ct.GetLargestPossibleRegion()
    np.testing.assert_array_equal(np.array(mr.GetOrigin()), np.array(ct.GetOrigin()))
    np.testing.assert_array_equal(np.array(mr.GetSpacing()), np.array(ct.GetSpacing()))
    np.testing.assert_array_equal(itk.array_from_matrix(mr.GetDirection()), itk.array_from_matrix(ct.GetDirection()))
    made = nib.load(tmp_path / "out" / "case_t1.nii.gz")
    for index in ([0, 0, 0], [3, 7, 5], [20, 11, 18]):
        ras = np.array(mr.TransformIndexToPhysicalPoint(index)) * (-1, -1, 1)
        voxel = tuple(np.round(nib.affines.apply_affine(np.linalg.inv(made.affine), ras)).astype(int))
        assert itk.array_from_image(mr)[tuple(index[::-1])] / 4095 == pytest.approx(
            made.get_fdata()[voxel], abs=HALF_A_STEP
        )


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dicom3tools is not installed")
@pytest.mark.parametrize("name", ["axial", "oblique", "tilted, uneven", "sparse"])
def test_dciodvfy_finds_nothing(tmp_path, name):
    series = {"change": told, **(UPRIGHT | CORRECTED).get(name, {})}
    if name == "sparse":
        series["change"] = sparse
    source = load(write_source(tmp_path / "in", **series))
    for path in save(source, with_noise(source), tmp_path / "out")[:3]:
        said = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
        assert (said.stdout + said.stderr).split() == ["MRImage"]


def told(header):
    """What a hospital's header has, beside what `write_dicom_series` writes."""
    header.PatientBirthDate, header.PatientSex, header.PatientAge = "19500101", "F", "070Y"
    header.StudyTime, header.StudyID, header.AccessionNumber = "115900", "17", "APX4711"
    header.ReferringPhysicianName, header.Manufacturer = "Roe^Richard", "Scanner works"
    header.ManufacturerModelName, header.PositionReferenceIndicator = "Spiral 3000", "OM"
    header.SeriesDate, header.ContentDate, header.ContentTime = "20200131", "20200131", "120001"
    other = pydicom.Dataset()
    other.PatientID, other.TypeOfPatientID = "0815", "TEXT"
    other.private_block(0x0009, "MAKER", create=True).add_new(1, "LO", "private in an item")
    header.OtherPatientIDsSequence = [other]
    header.private_block(0x0011, "MAKER", create=True).add_new(1, "LO", "private")
    header.ImageComments, header.ProtocolName, header.KVP = "of the CT", "head", 120
    header.ConvolutionKernel, header.OperatorsName = "H30", "Poe^Paul"


def sparse(header):
    """A de-identified header with the least that is allowed, and the largest numbers."""
    told(header)
    header.PatientIdentityRemoved, header.LongitudinalTemporalInformationModified = "YES", "MODIFIED"
    header.PatientName = header.PatientBirthDate = header.PatientSex = header.SliceThickness = None
    header.SeriesNumber, header.InstanceNumber = 2**31 - 1, 2**31 - header.InstanceNumber
    for keyword in ("PatientPosition", "PositionReferenceIndicator", "Manufacturer"):
        delattr(header, keyword)


def test_patient_study_and_frame_are_the_source_s_and_everything_else_is_not(tmp_path):
    source = load(write_source(tmp_path / "in", change=told, number=4))
    scanned = [pydicom.dcmread(path) for path in source.meta["dicom_files"]]
    made = [pydicom.dcmread(path) for path in save(source, with_noise(source), tmp_path / "out")]
    for mr, ct in zip(made, scanned, strict=True):
        kept = ["PatientName", "PatientID", "PatientBirthDate", "PatientSex", "PatientAge", "StudyInstanceUID"]
        kept += ["StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName", "PatientPosition"]
        kept += ["FrameOfReferenceUID", "PositionReferenceIndicator", "InstanceNumber", "SliceThickness"]
        for keyword in kept:
            assert mr[keyword].value == ct[keyword].value
        assert mr.OtherPatientIDsSequence[0].PatientID == "0815"
        assert not [element for element in mr.iterall() if element.tag.is_private]
        assert mr.SOPClassUID == mr.file_meta.MediaStorageSOPClassUID == "1.2.840.10008.5.1.4.1.1.4"
        assert mr.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
        assert (mr.Modality, mr.ImageType[:2], mr.BurnedInAnnotation) == ("MR", ["DERIVED", "SECONDARY"], "NO")
        assert mr.SeriesDescription == "Synthetic T1 from CT series 4, not for diagnostic use"
        assert (mr.Manufacturer, mr.ManufacturerModelName) == ("The developers", "brain_ct_to_mri")
        for keyword in ("KVP", "ConvolutionKernel", "ProtocolName", "OperatorsName", "AcquisitionTime", "SeriesDate"):
            assert keyword not in mr
        for keyword in ("InstanceCreationDate", "ContentDate", "SeriesTime", "ContentTime"):
            assert keyword not in mr  # the same UID has the same bytes
        source_image = mr.SourceImageSequence[0]
        assert source_image.ReferencedSOPInstanceUID == ct.SOPInstanceUID
        assert source_image.PurposeOfReferenceCodeSequence[0].CodeValue == "121322"
        assert mr.ReferencedSeriesSequence[0].SeriesInstanceUID == ct.SeriesInstanceUID
    uids = {mr.SOPInstanceUID for mr in made}
    assert len(uids) == len(made)
    assert len({mr.SeriesInstanceUID for mr in made}) == 1
    assert not {uid for uid in uids | {made[0].SeriesInstanceUID} if not uid.is_valid or len(uid) > 64}
    assert not uids & {ct.SOPInstanceUID for ct in scanned}
    assert made[0].SeriesInstanceUID != scanned[0].SeriesInstanceUID


def test_what_made_it_and_what_the_integers_mean_stand_in_the_header(axial, tmp_path):
    mr = pydicom.dcmread(save(axial, with_noise(axial), tmp_path)[0])
    software = mr.ContributingEquipmentSequence[0]
    assert software.PurposeOfReferenceCodeSequence[0].CodeValue == "109102"
    assert (software.ManufacturerModelName, software.SoftwareVersions) == ("brain_ct_to_mri", "9.8.7")
    for text in (software.ContributionDescription, mr.DerivationDescription):
        assert RECORD["weights_sha256"] in text
        assert "9.8.7" in text
    for said in ("Synthetic T1", "not for diagnostic use", axial.meta["series_uid"], "/ 4095"):
        assert said in mr.DerivationDescription
    mapping = mr.RealWorldValueMappingSequence[0]
    assert (mapping.RealWorldValueFirstValueMapped, mapping.RealWorldValueLastValueMapped) == (0, 4095)
    assert mapping.RealWorldValueSlope * 4095 + mapping.RealWorldValueIntercept == pytest.approx(1)
    unit = mapping.MeasurementUnitsCodeSequence[0]
    assert (unit.CodeValue, unit.CodingSchemeDesignator) == ("1", "UCUM")
    shown = pydicom.pixels.apply_windowing(np.array([0, 4095], dtype=np.uint16), mr)
    np.testing.assert_allclose(shown, [0, 4095], atol=1)  # black and white
    assert (mr.BitsAllocated, mr.BitsStored, mr.PixelRepresentation) == (16, 12, 0)


def test_values_beyond_the_range_are_its_ends(axial, tmp_path):
    pred = MetaTensor(torch.full(axial.shape, 1.25), meta=axial.meta)
    pred[:, :10] = -0.25
    stored = [pydicom.dcmread(path).pixel_array for path in save(axial, pred, tmp_path)]
    assert set(np.unique(stored)) == {0, 4095}


@pytest.mark.parametrize(
    ("character_set", "name"),
    [
        ("ISO_IR 100", "M\u00fcller^J\u00f6rg"),
        ("ISO_IR 192", "\u6d3e^\u30bf\u30ed\u30a6"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=\u5c71\u7530^\u592a\u90ce"),
        ("ISO_IR 144", "\u041b\u044e\u043ac\u0435\u043c\u0431\u0443\u0440\u0433"),
    ],
)
def test_names_in_other_scripts_survive(tmp_path, character_set, name):
    def change(header):
        header.SpecificCharacterSet, header.PatientName = character_set, name
        header.StudyDescription = name.split("=")[-1]

    source = load(write_source(tmp_path / "in", change=change))
    mr = pydicom.dcmread(save(source, with_noise(source), tmp_path / "out")[0])
    ct = pydicom.dcmread(source.meta["dicom_files"][0])
    assert str(mr.PatientName) == str(ct.PatientName) == name
    assert mr.get_item("PatientName").value == ct.get_item("PatientName").value  # the bytes
    assert mr.StudyDescription == ct.StudyDescription


def test_an_implicit_source_is_copied_as_well(tmp_path):
    """Sequences too, whose items are read only when they are asked for."""
    folder = write_source(tmp_path / "in", change=told)
    for path in folder.iterdir():
        header = pydicom.dcmread(path)
        header.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
        header.save_as(path, implicit_vr=True, little_endian=True, enforce_file_format=True)
    source = load(folder)
    mr = pydicom.dcmread(save(source, with_noise(source), tmp_path / "out")[0])
    assert mr.OtherPatientIDsSequence[0].PatientID == "0815"
    assert len(mr.OtherPatientIDsSequence[0]) == 2
    assert mr.PatientName == "Doe^Jane"


def test_the_same_gives_the_same_bytes_and_anything_else_other_uids(axial, tmp_path):
    pred = with_noise(axial)
    runs = {
        "one": (axial, pred, RECORD),
        "two": (axial, pred, RECORD),
        "setting": (axial, pred, {**RECORD, "num_inference_steps": 6}),
        "pixels": (axial, with_noise(axial, seed=1), RECORD),
        "name": (load(renamed(axial, tmp_path / "in")), pred, RECORD),
    }
    files = {name: save(*run[:2], tmp_path / name, run[2]) for name, run in runs.items()}
    written = {name: [path.read_bytes() for path in paths] for name, paths in files.items()}
    assert written["one"] == written["two"]
    uids = {
        name: {str(header[key].value) for header in map(pydicom.dcmread, paths) for key in ("0020000E", "00080018")}
        for name, paths in files.items()
    }
    for other in ("setting", "pixels", "name"):
        assert not uids[other] & uids["one"]


def renamed(source, folder):
    """The same series after the patient's name was corrected."""
    folder.mkdir()
    for path in source.meta["dicom_files"]:
        header = pydicom.dcmread(path)
        header.PatientName = "Doe^Joan"
        header.save_as(folder / path.rpartition("/")[2], enforce_file_format=True)
    return folder


def test_a_series_does_not_stay_beside_a_newer_volume(axial, tmp_path):
    (folder,) = {path.parent for path in save(axial, with_noise(axial), tmp_path)}
    item = {"pred": with_noise(axial, seed=1), "source": axial, "case": "case"}
    SaveSyntheticd(output_dir=tmp_path, record=RECORD)(item)
    assert not folder.exists()
    folder.mkdir()  # one of that name that no JSON tells of, with other files or none, is somebody else's
    for name in (None, "IM1.dcm"):
        if name is not None:
            (folder / name).touch()
        SaveSyntheticd(output_dir=tmp_path, record=RECORD)(item)
        assert folder.exists()
    assert [path.name for path in folder.iterdir()] == ["IM1.dcm"]


def test_loss_of_the_source_is_told(tmp_path):
    def change(header):
        header.LossyImageCompression, header.LossyImageCompressionRatio = "01", "12.5"
        header.LossyImageCompressionMethod = "ISO_10918_1"

    for folder, series in (("lossy", {"change": change}), ("lossless", {})):
        source = load(write_source(tmp_path / folder, **series))
        mr = pydicom.dcmread(save(source, with_noise(source), tmp_path / f"{folder} out")[0])
        assert mr.get("LossyImageCompression") == ("01" if series else None)
        assert mr.get("LossyImageCompressionRatio") == (12.5 if series else None)


def test_a_source_in_a_lossy_syntax_is_lossy_whatever_its_header_says(axial, tmp_path):
    files = []
    for path in axial.meta["dicom_files"]:
        header = pydicom.dcmread(path, stop_before_pixels=True)
        header.file_meta.TransferSyntaxUID = pydicom.uid.JPEGBaseline8Bit
        files.append(str(tmp_path / path.rpartition("/")[2]))
        header.save_as(files[-1], enforce_file_format=True)
    volume = MetaTensor(axial.as_tensor(), meta={**axial.meta, "dicom_files": files})
    assert pydicom.dcmread(save(volume, with_noise(volume), tmp_path / "out")[0]).LossyImageCompression == "01"


@pytest.mark.parametrize(
    ("keyword", "written"), [("PatientWeight", b"7,"), ("PatientSize", b"x ")], ids=["comma", "letter"]
)
def test_a_number_that_is_none_is_left_out(tmp_path, keyword, written):
    def change(header):
        setattr(header, keyword, "70")

    source = load(write_source(tmp_path / "in", change=change))
    for path in source.meta["dicom_files"]:
        header = pydicom.dcmread(path)
        header[keyword] = header.get_item(keyword)._replace(value=written)
        pydicom.dcmwrite(path, header)
    mr = pydicom.dcmread(save(source, with_noise(source), tmp_path / "out")[0])
    assert keyword not in mr
    assert mr.PatientID == "PX4711"


def test_decimals_that_are_too_long_are_written_as_near_as_can_be(tmp_path):
    long = [0.12345678901234567, -119.98765432109876, 40.000000000000014]

    def change(header):
        header.ImagePositionPatient = [*long[:2], round(float(header.ImagePositionPatient[2])) + 1.4e-14]

    source = load(write_source(tmp_path / "in", change=change))
    mr = pydicom.dcmread(save(source, with_noise(source), tmp_path / "out")[0])
    assert max(len(str(value)) for value in mr.ImagePositionPatient) <= 16
    np.testing.assert_allclose([float(value) for value in mr.ImagePositionPatient[:2]], long[:2], atol=1e-10)


@pytest.mark.parametrize("contrast", ["CT", "T2-weighted turbo spin echo after contrast agent", "x" * 70])
def test_the_series_description_has_64_characters_at_most(axial, tmp_path, contrast):
    mr = pydicom.dcmread(save(axial, with_noise(axial), tmp_path, {**RECORD, "source_contrast": contrast})[0])
    assert len(mr.SeriesDescription) <= 64
    assert mr.SeriesDescription.startswith("Synthetic")
    assert mr.SeriesDescription.endswith("not for diagnostic use")


def test_without_a_frame_of_reference_there_is_a_warning_and_one_frame_for_all(tmp_path, caplog):
    def change(header):
        del header.FrameOfReferenceUID

    source = load(write_source(tmp_path / "in", change=change))
    frames = set()
    for seed in (0, 1):
        files = save(source, with_noise(source, seed), tmp_path / str(seed))
        frames |= {pydicom.dcmread(path).FrameOfReferenceUID for path in files}
    assert len(frames) == 1
    assert "names no frame of reference" in caplog.text


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SOPInstanceUID"])
def test_what_a_series_cannot_do_without_is_asked_for_before_anything_is_computed(axial, tmp_path, keyword):
    files = [str(tmp_path / path.rpartition("/")[2]) for path in axial.meta["dicom_files"]]
    for path, copied in zip(axial.meta["dicom_files"], files, strict=True):
        header = pydicom.dcmread(path)
        if copied == files[3]:
            del header[keyword]
        pydicom.dcmwrite(copied, header)
    volume = MetaTensor(axial.as_tensor(), meta={**axial.meta, "dicom_files": files})
    with pytest.raises(CaseError, match=f"^An image of the DICOM series [0-9.]+ has no {keyword}, .*; export it again"):
        CheckDicomSourced("source")({"source": volume})
    CheckDicomSourced("source")({"source": axial})


def test_a_source_that_is_gone_is_told_without_its_name(axial):
    gone = MetaTensor(axial.as_tensor(), meta={**axial.meta, "dicom_files": ["/DOE_JANE/0001"]})
    with pytest.raises(CaseError, match=r"^A file of the DICOM series [0-9.]+ is not there any more or damaged; "):
        CheckDicomSourced("source")({"source": gone})


def test_what_is_no_dicom_series_is_refused(tmp_path):
    path = tmp_path / "Doe" / "ct.nii.gz"
    path.parent.mkdir()
    nib.save(nib.Nifti1Image(np.ones((8, 9, 10), np.int16), np.eye(4)), path)
    source = Compose([LoadVolumed("image"), EnsureChannelFirstd("image")])({"image": str(path)})["image"]
    refused = r"^ct\.nii\.gz is no DICOM series, .*; give the DICOM files, or leave configs/dicom\.json out\.$"
    with pytest.raises(CaseError, match=refused):
        CheckDicomSourced("source")({"source": source})
    with pytest.raises(CaseError, match=refused):
        save(source, with_noise(source), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_frames_of_one_file_become_slices(tmp_path):
    """An enhanced CT: the places stand in functional groups, one of them for all frames; frames in no order."""
    source = load(write_source(tmp_path / "in"))
    slices = [pydicom.dcmread(path) for path in source.meta["dicom_files"]]
    enhanced = pydicom.dcmread(source.meta["dicom_files"][0])
    enhanced.SOPClassUID = enhanced.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
    group = pydicom.Dataset
    shared, measures, plane = group(), group(), group()
    measures.PixelSpacing, measures.SliceThickness = enhanced.PixelSpacing, 4
    plane.ImageOrientationPatient = enhanced.ImageOrientationPatient
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    order = np.random.default_rng(0).permutation(len(slices))
    frames = []
    for index in order:
        frame, position = group(), group()
        position.ImagePositionPatient = slices[index].ImagePositionPatient
        frame.PlanePositionSequence = [position]
        frames.append(frame)
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        del enhanced[keyword]
    enhanced.SharedFunctionalGroupsSequence, enhanced.PerFrameFunctionalGroupsSequence = [shared], frames
    enhanced.NumberOfFrames = len(frames)
    enhanced.PixelData = b"".join(slices[index].PixelData for index in order)
    path = tmp_path / "enhanced.dcm"
    enhanced.save_as(path, enforce_file_format=True)

    one_by_one = save(source, with_ramp(source), tmp_path / "slices")
    volume = with_ramp(source)
    source.meta["dicom_files"] = volume.meta["dicom_files"] = [str(path)]
    from_frames = save(source, volume, tmp_path / "frames")
    for k, (first, second) in enumerate(zip(one_by_one, from_frames, strict=True)):
        first, second = pydicom.dcmread(first), pydicom.dcmread(second)
        np.testing.assert_array_equal(first.pixel_array, second.pixel_array)
        np.testing.assert_array_equal(pixels_of(first), pixels_of(second))
        assert second.InstanceNumber == k + 1
        assert order[second.SourceImageSequence[0].ReferencedFrameNumber - 1] == k


@pytest.fixture
def translate(translate_echo):
    """Run the main job with DICOM output, after other overlays."""
    return lambda dataset_dir, *overlays, **overrides: translate_echo(
        ("inference.json", *overlays, "dicom.json"), dataset_dir, **overrides
    )


def head(points):
    """HU of `head_ct` at the pixels of one slice, LPS mm."""
    ras = points * (-1, -1, 1)
    down, right = ras[1, 0] - ras[0, 0], ras[0, 1] - ras[0, 0]
    affine = nib.affines.from_matvec(np.stack([down, right, np.cross(down, right)], axis=1), ras[0, 0])
    return head_ct(affine, (*points.shape[:2], 1))[..., 0]


def flair(points):
    """What `write_dicom_series` makes a stripped brain of 450 of, on 0, with 900 on the left in front; LPS mm."""
    inside = np.linalg.norm(points / [62, 75, 60], axis=-1) < 1
    return -1000 + inside * np.where((points[..., 0] > 10) & (points[..., 1] < -10), 900, 450)


def brightest(folder, above, within):
    """Middle, in LPS mm, of what is brighter than that in a series, in an ellipsoid of those half axes."""
    made = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
    where = np.concatenate([pixels_of(mr)[mr.pixel_array / 4095 > above] for mr in made])
    return where[np.linalg.norm(where / within, axis=-1) < 1].mean(axis=0) * (-1, -1, 1)


HEAD = {"voxels": 56, "spacing": 4.0, "hu_of": head}
HEIGHTS = {
    "even": [5.0 * i - 87 for i in range(36)],
    "uneven": [4.0 * i - 90 for i in range(22)] + [-1 + 5.0 * i for i in range(20)],
}


@pytest.mark.parametrize(("spacing", "degrees"), [("even", 0), ("even", -12), ("uneven", 12)])
def test_the_main_job_leaves_a_series_in_which_the_left_is_on_the_left(tmp_path, translate, capfd, spacing, degrees):
    folder = write_source(tmp_path / "DOE_JANE", heights=HEIGHTS[spacing], orientation=tilted(degrees), **HEAD)
    assert translate(folder) is None
    (series,) = tmp_path.glob("out/*_t1_dicom")
    assert len(list(series.iterdir())) == len(HEIGHTS[spacing])
    # away from the bone at the mask's rim
    np.testing.assert_allclose(brightest(series, 0.65, (60, 71, 56)), [40, 0, 0], atol=2)

    written = [path for path in (tmp_path / "out").rglob("*") if path.suffix != ".dcm"]
    # MONAI may repeat what was typed, as "> dataset_dir: ..."
    said = "".join(line for line in "".join(capfd.readouterr()).splitlines() if " - INFO - > " not in line)
    said += "".join(str(path.relative_to(tmp_path)) for path in written)
    said += (tmp_path / "out" / f"{series.name.removesuffix('_dicom')}.json").read_text()
    for name in ("doe", "jane", "px4711"):
        assert name not in said.lower().replace(str(tmp_path).lower(), "")

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    assert translate(folder) is None
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


def test_what_is_no_dicom_fails_alone_and_before_it_is_translated(tmp_path, translate, monkeypatch):
    folder = write_source(tmp_path / "in" / "dicom", heights=HEIGHTS["even"], **HEAD).parent
    affine = nib.affines.from_matvec(np.diag([4.0, 4.0, 5.0]), [-110, -110, -87])
    nib.save(nib.Nifti1Image(head_ct(affine, (56, 56, 36)).astype(np.int16), affine), folder / "a.nii.gz")
    assert translate(folder).startswith("1 of 2 cases failed")
    (failure,) = json.loads((tmp_path / "out" / "failures.json").read_text())
    assert failure["reason"].startswith("a.nii.gz is no DICOM series, so no DICOM series can be written beside it;")
    assert len(list(tmp_path.glob("out/*_t1_dicom/*.dcm"))) == 36


def test_an_mri_of_another_contrast_gets_its_series_too(tmp_path, translate):
    def change(header):
        header.SeriesDescription = "t2 FLAIR axial"

    mri = {"voxels": 56, "spacing": 4.0, "hu_of": flair, "modality": "MR", "heights": HEIGHTS["even"]}
    folder = write_source(tmp_path / "in", change=change, **mri)
    assert translate(folder, "flair_to_t1.json") is None
    (series,) = tmp_path.glob("out/*_t1_dicom")
    mr = pydicom.dcmread(next(iter(series.iterdir())))
    assert mr.SeriesDescription == "Synthetic T1 from FLAIR series 1, not for diagnostic use"
    # the middle of the part of the brain that is brighter
    points = np.stack(np.meshgrid(*[np.arange(-80.0, 80)] * 3, indexing="ij"), axis=-1)
    np.testing.assert_allclose(brightest(series, 0.8, (62, 75, 60)), points[flair(points) == -100].mean(axis=0), atol=3)


def test_t2_to_flair_is_called_so_everywhere(tmp_path, translate, monkeypatch):
    """Files, JSON, picture and DICOM series name the target of the settings, and no other contrast."""

    def change(header):
        header.SeriesDescription = "t2 axial"

    mri = {"voxels": 56, "spacing": 4.0, "hu_of": flair, "modality": "MR", "heights": HEIGHTS["even"]}
    folder = write_source(tmp_path / "in", change=change, **mri)
    titles = []
    monkeypatch.setattr(saver_module, "three_planes", lambda *a, **k: titles.append(a[3]) or three_planes(*a, **k))
    contrasts = {"source_contrast": "T2", "target_contrast": "FLAIR"}
    assert translate(folder, "flair_to_t1.json", skull_strip="none", **contrasts) is None

    (record,) = tmp_path.glob("out/*.json")
    stem = record.name.removesuffix(".json")
    assert stem.endswith("_flair")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [f"{stem}{ending}" for ending in (".json", ".nii.gz", ".png", "_dicom")]
    content = json.loads(record.read_text())
    assert {name: content[name] for name in contrasts} == contrasts
    assert titles == [("source T2", "synthetic FLAIR")]
    made = [pydicom.dcmread(path) for path in sorted((tmp_path / "out" / f"{stem}_dicom").iterdir())]
    assert made[0].SeriesDescription == "Synthetic FLAIR from T2 series 1, not for diagnostic use"
    assert made[0].ImageComments == "Synthetic FLAIR, not for diagnostic use"
    assert made[0].RealWorldValueMappingSequence[0].LUTExplanation == "Synthetic FLAIR intensity, 0 to 1"
    text = "".join(str(header) for header in made) + json.dumps({**content, "weights": None})
    assert not re.search(r"\bT1\b|_t1\b", text)


@pytest.mark.shared_data
def test_the_gantry_tilt_patient(shared_data, tmp_path):
    """The CT itself, sampled from its corrected volume, is found at each slice; three pixels beside it, less so."""
    source = load(shared_data / "ct_dicom_gantry_tilt")
    window = MetaTensor(((source.as_tensor() + 100) / 300).clip(0, 1), meta=source.meta)
    files = save(source, window, tmp_path / "out")
    for index in (3, 9, 14, 20, 25):
        mr, ct = pydicom.dcmread(files[index]), pydicom.dcmread(source.meta["dicom_files"][index])
        scanned = np.clip((ct.pixel_array + 100) / 300, 0, 1)[100:400, 100:400]
        likeness = {
            (down, right): np.corrcoef(
                mr.pixel_array[100 + down : 400 + down, 100 + right : 400 + right].ravel(), scanned.ravel()
            )[0, 1]
            for down in (-3, 0, 3)
            for right in (-3, 0, 3)
        }
        assert max(likeness, key=likeness.get) == (0, 0)
        assert likeness[0, 0] > 0.97
