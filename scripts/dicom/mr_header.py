"""What the header of a synthetic MR slice says: DICOM PS3.3 A.4, MR Image IOD, without UIDs of its own and pixels."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydicom import Dataset

    from .source import SourceSlice

__all__ = ["MAX_STORED", "series_header", "slice_header"]

MAX_STORED = 4095
"""The stored value of 1.0: 12 bits, unsigned."""

MR_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.4"
NOTE = "not for diagnostic use"

# C.7.1.1 to C.7.1.3 and C.7.2.2 to C.7.2.3: patient, patient study, clinical trial; the last group holds the trial's
# series as well
PATIENT_GROUPS = (0x0010, 0x0012)
OF_ANOTHER_SERIES = ("ClinicalTrialSeriesID", "ClinicalTrialSeriesDescription")
# C.7.2.1 General Study; C.7.2.2 Patient Study
STUDY = (
    *("StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "StudyDescription", "AccessionNumber"),
    *("IssuerOfAccessionNumberSequence", "ReferringPhysicianName", "ReferringPhysicianIdentificationSequence"),
    *("ConsultingPhysicianName", "ConsultingPhysicianIdentificationSequence", "PhysiciansOfRecord"),
    *("PhysiciansOfRecordIdentificationSequence", "NameOfPhysiciansReadingStudy"),
    *("PhysiciansReadingStudyIdentificationSequence", "RequestingService", "RequestingServiceCodeSequence"),
    *("ReferencedStudySequence", "ProcedureCodeSequence", "ReasonForPerformedProcedureCodeSequence"),
    *("AdmittingDiagnosesDescription", "AdmittingDiagnosesCodeSequence", "AdmissionID"),
    *("IssuerOfAdmissionIDSequence", "ServiceEpisodeID", "IssuerOfServiceEpisodeIDSequence"),
    *("ServiceEpisodeDescription", "PatientState", "ReasonForVisit", "ReasonForVisitCodeSequence"),
)
# of the series and its frame of reference: C.7.3.1, C.7.4.1, C.12.1
SERIES = (
    *("SpecificCharacterSet", "TimezoneOffsetFromUTC", "PatientPosition", "PositionReferenceIndicator"),
    "LongitudinalTemporalInformationModified",
)
# type 2: there, if only empty
EMPTY = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"),
    *("ReferringPhysicianName", "AccessionNumber", "PatientPosition", "PositionReferenceIndicator", "SliceThickness"),
    *("ScanOptions", "MRAcquisitionType", "RepetitionTime", "EchoTime", "EchoTrainLength"),
)
# of one slice: C.7.6.2 Image Plane, C.7.6.1 General Image
PLACE = (
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices"),
    "SliceLocation",
)
LOSS = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")
# of the scanner: C.7.5.1 General Equipment, as an item of C.12.1's Contributing Equipment Sequence
SCANNER = (
    *("Manufacturer", "InstitutionName", "StationName", "ManufacturerModelName", "DeviceSerialNumber"),
    "SoftwareVersions",
)


def series_header(source: Dataset, manufacturer: str, record: Mapping[str, Any]) -> Dataset:
    """What the slices of a synthetic series have in common.

    Patient, study and frame of reference are the source's; the equipment is this software, the scanner a contributor.
    No private element is copied, and no time but the study's: the same input gives the same bytes.

    Args:
        source: header of the source's first slice, with StudyInstanceUID and SeriesInstanceUID.
        manufacturer: who makes this software.
        record: what the series was made with: `bundle`, `bundle_version`, `weights`, `weights_sha256`,
            `source_contrast`, `target_contrast` (such as T1).
    """
    from pydicom import Dataset
    from pydicom.uid import generate_uid

    target = record["target_contrast"]
    ds = Dataset()
    ds.update(dict.fromkeys(EMPTY))
    patient = [tag for tag in sorted(source.keys()) if tag.group in PATIENT_GROUPS]
    _copy(source, ds, [*SERIES, *patient, *STUDY])
    for keyword in OF_ANOTHER_SERIES:
        ds.pop(keyword, None)
    if ds.get("PatientIdentityRemoved") == "YES" and not ds.get("DeidentificationMethodCodeSequence"):
        ds.setdefault("DeidentificationMethod", "not told by the source")  # type 1C
    # without one nothing is known to lie in the same frame; all that is made of this series shares the new one
    own_frame = generate_uid(entropy_srcs=[source.SeriesInstanceUID, "frame of reference"])
    ds.FrameOfReferenceUID = source.get("FrameOfReferenceUID") or own_frame
    ds.SOPClassUID, ds.Modality, ds.BodyPartExamined = MR_IMAGE_STORAGE, "MR", "BRAIN"
    # Synthetic Data (0008,001C), of the standard of 2023, is left out: checkers older than that call it an error
    ds.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
    number = 1000 + (_whole(source, "SeriesNumber") or 0)
    ds.SeriesNumber = number if number < 2**31 else 1000  # IS, PS3.5 6.2
    ds.SeriesDescription = _series_description(source, target, record)
    ds.ImageComments = f"Synthetic {target}, {NOTE}" + _sparse_note(record)
    # no sequence was played out: research mode, and no times
    ds.ScanningSequence, ds.SequenceVariant = "RM", "NONE"
    ds.Manufacturer, ds.ManufacturerModelName = manufacturer, record["bundle"]
    ds.SoftwareVersions = record["bundle_version"]
    ds.ContributingEquipmentSequence = _equipment(source, manufacturer, record)
    ds.BurnedInAnnotation, ds.PresentationLUTShape = "NO", "IDENTITY"
    # C.11.2.1.2: 0 is black, 4095 is white
    ds.WindowCenter, ds.WindowWidth = str((MAX_STORED + 1) // 2), str(MAX_STORED + 1)
    ds.RealWorldValueMappingSequence = [_value_mapping(target)]
    return ds


def slice_header(series: Dataset, source: SourceSlice, number: int, sampled: bool) -> Dataset:
    """What one slice says beside `series_header`: place, number, and which image it comes from.

    Args:
        series: made by `series_header`, which is left alone.
        source: the source slice at that place.
        number: InstanceNumber.
        sampled: whether the image was sampled at the source's pixels, rather than taken voxel by voxel.
    """
    ds = copy.deepcopy(series)
    header = source.header
    _copy(header, ds, LOSS)
    if str(getattr(header.file_meta, "TransferSyntaxUID", "")) in _LOSSY:
        ds.LossyImageCompression = "01"
    _copy(source.place, ds, PLACE)
    ds.InstanceNumber = number
    ds.DerivationDescription = _derivation(series, header, sampled)
    image = _reference(source)
    ds.ReferencedSeriesSequence = [
        _dataset(SeriesInstanceUID=header.SeriesInstanceUID, ReferencedInstanceSequence=[copy.deepcopy(image)])
    ]
    image.SpatialLocationsPreserved = "NO" if source.inferred else "YES"
    image.PurposeOfReferenceCodeSequence = [_code("121322", "DCM", "Source image for image processing operation")]
    ds.SourceImageSequence = [image]
    return ds


# JPEG baseline and extended, JPEG 2000 and its part 2 with loss are so whatever the header says
_LOSSY = {f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 81)}


def _copy(source: Dataset, target: Dataset, names: Iterable[Any]) -> None:
    """Copy elements (keywords or tags) that have a value, as they were written, without private ones in their items."""
    for name in names:
        try:
            element = copy.deepcopy(source[name])
            if element.VR == "SQ":
                for item in element.value:
                    item.remove_private_tags()
            if element.VR == "DS" and not element.is_empty:
                _shortened(element)
        except Exception:
            continue  # absent, or not what its type allows: as if it were absent
        if not element.is_empty:
            target[element.tag] = element


def _shortened(element: Any) -> None:
    """Write decimals anew, as near as can be, where they are longer than the 16 characters that are allowed."""
    from pydicom.valuerep import DSfloat

    values = element.value if element.VM > 1 else [element.value]
    numbers = [float(value) for value in values]
    if any(len(str(value)) > 16 for value in values):
        short = [DSfloat(number, auto_format=True) for number in numbers]
        element.value = short if len(short) > 1 else short[0]


def _whole(source: Dataset, keyword: str) -> int | None:
    try:
        return int(source[keyword].value)
    except Exception:  # absent, empty or no number
        return None


def _source_contrast(record: Mapping[str, Any]) -> str:
    """What the source is called, such as CT."""
    return str(record.get("source_contrast") or "source")


def _series_description(source: Dataset, target: str, record: Mapping[str, Any]) -> str:
    """At most 64 characters."""
    number = _whole(source, "SeriesNumber")
    series = "" if number is None else f" series {number}"
    sparse = "sparse " if "sparse" in record else ""
    texts = [
        f"Synthetic {target} from {sparse}{_source_contrast(record)}{series}, {NOTE}",
        f"Synthetic {target}{', sparse' if sparse else ''}{series}, {NOTE}",
    ]
    return next((text for text in texts if len(text) <= 64), f"Synthetic image, {NOTE}")


def _sparse_note(record: Mapping[str, Any]) -> str:
    """That slices were inferred, and with other people's, where they were."""
    note = ""
    if "sparse" in record:
        gap = round(record["sparse"]["gap_mm"], 1)
        note += f"; sparse {_source_contrast(record)}, gaps of {gap:g} mm: slices between are inferred"
    if (record.get("references") or {}).get("found"):
        note += "; another person's slice was used as a reference"
    return note


