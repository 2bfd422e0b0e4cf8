"""Headers of DICOM files, read without their pixels and without a word about what stands in them."""

from __future__ import annotations

import gzip
import logging
import math
import re
import stat
import warnings
import zlib
from collections.abc import Iterable, MutableSequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np

from ..errors import CaseError
from .decimals import mend_decimals

logger = logging.getLogger(__name__)

MOST_FRAMES = 100_000
"""That one file may have, whatever a damaged number says."""
SPACINGS_MM = (0.02, 100.0)
"""Edges of pixels that are believed; beyond, the header is damaged."""
FARTHEST_MM = 1e5
INSTALL = "pip install -r requirements.txt brings it"
_TAGS = (
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Modality"),
    *("SeriesNumber", "SeriesDescription", "ProtocolName", "SequenceName", "ConvolutionKernel", "ImageType"),
    *("BodyPartExamined", "ContrastBolusAgent", "RescaleType", "GantryDetectorTilt", "InstanceNumber"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns", "NumberOfFrames"),
    *(
        "PhotometricInterpretation",
        "SamplesPerPixel",
        "SharedFunctionalGroupsSequence",
        "PerFrameFunctionalGroupsSequence",
    ),
    "SamplesPerPixel",
    # what tells acquisitions and patients apart
    *("AcquisitionUID", "AcquisitionNumber", "AcquisitionDateTime", "AcquisitionTime", "ContentTime", "KVP", "StackID"),
    *("TemporalPositionIdentifier", "EchoNumbers", "EchoTime", "SliceThickness", "InversionTime", "RepetitionTime"),
    *("SeriesTime", "AcquisitionDate", "ContentDate", "InstanceCreationTime", "PatientPosition", "ScanOptions"),
    *("StationName", "DeviceSerialNumber"),
    *("PatientID", "PatientName", "PatientBirthDate", "SpecificCharacterSet"),
)
_STORAGE = "1.2.840.10008.5.1.4.1.1."
_PACKED = b"\x1f\x8b"


class Mark(Enum):
    """What a file is at its first bytes."""

    DICOM, MAYBE, NONE, UNREADABLE = range(4)


@dataclass(frozen=True, eq=False)
class Header:
    """A file and what its header says, as far as its elements were read."""

    path: Path
    values: Any  # pydicom.Dataset

    def text(self, name: str) -> str:
        """The first value of an element as text, "" where there is none."""
        return next(iter(self.texts(name)), "")

    def texts(self, name: str) -> tuple[str, ...]:
        """All values of an element as text."""
        try:
            value = self.values.get(name)
        except Exception:  # pydicom converts on access, and a damaged value may raise anything
            return ()
        if value is None:
            return ()
        values = list(value) if isinstance(value, MutableSequence) else [value]
        return tuple(text for text in (str(one).strip(" \0") for one in values) if text)

    def of_frame(self, frame: int, *names: str) -> str:
        """The values of the first of these elements that is there, of a frame or of the whole image, as one text."""
        frames = self._frames
        content = _items(frames[frame], "FrameContentSequence") if frame < len(frames) else []
        told = (Header(self.path, values).texts(name) for values in [*content[:1], self.values] for name in names)
        return next(("\\".join(texts) for texts in told if texts), "")

    @property
    def patient(self) -> tuple[str, str, str]:
        """PatientID, PatientName and PatientBirthDate, "" for what is not told, spelt alike."""
        name = " ".join(self.text("PatientName").partition("=")[0].replace("^", " ").replace(",", " ").split())
        born = self.text("PatientBirthDate")
        return self.text("PatientID").casefold(), name.lower(), born if re.fullmatch(r"\d{8}", born) else ""

    def number(self, name: str) -> int | None:
        """The first value of an element as a whole number, None where it is none."""
        try:
            return int(float(self.text(name)))
        except (ValueError, OverflowError):
            return None

    def real(self, name: str) -> float | None:
        """The value of an element as a finite number, None where it is none."""
        values = _numbers([self.values], name, 1)
        return None if values is None else float(values[0])

    @property
    def instance_number(self) -> float:
        """InstanceNumber, NaN where there is none."""
        number = self.real("InstanceNumber")
        return math.nan if number is None else number

    @property
    def planes(self) -> list[Plane | None]:
        """Where each frame lies; None for one that does not say, as where several frames have one place."""
        shape, groups = (self.number("Rows"), self.number("Columns")), self._groups()
        if len(groups) > 1 and groups[0] is groups[1]:
            return [None] * len(groups)
        return [_plane(shape, group) for group in groups]

    @property
    def rescales(self) -> list[tuple[float | None, float | None]]:
        """RescaleSlope and RescaleIntercept of each frame; None where there is none, NaN where it is no number."""
        return [
            tuple(_number_or_nan(datasets, name) for name in ("RescaleSlope", "RescaleIntercept"))
            for datasets in self._groups()
        ]

    @cached_property
    def _frames(self) -> list:
        """What is told of each frame of an enhanced image; looked up once for all of them."""
        return _items(self.values, "PerFrameFunctionalGroupsSequence")

    def _groups(self) -> list[list]:
        """The datasets that tell of each frame, the nearest first."""
        frames = self._frames
        if not frames:
            return [[self.values]] * min(max(self.number("NumberOfFrames") or 1, 1), MOST_FRAMES)
        shared = [macro for group in _items(self.values, "SharedFunctionalGroupsSequence") for macro in _macros(group)]
        return [[*_macros(frame), *shared] for frame in frames]


@dataclass(frozen=True, eq=False)
class Plane:
    """Where a slice lies, in DICOM's LPS mm: the first voxel, directions of columns and rows, edges of the pixels."""

    position: np.ndarray  # (3,)
    orientation: np.ndarray  # (6,)
    spacing: tuple[float, float]
    shape: tuple[int, int]

    def parallel_to(self, other: Plane) -> bool:
        """Whether both are slices of one stack."""
        return (
            self.shape == other.shape
            and np.abs(self.orientation - other.orientation).max() < 0.01
            and np.abs(np.subtract(self.spacing, other.spacing)).max() < 0.0005  # 0.3 mm over 512 pixels
        )


@dataclass(frozen=True, eq=False)
class Contents:
    """What files turned out to be.

    Attributes:
        headers: of DICOM objects of a series, each object once, however many copies there are.
        damaged: files marked as DICOM, or not to be opened, of which no header could be read.
        others: files that are no DICOM, links to nowhere, and indexes of DICOM files.
    """

    headers: list[Header]
    damaged: list[Path]
    others: list[Path]


def read_headers(paths: Iterable[Path]) -> list[Header]:
    """The headers of `read_contents`; how many files are damaged is logged.

    Raises:
        CaseError: there is DICOM, and the package pydicom is missing.
    """
    contents = read_contents(paths)
    if contents.damaged:
        logger.warning(f"Files that are damaged DICOM or cannot be opened: {len(contents.damaged)}; they are left out.")
    return contents.headers


def read_contents(paths: Iterable[Path]) -> Contents:
    """Sort files by what is in them.

    Files without the preamble are read too, and those packed by gzip. No file is named or quoted in the log: warnings
    quote values, which may be names.

    Raises:
        CaseError: there is DICOM, and the package pydicom is missing.
    """
    headers: dict[tuple, Header] = {}
    damaged, others = [], []
    for path in paths:
        mark = _mark(path)
        header = read_header(path) if mark in (Mark.DICOM, Mark.MAYBE) else None
        if header is not None:
            identity = header.texts("SOPInstanceUID") + header.texts("SeriesInstanceUID")
            # anonymised images may share one UID; at another place, or of another person, it is another image
            identity = (*identity, header.patient, header.texts("ImagePositionPatient"))
            other = headers.setdefault(identity, header)
            if other is not header and _size(path) > _size(other.path):  # one of them may have been cut off
                headers[identity] = header
        elif mark is Mark.UNREADABLE or (mark is Mark.DICOM and not _is_no_image(path)):
            damaged.append(path)
        else:
            others.append(path)
    return Contents(list(headers.values()), damaged, others)


def read_header(path: Path) -> Header | None:
    """The header of one file; None where it is no DICOM object of a series, and no image that has lost its UIDs."""
    header = header_of(path)
    if header is None or header.text("SeriesInstanceUID"):
        return header
    image = (
        header.number("Rows") and header.number("Columns") and (header.text("Modality") or header.text("SOPClassUID"))
    )
    return header if image and not _is_other_kind(header) else None


def header_of(path: Path, tags: Iterable[str] = _TAGS) -> Header | None:
    """Some elements of a file, whatever they say; None where it cannot be read."""
    try:
        with opened(path) as file:
            return Header(
                path, quiet_pydicom().dcmread(file, stop_before_pixels=True, force=True, specific_tags=[*tags])
            )
    except CaseError:
        raise
    except Exception:  # whatever pydicom makes of damaged bytes
        return None


def opened(path: Path) -> AbstractContextManager[BinaryIO]:
    """A DICOM file to read from, unpacked where gzip packed it."""
    with open(path, "rb") as file:
        packed = file.read(2) == _PACKED
    return gzip.open(path) if packed else open(path, "rb")


def quiet_pydicom() -> ModuleType:
    """The package pydicom, which from here on keeps to itself what is odd about a file: that may quote a name.

    It also reads decimals with a comma (`mend_decimals`).

    Raises:
        CaseError: it is missing.
    """
    try:
        import pydicom  # MONAI Label's environment and training do without
    except ImportError as error:
        raise CaseError(f"DICOM needs the package pydicom; {INSTALL}.") from error
    # for good, not in a context: another thread may be reading too
    warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    mend_decimals()
    return pydicom


def _mark(path: Path) -> Mark:
    """What the beginning of a file tells: DICOM's mark, or without the preamble the first element of a data set."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe would wait for ever
            return Mark.NONE
        with opened(path) as file:
            start = file.read(132)
    except (FileNotFoundError, gzip.BadGzipFile, zlib.error, EOFError):  # a link to nowhere; no gzip after all
        return Mark.NONE
    except OSError:
        return Mark.UNREADABLE
    if start[128:] == b"DICM":
        return Mark.DICOM
    return Mark.MAYBE if len(start) == 132 and _begins_like_data_set(start) else Mark.NONE


def _begins_like_data_set(start: bytes) -> bool:
    """An element of group 2 or 8 with a VR, or with a short value; other files take long to be found none of it."""
    if start[:2] not in (b"\2\0", b"\x08\0", b"\0\x08"):
        return False
    return (start[4:6].isalpha() and start[4:6].isupper()) or 0 < int.from_bytes(start[4:8], "little") <= 256


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _is_no_image(path: Path) -> bool:
    """Whether a file that belongs to no series is an index of others (DICOMDIR) or another kind without a series."""
    header = header_of(path, ("SOPClassUID",))
    return header is not None and _is_other_kind(header)


def _is_other_kind(header: Header) -> bool:
    kind = str(header.values.file_meta.get("MediaStorageSOPClassUID") or header.text("SOPClassUID"))
    return bool(kind) and not kind.startswith(_STORAGE)


def _items(dataset: Any, name: str) -> list:
    try:
        return list(dataset.get(name) or [])
    except Exception:
        return []


def _macros(group: Any) -> list:
    """The functional groups of an enhanced object in which a frame's place stands (PS3.3 C.7.6.16)."""
    names = ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
    names += ("PixelValueTransformationSequence",)
    return [item for name in names for item in _items(group, name)[:1]]


def _plane(shape: tuple[int | None, int | None], datasets: list) -> Plane | None:
    wanted = (("ImagePositionPatient", 3), ("ImageOrientationPatient", 6), ("PixelSpacing", 2))
    position, orientation, spacing = (_numbers(datasets, name, count) for name, count in wanted)
    if position is None or orientation is None or spacing is None or None in shape:
        return None
    row, column = orientation.reshape(2, 3)
    upright = abs(row @ column) < 0.01 and all(abs(np.linalg.norm(axis) - 1) < 0.01 for axis in (row, column))
    sized = SPACINGS_MM[0] <= min(spacing) and max(spacing) <= SPACINGS_MM[1] and min(shape) > 0
    if not (upright and sized and np.abs(position).max() < FARTHEST_MM):
        return None
    return Plane(position, orientation, tuple(spacing), shape)


def _numbers(datasets: list, name: str, count: int) -> np.ndarray | None:
    """The finite values of an element in the first dataset that has it, (count,); None where there are none."""
    for dataset in datasets:
        try:
            values = np.array(dataset[name].value, dtype=np.float64).reshape(-1)
        except Exception:
            continue
        if values.shape == (count,) and np.isfinite(values).all():
            return values
    return None


def _number_or_nan(datasets: list, name: str) -> float | None:
    """The one finite value of an element in the first dataset that has it; None where it is absent or empty."""
    numbers = _numbers(datasets, name, 1)
    if numbers is not None:
        return float(numbers[0])
    return math.nan if any(_says_something(dataset.get_item(name)) for dataset in datasets) else None


def _says_something(element: Any) -> bool:
    """Whether an element, converted or as it was read, is there and not empty."""
    value = getattr(element, "value", None)
    return bool(value.strip(b" \0")) if isinstance(value, bytes) else bool(str("" if value is None else value).strip())
