"""The volumes of one subject, and what every layout needs to list them.

A subject is a `Pair` of two contrasts, or a `ContrastSet` of any number. Both tell `volumes`, by the keys that name
their files, and `masks`.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import ClassVar

from ..contrasts import contrast_ending
from ..errors import CaseError
from ..files import files_below
from ..text import readable


@dataclass(frozen=True)
class Pair:
    """A source and a target volume of one subject, not registered, or a target alone, as a layout lists them.

    Attributes:
        subject: name that the subject's files will start with: letters, digits, `.`, `_` and `-`.
        person: who it is; the subjects of one person stay on one side of a split.
        source: volume file or folder of DICOM; None where the training simulates it.
        target: volume file or folder of DICOM.
        source_contrast: one of `CONTRASTS`; None without a source.
        target_contrast: one of `CONTRASTS`.
        mask: brain mask on the target's grid.
        labels: segmentation on the target's grid, 0 outside the brain.
        split: "training", "validation" or "test", where the layout says it.
        stripped: whether the layout says that the target has no skull any more.
    """

    subject: str
    person: str
    source: Path | None
    target: Path
    source_contrast: str | None
    target_contrast: str
    mask: Path | None = None
    labels: Path | None = None
    split: str | None = None
    stripped: bool = False

    @property
    def volumes(self) -> dict[str, tuple[str, Path]]:
        """ "source", if there is one, and "target" -> contrast and file."""
        source = {} if self.source is None else {"source": (self.source_contrast or "", self.source)}
        return {**source, "target": (self.target_contrast, self.target)}

    @property
    def masks(self) -> dict[str, Path]:
        """ "mask" and "labels" -> file, of those that there are."""
        return _those_given(mask=self.mask, labels=self.labels)


@dataclass(frozen=True)
class ContrastSet:
    """Several contrasts of one subject, not registered, as a layout lists them.

    Attributes:
        subject, person, split: as of `Pair`.
        files: contrast -> volume file or folder of DICOM; the first gives the grid of all.
        mask: brain mask in the space of the first contrast.
        labels: segmentation on the grid of the first contrast, 0 outside the brain.
        lesion: mask of a lesion in the space of the first contrast.
        masks_of_all: whether the masks are in the space of every contrast, as in BraTS; else they are lost with the
            first.
    """

    subject: str
    person: str
    files: Mapping[str, Path]
    mask: Path | None = None
    labels: Path | None = None
    lesion: Path | None = None
    split: str | None = None
    masks_of_all: bool = False
    stripped: ClassVar[bool] = False  # it is seen in the volumes

    @property
    def volumes(self) -> dict[str, tuple[str, Path]]:
        """Contrast in small letters -> contrast and file."""
        return {contrast_ending(name)[1:]: (name, file) for name, file in self.files.items()}

    @property
    def masks(self) -> dict[str, Path]:
        """ "mask", "labels" and "lesion" -> file, of those that there are."""
        return _those_given(mask=self.mask, labels=self.labels, lesion=self.lesion)

    def masks_problem(self, left_out: Mapping[str, str]) -> str | None:
        """Why the masks have no place, as the end of a sentence; None where they have one.

        Args:
            left_out: contrast -> why it cannot be used.
        """
        # they must not pass to the next contrast, in which the head may lie elsewhere
        first = next(iter(self.files), None)
        if self.masks_of_all or not self.masks or first not in left_out:
            return None
        return (
            f"its {' and '.join(self.masks)} {'lies' if len(self.masks) == 1 else 'lie'} where the {first} does, which "
            f"cannot be used; give another {first}, or leave out these columns ({left_out[first].rstrip('.')})"
        )

    def without(self, contrasts: Iterable[str]) -> ContrastSet:
        """The same, less some contrasts."""
        left_out = set(contrasts)
        return replace(self, files={name: file for name, file in self.files.items() if name not in left_out})


def _those_given(**files: Path | None) -> dict[str, Path]:
    return {key: file for key, file in files.items() if file is not None}


Subject = Pair | ContrastSet
Listing = tuple[list[Subject], list[dict[str, str]]]
"""What can be prepared, and what is incomplete: {"subject", "reason"}, and "contrast" where that alone is left out."""
Wanted = str | tuple[str, ...]  # the contrast of the sources; or all of a `ContrastSet`, and there is no target


@dataclass
class Scans:
    """The volumes found of one subject: contrast -> files; two files where there should be one are both kept.

    `lesion` is a mask on the grid of all of them.
    """

    subject: str
    person: str
    volumes: dict[str, list[Path]] = field(default_factory=dict)
    problem: str | None = None
    lesion: Path | None = None

    def add(self, contrast: str, path: Path) -> None:
        """Note a volume, once for each file that it really is."""
        others = self.volumes.setdefault(contrast, [])
        if not any(os.path.realpath(path) == os.path.realpath(other) for other in others):
            others.append(path)


def safe_name(text: str) -> str:
    """A name that can be a file's: what is no letter, digit, `.`, `_` or `-` becomes `_`.

    A name of other letters alone, such as one in Chinese, becomes `subject_` and eight digits that stand for it.

    Raises:
        CaseError: it has neither letters nor digits.
    """
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", text.strip()).lstrip(".-")
    if not name.strip("_") and any(map(str.isalnum, readable(text))):
        return f"subject_{sha256(unicodedata.normalize('NFC', readable(text)).encode()).hexdigest()[:8]}"
    if not name.strip("_"):
        raise CaseError(f"A subject called {text!r} cannot name a file; use letters and digits.")
    return name


def volume_problem(path: Path) -> str | None:
    """Why a listed volume (file, or folder of DICOM) cannot be read, as the end of a sentence; None if it can."""
    if path.is_dir():
        return None if files_below(path) else "its DICOM folder is empty"
    if not path.exists():
        return f"{path.name} is {'a link to a file that is ' if path.is_symlink() else ''}not there"
    return None if path.stat().st_size else f"{path.name} is an empty file"


def pair_scans(scans: Iterable[Scans], source: Wanted, target: str | None, file_names: Mapping[str, str]) -> Listing:
    """The pairs of two contrasts, and the subjects that lack one; or of several contrasts what each subject has.

    Args:
        scans: what was found.
        source: contrast to translate from; or all that are wanted, the first of which that a subject has gives the
            grid.
        target: contrast to translate to; None where several are wanted.
        file_names: contrast -> how its files are called, for the reasons.
    """
    if isinstance(source, tuple):
        return _contrast_sets(scans, source, file_names)
    if source == target:
        raise CaseError(f"Source and target are both {source}; give two contrasts.")
    for contrast in (source, target):
        if contrast not in file_names:
            raise CaseError(f"This layout has no {contrast}; give two of {', '.join(file_names)}.")
    pairs, incomplete = [], []
    for one in scans:
        reason = one.problem or _lack(one, source, file_names) or _lack(one, target, file_names)
        if reason:
            incomplete.append({"subject": one.subject, "reason": f"{one.subject}: {reason}."})
        else:
            volumes = one.volumes[source][0], one.volumes[target][0]
            pairs.append(Pair(one.subject, one.person, *volumes, source, target))
    return pairs, incomplete


def _contrast_sets(scans: Iterable[Scans], contrasts: tuple[str, ...], file_names: Mapping[str, str]) -> Listing:
    """The contrasts that each subject has; two at least."""
    if len([name for name in contrasts if name in file_names]) < 2:
        raise CaseError(f"This layout has none or one of {', '.join(contrasts)}; give two of {', '.join(file_names)}.")
    listed, incomplete = [], []
    for one in scans:
        lacks = {name: one.problem or _lack(one, name, file_names) for name in contrasts if name in one.volumes}
        files = {name: one.volumes[name][0] for name, reason in lacks.items() if not reason}
        subject = ContrastSet(one.subject, one.person, files, lesion=one.lesion, masks_of_all=True)
        listed += [subject] if len(files) > 1 else []
        incomplete += contrast_problems(one.subject, files, {name: why for name, why in lacks.items() if why})
    return listed, incomplete


def contrast_problems(subject: str, usable: Iterable[str], problems: Mapping[str, str]) -> list[dict[str, str]]:
    """What a listing tells of a subject of several contrasts as incomplete.

    Args:
        subject: its name.
        usable: the contrasts that it has; fewer than two are too few.
        problems: contrast -> why it cannot be used, as the end of a sentence.
    """
    usable = list(usable)
    if len(usable) > 1:
        return [{"subject": subject, "contrast": name, "reason": f"{name}: {why}."} for name, why in problems.items()]
    there = f"it has {usable[0]} alone" if usable else "it has no contrast that is asked for"
    told = "".join(f"; {name}: {why}" for name, why in problems.items())
    return [{"subject": subject, "reason": f"{subject}: {there}, and two are needed{told}."}]


def _lack(scans: Scans, contrast: str, file_names: Mapping[str, str]) -> str | None:
    found = scans.volumes.get(contrast, [])
    if not found:
        there = f"it has {', '.join(scans.volumes)}" if scans.volumes else "it has no volume at all"
        return f"there is no {contrast} ({file_names[contrast]}), {there}; add it or leave the subject out"
    if len(found) > 1:
        return f"there are several {contrast}: {', '.join(path.name for path in found)}; keep one"
    problem = volume_problem(found[0])
    return f"{problem}; get it again or leave the subject out" if problem else None


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder by name, none hidden, and each once however many links lead to it."""
    found: dict[str, Path] = {}
    inside = (path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    for path in sorted(inside, key=lambda path: (path.is_symlink(), path.name)):
        found.setdefault(os.path.realpath(path), path)
    return sorted(found.values(), key=lambda path: path.name)


def files_in(folder: Path) -> list[Path]:
    """The names in a folder that are no folders, none hidden, sorted; links to nothing among them."""
    return sorted(path for path in folder.iterdir() if not path.is_dir() and not path.name.startswith("."))


def folders_below(root: Path) -> Iterator[Path]:
    """A folder and all below it, none hidden; links are followed, but no folder comes twice (a link may lead back)."""
    seen = {os.path.realpath(root)}
    waiting = [root]
    while waiting:
        folder = waiting.pop(0)
        yield folder
        for path in subfolders(folder):
            if (real := os.path.realpath(path)) not in seen:
                seen.add(real)
                waiting.append(path)
