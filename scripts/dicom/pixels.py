"""The values of DICOM slices, in the unit their headers give them (HU), whatever they were stored as.

What is compressed is read by GDCM, which is a part of ITK. (dcm2niix 1.0.20260724 takes JPEG lossless with another
predictor than the first for something else without a word.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import CaseError, MachineError
from ..files import temporary_folder
from .headers import Header, opened, quiet_pydicom

if TYPE_CHECKING:
    from .series import Series

_LAYOUT = ("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation")
_JUMP_HU, _TISSUE_HU = 100.0, -500.0


def series_values(series: Series) -> list[np.ndarray]:
    """The values of a series' slices, in their order: (rows, columns) each, all int16 or all float32.

    Raises:
        CaseError: as `frame_values`; values of slices whose headers differ in how they are stored do not fit together;
            slices that have changed places.
    """
    wanted: dict[Path, list[int]] = {}
    for path, frame in series.frames:
        wanted.setdefault(path, []).append(frame)
    read: dict[Path, dict[int, FrameValues]] = {}
    slices, stored_as = [], []
    for path, frame in series.frames:
        if path not in read:
            read = {path: _frames(path, series.name, wanted[path])}  # the frames of one file stand together
        slices.append(read[path][frame].values)
        stored_as.append(read[path][frame].stored_as)
    _refuse_contradictions(series, slices, stored_as)
    _refuse_exchanged(series, slices)
    kind = np.result_type(*{values.dtype for values in slices})
    return [values.astype(kind, copy=False) for values in slices]


class FrameValues(NamedTuple):
    """(rows, columns) values of a frame, and how they are stored: bits, sign, slope and intercept (None: not there)."""

    values: np.ndarray
    stored_as: tuple[Any, ...]


def frame_values(file: Path, name: str) -> np.ndarray:
    """The values of a file's frames, after RescaleSlope and RescaleIntercept of each.

    Args:
        file: a DICOM image.
        name: of its series, for the sentence.

    Returns:
        (N, rows, columns): int16 where all values are whole numbers that fit, float32 else.

    Raises:
        CaseError: no pixels, or truncated, damaged, or compressed in a way that is not read; grey levels of an MR that
            are inverted; no linear way from what is stored to the values.
    """
    return np.stack([frame.values for frame in _frames(file, name).values()])


def _frames(file: Path, name: str, wanted: Sequence[int] | None = None) -> dict[int, FrameValues]:
    """See `frame_values`; the wanted frames alone, by their indices."""
    pydicom = quiet_pydicom()
    try:
        with opened(file) as content:
            dataset = pydicom.dcmread(content, force=True)
        _name_syntax(dataset)
        rescales = Header(file, dataset).rescales
        if len(rescales) != int(dataset.get("NumberOfFrames") or 1):
            raise ValueError("frames are missing")
        wanted = range(len(rescales)) if wanted is None else wanted
        encapsulated = dataset.file_meta.TransferSyntaxUID.is_encapsulated
        stored = _decoded_by_gdcm(dataset, wanted) if encapsulated else _uncompressed(dataset, wanted)
        if len(stored) != len(wanted):
            raise ValueError("frames are missing")
        stored = _significant(stored, dataset)
    except MachineError:
        raise
    except Exception:  # its message may quote the header or name the file
        raise CaseError(
            f"A slice of {name} cannot be read: it is truncated, damaged or compressed in an unknown way; export the "
            "series again, uncompressed."
        ) from None
    _refuse_unclear(dataset, name)
    rescales = [rescales[frame] for frame in wanted]
    if any(number is not None and not math.isfinite(number) for pair in rescales for number in pair):
        raise CaseError(
            f"A slice of {name} has a RescaleSlope or RescaleIntercept that is no number, so its values are unknown; "
            "export it again."
        )
    if any(slope == 0 for slope, _ in rescales):
        raise CaseError(f"A slice of {name} has a RescaleSlope of 0, which leaves nothing of it; export it again.")
    values = _rescaled(stored, [(1.0 if s is None else s, 0.0 if i is None else i) for s, i in rescales])
    limits = np.iinfo(np.int16)
    if str(dataset.get("Modality")) == "CT":
        values = np.clip(values, limits.min, limits.max)  # padding alone lies outside
    whole = np.array_equal(values, np.round(values)) and values.min() >= limits.min and values.max() <= limits.max
    values = values.astype(np.int16 if whole else np.float32)
    layout = tuple(int(dataset.get(keyword) or 0) for keyword in _LAYOUT)
    told = zip(wanted, values, rescales, strict=True)
    return {frame: FrameValues(one, (*layout, *rescale)) for frame, one, rescale in told}


def _name_syntax(dataset: Any) -> None:
    """Note the transfer syntax of a file without the group that names it, as it was found."""
    if getattr(dataset.file_meta, "TransferSyntaxUID", None) is None:
        from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

        implicit, little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit


def _uncompressed(dataset: Any, wanted: Sequence[int]) -> np.ndarray:
    """What is stored as it is, (N, rows, columns) of the wanted frames; an error where not all of it is there.

    8 bits big-endian would come in swapped pairs.
    """
    width, big = int(dataset.BitsAllocated) // 8, dataset.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.2"
    if width not in (1, 2, 4) or (big and width == 1):
        raise ValueError("unusual width")
    if dataset["PixelData"].is_undefined_length:
        raise ValueError("compressed, though it is said not to be")
    count = int(dataset.get("NumberOfFrames") or 1) * dataset.Rows * dataset.Columns
    if len(dataset.PixelData) - count * width >= max(dataset.Columns * width, 2):
        raise ValueError("more than the header tells")
    stored = np.frombuffer(dataset.PixelData, dtype=f"{'>' if big else '<'}u{width}", count=count)
    return stored.reshape(-1, dataset.Rows, dataset.Columns)[wanted]


def _decoded_by_gdcm(dataset: Any, wanted: Sequence[int]) -> np.ndarray:
    """What is stored, (N, rows, columns) of the wanted frames.

    It is decoded from a file that holds nothing else: no name, and nothing that GDCM would apply to the values.
    """
    import itk
    from pydicom.dataset import FileDataset, FileMetaDataset

    meta = FileMetaDataset()
    meta.FileMetaInformationGroupLength = 0  # it is filled in where it stands
    frames = len(wanted)
    # Secondary Capture, Multi-frame Grayscale Word Secondary Capture
    meta.MediaStorageSOPClassUID = f"1.2.840.10008.5.1.4.1.1.7{'.3' if frames > 1 else ''}"
    meta.MediaStorageSOPInstanceUID = "2.25.1"
    meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
    plain = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128, is_implicit_VR=False)
    plain.SOPClassUID, plain.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    plain.PhotometricInterpretation, plain.SamplesPerPixel = "MONOCHROME2", 1
    for name in ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"):
        setattr(plain, name, getattr(dataset, name))
    plain.PixelData = _encapsulated(dataset, wanted)
    plain["PixelData"].is_undefined_length = True
    if frames > 1:
        plain.NumberOfFrames = frames
    with temporary_folder() as folder:
        path = folder / "slice.dcm"
        plain.save_as(path)
        decoded = np.asarray(itk.array_from_image(itk.imread(str(path), itk.D)))
    return decoded.astype(np.int64).reshape(-1, dataset.Rows, dataset.Columns)


def _encapsulated(dataset: Any, wanted: Sequence[int]) -> bytes:
    """The code streams of the wanted frames."""
    from pydicom.encaps import encapsulate, generate_frames

    count = int(dataset.get("NumberOfFrames") or 1)
    if len(wanted) == count:
        return dataset.PixelData
    streams = list(generate_frames(dataset.PixelData, number_of_frames=count))
    return encapsulate([streams[frame] for frame in wanted])


def _significant(stored: np.ndarray, dataset: Any) -> np.ndarray:
    """The bits that count, as int32: the others may hold an overlay."""
    bits, high = int(dataset.BitsStored), int(dataset.HighBit)
    if not 0 < bits <= high + 1 <= int(dataset.BitsAllocated) or int(dataset.PixelRepresentation) not in (0, 1):
        raise ValueError("bits that cannot be")
    values = (stored.astype(np.int64) >> (high + 1 - bits)) & ((1 << bits) - 1)
    if int(dataset.PixelRepresentation):
        sign = 1 << (bits - 1)
        values = (values ^ sign) - sign
    return values


def _refuse_unclear(dataset: Any, name: str) -> None:
    if "ModalityLUTSequence" in dataset:
        raise CaseError(f"The values of {name} are given by a table (Modality LUT), not by a slope; export them in HU.")
    if str(dataset.get("PhotometricInterpretation", "")) == "MONOCHROME1" and str(dataset.get("Modality")) != "CT":
        raise CaseError(f"The grey levels of {name} are inverted (MONOCHROME1); export it as MONOCHROME2.")


def _rescaled(stored: np.ndarray, rescales: list[tuple[float, float]]) -> np.ndarray:
    slopes, intercepts = (np.array(column).reshape(-1, 1, 1) for column in zip(*rescales, strict=True))
    return stored * slopes + intercepts


def _refuse_contradictions(series: Series, slices: list[np.ndarray], stored_as: list[tuple[Any, ...]]) -> None:
    """Refuse a CT of which single slices are stored in another way, so that they do not fit those beside them.

    Scanners store all slices alike, or tell truly how each is stored; a header that was damaged makes bone of water.
    From one slice to the next most tissue differs by less than `_JUMP_HU`.
    """
    if series.modality != "CT":
        return
    for index, ways in enumerate(pairwise(stored_as)):
        if ways[0] == ways[1]:
            continue
        before, after = (values.astype(np.float32) for values in slices[index : index + 2])
        tissue = np.maximum(before, after) > _TISSUE_HU
        jumps = np.abs(after - before)[tissue] > _JUMP_HU
        if jumps.size and jumps.mean() > 0.6:
            raise CaseError(
                f"Slices {index + 1} and {index + 2} of {series.name} are stored in different ways (bits, sign, "
                "RescaleSlope or RescaleIntercept) and their values do not fit together, so one header is wrong; "
                "export the series again."
            )


def _refuse_exchanged(series: Series, slices: list[np.ndarray]) -> None:
    """Refuse a series in which a few slices have changed places: their numbers say so, and the image fits these."""
    numbers = np.array(series.numbers, dtype=np.float64)
    if len(slices) < 3 or not np.isfinite(numbers).all() or len(set(numbers)) < len(numbers):
        return
    order = np.argsort(numbers)
    order = order if np.corrcoef(order, np.arange(len(order)))[0, 1] > 0 else order[::-1]
    moved = np.flatnonzero(order != np.arange(len(order)))
    if not 0 < len(moved) <= max(4, len(order) // 5):
        return
    span = slice(max(moved[0] - 1, 0), moved[-1] + 2)
    by_place, by_number = (
        sum(
            np.abs(after - before).mean()
            for before, after in pairwise(slices[index].astype(np.float32) for index in way)
        )
        for way in (np.arange(len(order))[span], order[span])
    )
    if by_number < 0.9 * by_place:
        raise CaseError(
            f"Slices {moved[0] + 1} and {moved[-1] + 1} of {series.name} do not lie where their InstanceNumber puts "
            "them, and the image fits the numbers; export the series again."
        )
