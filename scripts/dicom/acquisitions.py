"""Which parallel slices of one DICOM series are one volume: several acquisitions may bear one SeriesInstanceUID.

Geometry alone does not tell: slices of a second scan lie between those of the first, and a stack of both looks like an
uneven one. They are told apart by what their headers say of the acquisition, and by the order of their numbers.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from ..errors import CaseError
from .headers import Header, Plane
from .pixels import frame_values
from .stack import SAME_PLACE_MM, hole, runs_of_gaps

FEWEST_SLICES = 3
# each with its name in a multi-frame image; what describes an acquisition comes before its numbers and times
ATTRIBUTES = (
    *(("ConvolutionKernel",), ("ContrastBolusAgent",), ("KVP",), ("ImageType", "FrameType"), ("EchoNumbers",)),
    *(
        ("EchoTime",),
        ("InversionTime",),
        ("RepetitionTime",),
        ("SeriesDescription",),
        ("ProtocolName",),
        ("ScanOptions",),
    ),
    *(("SliceThickness",), ("PatientPosition",), ("StationName",), ("DeviceSerialNumber",), ("SeriesNumber",)),
    *(("StackID",), ("TemporalPositionIdentifier", "TemporalPositionIndex"), ("AcquisitionUID",)),
    *(("AcquisitionNumber", "FrameAcquisitionNumber"), ("AcquisitionDateTime", "FrameAcquisitionDateTime")),
    *(("AcquisitionDate",), ("AcquisitionTime",), ("SeriesTime",), ("ContentDate",), ("ContentTime",)),
    *(("InstanceCreationTime",), ("InstanceNumber",)),
)
# of these, what may differ within one scan, as where every second slice was reconstructed or stored first
_OF_EACH_SLICE = (
    *("AcquisitionNumber", "AcquisitionDateTime", "AcquisitionDate", "AcquisitionTime", "SeriesTime"),
    *("ContentDate", "ContentTime", "InstanceCreationTime"),
)
_WIDEST_GAP_MM = 15.0
_COPY_MM = 1e-3
_TRIED = 3
_COMPARED = 12


@dataclass(frozen=True, eq=False)
class Slice:
    """Where a slice lies (None where nothing says so), its file and its frame there."""

    plane: Plane | None
    header: Header
    frame: int


def heights_of(slices: Sequence[Slice]) -> np.ndarray:
    """(N,) of parallel slices along the normal of the first, mm."""
    normal = np.cross(*slices[0].plane.orientation.reshape(2, 3))
    return np.array([one.plane.position for one in slices]) @ normal


def thickness_of(slices: Iterable[Slice]) -> float | None:
    """Median SliceThickness, mm; None where the headers do not say."""
    told = [one.header.real("SliceThickness") for one in slices]
    told = [value for value in told if value is not None and value > 0]
    return float(np.median(told)) if told else None


def taken_once(slices: list[Slice], name: str) -> list[Slice]:
    """Slices without those that are stored twice: at one place, with the same values.

    Of two at one place of which one cannot be read, the other is taken. Where none of the first places has slices that
    are alike, they are taken for a series over time and not looked at further.

    Args:
        slices: parallel ones.
        name: of the series.
    """
    heights = heights_of(slices)
    order = np.argsort(heights, kind="stable")
    if len(slices) < 2 or np.diff(heights[order]).min() >= SAME_PLACE_MM:
        return slices
    dropped: set[int] = set()
    values_of = lru_cache(maxsize=4)(partial(_values, name=name))  # the frames of one file stand together
    for tried, together in enumerate(_at_one_place(slices, order), start=1):
        dropped |= {together[index] for index in _twice([slices[index] for index in together], values_of)}
        if tried == _TRIED and not dropped:
            break
    return [one for index, one in enumerate(slices) if index not in dropped]


def _at_one_place(slices: Sequence[Slice], order: Iterable[int]) -> list[list[int]]:
    """Indices of slices that lie at one place, of each place with several."""
    places: list[list[int]] = []
    for index in order:
        position = slices[index].plane.position
        if places and np.abs(slices[places[-1][0]].plane.position - position).max() < _COPY_MM:
            places[-1].append(int(index))
        else:
            places.append([int(index)])
    return [sorted(place) for place in places if len(place) > 1]


def _values(path: Path, name: str) -> np.ndarray | None:
    with contextlib.suppress(CaseError):
        return frame_values(path, name)
    return None


def _twice(slices: Sequence[Slice], values_of: Callable[[Path], np.ndarray | None]) -> list[int]:
    """Indices of those that can be left out, being like an earlier one or unreadable."""
    kept: list[np.ndarray] = []
    left_out, unreadable = [], []
    for index, one in enumerate(slices):
        frames = values_of(one.header.path)
        if frames is None:
            unreadable.append(index)
        elif any(np.array_equal(frames[one.frame], other) for other in kept):
            left_out.append(index)
        else:
            kept.append(frames[one.frame])
    return [*left_out, *(unreadable if kept else unreadable[1:])]


def acquisitions(slices: list[Slice]) -> tuple[list[list[Slice]], str]:
    """The volumes among parallel slices, the one with the most slices first.

    They are several where slices that differ in one of `ATTRIBUTES` lie between each other, or at the same places, and
    the largest of them is whole by itself: without a hole, its slices as close as they are thick. So the parts of a
    head scanned one above the other stay together, and so do the interleaved slices of an MR, or of a CT that are
    numbered by their places and whose neighbours are alike.

    Volumes of the same places are not told apart where there are three or more, as over time, nor those of an MR.

    Returns:
        The volumes, and the keyword of the attribute that tells them apart; "" where they are one.
    """
    if len(slices) <= FEWEST_SLICES:
        return [slices], ""
    frames = _by_value(slices, ("FrameOfReferenceUID",))
    if "" not in frames and sum(len(ones) >= FEWEST_SLICES for ones in frames.values()) > 1:
        return _largest_first(frames.values(), slices), "FrameOfReferenceUID"
    for names in ATTRIBUTES:
        groups = _by_value(slices, names)
        if len(groups) > 1 and _are_several(slices, volumes := _volumes(groups, slices), names[0], "" in groups):
            return _largest_first(volumes, slices), names[0]
    return [slices], ""


def _by_value(slices: Sequence[Slice], names: Sequence[str]) -> dict[str, list[int]]:
    """Indices of the slices of each value of an attribute, in the order of the values."""
    groups: dict[str, list[int]] = {}
    for index, one in enumerate(slices):
        groups.setdefault(_as_number(one.header.of_frame(one.frame, *names)), []).append(index)
    return dict(sorted(groups.items(), key=lambda item: _order(item[0])))


def _as_number(value: str) -> str:
    """A value with its number in one way: 120 may be written 120.0, and a time with or without its fractions."""
    return value.rstrip("0").removesuffix(".") if re.fullmatch(r"-?\d+\.\d*", value) else value


def _order(value: str) -> tuple:
    try:
        return 0, float(value), ""
    except ValueError:
        return 1, 0.0, value


def _largest_first(volumes: Iterable[Sequence[int]], slices: Sequence[Slice]) -> list[list[Slice]]:
    return [[slices[index] for index in sorted(volume)] for volume in sorted(volumes, key=len, reverse=True)]


def _volumes(groups: dict[str, list[int]], slices: Sequence[Slice]) -> list[list[int]]:
    """Groups of slices, joined to volumes in which none lies within another.

    First to runs in the order of their values, as where each slice has a time of its own: the scan goes on where it
    was. Then those runs that do not lie within each other, as the lower and the upper part of a head.
    """
    heights = heights_of(slices)
    runs: list[list[int]] = []
    for group in groups.values():
        if runs and not _overlap(heights[runs[-1]], heights[group]):
            runs[-1].extend(group)
        else:
            runs.append(list(group))
    volumes: list[list[int]] = []
    for run in runs:
        apart = (volume for volume in volumes if not _overlap(heights[volume], heights[run]))
        if (volume := next(apart, None)) is None:
            volumes.append(volume := [])
        volume.extend(run)
    return volumes


def _overlap(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether heights lie within each other, by more than a seam of two slices or of a quarter."""

    def within(some: np.ndarray, others: np.ndarray) -> tuple[int, float]:
        inside = (some > others.min() - SAME_PLACE_MM) & (some < others.max() + SAME_PLACE_MM)
        return int(inside.sum()), float(inside.mean())

    pairs = within(one, other), within(other, one)
    return any(share >= 0.5 or (count > 2 and share >= 0.25) for count, share in pairs)


