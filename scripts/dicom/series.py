"""Which DICOM series there are, and which of a study is the one to translate."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CaseError
from ..files import files_below, sha256_of_file
from .headers import Header, Plane, read_header, read_headers
from .kernels import is_sharp
from .series_text import not_in_hu, of_another_part, with_contrast_agent
from .stack import Stack

FEWEST_SLICES = 3
# CT, Enhanced CT, Legacy Converted Enhanced CT; the same of MR, without spectroscopy (PS3.4 B.5)
_IMAGES = {"CT": ("2", "2.1", "2.2"), "MR": ("4", "4.1", "4.4")}
_STORAGE = "1.2.840.10008.5.1.4.1.1."
_LOCALIZER = re.compile(r"LOCALI[SZ]ER|SCOUT|TOPOGRAM|SURVIEW|SCANOGRAM|SCANOSCOPE")
_PROJECTION = re.compile(r"\b(MIP|M(IN|AX) ?IP|VRT?|SSD|VOLREN|PROJECTION|VOLUME RENDER\w*|M(AX|IN)IMUM)\b")
_SCREEN = re.compile(r"SCREEN SAVE|\bDOSE\b|PROTOCOL|PATIENT ?DOSE")
_FLAIR = re.compile(r"flair|dark.?fluid|tirm")


_NO_AGENT = ("", "0", "NO", "NONE", "N/A", "NOT APPLICABLE", "WITHOUT")

_Slice = tuple[Plane | None, Header, int]  # where it lies, its file, its frame there


@dataclass(frozen=True, eq=False)
class Series:
    """A stack of parallel slices of one DICOM series; a series of several stacks is several of these.

    Attributes:
        uid: SeriesInstanceUID.
        study_uid: StudyInstanceUID.
        modality: CT, MR, ...
        sop_class: SOPClassUID.
        number: SeriesNumber.
        description: SeriesDescription. People write names into it: for rules alone, as the next.
        protocol: ProtocolName and SequenceName.
        kernel: ConvolutionKernel.
        image_type: ImageType.
        body_part: BodyPartExamined.
        contrast_agent: ContrastBolusAgent.
        frame_of_reference: FrameOfReferenceUID.
        rescale_type: RescaleType.
        gantry_tilt: GantryDetectorTilt, degrees; None where the header does not say.
        coloured: whether its pixels are colours.
        frames: file and index of the frame of each slice, in their order along the stack's normal.
        stack: where the slices lie; None where the headers do not say.
    """

    uid: str
    study_uid: str
    modality: str
    sop_class: str
    number: int | None
    description: str
    protocol: str
    kernel: str
    image_type: tuple[str, ...]
    body_part: str
    contrast_agent: str
    frame_of_reference: str
    rescale_type: str
    gantry_tilt: float | None
    coloured: bool
    frames: tuple[tuple[Path, int], ...]
    stack: Stack | None

    @property
    def slices(self) -> int:
        """How many slices it has."""
        return len(self.frames)

    @property
    def files(self) -> tuple[Path, ...]:
        """Each file once, in the order of the slices."""
        return tuple(dict.fromkeys(path for path, _ in self.frames))

    @property
    def doubt(self) -> str | None:
        """In words, where the gantry was tilted otherwise than the slices lie; None where nothing contradicts."""
        if self.stack is None or self.gantry_tilt is None:
            return None
        lean = max(abs(angle) for angle in self.stack.lean_deg)
        if abs(abs(self.gantry_tilt) - lean) < 1:
            return None
        return (
            f"GantryDetectorTilt is {self.gantry_tilt:.1f} degrees, but the slices lean by {lean:.1f}; where they lie "
            "is believed, look at the picture"
        )

    @property
    def name(self) -> str:
        """How sentences call it."""
        return f"the DICOM series {self.uid}"


def find_series(root: Path, left_out: Any = None) -> list[Series]:
    """Every stack of slices of every DICOM series in a folder and the folders below it, or in one file.

    Files are known by their content, whatever they are called; what is no DICOM is passed over, and so is what belongs
    to no series (DICOMDIR). A copy of a file counts once. The order does not depend on the names of the files.

    Args:
        root: a folder or a file.
        left_out: folder that is left out of the search.

    Raises:
        CaseError: there is DICOM, and the package pydicom is missing.
    """
    return series_of(read_headers([root] if root.is_file() else files_below(root, left_out)))


def read_series(files: Iterable[Path]) -> list[Series]:
    """As `find_series`, of these files."""
    return series_of(read_headers(files))


def series_of(headers: Iterable[Header]) -> list[Series]:
    """The stacks that headers tell of, sorted by study, series and size."""
    groups: dict[tuple[str, str], list[Header]] = {}
    for header in headers:
        uid = header.text("SeriesInstanceUID")
        groups.setdefault((header.text("StudyInstanceUID") or uid, uid), []).append(header)
    return [series for key in sorted(groups) for series in _stacks(groups[key])]


def _stacks(headers: list[Header]) -> list[Series]:
    """The stacks of one series, largest first."""
    stacks: list[list[_Slice]] = []
    placeless: list[_Slice] = []
    for header in sorted(headers, key=_identity):
        for frame, plane in enumerate(header.planes):
            if plane is None:
                placeless.append((plane, header, frame))
                continue
            fitting = (stack for stack in stacks if stack[0][0].parallel_to(plane))
            if (stack := next(fitting, None)) is None:
                stacks.append(stack := [])
            stack.append((plane, header, frame))
    found = [_placed(stack) for stack in sorted(stacks, key=len, reverse=True)]
    return [*found, _series(placeless, None)] if placeless else found


def _identity(header: Header) -> tuple:
    return header.number("InstanceNumber") or 0, header.text("SOPInstanceUID"), header.texts("ImagePositionPatient")


def _placed(slices: list[_Slice]) -> Series:
    plane = slices[0][0]
    row, column = plane.orientation.reshape(2, 3)
    positions = np.array([plane.position for plane, _, _ in slices])
    order = np.argsort(positions @ np.cross(row, column), kind="stable")
    turned = max(np.linalg.norm(other.orientation - plane.orientation) for other, _, _ in slices)
    stack = Stack(positions[order], row, column, plane.shape, plane.spacing, float(np.degrees(turned)))
    return _series([slices[index] for index in order], stack)


def _series(slices: list[_Slice], stack: Stack | None) -> Series:
    """A series with the values of its first header."""
    first = slices[0][1]
    uid = first.text("SeriesInstanceUID")
    return Series(
        uid=uid,
        study_uid=first.text("StudyInstanceUID") or uid,
        modality=first.text("Modality").upper(),
        sop_class=first.text("SOPClassUID"),
        number=first.number("SeriesNumber"),
        description=first.text("SeriesDescription"),
        protocol=f"{first.text('ProtocolName')} {first.text('SequenceName')}",
        kernel=first.text("ConvolutionKernel"),
        image_type=tuple(word.upper() for word in first.texts("ImageType")),
        body_part=first.text("BodyPartExamined").upper(),
        contrast_agent=first.text("ContrastBolusAgent").upper(),
        frame_of_reference=first.text("FrameOfReferenceUID"),
        rescale_type=first.text("RescaleType"),
        gantry_tilt=first.real("GantryDetectorTilt"),
        coloured=not (first.text("PhotometricInterpretation") or "MONOCHROME2").startswith("MONOCHROME"),
        frames=tuple((header.path, frame) for _, header, frame in slices),
        stack=stack,
    )


def choose_series(series: Sequence[Series], contrast: str = "CT") -> Series:
    """The series of one study to translate.

    What can be translated is a CT (or, for another contrast, an MR whose SeriesDescription, ProtocolName or
    SequenceName names it, such as FLAIR) of at least 3 slices, each at a place of its own, one value a pixel; a CT has
    to be axial: the slices' normal within 45 degrees of the body's axis. No localizer, dose report, secondary capture,
    projection, map, subtraction, synthetic series or series over time. Of those, in this order:

    1. of the head, or of no named part, before those whose BodyPartExamined or SeriesDescription names another part of
       the body, or a part of the head alone (sinuses, temporal bone);
    2. of CT: without a contrast agent before with one, by ContrastBolusAgent or SeriesDescription (CTA, perfusion);
    3. of CT: a soft kernel before a sharp one (`is_sharp`);
    4. the most slices;
    5. ORIGINAL before DERIVED;
    6. the lowest series number, then the smallest UID.

    The order of the series given, and of their files, decides nothing.

    Args:
        series: of one study, as by `find_series`.
        contrast: CT, or what the MR is to be.

    Raises:
        CaseError: none can be translated; the sentence tells what there is.
    """
    usable = [one for one in series if why_unusable(one, contrast) is None]
    if not usable:
        what = "axial CT series" if _is_ct(contrast) else f"MR series named {contrast}"
        raise CaseError(
            f"The DICOM study {series[0].study_uid} has no {what} to translate ({_listed(series, contrast)}); give "
            "another study, or name a series with series_uid."
        )
    return min(usable, key=lambda one: _rank(one, contrast))


def named_series(series: Sequence[Series], uids: Sequence[str], contrast: str = "CT") -> list[Series]:
    """The series of these UIDs, in this order; of several stacks in a study, that which `choose_series` would prefer.

    Raises:
        CaseError: one is not there; the sentence lists those that are.
    """
    chosen = []
    for uid in dict.fromkeys(uids):
        stacks = [one for one in series if one.uid == uid]
        if not stacks:
            there = ", ".join(f"{one.uid} ({one.modality}, {one.slices} slices)" for one in series)
            raise CaseError(
                f"There is no DICOM series {uid} in dataset_dir; give as series_uid one of those that are: "
                f"{there or 'none'}."
            )
        for _, study in groupby(sorted(stacks, key=_study), key=_study):
            chosen.append(min(study, key=lambda one: (why_unusable(one, contrast) is not None, _rank(one, contrast))))
    return chosen


def _study(series: Series) -> str:
    return series.study_uid


def why_unusable(series: Series, contrast: str = "CT") -> str | None:
    """What keeps a series from being translated, in a few words; None if nothing does. See `choose_series`."""
    modality = "CT" if _is_ct(contrast) else "MR"
    words = " ".join(series.image_type).replace("_", " ")
    description = series.description.upper()
    if series.modality != modality:
        return f"modality {series.modality or 'unknown'}"
    if series.sop_class and series.sop_class not in [_STORAGE + ending for ending in _IMAGES[modality]]:
        captured = series.sop_class.startswith(f"{_STORAGE}7")
        return "a secondary capture" if captured else f"no {modality} image"
    if _LOCALIZER.search(words) or _LOCALIZER.search(description):
        return "a localizer"
    if _SCREEN.search(words) or re.search(r"\bDOSE (REPORT|INFO)", description):
        return "a dose report or screen"
    if _PROJECTION.search(words) or re.search(r"\b(MIP|MINIP|MAXIP|VRT)\b", description):
        return "a projection"
    if description.startswith("SYNTHETIC "):
        return "synthetic"  # what this bundle writes itself
    if series.coloured:
        return "colours"
    if modality == "CT" and not_in_hu(words, series.description, series.rescale_type):
        return "a map or subtraction, not in HU"
    return _why_no_volume(series, contrast)


def _why_no_volume(series: Series, contrast: str) -> str | None:
    if series.stack is None:
        return "no position of its slices (ImagePositionPatient, ImageOrientationPatient, PixelSpacing)"
    if series.slices < FEWEST_SLICES:
        return "too few slices"
    if series.stack.repeats:
        return "several slices at one place"
    if _is_ct(contrast):
        return None if series.stack.axial else "not axial"
    return None if _names(f"{series.description} {series.protocol}", contrast) else f"not named {contrast}"


def _is_ct(contrast: str) -> bool:
    return contrast.upper() == "CT"


def _names(description: str, contrast: str) -> bool:
    """Whether an MR's description names a contrast; a T2-weighted FLAIR is no T2."""
    text, flair = description.lower(), contrast.upper() == "FLAIR"
    if _FLAIR.search(text):
        return flair
    return re.search(rf"(?<![a-z0-9]){re.escape(contrast.lower())}", text) is not None


