"""Which series are found, and which one of a study is chosen: told rules, whatever the files are called."""

import dataclasses
import json
import logging
import os
import random
import re
import shutil

import nibabel as nib
import numpy as np
import pytest

from scripts.data.datalists import inference_datalist
from scripts.dicom.convert import convert
from scripts.dicom.kernels import is_sharp
from scripts.dicom.series import choose_series, find_series, named_series, why_chosen, why_unusable
from scripts.dicom.series_text import of_another_part, with_contrast_agent
from scripts.dicom.source import source_slices
from scripts.errors import CaseError
from scripts.volumes.load import LoadVolume
from tests.trees import tilted, write_cube, write_dicom_series

pydicom = pytest.importorskip("pydicom")

STUDY = "1.2.826.0.1.3680043.8.498.1"
CORONAL = (1, 0, 0, 0, 0, -1)


def heights(count):
    return [5.0 * i for i in range(count)]


def add(folder, number, count=6, study=STUDY, way=(0, 0, 1), orientation=(1, 0, 0, 0, 1, 0), modality="CT", **tags):
    """A series of tiny slices, with other values of its elements; gives its UID."""

    def change(slice_, _):
        for name, value in tags.items():
            setattr(slice_, name, value)

    write_dicom_series(
        folder, heights(count), orientation, way, number, modality, voxels=8, spacing=30, study=study, change=change
    )
    return uid_of(folder / f"{number}_001")


def uid_of(path):
    return str(pydicom.dcmread(path, stop_before_pixels=True, force=True).SeriesInstanceUID)


def chosen(folder, contrast="CT"):
    """The number of the series chosen, whatever order its files are read in."""
    numbers = set()
    for seed in range(3):
        series = find_series(folder)
        random.Random(seed).shuffle(series)
        numbers.add(choose_series(series, contrast).number)
    (number,) = numbers
    return number


RIVALS = {
    "modality": ({"modality": "MR", "count": 30}, {}),
    "localizer": ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "count": 30}, {}),
    "scout by its description": ({"SeriesDescription": "Scout lateral", "count": 30}, {}),
    "topogram": ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER", "CT_SOM5 TOP"], "count": 30}, {}),
    "secondary capture": ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7", "count": 30}, {}),
    "dose screen": ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"], "count": 30}, {}),
    "dose report": ({"SeriesDescription": "Dose Report", "count": 30}, {}),
    "projection": ({"ImageType": ["DERIVED", "SECONDARY", "AXIAL", "CT_SOM5 MIP"], "count": 30}, {}),
    "maximum of enhanced images": ({"ImageType": ["DERIVED", "PRIMARY", "VOLUME", "MAX_IP"], "count": 30}, {}),
    "colours": ({"PhotometricInterpretation": "RGB", "count": 30}, {}),
    "a palette": ({"PhotometricInterpretation": "PALETTE COLOR", "count": 30}, {}),
    "coronal": ({"orientation": CORONAL, "way": (0, 1, 0), "count": 30}, {}),
    "two slices": ({"count": 2}, {"count": 3, "ConvolutionKernel": "H60s"}),
    "synthetic": ({"SeriesDescription": "Synthetic T1 from CT series 2", "count": 30}, {}),
    "chest": ({"BodyPartExamined": "CHEST", "count": 30}, {"BodyPartExamined": "HEAD"}),
    "chest, the other untold": ({"BodyPartExamined": "CHEST", "count": 30}, {}),
    "angiography": ({"ContrastBolusAgent": "IOMERON", "count": 30}, {"ContrastBolusAgent": ""}),
    "contrast agent before a sharp kernel": ({"ContrastBolusAgent": "OMNIPAQUE"}, {"ConvolutionKernel": "BONE"}),
    "bone kernel": ({"ConvolutionKernel": "H60s", "count": 30}, {"ConvolutionKernel": "H30s"}),
    "bone by its description": ({"SeriesDescription": "Schaedel Knochen 1.0", "count": 30}, {}),
    "angiography that is not tagged": ({"SeriesDescription": "CTA Head 0.6", "count": 30}, {}),
    "after contrast by its description": ({"SeriesDescription": "Kopf KM 3.0", "count": 30}, {}),
    "spine under the head's protocol": (
        {"SeriesDescription": "C-SPINE 2.0", "count": 30, "BodyPartExamined": "HEAD"},
        {},
    ),
    "sinuses": ({"SeriesDescription": "NNH 1.0", "count": 30}, {}),
    "perfusion map": ({"SeriesDescription": "RAPID TMax [s]", "count": 30}, {"ConvolutionKernel": "H60s"}),
    "perfusion map by its type": ({"ImageType": ["DERIVED", "SECONDARY", "AXIAL", "CBF"], "count": 30}, {}),
    "iodine": ({"RescaleType": "MGML", "count": 30}, {"ConvolutionKernel": "H60s"}),
    "subtraction": ({"SeriesDescription": "Neuro DSA bone removed", "count": 30}, {}),
    "fewer slices": ({"count": 6}, {"count": 7, "ImageType": ["DERIVED", "PRIMARY", "AXIAL"]}),
    "derived": ({"ImageType": ["DERIVED", "PRIMARY", "AXIAL", "CT_SOM5 MPR"]}, {}),
    "no number": ({"SeriesNumber": None}, {}),
}


