"""The values of DICOM slices, in the unit their headers give them (HU), whatever they were stored as.

What is compressed is read by GDCM, which is a part of ITK. (dcm2niix 1.0.20260724 takes JPEG lossless with another
predictor than the first for something else without a word.)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CaseError
from ..files import temporary_folder
from .headers import Header, quiet_pydicom
from .series import Series


def series_values(series: Series) -> list[np.ndarray]:
    """The values of a series' slices, in their order: (rows, columns) each, all int16 or all float32.

    Raises:
        CaseError: as `frame_values`.
    """
    read: dict[Path, np.ndarray] = {}
    slices = []
    for path, frame in series.frames:
        if path not in read:
            read = {path: frame_values(path, series.name)}  # the frames of one file stand together
        slices.append(read[path][frame])
    kind = np.result_type(*{values.dtype for values in slices})
    return [values.astype(kind, copy=False) for values in slices]


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
    pydicom = quiet_pydicom()
    try:
        dataset = pydicom.dcmread(file, force=True)
        _name_syntax(dataset)
        syntax = dataset.file_meta.TransferSyntaxUID
        stored = _decoded_by_gdcm(dataset) if syntax.is_encapsulated else _uncompressed(dataset)
        stored = stored.reshape(-1, dataset.Rows, dataset.Columns)
        if len(stored) != len(Header(file, dataset).planes):
            raise ValueError("frames are missing")
        stored = _significant(stored, dataset)
    except Exception:  # its message may quote the header or name the file
        raise CaseError(
            f"A slice of {name} cannot be read: it is truncated, damaged or compressed in an unknown way; export the "
            "series again, uncompressed."
        ) from None
    _refuse_unclear(dataset, name)
    values = _rescaled(stored, Header(file, dataset).rescales)
    limits = np.iinfo(np.int16)
    if str(dataset.get("Modality")) == "CT":
        values = np.clip(values, limits.min, limits.max)  # padding alone lies outside
    whole = np.array_equal(values, np.round(values)) and values.min() >= limits.min and values.max() <= limits.max
    return values.astype(np.int16 if whole else np.float32)


def _name_syntax(dataset: Any) -> None:
    """Note the transfer syntax of a file without the group that names it, as it was found."""
    if getattr(dataset.file_meta, "TransferSyntaxUID", None) is None:
        from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

        implicit, little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit


def _uncompressed(dataset: Any) -> np.ndarray:
    """What is stored as it is: all of it, or an error. 8 bits big-endian would come in swapped pairs."""
    width, big = int(dataset.BitsAllocated) // 8, dataset.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.2"
    if width not in (1, 2, 4) or (big and width == 1):
        raise ValueError("unusual width")
    count = int(dataset.get("NumberOfFrames") or 1) * dataset.Rows * dataset.Columns
    return np.frombuffer(dataset.PixelData, dtype=f"{'>' if big else '<'}u{width}", count=count)


def _decoded_by_gdcm(dataset: Any) -> np.ndarray:
    """What is stored, of a file that holds nothing else: no name, and nothing that GDCM would apply to the values."""
    import itk
    from pydicom.dataset import FileDataset, FileMetaDataset

    meta = FileMetaDataset()
    meta.FileMetaInformationGroupLength = 0  # it is filled in where it stands
    frames = int(dataset.get("NumberOfFrames") or 1)
    # Secondary Capture, Multi-frame Grayscale Word Secondary Capture
    meta.MediaStorageSOPClassUID = f"1.2.840.10008.5.1.4.1.1.7{'.3' if frames > 1 else ''}"
    meta.MediaStorageSOPInstanceUID = "2.25.1"
    meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
    plain = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128, is_implicit_VR=False)
    plain.SOPClassUID, plain.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    plain.PhotometricInterpretation, plain.SamplesPerPixel = "MONOCHROME2", 1
    for name in ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelData"):
        setattr(plain, name, getattr(dataset, name))
    plain["PixelData"].is_undefined_length = True
    if frames > 1:
        plain.NumberOfFrames = frames
    with temporary_folder() as folder:
        path = folder / "slice.dcm"
        plain.save_as(path)
        return np.asarray(itk.array_from_image(itk.imread(str(path), itk.D))).astype(np.int64)


def _significant(stored: np.ndarray, dataset: Any) -> np.ndarray:
    """The bits that count, as int32: the others may hold an overlay."""
    bits, high = int(dataset.BitsStored), int(dataset.HighBit)
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
