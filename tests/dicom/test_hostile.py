"""Hostile DICOM: whatever was done to a folder, what comes out is the right image, or a sentence for each case.

A seed decides what is done. The phantom is a ramp: its values are places in mm, so that each voxel tells where it is.
"""

import contextlib
import gzip
import io
import math
import os
import random
import re
import shutil
import time

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import Compose, EnsureChannelFirstd

from scripts.data.datalists import inference_datalist
from scripts.errors import CaseError, reason
from scripts.transforms.checks import CheckVolumed
from scripts.volumes.load import LoadVolumed
from tests.trees import tilted, write_dicom_series

pydicom = pytest.importorskip("pydicom")

SLICES, VOXELS, SPACING, GAP = 10, 16, 8.0, 5.0
STUDY, SERIES = "1.2.826.0.1.3680043.8.498.99", "1.2.826.0.1.3680043.8.498.99.1"
READ = Compose([LoadVolumed("image"), EnsureChannelFirstd("image"), CheckVolumed("image")])
ORIENTATIONS = [(1, 0, 0, 0, 1, 0), (-1, 0, 0, 0, 1, 0), (0, 1, 0, 1, 0, 0), tilted(12), tilted(-20)]
GEOMETRY = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns", "NumberOfFrames")
STORAGE = ("RescaleSlope", "RescaleIntercept", "BitsStored", "HighBit", "BitsAllocated", "PixelRepresentation")
OTHERS = (
    *("PatientID", "PatientName", "PatientBirthDate", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"),
    *("FrameOfReferenceUID", "SOPClassUID", "Modality", "InstanceNumber", "SeriesNumber", "AcquisitionNumber"),
    *("AcquisitionTime", "ContentTime", "ImageType", "KVP", "ConvolutionKernel", "WindowCenter", "WindowWidth"),
    *("PhotometricInterpretation", "SamplesPerPixel", "SliceThickness", "SpecificCharacterSet", "GantryDetectorTilt"),
    *("TemporalPositionIdentifier", "StackID", "PixelPaddingValue", "PixelData", "SeriesDescription"),
)
NUMBERS = ("0", "-1", "1", "2", "4096", "65535", "1e30", "1e-9", "nan", "inf", "", "x", "1\\2\\3\\4\\5\\6\\7", "\\\\")
WRITING_FAILS = (Exception,)  # whatever pydicom makes of what it is asked to write
IMPOSSIBLE = ("0", "-1", "1e30", "1e-9", "nan", "inf", "", "x", "\\\\")


def ramp(points):
    return np.round((100 + points @ [1, 0.5, 1]) * 8).astype(np.int16)


def value_of(places):
    """What `ramp` has there, with the slope of 1/8."""
    return 100 + places @ [1, 0.5, 1]


def write_ramp(folder, orientation, change=None):
    """A series whose values tell their places."""

    def eighths(slice_, index):
        slice_.RescaleSlope, slice_.RescaleIntercept, slice_.SeriesInstanceUID = 0.125, -128, SERIES
        slice_.AcquisitionNumber, slice_.KVP, slice_.SliceThickness = 1, "120", GAP

    heights = [GAP * i for i in range(SLICES)]
    options = {"voxels": VOXELS, "spacing": SPACING, "hu_of": ramp, "study": STUDY, "change": eighths}
    write_dicom_series(folder, heights, orientation, suffix=".dcm", **options)


def raw_element(slice_, name, text):
    """Put bytes into an element, valid or not, with no check on the way."""
    from pydicom.datadict import dictionary_VR, tag_for_keyword
    from pydicom.dataelem import RawDataElement
    from pydicom.tag import Tag

    tag, kind = Tag(tag_for_keyword(name)), dictionary_VR(name).split(" ")[0]
    if kind == "US":
        number = int(text) & 0xFFFF if re.fullmatch(r"-?\d+", text) else None
        content = text.encode() if number is None else number.to_bytes(2, "little")
    else:
        content = text.encode("latin-1")
    content += b" " * (len(content) % 2)
    slice_[tag] = RawDataElement(tag, kind, len(content), content, 0, False, True)


def edit(paths, change):
    for path in paths:
        with contextlib.suppress(*WRITING_FAILS):
            slice_ = pydicom.dcmread(path, force=True)
            change(slice_)
            save(slice_, path)


def save(slice_, path):
    """What was spoilt before may be more than pydicom writes."""
    buffer = io.BytesIO()
    slice_.save_as(buffer)
    path.write_bytes(buffer.getvalue())


def removed(rng, paths, every):
    name = rng.choice(OTHERS + GEOMETRY if every else OTHERS + GEOMETRY + STORAGE)
    edit(paths, lambda slice_: slice_.__delattr__(name) if name in slice_ else None)


def emptied(rng, paths, every):
    name = rng.choice(OTHERS + GEOMETRY if every else OTHERS + GEOMETRY + STORAGE)
    edit(paths, lambda slice_: raw_element(slice_, name, ""))


def other_value(rng, paths, every):
    """Of all slices only what cannot be: other spacings that can be are just another head."""
    name = rng.choice(GEOMETRY + OTHERS if every else GEOMETRY + OTHERS + STORAGE)
    name = "KVP" if name == "PixelData" else name
    values = IMPOSSIBLE if every and name in GEOMETRY else NUMBERS
    chosen = rng.choice(values)
    count = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}.get(name, 1)
    edit(paths, lambda slice_: raw_element(slice_, name, "\\".join([chosen] * count)))