@pytest.mark.parametrize("rival", RIVALS)
def test_what_comes_before_what(tmp_path, rival):
    """The rival has the lower number, which decides where nothing else does."""
    worse, better = RIVALS[rival]
    add(tmp_path / "a", 1, **worse)
    add(tmp_path / "b", 2, **better)
    assert chosen(tmp_path) == 2


def test_what_is_alike_goes_by_number_and_then_by_uid(tmp_path):
    add(tmp_path, 7)
    add(tmp_path, 3)
    assert chosen(tmp_path) == 3
    twins = sorted([add(tmp_path / "a", 1), add(tmp_path / "b", 1)])
    assert choose_series(find_series(tmp_path)).uid == twins[0]


def test_a_protocol_of_scout_and_head_makes_no_scout(tmp_path):
    add(tmp_path, 1, ProtocolName="Topogram and head, MIP", SeriesDescription="Head 5.0")
    assert chosen(tmp_path) == 1


@pytest.mark.parametrize(
    ("kernel", "sharp"),
    [
        *[(name, False) for name in ("H30s", "H40f", "B20f", "J30s", "Hr40f", "Hc38", "Qr40d", "Br44f")],
        *[(name, True) for name in ("H60s", "H70h", "B70f", "J70h", "Hr64", "Br59d", "Bl57d", "Ur77u")],
        *[(name, False) for name in ("STANDARD", "SOFT", "CHEST", "Stnd")],
        *[(name, True) for name in ("BONE", "BONEPLUS", "EDGE", "LUNG", "DETAIL", "HD BONE PLUS")],
        *[(name, False) for name in ("A", "B", "UA", "UB", "EB")],
        *[(name, True) for name in ("C", "D", "YC", "YB", "L")],
        *[(name, False) for name in ("FC21", "FC26", "FC08", "FC64", "FC68", "FC43", "FC13-H")],
        *[(name, True) for name in ("FC30", "FC35", "FC52", "FC81")],
        *[("H_SOFT_B", False), ("B_SHARP_C", True), ("", False), ("something", False)],
    ],
)
def test_kernels_of_the_makers(kernel, sharp):
    assert is_sharp(kernel) is sharp
    if kernel not in ("", "something"):
        assert is_sharp(kernel, "bone" if not sharp else "brain") is sharp  # the kernel knows better


@pytest.mark.parametrize(
    ("words", "sharp"),
    [
        ("Head Bone 1.0", True),
        ("CRANE OS", True),
        ("Schädel Knochenfenster", True),
        ("cranio osso", True),
        ("lung", True),
        ("post op", False),
        ("Osman head 5.0", False),
        ("Kopf nativ 5.0", False),
    ],
)
def test_words_stand_in_for_a_kernel(words, sharp):
    assert is_sharp("", words) is sharp


