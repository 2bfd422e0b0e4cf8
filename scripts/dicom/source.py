"""The slices that a volume was loaded from, with all that their headers say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import CaseError
from .headers import opened, quiet_pydicom
from .series import stack_of_files
from .stack import Stack

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["SourceSlice", "source_slices", "stack_of"]

_NEEDED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Rows", "Columns")
_PLACE = ("PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient")
# functional groups of multi-frame images, PS3.3 C.7.6.16.2.1, .3 and .4
_MACROS = ("PixelMeasuresSequence", "PlanePositionSequence", "PlaneOrientationSequence")


@dataclass(frozen=True, eq=False)
class SourceSlice:
    """One slice of a series.

    Attributes:
        header: of the file, without pixels.
        place: dataset with the elements of Image Plane (PS3.3 C.7.6.2): the header itself, or those of one frame.
        frame: number of the frame, from 1; None where the file is one slice.
        inferred: whether it lies between slices that were acquired, and this is the nearest of them.
    """

    header: Dataset
    place: Dataset
    frame: int | None = None
    inferred: bool = False


def source_slices(volume: Any) -> list[SourceSlice]:
    """The slices of the DICOM series that a MetaTensor was loaded from, in the order along their normal.

    Args:
        volume: with `dicom_files`, the paths of one series, and `series_uid` in its meta.

    Raises:
        CaseError: no DICOM series, a file that is gone, or an image without what a slice beside it needs.
    """
    files = volume.meta.get("dicom_files")
    if not files:
        name = Path(str(volume.meta.get("filename_or_obj", "The volume"))).name
        raise CaseError(
            f"{name} is no DICOM series, so no DICOM series can be written beside it; give the DICOM files, or leave "
            "configs/dicom.json out."
        )
    series, paths = f"the DICOM series {volume.meta.get('series_uid')}", [Path(file) for file in files]
    try:
        slices_of = {path: _slices_of(_read(path)) for path in paths}
    except Exception:  # its message names the file
        raise CaseError(f"A file of {series} is not there any more or damaged; give the series again.") from None
    slices = [slices_of[path][frame] for path, frame in stack_of_files(paths).frames]
    for one in slices:
        lacking = [keyword for keyword in _NEEDED if not one.header.get(keyword)]
        lacking += [keyword for keyword in _PLACE if not one.place.get(keyword)]
        if lacking:
            raise CaseError(
                f"An image of {series} has no {lacking[0]}, without which no series can be written beside it; export "
                "it again, or leave configs/dicom.json out."
            )
    return slices


def _read(path: Path) -> Dataset:
    with opened(path) as file:
        return quiet_pydicom().dcmread(file, stop_before_pixels=True, force=True)


def _slices_of(header: Dataset) -> list[SourceSlice]:
    frames = header.get("PerFrameFunctionalGroupsSequence")
    if not frames:
        return [SourceSlice(header, header)]
    shared = list(header.get("SharedFunctionalGroupsSequence") or [])
    slices = []
    for number, groups in enumerate(frames, start=1):
        place = quiet_pydicom().Dataset()
        for item in (item for group in [*shared, groups] for macro in _MACROS for item in group.get(macro) or []):
            place.update(item)
        slices.append(SourceSlice(header, place, number))
    return slices


def stack_of(slices: Sequence[SourceSlice]) -> Stack:
    """Where slices lie, in their own order."""
    first = slices[0]
    row, column = np.array(first.place.ImageOrientationPatient, dtype=float).reshape(2, 3)
    positions = np.array([one.place.ImagePositionPatient for one in slices], dtype=float)
    between_rows, between_columns = (float(edge) for edge in first.place.PixelSpacing)
    shape = int(first.header.Rows), int(first.header.Columns)
    return Stack(positions, row, column, shape, (between_rows, between_columns))