def wrong_bytes(rng, paths, every):
    name = rng.choice(OTHERS + GEOMETRY)
    name = "KVP" if name == "PixelData" else name
    content = bytes(rng.randrange(256) for _ in range(rng.randrange(40)))
    edit(paths, lambda slice_: raw_element(slice_, name, content.decode("latin-1")))


def exchanged(rng, paths, every):
    """One element of two slices."""
    name = rng.choice(OTHERS[:-2] + GEOMETRY + STORAGE)
    one, other = rng.sample(sorted(paths[0].parent.iterdir()), 2)
    with contextlib.suppress(*WRITING_FAILS):
        first, second = (pydicom.dcmread(path, force=True) for path in (one, other))
        first[name], second[name] = second[name], first[name]
        save(first, one)
        save(second, other)


def cut_off(rng, paths, every):
    for path in paths:
        content = path.read_bytes()
        path.write_bytes(content[: rng.randrange(len(content))])


def grown(rng, paths, every):
    for path in paths:
        more = rng.choice([bytes(rng.randrange(300)), rng.choice(paths).read_bytes(), b"garbage" * rng.randrange(30)])
        path.write_bytes(path.read_bytes() + more)


def bits_flipped(rng, paths, every):
    """In the header: a pixel may be anything."""
    for path in paths:
        content = bytearray(path.read_bytes())
        end = content.find(b"\xe0\x7f\x10\0") if b"\xe0\x7f\x10\0" in content else 300
        for _ in range(rng.randrange(1, 4)):
            # numbers that stay numbers are another head
            place = rng.choice([i for i in range(end) if not chr(content[i]).isdigit()])
            if not 48 <= content[place] ^ 1 << (bit := rng.randrange(8)) < 58:
                content[place] ^= 1 << bit
        path.write_bytes(content)


def copied(rng, paths, every):
    for path in paths:
        uid = f"1.2.3.{rng.randrange(10**9)}" if rng.random() < 0.6 else None
        with contextlib.suppress(*WRITING_FAILS):
            slice_ = pydicom.dcmread(path, force=True)
            slice_.SOPInstanceUID = uid or slice_.SOPInstanceUID
            save(slice_, path.with_name("copy of " + os.fsencode(path.name).hex()))


def renamed(rng, paths, every):
    for path in paths:
        name = bytes(rng.choice([b for b in range(1, 256) if b not in (46, 47)]) for _ in range(rng.randrange(1, 30)))
        os.rename(path, os.path.join(os.fsencode(path.parent), name))


def packed(rng, paths, every):
    for path in paths:
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()


def without_preamble(rng, paths, every):
    for path in paths:
        path.write_bytes(path.read_bytes()[rng.choice([128, 132]) :])