@pytest.mark.parametrize(
    ("words", "agent"),
    [
        *[
            (words, True)
            for words in ("Head C+", "HEAD W/ CONTRAST", "CTA COW", "Perf 5.0 H20f", "cerebro con contraste")
        ],
        *[(words, True) for words in ("HEAD POST IV", "HEAD POST CON", "HEAD POST CON 5.0", "POST IV BRAIN")],
        *[(words, True) for words in ("CT HEAD POST IV CON", "Kopf postKM", "HEAD POST_CONTR", "HEAD POST-IV")],
        *[
            (words, False)
            for words in (
                "Head W/O",
                "HEAD PRE CON",
                "HEAD POST CONTUSION",
                "HEAD PRE POST CON",
                "HEAD WITHOUT CONTRAST",
                "Kopf ohne KM",
                "Schädel nativ",
                "NCCT 5.0",
            )
        ],
        *[(words, False) for words in ("crane sans injection", "sin contraste", "non-contrast head", "Post fossa", "")],
    ],
)
def test_words_tell_of_a_contrast_agent(words, agent):
    assert with_contrast_agent(words) is agent


@pytest.mark.parametrize(
    ("part", "words", "other"),
    [
        *[("HEAD", words, False) for words in ("Head/Neck", "CCT 5.0", "Spi 2.0", "Darstellung", "")],
        *[("", words, True) for words in ("HWS 1.0", "Thorax", "facial bones", "Felsenbein rechts")],
        *[("CHEST", "Head", True), ("HEADNECK", "", False), ("ORBIT", "", False), ("", "", False)],
    ],
)
def test_words_tell_of_another_part_of_the_body(part, words, other):
    assert of_another_part(part, words) is other


def test_a_flair_is_known_by_its_names(tmp_path):
    add(tmp_path, 1, modality="MR", SeriesDescription="t2_tse_tra", count=30)
    add(tmp_path, 2, modality="MR", SeriesDescription="ax", ProtocolName="t2_tirm_tra_dark-fluid_fs")
    add(tmp_path, 3, modality="CT", SeriesDescription="FLAIR", count=30)
    add(tmp_path, 4, modality="MR", SeriesDescription="Synthetic T1 from FLAIR series 2", count=30)
    assert chosen(tmp_path, "FLAIR") == 2
    assert chosen(tmp_path, "T2") == 1
    add(
        tmp_path,
        5,
        modality="MR",
        SeriesDescription="3D FLAIR sag",
        orientation=(0, 1, 0, 0, 0, -1),
        way=(-1, 0, 0),
        count=9,
    )
    assert chosen(tmp_path, "FLAIR") == 5


