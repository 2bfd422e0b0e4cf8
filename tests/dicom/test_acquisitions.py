"""What belongs together: the slices of one patient and one acquisition, each once, whatever the UIDs say."""

import nibabel as nib
import numpy as np
import pytest

from scripts.data.datalists import inference_datalist
from scripts.dicom.convert import convert_dicom
from scripts.dicom.series import choose_series, find_series, what_is_left, why_unusable
from scripts.dicom.source import source_slices
from scripts.errors import CaseError
from scripts.volumes.load import LoadVolume
from tests.trees import write_dicom_series

pydicom = pytest.importorskip("pydicom")

STUDY, SERIES = "1.2.826.0.1.3680043.8.498.13", "1.2.826.0.1.3680043.8.498.13.1"
WHOLE = [4.0 * i for i in range(18)]
FIRST, SECOND = 40, 900


def scan(folder, heights, number=1, hu=FIRST, moved=(0, 0), modality="CT", start=1, **tags):
    """Slices under the UIDs of all others, of one value or of a function of points.

    Tags may be functions of the slice's index.
    """
    shape = {name: tags.pop(name) for name in ("orientation", "way") if name in tags}

    def change(slice_, index):
        slice_.SeriesInstanceUID, slice_.SeriesNumber = SERIES, 1
        slice_.InstanceNumber = start + index - 1
        x, y, z = slice_.ImagePositionPatient
        slice_.ImagePositionPatient = [x + moved[0], y + moved[1], z]
        for name, value in tags.items():
            if value is None:
                if name in slice_:
                    delattr(slice_, name)
            else:
                setattr(slice_, name, value(index) if callable(value) else value)

    def values(points):
        return hu(points) if callable(hu) else np.full(points.shape[:-1], hu, dtype=np.int16)

    write_dicom_series(
        folder,
        heights,
        number=number,
        modality=modality,
        voxels=8,
        spacing=30,
        study=STUDY,
        hu_of=values,
        change=change,
        **shape,
    )


def told(folder, contrast="CT"):
    """Heights and values of the series that is translated, and what is said of the others."""
    series = find_series(folder)
    chosen = choose_series(series, contrast)
    volume = LoadVolume()([str(path) for path in chosen.files])
    return chosen.stack.positions[:, 2].tolist(), set(np.unique(volume.numpy())), what_is_left(chosen, series)


APART = {
    "AcquisitionNumber": (1, 2),
    "AcquisitionTime": ("120001", "120533.5"),
    "AcquisitionTime of each slice": (lambda i: f"1200{i:02d}", lambda i: f"1205{i:02d}"),
    "AcquisitionDateTime": ("20200131120001", "20200131120500"),
    "ContentTime": ("120001", "120500"),
    "ImageType": (["ORIGINAL", "PRIMARY", "AXIAL"], ["DERIVED", "PRIMARY", "AXIAL"]),
    "ConvolutionKernel": ("H30s", "H60s"),
    "KVP": ("120", "80"),
    "FrameOfReferenceUID": ("1.2.3.4", "1.2.3.5"),
    "TemporalPositionIdentifier": (1, 2),
    "StackID": ("1", "2"),
    "ContrastBolusAgent": (None, "IOMERON"),
    "SeriesDescription": ("head 4.0", "head 4.0 again"),
    "SeriesTime": ("120000", "121000"),
    "PatientPosition": ("HFS", "HFP"),
    "InstanceNumber": (None, None),
}


@pytest.mark.parametrize(("part", "offset"), [("half", 0), ("half", 4 / 3), ("whole", 2)])
@pytest.mark.parametrize("attribute", APART)
def test_a_second_acquisition_between_the_slices_of_the_first_is_left_out(tmp_path, attribute, offset, part):
    """The whole head comes out as if it were alone."""
    name = attribute.split()[0]
    first, second = ({} if value is None or name == "InstanceNumber" else {name: value} for value in APART[attribute])
    same = {} if name == "InstanceNumber" else {"InstanceNumber": lambda index: index}
    heights = [h + offset for h in (WHOLE[6:14] if part == "half" else WHOLE)]
    scan(tmp_path, heights, 2, SECOND, start=25, **{**same, **second})
    scan(tmp_path, WHOLE, 1, **{**same, **first})
    places, values, left = told(tmp_path)
    if values == {float(FIRST)}:
        assert places == WHOLE
    else:  # of two whole ones either is right
        assert part == "whole"
        assert values == {float(SECOND)}
        np.testing.assert_allclose(places, heights)
    assert f"{len(heights)} slices told apart by {name}" in left


