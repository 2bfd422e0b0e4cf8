"""Which DICOM series there are, and which of a study is the one to translate."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import numpy as np

from ..contrast_agents import says_agent, says_none
from ..errors import CaseError
from ..files import files_below, sha256_of_file
from .acquisitions import FEWEST_SLICES, Slice, acquisitions, heights_of, is_whole, taken_once, thickness_of
from .headers import Header, header_of, read_header, read_headers
from .identities import SeriesHeaders, by_series
from .kernels import is_sharp
from .series_text import not_in_hu, of_another_part, with_contrast_agent
from .stack import Stack

logger = logging.getLogger(__name__)

# CT, Enhanced CT, Legacy Converted Enhanced CT; the same of MR, without spectroscopy (PS3.4 B.5)
_IMAGES = {"CT": ("2", "2.1", "2.2"), "MR": ("4", "4.1", "4.4")}
_STORAGE = "1.2.840.10008.5.1.4.1.1."
_LOCALIZER = re.compile(r"LOCALI[SZ]ER|SCOUT|TOPOGRAM|SURVIEW|SCANOGRAM|SCANOSCOPE")
_PROJECTION = re.compile(r"\b(MIP|M(IN|AX) ?IP|VRT?|SSD|VOLREN|PROJECTION|VOLUME RENDER\w*|M(AX|IN)IMUM)\b")
_SCREEN = re.compile(r"SCREEN SAVE|\bDOSE\b|PROTOCOL|PATIENT ?DOSE")
_T1 = re.compile(r"(?<![a-z0-9])(t1(?![ _-]?(map|rho))|mprage|mp2rage|bravo)")
_FLAIR = re.compile(r"flair|dark.?fluid")
_T1_FLAIR = re.compile(r"(?<![a-z0-9])t1w?[ _-]*(flair|tirm)")
_FLAIR_T1 = re.compile(r"(flair|tirm)[ _-]*t1(?![a-z0-9])")
# Before and after surgery or treatment, or at a place, tells nothing of an agent.
_SURGERY = re.compile(
    r"(?<![a-z])(pre|post)[ _-]*(op(?![a-z])|oper\w*|surg\w*|rt(?![a-z])|radi\w*|treat\w*|therap\w*|chemo\w*|resect\w*"
    r"|biops\w*|trauma\w*|ictal|stroke|fossa)"
)
# The w of `T1w post` is that of the weighting.
_AND = r"[ _]*(and|&|/|\+|u|und)?[ _]*"
_BOTH = re.compile(
    rf"((?<![a-z])(with|mit|pre|vor){_AND}(w/?o|without|ohne|post|nach)"
    rf"|((?<![a-z0-9])w|(?<![a-z])w/){_AND}(w/?o|without))(?![a-z])"
)
_POST = re.compile(r"(?<![a-z])(t1w?)?post(?![a-z])")
_LONE_C = re.compile(r"(?<![a-z])c(?![a-z]|[ _-]*(spine|sp(?![a-z])|wk|ws))")
# What is made of an excitation of one weighting and is not an image of it, and what makes a T2* of a T2.
_OTHER_SCAN = re.compile(
    r"(?<![a-z0-9])(sub|subtr\w*|dce|perf\w*|dsc|pwi|diff\w*|d?dwi|dti|adc|swip?|swan|stir|tirm|dyn\w*|hemo|haemo"
    r"|tof|mr[av]|angio\w*|twist|tricks|bold|molli)(?![a-z])"
)
_T2_STAR = re.compile(
    r"(?<![a-z0-9])(gre|ffe|hemo|haemo|star|medic|merge|flash|ep2d\w*|epi|\*?fl[23]d\w*)(?![a-z])|t2w?(star|\*)"
)


_NO_AGENT = ("", "0", "NO", "NONE", "N/A", "NOT APPLICABLE", "WITHOUT")


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
        numbers: InstanceNumber of each slice, NaN where it has none.
        patient: 0 where all images of the study are of one patient; else a number of the patient, from 1.
        apart_by: keyword of what tells the slices apart from others of the series between which they lie; "" where
            nothing has to.
        mixed: whether slices of its UID that name another patient or study look like parts of the same scan.
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
    numbers: tuple[float, ...]
    patient: int = 0
    apart_by: str = ""
    mixed: bool = False

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
            f"GantryDetectorTilt is {self.gantry_tilt:.1f} degrees, but the slices lean by {lean:.1f}; their "
            "positions are used, look at the picture"
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
    """The stacks that headers tell of, sorted by study, patient, series and size."""
    groups = by_series(headers)
    stacks = {id(group): _stacks(group) for group in groups}
    mixed = _mixed(groups, stacks)
    found = []
    for group in groups:
        for slices, apart_by in stacks[id(group)]:
            found.append(_series(group, slices, apart_by, id(slices) in mixed))
    return found


_Stacks = list[tuple[list[Slice], str]]  # and what tells their slices apart from those between which they lie


def _stacks(group: SeriesHeaders) -> _Stacks:
    """The stacks of one series, largest first; slices without a place come last.

    A localizer, projection or screen is no slice of the scan whose UID it has, wherever it lies.
    """
    kinds: dict[tuple, list[list[Slice]]] = {}
    placeless: dict[tuple, list[Slice]] = {}
    for header in sorted(group.headers, key=_identity):
        kind = _kind(header)
        parallel = kinds.setdefault(kind, [])
        for frame, plane in enumerate(header.planes):
            if plane is None:
                placeless.setdefault(kind, []).append(Slice(plane, header, frame))
                continue
            fitting = (stack for stack in parallel if stack[0].plane.parallel_to(plane))
            if (stack := next(fitting, None)) is None:
                parallel.append(stack := [])
            stack.append(Slice(plane, header, frame))
    parallel = chain.from_iterable(kinds.values())
    stacks = chain.from_iterable(_separated(_without_copies(stack, group.uid)) for stack in parallel)
    by_size = sorted(stacks, key=lambda stack: -len(stack[0]))
    return [*by_size, *((slices, "") for slices in sorted(placeless.values(), key=len, reverse=True))]


def _kind(header: Header) -> tuple[str | None, bool]:
    """Of what kind an image is, by its own header: see `_other_kind`; and whether it has several samples a pixel."""
    image_type = [word.upper() for word in header.texts("ImageType")]
    return _other_kind(header.text("SOPClassUID"), image_type), (header.number("SamplesPerPixel") or 1) > 1


def _without_copies(slices: list[Slice], uid: str) -> list[Slice]:
    once = taken_once(slices, f"the DICOM series {uid}")
    if len(once) < len(slices):
        twice = len(slices) - len(once)
        logger.warning(
            f"the DICOM series {uid}: {twice} slices are there twice, at one place with the same values or one of the "
            "two damaged; each is taken once."
        )
    return once


def _separated(slices: list[Slice]) -> _Stacks:
    volumes, apart_by = acquisitions(slices)
    if len(volumes) == 1:
        return [(slices, "")]
    return [(part, inner or apart_by) for volume in volumes for part, inner in _separated(volume)]


def _mixed(groups: Sequence[SeriesHeaders], stacks: dict[int, _Stacks]) -> set[int]:
    """Stacks, by their id, of several patients or studies under one SeriesInstanceUID that look like one scan together.

    Whole scans of several do not fit together so, or lie within each other with slices as close as thick.
    """
    found: set[int] = set()
    for _, ones in groupby(sorted(groups, key=lambda group: group.uid), key=lambda group: group.uid):
        placed = [[slices for slices, _ in stacks[id(one)] if slices[0].plane is not None] for one in ones]
        for number, own in enumerate(placed):
            others = list(chain.from_iterable(placed[:number] + placed[number + 1 :]))
            for slices in own:
                parallel = [other for other in others if other[0].plane.parallel_to(slices[0].plane)]
                if parallel and _fit_together(slices, parallel):
                    found.add(id(slices))
    return found


def _fit_together(slices: list[Slice], others: Sequence[list[Slice]]) -> bool:
    every = [*slices, *chain.from_iterable(others)]
    heights = np.sort(heights_of(every))
    if not is_whole(heights, None):
        return False
    own, thickness = np.sort(heights_of(every)[: len(slices)]), thickness_of(every)
    within = ((heights > own[0]) & (heights < own[-1])).sum() > len(own) - 2
    return not (within and thickness is not None and is_whole(own, thickness))


def _identity(header: Header) -> tuple:
    return header.number("InstanceNumber") or 0, header.text("SOPInstanceUID"), header.texts("ImagePositionPatient")


def _placed(slices: list[Slice]) -> tuple[list[Slice], Stack]:
    """The slices in the order along their normal, and where they lie."""
    plane = slices[0].plane
    row, column = plane.orientation.reshape(2, 3)
    order = np.argsort(heights_of(slices), kind="stable")
    positions = np.array([slices[index].plane.position for index in order])
    turned = max(np.linalg.norm(one.plane.orientation - plane.orientation) for one in slices)
    stack = Stack(positions, row, column, plane.shape, plane.spacing, float(np.degrees(turned)))
    return [slices[index] for index in order], stack


def _series(group: SeriesHeaders, slices: list[Slice], apart_by: str, mixed: bool) -> Series:
    """A series with the values that most of its headers have."""
    stack = None
    if slices[0].plane is not None:
        slices, stack = _placed(slices)
    headers = list(dict.fromkeys(one.header for one in slices))

    def texts(name: str) -> tuple[str, ...]:
        told = Counter(header.texts(name) for header in headers)
        return max(told, key=lambda values: (told[values] if values else 0, values))

    def text(name: str) -> str:
        return next(iter(texts(name)), "")

    return Series(
        uid=group.uid,
        study_uid=group.study_uid,
        modality=text("Modality").upper(),
        sop_class=text("SOPClassUID"),
        number=next((n for n in (header.number("SeriesNumber") for header in headers) if n is not None), None),
        description=text("SeriesDescription"),
        protocol=f"{text('ProtocolName')} {text('SequenceName')}",
        kernel=text("ConvolutionKernel"),
        image_type=tuple(word.upper() for word in texts("ImageType")),
        body_part=text("BodyPartExamined").upper(),
        contrast_agent=text("ContrastBolusAgent").upper(),
        frame_of_reference=text("FrameOfReferenceUID"),
        rescale_type=text("RescaleType"),
        gantry_tilt=headers[0].real("GantryDetectorTilt"),
        coloured=not (text("PhotometricInterpretation") or "MONOCHROME2").startswith("MONOCHROME"),
        frames=tuple((one.header.path, one.frame) for one in slices),
        stack=stack,
        numbers=tuple(one.header.instance_number for one in slices),
        patient=group.patient,
        apart_by=apart_by,
        mixed=mixed,
    )


def stack_of_files(files: Sequence[Path]) -> Series:
    """The stack that all of these files belong to; where they hold several, that which `choose_series` would prefer.

    Raises:
        CaseError: there is none.
    """
    stacks = [one for one in read_series(files) if set(one.files) == set(files)]
    if not stacks or len(set(files)) < len(files):
        raise CaseError(
            f"Of the {len(files)} files of a DICOM series some are missing, damaged, twice there or of another stack; "
            "give the series again."
        )
    return min(stacks, key=lambda one: (_no_volume(one), _rank(one, one.modality)))


def _no_volume(series: Series) -> bool:
    """Whether a series is unusable, whatever contrast of its modality is asked for."""
    if _is_ct(series.modality):
        return why_unusable(series) is not None
    repeats = series.stack is None or series.stack.repeats or series.slices < FEWEST_SLICES
    return what_else(series) is not None or series.coloured or repeats


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
        for _, study in groupby(sorted(stacks, key=study_of), key=study_of):
            chosen.append(min(study, key=lambda one: (why_unusable(one, contrast) is not None, _rank(one, contrast))))
    return chosen


def study_of(series: Series) -> tuple[str, int]:
    """What makes a case: the study, and in it the patient where it names several."""
    return series.study_uid, series.patient


def why_unusable(series: Series, contrast: str = "CT") -> str | None:
    """What keeps a series from being translated, in a few words; None if nothing does. See `choose_series`."""
    modality = "CT" if _is_ct(contrast) else "MR"
    if series.modality != modality:
        return f"modality {series.modality or 'unknown'}"
    if kind := what_else(series):
        return kind
    if series.sop_class and series.sop_class not in [_STORAGE + ending for ending in _IMAGES[modality]]:
        return f"no {modality} image"
    if series.description.upper().startswith("SYNTHETIC "):
        return "synthetic"  # what this bundle writes itself
    if series.mixed:
        return "its slices and those of another patient or study, with the same UID, look like one scan"
    if series.coloured:
        return "colours"
    words = " ".join(series.image_type).replace("_", " ")
    if modality == "CT" and not_in_hu(words, series.description, series.rescale_type):
        return "a map or subtraction, not in HU"
    return _why_no_volume(series, contrast)


def what_else(series: Series) -> str | None:
    """What a series is instead of a scan: a secondary capture, localizer, screen or projection; None for a scan."""
    return _other_kind(series.sop_class, series.image_type, series.description.upper())


def _other_kind(sop_class: str, image_type: Iterable[str], description: str = "") -> str | None:
    """See `what_else`; image type and description in capitals."""
    words = " ".join(image_type).replace("_", " ")
    if sop_class.startswith(f"{_STORAGE}7"):
        return "a secondary capture"
    if _LOCALIZER.search(words) or _LOCALIZER.search(description):
        return "a localizer"
    if _SCREEN.search(words) or re.search(r"\bDOSE (REPORT|INFO)", description):
        return "a dose report or screen"
    if _PROJECTION.search(words) or re.search(r"\b(MIP|MINIP|MAXIP|VRT)\b", description):
        return "a projection"
    return None


def _why_no_volume(series: Series, contrast: str) -> str | None:
    if series.stack is None:
        return "no position of its slices (ImagePositionPatient, ImageOrientationPatient, PixelSpacing)"
    if series.slices < FEWEST_SLICES:
        return "too few slices"
    if series.stack.repeats:
        return "several slices at one place"
    if _is_ct(contrast):
        return None if series.stack.axial else "not axial"
    return None if _is_named(series, contrast) else f"not named {contrast}"


def _is_ct(contrast: str) -> bool:
    return contrast.upper() == "CT"


def contrast_told(series: Series) -> str | None:
    """The contrast of MR that a series' description names; None where it names none, or for another modality."""
    names = ("T1", "T1ce", "T2", "FLAIR", "PD") if series.modality == "MR" else ()
    return next((name for name in names if _is_named(series, name)), None)