def test_a_study_without_one_tells_what_there_is(tmp_path):
    add(tmp_path, 1, count=30, modality="MR")
    add(tmp_path, 2, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    add(tmp_path, 3, orientation=CORONAL, way=(0, 1, 0))
    with pytest.raises(CaseError) as caught:
        choose_series(find_series(tmp_path))
    said = str(caught.value)
    assert said.startswith(f"The DICOM study {STUDY} has no axial CT series to translate (")
    for words in ("MR of 30 slices: modality MR", "CT of 6 slices: a localizer", "CT of 6 slices: not axial"):
        assert words in said
    assert "Doe" not in said
    assert said.count(". ") == 0


def test_slices_that_do_not_say_where_they_lie_or_lie_twice(tmp_path):
    def placeless(slice_, _):
        del slice_.ImagePositionPatient

    write_dicom_series(tmp_path / "a", heights(4), voxels=8, spacing=30, study=STUDY, change=placeless)

    def other_values(slice_, index):
        slice_.PixelData = bytes([index, 0]) * 64

    write_dicom_series(tmp_path / "b", heights(4) * 2, voxels=8, spacing=30, study=STUDY, number=2, change=other_values)
    reasons = {series.number: why_unusable(series) for series in find_series(tmp_path)}
    assert reasons[1].startswith("no position of its slices")
    assert reasons[2] == "several slices at one place"


def test_a_series_of_several_stacks_is_split(tmp_path):
    """A scout and two sizes under one UID."""
    uid = add(tmp_path / "a", 1, count=5)
    same = {"SeriesInstanceUID": uid}
    add(tmp_path / "b", 2, count=1, orientation=CORONAL, **same)
    add(tmp_path / "c", 3, count=7, PixelSpacing=[20, 20], **same)
    stacks = find_series(tmp_path)
    assert sorted(series.slices for series in stacks) == [1, 5, 7]
    assert {series.uid for series in stacks} == {uid}
    assert choose_series(stacks).slices == 7
    assert named_series(stacks, [uid])[0].slices == 7


@pytest.mark.parametrize("degrees", [0, 44, -44])
def test_axial_is_within_45_degrees(tmp_path, degrees):
    add(tmp_path, 1, orientation=tilted(degrees))
    assert chosen(tmp_path) == 1


def test_files_are_known_by_what_is_in_them(tmp_path):
    """Any nesting and names, copies, other files, no preamble, an index, a hidden file, a link."""
    add(tmp_path / "x" / "y", 1)
    first = tmp_path / "x" / "y" / "1_001"
    shutil.copy(first, tmp_path / "copy.txt")
    bare = tmp_path / "x" / "y" / "1_002"
    bare.write_bytes(bare.read_bytes()[132:])
    (tmp_path / "notes.txt").write_text("no DICOM, but longer than its mark would begin " * 9)
    (tmp_path / "report.pdf").write_bytes(b"%PDF-1.7")
    (tmp_path / "empty").touch()
    (tmp_path / ".hidden").write_bytes(first.read_bytes().replace(STUDY.encode(), STUDY.encode()[:-1] + b"2"))
    index = pydicom.dcmread(first)
    index.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    for name in ("SeriesInstanceUID", "StudyInstanceUID", "PixelData"):
        delattr(index, name)
    index.save_as(tmp_path / "DICOMDIR")
    os.symlink(tmp_path / "x", tmp_path / "again")
    os.mkfifo(tmp_path / "pipe")
    (series,) = find_series(tmp_path)
    assert series.slices == 6
    assert len(set(series.files)) == 6
    np.testing.assert_allclose(series.stack.positions[:, 2], heights(6))


def test_a_raw_volume_is_not_searched_for_elements(tmp_path, monkeypatch):
    monkeypatch.setattr("scripts.dicom.headers.read_header", lambda path: pytest.fail("it was"))
    (tmp_path / "raw").write_bytes(b"\x08\0" + bytes(1000))
    assert find_series(tmp_path) == []


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"])
def test_data_sets_without_anything_before_them_are_read(tmp_path, syntax):
    add(tmp_path, 1)
    for path in tmp_path.iterdir():
        bare = pydicom.Dataset()
        bare.update(pydicom.dcmread(path))
        bare.save_as(path, implicit_vr=syntax.endswith("8.1.2"), little_endian=not syntax.endswith(".2.2"))
        assert path.read_bytes()[128:132] != b"DICM"
    (series,) = find_series(tmp_path)
    assert series.slices == 6


def test_files_stand_in_the_order_of_their_slices(tmp_path):
    add(tmp_path, 1, count=12)
    names = [path.name for path in tmp_path.iterdir()]
    shuffled = random.Random(1).sample(names, len(names))
    for name, other in zip(names, shuffled, strict=True):
        (tmp_path / name).rename(tmp_path / f"new_{other}")
    (series,) = find_series(tmp_path)
    found = [pydicom.dcmread(path).ImagePositionPatient[2] for path in series.files]
    assert found == heights(12)


def enhanced(folder, order, **shared):
    """An Enhanced CT of one file, its frames in this order; values tell the height."""
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    def item(**tags):
        one = Dataset()
        for name, value in tags.items():
            setattr(one, name, value)
        return one

    write_dicom_series(folder, [0.0], voxels=8, spacing=30)
    (path,) = folder.iterdir()
    image = pydicom.dcmread(path)
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"):
        delattr(image, name)
    image.NumberOfFrames = len(order)
    image.SharedFunctionalGroupsSequence = Sequence(
        [
            item(
                PlaneOrientationSequence=Sequence([item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])]),
                PixelMeasuresSequence=Sequence([item(PixelSpacing=[30, 30], SliceThickness=5)]),
                PixelValueTransformationSequence=Sequence([item(RescaleSlope=2, RescaleIntercept=-10)]),
            )
        ]
    )
    image.PerFrameFunctionalGroupsSequence = Sequence(
        [item(PlanePositionSequence=Sequence([item(ImagePositionPatient=[-105, -105, 5.0 * i])])) for i in order]
    )
    image.PixelData = np.repeat(np.array(order, dtype="<i2"), 64).tobytes()
    for name, value in shared.items():
        setattr(image, name, value)
    image.save_as(path)
    return path