def _rank(series: Series, contrast: str) -> tuple:
    """What `choose_series` prefers comes first."""
    ct = _is_ct(contrast)
    return (
        of_another_part(series.body_part, series.description),
        ct and (series.contrast_agent not in _NO_AGENT or with_contrast_agent(series.description)),
        ct and is_sharp(series.kernel, series.description),
        -series.slices,
        "DERIVED" in series.image_type[:1],
        float("inf") if series.number is None else series.number,
        series.uid,
    )


def why_chosen(chosen: Series, series: Sequence[Series], contrast: str = "CT") -> str:
    """For the log: what was chosen among how many, and why not the others; UIDs and numbers alone."""
    others: Counter[str] = Counter()
    reasons = ("of another part of the body", "with contrast agent", "sharp kernel", "fewer slices", "derived")
    best = _rank(chosen, contrast)
    for one in series:
        if one is not chosen:
            pairs = zip(_rank(one, contrast), best, strict=True)
            first = next((index for index, (its, ours) in enumerate(pairs) if its != ours), len(reasons))
            others[why_unusable(one, contrast) or (*reasons, "higher number", "same")[min(first, 5)]] += 1
    number = "" if chosen.number is None else f", number {chosen.number}"
    bad = "".join(f", {why}" for why, so in zip(reasons[:3], best, strict=False) if so)
    text = f"series {chosen.uid}{number}, {chosen.slices} slices{bad}, of {len(series)} in its study"
    left = ", ".join(f"{count} {why}" for why, count in sorted(others.items()))
    return f"{text} (not: {left})" if left else text


