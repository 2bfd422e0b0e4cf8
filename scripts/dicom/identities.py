"""Whose images files are, of which study and series: by their UIDs, and by what else is there where these lack."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .headers import Header


@dataclass(frozen=True, eq=False)
class SeriesHeaders:
    """The headers of one series of one patient.

    Attributes:
        study_uid: StudyInstanceUID, or what stands for it (`stand_in`).
        uid: SeriesInstanceUID, or what stands for it.
        patient: 0 where all images of the study are of one patient; else a number of the patient, from 1.
        headers: of its files.
    """

    study_uid: str
    uid: str
    patient: int
    headers: list[Header]


def by_series(headers: Iterable[Header]) -> list[SeriesHeaders]:
    """Headers by study, patient and series, sorted by these.

    An image that lacks a UID belongs to the one series that is alike in what it tells, where there is such a one.
    """
    studies: dict[str, list[Header]] = {}
    headers = list(headers)
    study_of = _studies_of_series(headers)
    for header in headers:
        uid = header.text("SeriesInstanceUID")
        study = header.text("StudyInstanceUID") or study_of.get(uid) or uid or stand_in(header)
        studies.setdefault(study, []).append(header)
    found = []
    for study, members in sorted(studies.items()):
        persons = patients(members)
        for number, person in enumerate(persons, start=1):
            number = number if len(persons) > 1 else 0
            found += [SeriesHeaders(study, uid, number, ones) for uid, ones in sorted(_series(person).items())]
    return found


def _studies_of_series(headers: Iterable[Header]) -> dict[str, str]:
    """StudyInstanceUID of each series that is of one study."""
    told: dict[str, set[str]] = {}
    for header in headers:
        told.setdefault(header.text("SeriesInstanceUID"), set()).add(header.text("StudyInstanceUID"))
    only = {uid: studies - {""} for uid, studies in told.items() if uid}
    return {uid: next(iter(studies)) for uid, studies in only.items() if len(studies) == 1}


def patients(headers: Iterable[Header]) -> list[list[Header]]:
    """Headers by whose they are; one that tells less belongs to the only patient whom it does not contradict.

    Two are of one patient where neither PatientID, PatientName nor PatientBirthDate differ, as far as both have them.
    """
    groups: dict[tuple[str, ...], list[Header]] = {}
    for header in headers:
        groups.setdefault(header.patient, []).append(header)
    told: list[tuple[tuple[str, ...], list[Header]]] = []
    for identity, ones in sorted(groups.items(), key=lambda item: (item[0].count(""), item[0])):
        alike = [members for other, members in told if of_one_patient(identity, other)]
        if len(alike) == 1:
            alike[0].extend(ones)
        else:
            told.append((identity, list(ones)))
    return [members for _, members in told]


def of_one_patient(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether what two images tell of their patients (`Header.patient`) does not contradict.

    With the same PatientID, names may differ in letters that are not ASCII: these come out in many ways where images
    name another character set than they are written in.
    """
    numbers, names, births = zip(one, other, strict=True)
    alike = _one_name(*names) or (bool(one[0]) and numbers[0] == numbers[1] and _one_name(*map(_in_ascii, names)))
    return alike and all(not a or not b or a == b for a, b in (numbers, births))


def _one_name(one: str, other: str) -> bool:
    return not one or not other or one.casefold() == other.casefold()


def _in_ascii(name: str) -> str:
    """A name with a star for letters that are not ASCII, however many characters they were read as."""
    return re.sub(r"[^ -~]+|\?+", "*", name)


def _series(headers: Iterable[Header]) -> dict[str, list[Header]]:
    """The headers of one patient's study by SeriesInstanceUID."""
    found: dict[str, list[Header]] = {}
    lacking = []
    for header in headers:
        uid = header.text("SeriesInstanceUID")
        if uid:
            found.setdefault(uid, []).append(header)
        else:
            lacking.append(header)
    known = {uid: _told(ones[0]) for uid, ones in found.items()}
    for header in lacking:
        alike = [uid for uid, told in known.items() if told == _told(header)]
        found.setdefault(alike[0] if len(alike) == 1 else stand_in(header), []).append(header)
    return found


def _told(header: Header) -> tuple[str, ...]:
    """What tells series apart, beside their UIDs."""
    return tuple(header.text(name) for name in ("StudyInstanceUID", "FrameOfReferenceUID", "Modality", "SeriesNumber"))


def stand_in(header: Header) -> str:
    """What stands for the UID of a series that has none: digits of what else its header tells of it."""
    digits = hashlib.sha256("|".join(_told(header)).encode()).hexdigest()[:12]
    return f"without a UID ({digits})"