def other_syntax(rng, paths, every):
    known = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.5", "1.2.3", "")
    chosen = rng.choice([*known, "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.50"])
    for path in paths:
        content, old = path.read_bytes(), b"1.2.840.10008.1.2.1\0"
        path.write_bytes(content.replace(old, chosen.encode()[: len(old)].ljust(len(old), b"\0"), 1))


def other_files(rng, paths, every):
    folder = paths[0].parent
    (folder / "scan.zip").write_bytes(b"PK\3\4")
    (folder / "empty.dcm").touch()
    if not os.path.lexists(folder / "link.nii.gz"):
        os.symlink(folder / "nowhere", folder / "link.nii.gz")
    shutil.copy(paths[0], folder / "._1_001.dcm")


DEEDS = (
    *(removed, emptied, other_value, other_value, wrong_bytes, exchanged, exchanged, cut_off, grown, bits_flipped),
    *(copied, renamed, packed, without_preamble, other_syntax, other_files),
)


def spoil(folder, rng):
    """Do one to three things to one, some or all files; gives their names."""
    done = []
    for _ in range(rng.choice([1, 1, 2, 3])):
        paths = sorted(path for path in folder.iterdir() if path.is_file() and path.stat().st_size > 1000)
        count = rng.choice([1, 1, 2, len(paths) // 2, len(paths)])
        chosen = sorted(rng.sample(paths, min(count, len(paths)))) if paths else []
        if chosen:
            deed = rng.choice(DEEDS)
            deed(rng, chosen, len(chosen) > 2)
            done.append(f"{deed.__name__} x {len(chosen)}")
    return done


def assert_sentence(text):
    print(text)  # shown where the test fails
    assert 20 < len(text) < 900, text
    assert text.endswith("."), text
    assert "\n" not in text, text
    assert "Unforeseen" not in text, text
    assert "Traceback" not in text, text
    assert "Doe" not in text, text


def assert_right(volume):
    """Every voxel well within what was scanned has the value of its place."""
    values = volume.numpy()[0]
    places = nib.affines.apply_affine(np.asarray(volume.affine), np.moveaxis(np.indices(values.shape), 0, -1))
    places = places * (-1, -1, 1)
    reach = SPACING * (VOXELS - 1) / 2 - SPACING
    inner = (np.abs(places[..., :2]) < reach * 0.6).all(axis=-1) & (places[..., 2] > 8) & (places[..., 2] < 36)
    inner &= (np.arange(values.shape[2]) > 0) & (np.arange(values.shape[2]) < values.shape[2] - 1)
    assert inner.any(), "no voxel lies where the scan was"
    off = np.abs(values[inner] - value_of(places[inner]))
    wrong = off > 0.6  # whole numbers are rounded again where they are interpolated
    assert not wrong.any(), f"{wrong.mean():.0%} of the voxels have not the value of their place, by {off.max():.1f}"


def cases_of(folder):
    """How many came out as an image and how many as a sentence, each checked."""
    try:
        items = inference_datalist(folder)
    except CaseError as error:
        assert_sentence(str(error))
        return 0, 1
    images = sentences = 0
    assert items
    assert len({item["case"] for item in items}) == len(items)
    for item in items:
        if "failure" in item:
            assert_sentence(item["failure"])
            sentences += 1
            continue
        try:
            volume = READ({"image": item["image"]})["image"]
        except Exception as error:
            assert_sentence(reason(error))
            sentences += 1
        else:
            assert volume.meta["dicom_files"]
            assert_right(volume)
            images += 1
    return images, sentences


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_what_was_left_alone_is_right(tmp_path, orientation):
    write_ramp(tmp_path / "in", orientation)
    assert cases_of(tmp_path / "in") == (1, 0)


SEEDS = [*range(30), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(30, 300))]


@pytest.mark.parametrize("seed", SEEDS)
def test_the_right_image_or_a_sentence(tmp_path, seed):
    rng = random.Random(seed)
    write_ramp(tmp_path / "in", rng.choice(ORIENTATIONS))
    done = spoil(tmp_path / "in", rng)
    print(done)
    start = time.monotonic()
    images, sentences = cases_of(tmp_path / "in")
    assert images + sentences > 0
    assert time.monotonic() - start < 60
    assert math.isfinite(images)