def _listed(series: Sequence[Series], contrast: str, most: int = 8) -> str:
    reasons = [f"{one.modality or 'unknown'} of {one.slices} slices: {why_unusable(one, contrast)}" for one in series]
    return "; ".join(reasons[:most]) + (f"; and {len(reasons) - most} more" if len(reasons) > most else "")


def digits_of_uid(uid: str) -> str:
    """12 hexadecimal digits that stand for a UID in file names."""
    return hashlib.sha256(uid.encode()).hexdigest()[:12]


def series_record(files: Sequence[str]) -> dict[str, Any]:
    """What a JSON says of a series: "series_uid", "study_uid", how many "files", and the "sha256" of their digests."""
    uid, study_uid = series_identity(files[0])
    try:
        digests = "".join(sha256_of_file(file) for file in files)
    except OSError:  # its message names the file
        raise CaseError(f"A file of the DICOM series {uid} cannot be read; give the series again.") from None
    digest = hashlib.sha256(digests.encode()).hexdigest()
    return {"series_uid": uid, "study_uid": study_uid, "files": len(files), "sha256": digest}


def series_name(files: Sequence[str]) -> str:
    """How records name a series."""
    try:
        return f"DICOM series {series_identity(files[0])[0]}"
    except CaseError:
        return "a DICOM series that cannot be read"