def test_a_moved_acquisition_beside_the_first_in_plane_too(tmp_path):
    scan(tmp_path, WHOLE, 1, AcquisitionNumber=1)
    scan(tmp_path, [h + 4 / 3 for h in WHOLE[:9]], 2, SECOND, moved=(7, -3), AcquisitionNumber=2)
    assert told(tmp_path)[:2] == (WHOLE, {FIRST})


def test_what_nothing_tells_apart_is_refused_in_a_sentence_that_fits(tmp_path):
    for number, heights in ((1, WHOLE), (2, [h + 4 / 3 for h in WHOLE[5:14]])):
        scan(tmp_path, heights, number, FIRST * number, InstanceNumber=None, ContentTime=None)
    with pytest.raises(CaseError, match="those of two acquisitions lie between each other, export one whole"):
        convert_dicom(tmp_path, tmp_path / "ct.nii.gz")


TOGETHER = {
    "two parts of a head": [(WHOLE[:9], {"AcquisitionNumber": 1}), (WHOLE[9:], {"AcquisitionNumber": 2})],
    "a thinner part below, two slices over the seam": [
        ([2.0 * i for i in range(13)], {"AcquisitionNumber": 1, "SliceThickness": 2, "FrameOfReferenceUID": ""}),
        (WHOLE[6:], {"AcquisitionNumber": 2, "FrameOfReferenceUID": ""}),
    ],
    "a time of each slice": [
        (WHOLE, {"AcquisitionTime": lambda i: f"12{59 - i:02d}00", "ContentTime": lambda i: f"1200{i:02d}"})
    ],
    "every second slice first": [
        (WHOLE[::2], {"AcquisitionTime": "120000", "AcquisitionNumber": 1}),
        (WHOLE[1::2], {"AcquisitionTime": "120300", "AcquisitionNumber": 2}),
    ],
    "a slice scanned anew": [
        ([h for h in WHOLE if h != WHOLE[7]], {"AcquisitionNumber": 1}),
        ([WHOLE[7]], {"AcquisitionNumber": 2}),
    ],
    "elements lacking here and there": [
        (WHOLE[::3], {"AcquisitionNumber": None, "KVP": "120"}),
        (WHOLE[1::3], {"AcquisitionNumber": 1, "KVP": None}),
        (WHOLE[2::3], {"AcquisitionNumber": 1, "KVP": "120", "ImageType": None}),
    ],
    "a frame of reference of each file": [(WHOLE, {"FrameOfReferenceUID": lambda i: f"1.2.{i}"})],
    "thick slices close together": [(WHOLE, {"SliceThickness": 8, "ContentTime": lambda i: f"1200{i * 37 % 60:02d}"})],
}


@pytest.mark.parametrize("parts", TOGETHER)
@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_what_is_one_volume_stays_one(tmp_path, parts, modality):
    start = 1
    for number, (heights, tags) in enumerate(TOGETHER[parts], start=1):
        scan(tmp_path, heights, number, modality=modality, start=start, SeriesDescription="T2", **tags)
        start += len(heights)
    expected = sorted(h for heights, _ in TOGETHER[parts] for h in heights)
    if "seam" in parts:
        expected = sorted(set(expected))
    assert told(tmp_path, "CT" if modality == "CT" else "T2")[::2] == (expected, None)


def slope_of(points):
    """Values that rise by 10 HU a slice."""
    return np.round(points[..., 2] * 2.5).astype(np.int16)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("turns", [2, 3])