def test_the_frames_of_an_enhanced_ct_are_slices(tmp_path):
    from scripts.dicom.pixels import series_values

    path = enhanced(tmp_path / "in", [3, 0, 4, 1, 2])
    (series,) = find_series(path)
    assert (series.slices, series.files) == (5, (path,))
    assert choose_series([series]) is series
    np.testing.assert_allclose(series.stack.positions[:, 2], [0, 5, 10, 15, 20])
    assert [values.mean() for values in series_values(series)] == [-10, -8, -6, -4, -2]
    convert(series, tmp_path / "ct.nii")
    image = nib.load(tmp_path / "ct.nii")
    heights_of = [nib.affines.apply_affine(image.affine, [0, 0, k])[2] for k in range(5)]
    np.testing.assert_allclose(heights_of, [0, 5, 10, 15, 20])
    assert [float(value) for value in image.dataobj[4, 4]] == [-10, -8, -6, -4, -2]


def several_stacks(folder, axial=4, coronal=7, echoes=1):
    """An Enhanced CT with axial frames, of several echoes, and more that are coronal."""
    from pydicom.dataset import Dataset

    path = enhanced(folder, [*range(axial)] * echoes + [*range(coronal)])
    image = pydicom.dcmread(path)
    (shared,) = image.SharedFunctionalGroupsSequence
    ways = [[1, 0, 0, 0, 1, 0]] * axial * echoes + [[1, 0, 0, 0, 0, -1]] * coronal
    for number, (frame, way) in enumerate(zip(image.PerFrameFunctionalGroupsSequence, ways, strict=True)):
        one = Dataset()
        one.ImageOrientationPatient = way
        frame.PlaneOrientationSequence = [one]
        if way[-1]:
            frame.PlanePositionSequence[0].ImagePositionPatient = [-105, 5.0 * number, 0]
    del shared.PlaneOrientationSequence
    image.save_as(path)
    return path


def test_of_one_file_of_several_stacks_the_axial_one_is_read(tmp_path):
    """Slicer issue 1007 and dcm2niix issue 140; the largest stack is another."""
    path = several_stacks(tmp_path / "in")
    volume = LoadVolume()(inference_datalist(path)[0]["image"])
    assert volume.shape == (8, 8, 4)
    assert [float(value) for value in volume[4, 4]] == [-10, -8, -6, -4]
    assert [one.frame for one in source_slices(volume)] == [1, 2, 3, 4]


@pytest.mark.parametrize("syntax", [None, "1.2.840.10008.1.2.5"])
def test_frames_that_are_not_taken_are_neither_counted_nor_decoded(tmp_path, monkeypatch, syntax):
    from scripts.dicom import pixels
    from scripts.volumes import load

    path = several_stacks(tmp_path / "in")
    if syntax is not None:
        image = pydicom.dcmread(path)
        image.compress(syntax)
        image.save_as(path)
    sizes, significant, decoded = [], pixels._significant, []
    monkeypatch.setattr(load, "check_size", lambda shape, name: sizes.append(tuple(shape)))
    monkeypatch.setattr(
        pixels, "_significant", lambda stored, ds: decoded.append(len(stored)) or significant(stored, ds)
    )
    volume = LoadVolume()([str(path)])
    assert sizes[0] == (8, 8, 4)
    assert decoded == [4]
    assert [float(value) for value in volume[4, 4]] == [-10, -8, -6, -4]