def series_folder(files: Sequence[str], root: Path | None) -> str:
    """The folder that holds the files of a series: its path below `root`, else its bare name."""
    folder = Path(os.path.commonpath([Path(file).parent for file in files]))
    below = root is not None and folder != root and folder.is_relative_to(root)
    return folder.relative_to(root).as_posix() if below else folder.resolve().name


def patient_of(file: str) -> dict[str, str]:
    """Whose scan a file is: "patient_name" and "patient_id"; for records of runs with `keep_names`."""
    header = read_header(Path(file), ("SeriesInstanceUID", "PatientName", "PatientID", "SpecificCharacterSet"))
    names = {"patient_name": "PatientName", "patient_id": "PatientID"}
    return {key: "" if header is None else header.text(name) for key, name in names.items()}


def series_identity(file: str) -> tuple[str, str]:
    """SeriesInstanceUID and StudyInstanceUID of a file.

    Raises:
        CaseError: it is no DICOM of a series any more.
    """
    header = read_header(Path(file), ("SeriesInstanceUID", "StudyInstanceUID"))
    if header is None:
        raise CaseError("A file of the DICOM series is not there any more or damaged; give the series again.")
    uid = header.text("SeriesInstanceUID")
    return uid, header.text("StudyInstanceUID") or uid