def _is_named(series: Series, contrast: str) -> bool:
    """Whether an MR's description names a contrast.

    A T2-weighted FLAIR is no T2, T2*, maps, diffusion, perfusion and subtractions are none, a T1 FLAIR is a T1, and a
    T1 with contrast agent, by its header or description, is a T1ce. Where the description contradicts itself, it names
    none.
    """
    text, wanted = f"{series.description} {series.protocol}".lower(), contrast.lower()
    called = series.description.lower() if _FLAIR.search(series.description.lower()) else text
    if _FLAIR.search(text) and not _T1_FLAIR.search(called):
        return wanted == "flair" and not _FLAIR_T1.search(called)
    if wanted == "flair" or _OTHER_SCAN.search(_T1_FLAIR.sub("t1", text)):
        return False
    named = _weightings(series.description.lower()) or _weightings(text)
    if len(named) != 1 or (named <= {"t2", "pd"} and _T2_STAR.search(text)):
        return False
    if named != {"t1"}:
        return wanted in named
    return wanted in ("t1", "t1ce") and _agent_told(text, series.contrast_agent) == (wanted == "t1ce")


def _weightings(text: str) -> set[str]:
    """Which of T1, T2 and PD a text in small letters names; a T1 FLAIR is a T1."""
    named = {one for one in ("t2", "pd") if re.search(rf"(?<![a-z0-9]){one}(?! ?[*]|[ _-]?(star|map|rho))", text)}
    return named | ({"t1"} if _T1.search(text) else set())


