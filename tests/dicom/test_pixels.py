"""Values come out as they went in, however they are stored; what is damaged is refused and never read as something."""

import shutil
import subprocess

import numpy as np
import pytest

from scripts.dicom.pixels import frame_values, series_values
from scripts.dicom.series import find_series
from scripts.dicom.source import source_slices, stack_of
from scripts.errors import CaseError
from scripts.volumes.load import LoadVolume
from tests.trees import ball_head, write_dicom_series

pydicom = pytest.importorskip("pydicom")

HEIGHTS = [10.0 * i + 5 for i in range(4)]
# options of DCMTK's programs, and how far a lossy one may be off, HU
DCMTK = {
    "JPEG lossless, first predictor": (["dcmcjpeg", "+e1"], 0),
    "JPEG lossless, sixth predictor": (["dcmcjpeg", "+el", "+sv", "6"], 0),
    "JPEG extended, 12 bits": (["dcmcjpeg", "+ee", "+q", "95"], 40),
    "RLE": (["dcmcrle"], 0),
    "JPEG-LS": (["dcmcjpls"], 0),
    "deflated": (["dcmconv", "+td"], 0),
    "big endian": (["dcmconv", "+tb"], 0),
    "implicit": (["dcmconv", "+ti"], 0),
    "no preamble": (["dcmconv", "-F", "+ti"], 0),
}
JPEG_2000 = {
    "JPEG 2000 lossless": ("1.2.840.10008.1.2.4.90", {}, 0),
    "JPEG 2000": ("1.2.840.10008.1.2.4.91", {"j2k_cr": [8]}, 30),
}

COMPRESSED = [name for name in (*DCMTK, *JPEG_2000) if name.startswith(("JPEG", "RLE"))]


