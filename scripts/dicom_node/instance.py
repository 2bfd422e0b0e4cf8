"""What the node wants to know of an instance."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import BinaryIO

from ..dicom.headers import Header, quiet_pydicom
from ..errors import CaseError

_PATIENT = ("PatientID", "PatientName", "PatientBirthDate", "SpecificCharacterSet")


@dataclass(frozen=True)
class Instance:
    """UIDs of an instance, from its own data set, and what it tells of its patient (`Header.patient`)."""

    study_uid: str
    series_uid: str
    instance_uid: str
    class_uid: str
    patient: tuple[str, str, str] = field(default=("", "", ""), repr=False)


def read_uids(file: str | os.PathLike | BinaryIO) -> Instance:
    """UIDs and patient of a DICOM file; nothing else of it is looked at.

    Raises:
        CaseError: it is none, one is missing, or one is no UID; the sentence does not quote it.
    """
    tags = {
        "StudyInstanceUID": "study_uid",
        "SeriesInstanceUID": "series_uid",
        "SOPInstanceUID": "instance_uid",
        "SOPClassUID": "class_uid",
    }
    try:
        header = quiet_pydicom().dcmread(file, stop_before_pixels=True, specific_tags=[*tags, *_PATIENT])
        uids = {name: str(header.get(keyword, "")) for keyword, name in tags.items()}
    except Exception:  # whatever pydicom makes of damaged bytes; its message may quote them
        raise CaseError("it cannot be read as DICOM; send it again.") from None
    for keyword, name in tags.items():
        if not re.fullmatch(r"[0-9.]{1,64}", uids[name]):
            raise CaseError(f"its {keyword} is missing or no UID; correct it at the sender.")
    return Instance(**uids, patient=Header(None, header).patient)