def _agent_told(text: str, header: str) -> bool | None:
    """Whether a T1 is one with contrast agent; None where its description says both that it is and that it is not.

    Args:
        text: description and protocol, in small letters.
        header: ContrastBolusAgent, in capitals.
    """
    if header not in _NO_AGENT:
        return True
    text = _SURGERY.sub(" ", text)
    none = says_none(text)
    if _BOTH.search(text):
        return None
    if says_agent(text) or _POST.search(text):
        return True if not none or re.search(r"\+ ?c(?![a-z])", text) else None
    return None if _LONE_C.search(text) and not none else False


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


def what_is_left(chosen: Series, series: Iterable[Series]) -> str | None:
    """In words, which volumes have the UID of the series chosen and are not a part of it; None where there are none.

    Single slices tell of another scan where something sets them apart, or may be missing where they have no place.
    """
    left = []
    for one in series:
        if one is chosen or (one.uid, *study_of(one)) != (chosen.uid, *study_of(chosen)):
            continue
        lost = one.stack is None and one.modality == chosen.modality
        if not (what_else(one) or one.coloured) and (one.apart_by or one.slices >= FEWEST_SLICES or lost):
            how = f"told apart by {one.apart_by}" if one.apart_by else "of another orientation, size or spacing"
            left.append(f"{one.slices} slices {how if one.stack else 'that do not say where they lie'}")
    if not left:
        return None
    return (
        f"the DICOM series {chosen.uid} holds other slices beside the {chosen.slices} that are taken "
        f"({', '.join(left)}); look at the picture, and export those alone if they were meant."
    )