def hu_of(points):
    """Soft tissue with structure, bone and air."""
    waves = 30 * np.sin(points[..., 0] / 7) * np.cos(points[..., 1] / 9) + 10 * np.sin(points[..., 2])
    return np.clip(ball_head(points) + np.round(waves), -1024, 3000).astype(np.int16)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A series as scanners send it: 12 bits of 16, no sign."""
    folder = tmp_path_factory.mktemp("plain")

    def unsigned(slice_, _):
        slice_.PixelRepresentation, slice_.BitsStored, slice_.HighBit = 0, 12, 11

    return write_dicom_series(folder / "in", HEIGHTS, hu_of=hu_of, change=unsigned)


def values_of(folder):
    (series,) = find_series(folder)
    return np.stack(series_values(series))


def encoded(plain, folder, command):
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} (Debian's package dcmtk) is not installed")
    folder.mkdir()
    for path in plain.iterdir():
        subprocess.run([*command, str(path), str(folder / path.name)], check=True, capture_output=True)
    return folder


def as_jpeg_2000(plain, folder, name):
    for package in ("pylibjpeg", "openjpeg"):
        pytest.importorskip(package, reason="pylibjpeg-openjpeg, which makes such files, is not installed")
    folder.mkdir()
    for path in plain.iterdir():
        slice_ = pydicom.dcmread(path)
        slice_.compress(JPEG_2000[name][0], **JPEG_2000[name][1])
        slice_.save_as(folder / path.name)
    return folder


@pytest.fixture(scope="module", params=[*DCMTK, *JPEG_2000])
def stored(request, plain, tmp_path_factory):
    """(folder, tolerance) of the series in each transfer syntax."""
    folder = tmp_path_factory.mktemp("stored") / "in"
    if request.param in JPEG_2000:
        return as_jpeg_2000(plain, folder, request.param), JPEG_2000[request.param][2]
    command, tolerance = DCMTK[request.param]
    return encoded(plain, folder, command), tolerance


def test_every_transfer_syntax_gives_the_same_values(stored, plain):
    folder, tolerance = stored
    values, truth = values_of(folder), values_of(plain)
    assert values.dtype == np.int16
    assert (truth.min(), truth.max() > 1500) == (-1024, True)
    assert np.abs(values.astype(int) - truth).max() <= tolerance


@pytest.mark.parametrize("kept", [0.4, 0.8])
def test_a_truncated_file_is_refused(stored, tmp_path, kept):
    folder = shutil.copytree(stored[0], tmp_path / "in")
    path = sorted(folder.iterdir())[1]
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(CaseError, match="truncated, damaged") as caught:
        frame_values(path, "the DICOM series 1.2")
    assert "Doe" not in str(caught.value)


def test_one_value_less_is_truncated(plain, tmp_path):
    path = tmp_path / "slice"
    path.write_bytes(sorted(plain.iterdir())[1].read_bytes()[:-2])
    with pytest.raises(CaseError, match="truncated, damaged"):
        frame_values(path, "the DICOM series 1.2")


@pytest.mark.parametrize("stored", COMPRESSED, indirect=True)
@pytest.mark.parametrize("kept", [0.5, 0.95])
def test_a_code_stream_cut_off_in_a_whole_file_is_refused(stored, tmp_path, kept):
    from pydicom.encaps import encapsulate, generate_frames

    folder = shutil.copytree(stored[0], tmp_path / "in")
    path = sorted(folder.iterdir())[1]
    slice_ = pydicom.dcmread(path, force=True)
    frame = next(generate_frames(slice_.PixelData, number_of_frames=1))
    slice_.PixelData = encapsulate([frame[: int(kept * len(frame)) // 2 * 2]])
    slice_.save_as(path)
    with pytest.raises(CaseError, match="truncated, damaged"):
        frame_values(path, "the DICOM series 1.2")


def edited(tmp_path, change):
    return values_of(write_dicom_series(tmp_path / "edited", HEIGHTS, hu_of=hu_of, change=change))


def stored_values(slice_):
    return np.frombuffer(slice_.PixelData, "<i2").astype(int)


def other_intercepts(slice_, index):
    slice_.RescaleIntercept = -1024 - 10 * index
    slice_.PixelData = (stored_values(slice_) + 10 * index).astype("<i2").tobytes()


def inverted_display(slice_, _):
    slice_.PhotometricInterpretation = "MONOCHROME1"


def high_bits(slice_, _):
    slice_.PixelRepresentation, slice_.BitsStored, slice_.HighBit = 0, 12, 15
    slice_.PixelData = (stored_values(slice_) << 4).astype("<u2").tobytes()


def overlay_in_the_upper_bits(slice_, _):
    slice_.PixelRepresentation, slice_.BitsStored, slice_.HighBit = 0, 12, 11
    values = stored_values(slice_)
    values[::7] |= 0x8000
    slice_.PixelData = values.astype("<u2").tobytes()


def twelve_bits_with_sign(slice_, _):
    slice_.BitsStored, slice_.HighBit, slice_.RescaleIntercept = 12, 11, 0
    slice_.PixelData = (np.clip(stored_values(slice_) - 1024, -2048, 2047) & 0xFFF).astype("<u2").tobytes()


def thirty_two_bits(slice_, _):
    slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit = 32, 32, 31
    slice_.PixelData = stored_values(slice_).astype("<i4").tobytes()


@pytest.mark.parametrize(
    "change",
    [other_intercepts, inverted_display, high_bits, overlay_in_the_upper_bits, twelve_bits_with_sign, thirty_two_bits],
)
def test_hounsfield_units_whatever_stands_in_the_bits(tmp_path, plain, change):
    np.testing.assert_array_equal(edited(tmp_path, change), values_of(plain))


def test_slopes_of_their_own_for_each_slice(tmp_path, plain):
    def slopes(slice_, index):
        slice_.RescaleSlope = 0.5 + 0.013 * index
        stored = stored_values(slice_) / slice_.RescaleSlope
        slice_.PixelData = np.round(stored).astype("<i2").tobytes()

    values = edited(tmp_path, slopes)
    assert values.dtype == np.float32
    assert np.abs(values - values_of(plain)).max() < 0.3


def test_padding_stays_and_fits(tmp_path, plain):
    def padding(slice_, _):
        values = stored_values(slice_)
        values[:96] = slice_.PixelPaddingValue = -32768
        slice_.PixelData = values.astype("<i2").tobytes()

    values = edited(tmp_path, padding)
    assert values.dtype == np.int16
    assert (values[:, 0] == -32768).all()
    np.testing.assert_array_equal(values[:, 1:], values_of(plain)[:, 1:])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ModalityLUTSequence": []}, "Modality LUT"),
        ({"Modality": "MR", "PhotometricInterpretation": "MONOCHROME1"}, "inverted"),
        ({"Rows": 97}, "truncated"),
        ({"BitsAllocated": 1}, "truncated"),
    ],
)
def test_what_is_unclear_is_refused(tmp_path, change, words):
    def spoil(slice_, _):
        for name, value in change.items():
            setattr(slice_, name, value)

    folder = write_dicom_series(tmp_path / "in", HEIGHTS, change=spoil)
    with pytest.raises(CaseError, match=words):
        frame_values(next(folder.iterdir()), "the DICOM series 1.2")


def spoilt(tmp_path, name, values):
    """A series in which single slices, by their number from 1, have another value of an element (None: not there)."""

    def change(slice_, index):
        if index in values:
            setattr(slice_, name, values[index])
            if values[index] is None:
                delattr(slice_, name)

    heights = [10.0 * i + 5 for i in range(8)]
    return write_dicom_series(tmp_path / "in", heights, voxels=48, spacing=5.0, hu_of=hu_of, change=change)


def exchanged(folder, name):
    """The third slice and the sixth have each other's value of an element."""
    paths = [folder / "1_003", folder / "1_006"]
    one, other = map(pydicom.dcmread, paths)
    one[name], other[name] = other[name], one[name]
    one.save_as(paths[0])
    other.save_as(paths[1])
    return folder