def _derivation(series: Dataset, source: Dataset, sampled: bool) -> str:
    """At most 1024 characters."""
    contribution = series.ContributingEquipmentSequence[0].ContributionDescription
    sampling = "sampled (linear) at the place of each source pixel" if sampled else "one voxel for each source pixel"
    return (
        f"{series.ImageComments}: computed from the whole source series {source.SeriesInstanceUID}. {contribution}; "
        f"no such MRI was acquired. Stored value / {MAX_STORED} is the image in [0, 1], {sampling}."
    )


def _equipment(source: Dataset, manufacturer: str, record: Mapping[str, Any]) -> Sequence[Dataset]:
    """C.12.1.1.5 Contributing Equipment: this software with its weights, and the scanner where the source names it."""
    software = _dataset(
        PurposeOfReferenceCodeSequence=[_code("109102", "DCM", "Processing Equipment")],
        Manufacturer=manufacturer,
        ManufacturerModelName=record["bundle"],
        SoftwareVersions=record["bundle_version"],
        ContributionDescription=f"Translated by {record['bundle']} {record['bundle_version']}, "
        f"weights {record['weights']}, SHA-256 {record['weights_sha256']}",
    )
    scanner = _dataset(PurposeOfReferenceCodeSequence=[_code("109101", "DCM", "Acquisition Equipment")])
    _copy(source, scanner, SCANNER)
    return [software, scanner] if "Manufacturer" in scanner else [software]  # type 1 there


def _value_mapping(target: str) -> Dataset:
    """C.7.6.16.2.11 Real World Value Mapping, from stored values to [0, 1]."""
    return _dataset(
        RealWorldValueFirstValueMapped=0,
        RealWorldValueLastValueMapped=MAX_STORED,
        RealWorldValueIntercept=0.0,
        RealWorldValueSlope=1 / MAX_STORED,
        LUTExplanation=f"Synthetic {target} intensity, 0 to 1",
        LUTLabel="0 to 1",
        MeasurementUnitsCodeSequence=[_code("1", "UCUM", "no units")],
    )


def _reference(source: SourceSlice) -> Dataset:
    """Table 10-3, Image SOP Instance Reference macro."""
    header = source.header
    image = _dataset(ReferencedSOPClassUID=header.SOPClassUID, ReferencedSOPInstanceUID=header.SOPInstanceUID)
    if source.frame is not None:
        image.ReferencedFrameNumber = source.frame
    return image


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    return _dataset(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)


def _dataset(**elements: Any) -> Dataset:
    from pydicom import Dataset

    ds = Dataset()
    ds.update(elements)
    return ds