@pytest.mark.parametrize("attribute", ["AcquisitionNumber", "AcquisitionTime", "ContentTime", "SeriesTime"])
def test_overlapping_slices_that_were_reconstructed_in_turn_are_one_scan(tmp_path, attribute, turns, turned):
    """dcm2niix issue 1018, of overlapping reconstructions, and Slicer issue 4872, of scans that are split."""
    for turn in range(turns):
        scan(
            tmp_path,
            WHOLE[turn::turns],
            turn + 1,
            slope_of,
            SliceThickness=4 * turns,
            InstanceNumber=lambda i, turn=turn: abs(17 * turned - (turn + turns * (i - 1))),
            **{attribute: f"{turn + 1}" if attribute == "AcquisitionNumber" else f"12000{turn}"},
        )
    heights, _, left = told(tmp_path)
    assert (heights, left) == (WHOLE, None)


OF_TWO_SCANS = {
    "numbered one after the other": lambda turn, i: 9 * turn + i,
    "both numbered from 1": lambda turn, i: i,
    "numbered by place": lambda turn, i: 2 * i + turn,
}


@pytest.mark.parametrize("numbers", OF_TWO_SCANS)
def test_two_scans_half_a_gap_apart_stay_two(tmp_path, numbers):
    """Of the same thickness and places as slices in turn; where the numbers do not tell, the images do."""
    for turn in (0, 1):
        scan(
            tmp_path,
            WHOLE[turn::2],
            turn + 1,
            lambda points, turn=turn: slope_of(points) + 40 * turn,
            SliceThickness=8,
            AcquisitionNumber=turn + 1,
            InstanceNumber=lambda i, turn=turn: OF_TWO_SCANS[numbers](turn, i),
        )
    heights, _, left = told(tmp_path)
    assert heights in (WHOLE[::2], WHOLE[1::2])
    assert "9 slices told apart by AcquisitionNumber" in left


def test_a_series_over_time_is_no_volume(tmp_path):
    for time in range(1, 5):
        scan(tmp_path, WHOLE, time, FIRST + time, AcquisitionNumber=time, start=100 * time)
    (series,) = find_series(tmp_path)
    assert why_unusable(series) == "several slices at one place"


def test_two_echoes_are_not_chosen_between(tmp_path):
    for echo in (1, 2):
        scan(
            tmp_path,
            WHOLE,
            echo,
            100 * echo,
            modality="MR",
            EchoNumbers=echo,
            SeriesDescription="PD T2",
            start=50 * echo,
        )
    (item,) = inference_datalist(tmp_path, contrast="T2")
    assert "several slices at one place" in item["failure"]


# -------------------------------------------------------------------------------------------------- copies


@pytest.mark.parametrize("same_uid", [True, False])
def test_slices_stored_twice_are_taken_once(tmp_path, caplog, same_uid):
    scan(tmp_path, WHOLE, 1)
    for path in sorted(tmp_path.iterdir())[4:7]:
        copy = pydicom.dcmread(path)
        copy.InstanceNumber += 100
        if not same_uid:
            copy.SOPInstanceUID = copy.file_meta.MediaStorageSOPInstanceUID = f"{copy.SOPInstanceUID[:-2]}.7"
        copy.save_as(tmp_path / f"copy_of_{path.name}")
    assert told(tmp_path) == (WHOLE, {FIRST}, None)
    assert ("3 slices are there twice" in caplog.text) is not same_uid
    (series,) = find_series(tmp_path)
    beside = source_slices(LoadVolume()([str(path) for path in series.files]))
    assert [float(one.place.ImagePositionPatient[2]) for one in beside] == WHOLE  # of the DICOM output
    convert_dicom(tmp_path, tmp_path / "ct.nii.gz")


@pytest.mark.parametrize("same_uid", [True, False])
@pytest.mark.parametrize("first", ["whole", "cut off"])
def test_a_copy_that_was_cut_off_does_not_stand_for_the_whole_one(tmp_path, same_uid, first):
    scan(tmp_path, WHOLE, 1)
    path = tmp_path / "1_005"
    copy = pydicom.dcmread(path)
    if not same_uid:
        copy.SOPInstanceUID = copy.file_meta.MediaStorageSOPInstanceUID = f"{copy.SOPInstanceUID[:-2]}.7"
    copy.save_as(tmp_path / "0" if first == "whole" else tmp_path / "2")
    cut_off = path if first == "whole" else tmp_path / "2"
    cut_off.write_bytes(cut_off.read_bytes()[:-60])
    assert told(tmp_path) == (WHOLE, {FIRST}, None)