@pytest.mark.parametrize(
    ("name", "values"),
    [("RescaleIntercept", {4: None}), ("RescaleIntercept", {8: 0}), ("RescaleSlope", {1: 3}), ("BitsStored", {5: 9})],
)
def test_a_slice_whose_header_contradicts_those_beside_it_is_refused(tmp_path, name, values):
    with pytest.raises(CaseError, match="are stored in different ways"):
        values_of(spoilt(tmp_path, name, values))


@pytest.mark.parametrize(("name", "value"), [("BitsStored", 17), ("HighBit", 3), ("PixelRepresentation", 5)])
def test_bits_that_cannot_be_are_refused(tmp_path, name, value):
    with pytest.raises(CaseError, match="truncated, damaged"):
        values_of(spoilt(tmp_path, name, {2: value}))


def test_a_slope_of_zero_is_refused(tmp_path):
    with pytest.raises(CaseError, match="has a RescaleSlope of 0"):
        values_of(spoilt(tmp_path, "RescaleSlope", {2: 0}))


def test_slices_that_have_changed_places_are_refused_and_numbers_that_have_are_not(tmp_path):
    truth = values_of(spoilt(tmp_path / "truth", "KVP", {}))
    numbers = exchanged(spoilt(tmp_path / "numbers", "KVP", {}), "InstanceNumber")
    np.testing.assert_array_equal(values_of(numbers), truth)
    with pytest.raises(CaseError, match=r"Slices 3 and 6 of .* do not lie where their InstanceNumber puts them"):
        values_of(exchanged(spoilt(tmp_path / "places", "KVP", {}), "ImagePositionPatient"))


def written(slice_, name, text, kind="DS"):
    """Put a text into an element as it stands in a file, whatever it is."""
    from pydicom.datadict import tag_for_keyword
    from pydicom.dataelem import RawDataElement

    content = text.encode() + b" " * (len(text) % 2)
    tag = pydicom.tag.Tag(tag_for_keyword(name))
    slice_[tag] = RawDataElement(tag, kind, len(content), content, 0, False, True)


def with_commas(slice_, _):
    for name in ("PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient", "RescaleSlope", "RescaleIntercept"):
        values = np.atleast_1d(np.asarray(slice_[name].value, dtype=float))
        written(slice_, name, "\\".join(str(float(value)).replace(".", ",") for value in values))


def separated_by_commas(slice_, _):
    written(slice_, "PixelSpacing", "2.5,2.5")


def of_another_kind(slice_, _):
    written(slice_, "PixelSpacing", "2.5\\2.5", "UT")
    written(slice_, "RescaleSlope", "1,0", "LO")


def longer_than_allowed(slice_, _):
    x, y, z = slice_.ImagePositionPatient
    written(slice_, "ImagePositionPatient", f"{x:.22f}\\{y:.22f}\\{z:.22f}\0")
    written(slice_, "ImageOrientationPatient", "1.0000000000000002\\1.0e-17\\0\\0\\1\\6.123233995736766e-17")


@pytest.mark.parametrize("change", [with_commas, separated_by_commas, of_another_kind, longer_than_allowed])
def test_decimals_are_read_as_they_are_meant(tmp_path, plain, change):
    """dcmjs issue 287, pydicom issues 173 and 828, nii2dcm issue 48; the DICOM output has what it needs of them."""
    folder = write_dicom_series(tmp_path / "in", HEIGHTS, hu_of=hu_of, change=change)
    (series,), (clean,) = find_series(folder), find_series(plain)
    np.testing.assert_allclose(series.stack.positions, clean.stack.positions)
    assert series.stack.spacing == clean.stack.spacing
    np.testing.assert_array_equal(np.stack(series_values(series)), values_of(plain))
    beside = stack_of(source_slices(LoadVolume()(folder)))
    np.testing.assert_allclose(beside.positions, clean.stack.positions)
    assert beside.spacing == clean.stack.spacing


@pytest.mark.parametrize("text", ["1,0,0", "one", "1\\2", "1.0\\1.0", "nan", "inf", "--1", "1,000.5", "1.0.0"])
@pytest.mark.parametrize("name", ["RescaleSlope", "RescaleIntercept"])
def test_what_is_no_number_is_not_taken_for_nothing(tmp_path, name, text):
    with pytest.raises(CaseError, match="has a RescaleSlope or RescaleIntercept that is no number, so its values are"):
        edited(tmp_path, lambda slice_, _: written(slice_, name, text))


@pytest.mark.parametrize("text", ["", " ", "\0\0"])
def test_a_slope_that_is_empty_is_none(tmp_path, plain, text):
    same = edited(tmp_path, lambda slice_, _: written(slice_, "RescaleSlope", text))
    np.testing.assert_array_equal(same, values_of(plain))