def test_an_unforeseen_error_is_logged_with_its_place_and_without_a_name(tmp_path, monkeypatch, caplog):
    from scripts.volumes import load

    def lacking(*_):
        return {}["Doe^Jane"]

    add(tmp_path / "in", 1)
    monkeypatch.setattr(load, "convert", lacking)
    with pytest.raises(CaseError, match=r"A DICOM series cannot be read \(KeyError\); export it again\."):
        LoadVolume()([str(path) for path in sorted((tmp_path / "in").iterdir())])
    assert re.search(r"A DICOM series cannot be read: KeyError \(test_series.py, line \d+\)\.", caplog.text)
    assert "Doe" not in caplog.text


def test_an_enhanced_ct_that_lacks_frames_is_refused(tmp_path):
    from scripts.dicom.pixels import series_values

    (series,) = find_series(enhanced(tmp_path / "in", [0, 1, 2, 3], NumberOfFrames=3))
    with pytest.raises(CaseError, match="truncated"):
        series_values(series)


def test_a_case_for_each_study_beside_other_volumes(tmp_path, caplog):
    for study in "12":
        for number, kernel in ((1, "H30s"), (2, "H70s")):
            add(tmp_path / "DOE_JOHN" / "flat", int(study) * 10 + number, study=STUDY + study, ConvolutionKernel=kernel)
    add(tmp_path / "DOE_JOHN" / "only_mr", 5, study=STUDY + "3", modality="MR")
    write_cube(tmp_path / "DOE_JOHN" / "other.nii.gz")
    caplog.set_level(logging.INFO)
    items = inference_datalist(tmp_path / "DOE_JOHN")
    cases = [item["case"] for item in items]
    assert cases[0] == "other"
    assert [case.split("_")[0] for case in cases[1:]] == ["ct", "ct", "study"]
    assert len({case for case in cases if len(case.split("_")[-1]) == 12}) == 3
    assert [len(item["image"]) for item in items[1:]] == [6, 6, 6]
    assert "failure" not in items[1]
    assert "modality MR" in items[3]["failure"]
    said = caplog.text + json.dumps([item["case"] for item in items]) + items[3]["failure"]
    assert "6 slices, of 2 in its study (not: 1 sharp kernel)" in said
    for name in ("DOE", "Doe", "flat", "head of"):
        assert name not in said


def test_a_series_named_by_its_uid_is_taken_whatever_it_is(tmp_path):
    soft, bone = add(tmp_path, 1), add(tmp_path, 2, ConvolutionKernel="H70s")
    write_cube(tmp_path / "other.nii.gz")
    (item,) = inference_datalist(tmp_path, series_uid=bone)
    assert {uid_of(path) for path in item["image"]} == {bone}
    assert len(inference_datalist(tmp_path, series_uid=f"{soft}, {bone}")) == 2
    assert len(inference_datalist(tmp_path, series_uid=[soft, bone])) == 2
    with pytest.raises(CaseError) as caught:
        inference_datalist(tmp_path, series_uid="1.2.3")
    assert "no DICOM series 1.2.3" in str(caught.value)
    for words in (f"{soft} (CT, 6 slices)", f"{bone} (CT, 6 slices)"):
        assert words in str(caught.value)
    assert "Doe" not in str(caught.value)


def test_one_series_uid_in_two_studies_is_two_cases(tmp_path):
    uid = add(tmp_path / "a", 1)
    add(tmp_path / "b", 2, study=STUDY + "2", SeriesInstanceUID=uid)
    add(tmp_path / "c", 3, study=STUDY + "3")
    items = inference_datalist(tmp_path)
    assert len({item["case"] for item in items}) == 3
    assert sorted(len(item["case"].split("_")) for item in items) == [2, 3, 3]
    assert items[:2] == inference_datalist(tmp_path, series_uid=uid)


def test_what_cannot_be_read_is_counted_and_not_named(tmp_path, caplog):
    """A damaged file at the end of a stack leaves no gap."""
    add(tmp_path / "in", 1)
    (tmp_path / "in" / "DOE").mkdir()
    last = tmp_path / "in" / "1_006"
    (tmp_path / "in" / "DOE" / "JOHN").write_bytes(last.read_bytes()[:300])
    index = pydicom.dcmread(last)
    index.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    del index.SeriesInstanceUID
    index.save_as(tmp_path / "in" / "DICOMDIR")
    last.unlink()
    (series,) = find_series(tmp_path / "in")
    assert series.slices == 5
    assert caplog.messages == ["Files that are damaged DICOM or cannot be opened: 1; they are left out."]