# ------------------------------------------------------------------------------------------------ patients


def two_patients(folder, one, other, shared_uids=False, **tags):
    """Two heads under the same UIDs, with other values."""
    scan(folder, one, 1, FIRST, PatientID="1111", **tags)
    scan(folder, other, 2, SECOND, PatientID="2222", **tags)
    if shared_uids:
        for path in folder.iterdir():
            slice_ = pydicom.dcmread(path)
            slice_.SOPInstanceUID = slice_.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
            slice_.save_as(path)


@pytest.mark.parametrize("offset", [0, 4 / 3, 2.0, 30.0, 500.0])
@pytest.mark.parametrize("shared_uids", [False, True])
def test_two_patients_never_become_one_volume(tmp_path, caplog, offset, shared_uids):
    two_patients(tmp_path, WHOLE, [h + offset for h in WHOLE], shared_uids)
    items = inference_datalist(tmp_path)
    assert len({item["case"] for item in items}) == 2
    assert f"the DICOM study {STUDY} name 2 patients" in caplog.text
    seen = []
    for item in items:
        assert "failure" not in item
        volume = LoadVolume()(item["image"])
        assert volume.shape[2] == len(WHOLE)
        (value,) = np.unique(volume.numpy())
        assert {pydicom.dcmread(path).PatientID for path in item["image"]} == {{FIRST: "1111", SECOND: "2222"}[value]}
        seen.append(value)
    assert sorted(seen) == [FIRST, SECOND]
    with pytest.raises(CaseError, match="holds 2 volumes"):
        convert_dicom(tmp_path, tmp_path / "ct.nii.gz")


@pytest.mark.parametrize(
    ("one", "other"), [(WHOLE[::2], WHOLE[1::2]), (WHOLE[:9], WHOLE[9:]), (WHOLE[:12], WHOLE[12:])]
)
def test_parts_of_one_scan_that_name_two_patients_are_refused(tmp_path, one, other):
    two_patients(tmp_path, one, other)
    items = inference_datalist(tmp_path)
    assert len(items) == 2
    for item in items:
        assert "another patient or study, with the same UID, look like one scan" in item["failure"]
        assert "1111" not in item["failure"]


@pytest.mark.parametrize(("one", "other"), [(WHOLE[::2], WHOLE[1::2]), (WHOLE[:9], WHOLE[9:])])
def test_parts_of_one_scan_that_name_two_studies_are_refused(tmp_path, one, other):
    scan(tmp_path, one, 1)
    scan(tmp_path, other, 2, SECOND, StudyInstanceUID=f"{STUDY}.2")
    for item in inference_datalist(tmp_path):
        assert "another patient or study, with the same UID, look like one scan" in item["failure"]


@pytest.mark.parametrize("element", ["PatientName", "PatientBirthDate", "IssuerOfPatientID"])
def test_who_is_one_patient(tmp_path, element):
    """The ID alone does not tell; a number without a name is still of the only one it can be."""
    values = {"PatientName": "Roe^Rick", "PatientBirthDate": "19500101", "IssuerOfPatientID": "somewhere"}
    same = {"PatientBirthDate": "19990909"}
    scan(tmp_path, WHOLE, 1, **same)
    scan(tmp_path, WHOLE, 2, SECOND, AcquisitionNumber=2, **{**same, element: values[element]})
    assert len(inference_datalist(tmp_path)) == (1 if element == "IssuerOfPatientID" else 2)


def test_images_that_do_not_say_whose_they_are_join_the_only_patient(tmp_path):
    scan(tmp_path, WHOLE[::2], 1, PatientName="DOE^JANE ")
    scan(tmp_path, WHOLE[1::2], 2, PatientID="", PatientName=None)
    assert told(tmp_path)[0] == WHOLE
    assert len(inference_datalist(tmp_path)) == 1