def _are_several(slices: Sequence[Slice], volumes: list[list[int]], name: str, lacking: bool) -> bool:
    """Whether what an attribute tells apart are volumes of their own; see `acquisitions`."""
    if len(volumes) < 2:
        return False
    heights, thickness = np.sort(heights_of(slices)), thickness_of(slices)
    parts = [np.sort(heights_of(slices)[volume]) for volume in volumes]
    main = max(parts, key=len)
    if not is_whole(main, thickness):
        return False
    ct = slices[0].header.text("Modality").upper() == "CT"
    rivals = [part for part in parts if len(part) >= 0.8 * len(main)]
    alike = any(part is not main and _same_places(part, main) for part in rivals)
    if alike and (len(rivals) > 2 or not ct or name == "InstanceNumber"):
        return False
    if name in _OF_EACH_SLICE and _take_turns(slices, volumes):
        return False
    gaps = np.diff(heights)
    if gaps.min() < SAME_PLACE_MM or len(runs_of_gaps(gaps)) > len(runs_of_gaps(np.diff(main))):
        return True
    lacking = lacking and name != "ContrastBolusAgent"  # whose absence tells as much
    return not lacking and (ct or thickness is not None)


def _take_turns(slices: Sequence[Slice], volumes: list[list[int]]) -> bool:
    """Whether slices of each volume follow each other in turn, evenly, as those of one scan.

    They do where InstanceNumber rises or falls with the place, which it does not over two scans in a row, and
    neighbours, of two volumes, are no less alike than the slices next to each other of one of them.
    """
    heights, turns = heights_of(slices), len(volumes)
    order = np.argsort(heights, kind="stable")
    owner = np.empty(len(slices), dtype=int)
    for number, volume in enumerate(volumes):
        owner[volume] = number
    numbers = np.array([one.header.instance_number for one in slices])[order]
    steps, gaps, owner = np.diff(numbers), np.diff(heights[order]), owner[order]
    numbered = (steps > 0).all() or (steps < 0).all()
    even = gaps.min() > SAME_PLACE_MM and len(runs_of_gaps(gaps)) == 1
    if not (numbered and even and (owner[turns:] == owner[:-turns]).all()):
        return False
    near, far = 0.0, 0.0
    for index in np.linspace(0, len(order) - turns - 1, _COMPARED).astype(int):
        here, beside, next_own = (_frame(slices[order[index + step]]) for step in (0, 1, turns))
        if here is not None and beside is not None and next_own is not None:
            near, far = near + np.abs(beside - here).mean(), far + np.abs(next_own - here).mean()
    return bool(near <= 1.05 * far)


def _frame(one: Slice) -> np.ndarray | None:
    """The values of a slice as float32; None where it cannot be read."""
    frames = _values(one.header.path, "a series")
    return None if frames is None else frames[one.frame].astype(np.float32)


def _same_places(part: np.ndarray, main: np.ndarray) -> bool:
    return bool(np.abs(part[:, None] - main).min(axis=1).max() < SAME_PLACE_MM)


def is_whole(heights: np.ndarray, thickness: float | None) -> bool:
    """Whether slices at these heights, ascending, are a volume without holes, as close as they are thick."""
    gaps = np.diff(heights)
    if len(heights) < FEWEST_SLICES or gaps.min() < SAME_PLACE_MM or gaps.max() > _WIDEST_GAP_MM or hole(gaps):
        return False
    return thickness is None or bool(np.median(gaps) <= 1.5 * thickness)