def test_a_zip_or_a_damaged_file_is_not_named(tmp_path):
    for name, content in (("DOE_JOHN.zip", b"PK\3\4"), ("DOE_JOHN.dcm", bytes(128) + b"DICM")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CaseError, match="no volume this bundle reads, or damaged") as caught:
            inference_datalist(tmp_path / name)
        assert "DOE" not in str(caught.value)


def test_one_file_of_dicom_is_its_series(tmp_path):
    path = enhanced(tmp_path / "in", [0, 1, 2])
    (item,) = inference_datalist(path)
    assert item["image"] == [str(path)]
    add(tmp_path / "single", 1)
    (item,) = inference_datalist(tmp_path / "single" / "1_001")
    assert "CT of 1 slices: too few slices" in item["failure"]


def test_kept_names_are_the_folders(tmp_path):
    for name, study in (("b/ct", "1"), ("c", "2"), ("c", "3"), ("d/e", "4")):
        add(tmp_path / "in" / name, int(study), study=STUDY + study)
    write_cube(tmp_path / "in" / "d_e.nii.gz")
    cases = [item["case"] for item in inference_datalist(tmp_path / "in", keep_names=True)]
    plain = [item["case"] for item in inference_datalist(tmp_path / "in")]
    digits = [case.split("_")[-1] for case in plain]
    assert cases == ["d_e", "b_ct", f"c_{digits[2]}", f"c_{digits[3]}", f"d_e_{digits[4]}"]
    (item,) = inference_datalist(tmp_path / "in" / "b" / "ct", keep_names=True)
    assert item["case"] == "ct"


def test_results_are_left_out_and_order_of_reading_does_not_matter(tmp_path):
    add(tmp_path / "in", 1)
    before = inference_datalist(tmp_path / "in")
    shutil.copytree(tmp_path / "in", tmp_path / "in" / "out" / "case_t1_dicom")
    add(tmp_path / "in" / "out", 2, study=STUDY + "9")
    assert inference_datalist(tmp_path / "in", tmp_path / "in" / "out") == before


def test_why_is_told_in_numbers(tmp_path):
    add(tmp_path, 1, ConvolutionKernel="BONE", count=30)
    uid = add(tmp_path, 2, ConvolutionKernel="STANDARD", count=9)
    add(tmp_path, 3, ConvolutionKernel="SOFT")
    add(tmp_path, 4, ImageType=["DERIVED", "PRIMARY", "LOCALIZER"])
    series = find_series(tmp_path)
    said = why_chosen(choose_series(series), series)
    assert said == (
        f"series {uid}, number 2, 9 slices, of 4 in its study (not: 1 a localizer, 1 fewer slices, 1 sharp kernel)"
    )


def test_what_speaks_against_the_only_series_is_told(tmp_path):
    uid = add(tmp_path, 1, ContrastBolusAgent="IOMERON", ConvolutionKernel="H60s")
    (series,) = find_series(tmp_path)
    assert why_chosen(series, [series]) == (
        f"series {uid}, number 1, 6 slices, with contrast agent, sharp kernel, of 1 in its study"
    )


@pytest.mark.parametrize(("said", "lie", "doubted"), [(17, 17, False), (-17, 17, False), (17, 0, True), (0, 17, True)])
def test_a_tilt_that_the_places_contradict_is_told(tmp_path, said, lie, doubted, caplog):
    add(tmp_path, 1, orientation=tilted(lie), GantryDetectorTilt=said)
    LoadVolume()(tmp_path)
    assert (f"GantryDetectorTilt is {said}.0 degrees, but the slices lean by {lie}.0" in caplog.text) is doubted