LETTERS = {
    "character sets that are not told": [("", b"M\xfcller^J\xf6rg"), ("ISO_IR 192", b"M\xc3\xbcller^J\xc3\xb6rg")],
    "UTF-8 that is not told": [("", b"M\xc3\xbcller^J\xc3\xb6rg"), ("ISO_IR 100", b"M\xfcller^J\xf6rg")],
    "a set that does not exist": [("Not Supplied", b"M\xfcller^J\xf6rg"), ("ISO_IR 100", b"M\xfcller^J\xf6rg")],
    "letters that were lost": [("", b"M?ller^J?rg"), ("ISO_IR 100", b"M\xfcller^J\xf6rg")],
    "Cyrillic": [("ISO_IR 144", b"\xb8\xd2\xd0\xdd^X"), ("", b"\xc8\xe2\xe0\xed^X")],
    "Chinese": [("GB18030", b"\xcd\xf5^X"), ("ISO_IR 192", b"\xe7\x8e\x8b^X")],
    "carets and commas": [("", b"PHANTOM, fourD"), ("", b"Phantom^FourD^^")],
}


@pytest.mark.parametrize("same_number", [True, False])
@pytest.mark.parametrize("spelt", LETTERS)
def test_a_name_in_several_character_sets_is_one_patient_of_the_same_number(tmp_path, spelt, same_number):
    """pydicom issues 2115 and 815; CTK issue 275."""
    scan(tmp_path, WHOLE)
    for index, path in enumerate(sorted(tmp_path.iterdir())):
        slice_ = pydicom.dcmread(path)
        encoding, name = LETTERS[spelt][index % 2]
        slice_.PatientID = "PX4711" if same_number else ""
        slice_._dict[pydicom.tag.Tag("SpecificCharacterSet")] = raw("SpecificCharacterSet", encoding.encode())
        slice_._dict[pydicom.tag.Tag("PatientName")] = raw("PatientName", name)
        slice_.save_as(path)
    items = inference_datalist(tmp_path)
    one = same_number or spelt in ("carets and commas", "a set that does not exist")
    assert len(items) == (1 if one else 2)
    assert [item["case"] for item in items if "failure" not in item] == ([items[0]["case"]] if one else [])
    if one:
        assert told(tmp_path) == (WHOLE, {FIRST}, None)


def raw(keyword, content):
    """An element as it stands in a file, whatever it is."""
    from pydicom.datadict import dictionary_VR, tag_for_keyword
    from pydicom.dataelem import RawDataElement

    content += b" " * (len(content) % 2)
    tag = pydicom.tag.Tag(tag_for_keyword(keyword))
    return RawDataElement(tag, dictionary_VR(tag), len(content), content, 0, False, True)


# ------------------------------------------------------------------------------------------------ lost UIDs


@pytest.mark.parametrize("value", ["", None])
@pytest.mark.parametrize("which", [range(1, 19), range(5, 8), [1], [18]])
@pytest.mark.parametrize("element", ["SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID", "SOPInstanceUID"])
def test_images_without_a_uid_are_grouped_by_what_else_is_there(tmp_path, element, which, value):
    scan(tmp_path, WHOLE)
    for index in which:
        path = tmp_path / f"1_{index:03d}"
        slice_ = pydicom.dcmread(path)
        if value is None:
            delattr(slice_, element)
        else:
            setattr(slice_, element, value)
        slice_.save_as(path)
    assert told(tmp_path) == (WHOLE, {FIRST}, None)
    (item,) = inference_datalist(tmp_path)
    assert "failure" not in item


def test_two_series_without_uids_are_two(tmp_path):
    scan(tmp_path, WHOLE, 1, SeriesInstanceUID="", SeriesNumber=1, ConvolutionKernel="H30s")
    scan(tmp_path, WHOLE, 2, SECOND, SeriesInstanceUID="", SeriesNumber=2, ConvolutionKernel="H60s")
    assert told(tmp_path)[:2] == (WHOLE, {FIRST})
    assert len({series.uid for series in find_series(tmp_path)}) == 2
    for path in tmp_path.iterdir():
        slice_ = pydicom.dcmread(path)
        del slice_.SeriesNumber
        slice_.save_as(path)
    assert told(tmp_path)[:2] == (WHOLE, {FIRST})