def _listed(series: Sequence[Series], contrast: str, most: int = 8) -> str:
    told = Counter(
        f"{one.modality or 'unknown'} of {one.slices} slices: {why_unusable(one, contrast)}" for one in series
    )
    reasons = [f"{count} times {text}" if count > 1 else text for text, count in told.items()]
    return "; ".join(reasons[:most]) + (f"; and {len(reasons) - most} more" if len(reasons) > most else "")


def digits_of_uid(uid: str) -> str:
    """12 hexadecimal digits that stand for a UID in file names."""
    return hashlib.sha256(uid.encode()).hexdigest()[:12]


def series_record(files: Sequence[str]) -> dict[str, Any]:
    """What a JSON says of a series: "series_uid", "study_uid", how many "files", and the "sha256" of their digests."""
    uid, study_uid = series_identity(files)
    try:
        digests = "".join(sha256_of_file(file) for file in files)
    except OSError:  # its message names the file
        raise CaseError(f"A file of the DICOM series {uid} cannot be read; give the series again.") from None
    digest = hashlib.sha256(digests.encode()).hexdigest()
    return {"series_uid": uid, "study_uid": study_uid, "files": len(files), "sha256": digest}


def series_name(files: Sequence[str]) -> str:
    """How records name a series."""
    try:
        return f"DICOM series {series_identity(files)[0]}"
    except CaseError:
        return "a DICOM series that cannot be read"