def test_slices_each_with_a_series_of_its_own_are_told_in_one_breath(tmp_path):
    """medInria pull request 156."""
    for number, path in enumerate(sorted(write_dicom_series(tmp_path, heights(12), voxels=8).iterdir())):
        slice_ = pydicom.dcmread(path)
        slice_.SeriesInstanceUID = f"{STUDY}.{number + 1}"
        slice_.save_as(path)
    (item,) = inference_datalist(tmp_path)
    assert "(12 times CT of 1 slices: too few slices); give another study" in item["failure"]


NAMED = {
    "T1": [
        *(
            "T1 pre",
            "T1 pre contrast",
            "T1 w/o contrast",
            "T1 nativ",
            "MPRAGE post op",
            "T1 post-OP nativ",
            "T1 postop",
        ),
        *("AX T1 FLAIR", "POSTERIOR FOSSA T1", "T1 MPRAGE ohne KM", "T1W_FFE", "t1_fl2d_tra", "T1 sans injection"),
        *("t1_vibe", "T1 SPACE", "POST FOSSA T1", "T1 C SPINE", "T1 C-", "T1 pregad"),
    ],
    "T1ce": [
        *("SAG T1 pre-op +C", "T1 MPRAGE PREOP GD", "MPRAGE preop post gado", "T1 post presurgical", "T1 Gadovist"),
        *("T1 KM", "T1 nach KM", "3D T1 CONTRAST", "Ax T1 C+", "T1+C", "BRAVO +C", "T1W_TFE_GD", "T1 VIBE post"),
        *("Ax T1 FLAIR +C", "T1GD", "COR T1 POSTGAD", "t1_with_contrast", "T1KM", "T1 W/ C", "T1POST", "MPRAGEGD"),
        *("T1 GADAVIST", "T1 MAGNEVIST", "T1 APRES INJECTION", "post gad T1", "T1 INJ", "t1w post", "t1w post gad"),
        *("ax t1w post gd", "t1w_post contrast", "t1w nach km", "t1w post km"),
    ],
    "T2": ["T2 TSE", "t2_tse_tra_p2", "AX T2 PROPELLER", "t2_space"],
    "FLAIR": ["Ax T2 FLAIR", "t2_space_dark-fluid_sag", "t2_tirm_tra_dark-fluid", "FLAIR post GD", "sag 3d flair"],
    "PD": ["PD TSE", "pd_tse_fs"],
    "none": [
        *(
            "T1 DCE",
            "T1 VIBE DCE",
            "T1 SUBTRACTION",
            "AX T1 SUB",
            "T1 PRE GD",
            "T1 pre and post",
            "FLAIR T1",
            "T1 PERF",
        ),
        *("T1W W/WO", "T1W/WO", "T1 w & w/o gad", "T1 mit und ohne KM", "T1 pre/post gad"),
        *("T1 C", "T1 W/WO", "T1 with and without contrast", "3D TOF T1", "T1 angio", "T1RHO", "T2 flash", "T2 epi"),
        *("t2_fl2d_tra_hemo", "AX T2 GRE", "T2W_FFE", "T2*W_FFE", "DSC T2", "T2 PERF", "ep2d_diff T2", "dDWI T2"),
        *("T2 STIR", "STIR", "t2_tirm_tra", "PD T2 dual", "PD_perf", "SWI T2", "T1 map", "T2 map", "T1 PERF"),
    ],
}


@pytest.mark.parametrize(("contrast", "description"), [(name, one) for name, them in NAMED.items() for one in them])
def test_what_a_description_names(mr, contrast, description):
    told = dataclasses.replace(mr, description=description)
    named = [name for name in ("T1", "T1ce", "T2", "FLAIR", "PD") if why_unusable(told, name) is None]
    assert named == ([] if contrast == "none" else [contrast])


def test_a_description_goes_before_a_protocol_of_several_contrasts(mr):
    told = dataclasses.replace(mr, description="T2 TSE", protocol="BRAIN T1 T2 PD")
    assert [name for name in ("T1", "T2", "PD") if why_unusable(told, name) is None] == ["T2"]
    assert why_unusable(dataclasses.replace(mr, description="ax", protocol="T1 T2"), "T1") == "not named T1"


@pytest.fixture(scope="module")
def mr(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mr")
    add(folder, 1, modality="MR", count=5)
    (series,) = find_series(folder)
    return series