def test_a_packed_file_is_read(tmp_path):
    import gzip

    scan(tmp_path, WHOLE)
    for path in sorted(tmp_path.iterdir()):
        (tmp_path / f"{path.name}.dcm.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert told(tmp_path) == (WHOLE, {FIRST}, None)


def test_a_number_spelt_in_two_ways_tells_no_acquisitions_apart(tmp_path):
    scan(tmp_path, WHOLE, KVP=lambda index: "120" if index % 2 else "120.0", SliceThickness="8")
    heights, values, left = told(tmp_path)
    assert (sorted(heights), values, left) == (WHOLE, {FIRST}, None)


# ------------------------------------------------------------------------------------- other images in the series

OTHERS = {
    "a localizer before the scan": ([-40.0], {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "InstanceNumber": 0}),
    "localizers between the slices": (WHOLE[3:6], {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}),
    "a screen above the head": ([72.0], {"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}),
    "a capture above the head": ([72.0, 76.0], {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}),
    "projections": ([2.0, 30.0], {"ImageType": ["DERIVED", "SECONDARY", "AXIAL", "CT_SOM5 MIP"]}),
    "colours": ([72.0], {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "BitsAllocated": 8}),
    "captures without a place": (
        [0.0, 4.0, 8.0],
        {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7", "ImagePositionPatient": None},
    ),
    "a report": ([0.0], {"Modality": "SR", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.67", "PixelSpacing": None}),
}


@pytest.mark.parametrize("beside", OTHERS)
def test_other_images_under_the_same_uid_are_no_slices(tmp_path, beside):
    """picai_prep pull request 39 and dcm2niix issue 721: localizers and captures within the series, in its plane."""
    heights, tags = OTHERS[beside]
    scan(tmp_path, WHOLE)
    scan(tmp_path, heights, 2, SECOND, start=100, **tags)
    assert told(tmp_path) == (WHOLE, {FIRST}, None)
    (item,) = inference_datalist(tmp_path)
    assert len(item["image"]) == len(WHOLE)
    image = nib.load(convert_dicom(tmp_path, tmp_path / "ct.nii.gz"))
    assert image.shape[2] == len(WHOLE)


@pytest.mark.parametrize("lost", [1, 2])
def test_slices_without_a_place_are_told(tmp_path, lost):
    """MONAI issue 8468: what cannot be placed is not left out in silence."""
    scan(tmp_path, WHOLE[:-lost])
    scan(tmp_path, WHOLE[-lost:], 2, start=30, ImagePositionPatient=None)
    heights, _, left = told(tmp_path)
    assert heights == WHOLE[:-lost]
    assert f"beside the {18 - lost} that are taken ({lost} slices that do not say where they lie)" in left
    convert_dicom(tmp_path, tmp_path / "ct.nii.gz")


def test_prepare_takes_the_stack_of_a_series_that_the_main_job_takes(tmp_path):
    """A coronal reformat under the UID of the axial slices."""
    coronal = {"orientation": (1, 0, 0, 0, 0, -1), "way": (0, 1, 0)}
    scan(tmp_path, WHOLE)
    scan(tmp_path, [3.0 * i for i in range(30)], 2, SECOND, start=100, **coronal)
    heights, _, left = told(tmp_path)
    assert heights == WHOLE
    assert "30 slices of another orientation" in left
    image = nib.load(convert_dicom(tmp_path, tmp_path / "ct.nii.gz"))
    assert set(np.unique(image.get_fdata())) == {FIRST}
    for path in tmp_path.glob("*_*"):
        slice_ = pydicom.dcmread(path)
        slice_.Modality, slice_.SOPClassUID = "MR", "1.2.840.10008.5.1.4.1.1.4"
        slice_.save_as(path)
    with pytest.raises(CaseError, match="holds 2 volumes of other directions, sizes or spacings; export the one"):
        convert_dicom(tmp_path, tmp_path / "mr.nii.gz")