def series_folder(files: Sequence[str], root: Path | None) -> str:
    """The folder that holds the files of a series: its path below `root`, else its bare name."""
    folder = Path(os.path.commonpath([Path(file).parent for file in files]))
    below = root is not None and folder != root and folder.is_relative_to(root)
    return folder.relative_to(root).as_posix() if below else folder.resolve().name


def patient_of(file: str) -> dict[str, str]:
    """Whose scan a file is: "patient_name" and "patient_id"; for records of runs with `keep_names`."""
    header = header_of(Path(file), ("PatientName", "PatientID", "SpecificCharacterSet"))
    names = {"patient_name": "PatientName", "patient_id": "PatientID"}
    return {key: "" if header is None else header.text(name) for key, name in names.items()}


def series_identity(files: Sequence[str]) -> tuple[str, str]:
    """SeriesInstanceUID and StudyInstanceUID of the files of one series, or what stands for them.

    Raises:
        CaseError: the first is no DICOM of a series any more.
    """
    header = read_header(Path(files[0]))
    if header is None:
        raise CaseError("A file of the DICOM series is not there any more or damaged; give the series again.")
    if not (header.text("SeriesInstanceUID") and header.text("StudyInstanceUID")):
        group, *_ = by_series(read_headers(map(Path, files)))
        return group.uid, group.study_uid
    return header.text("SeriesInstanceUID"), header.text("StudyInstanceUID")
