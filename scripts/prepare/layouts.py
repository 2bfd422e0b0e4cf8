"""How data sets lie on disk: one function for each layout and one entry of `LAYOUTS`.

Every layout skips hidden files (those of macOS that start with `._` too), follows links, and takes upper and lower case
for the same. A subject that lacks a volume is reported with the reason; the others are listed.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..contrasts import contrast_named
from ..errors import CaseError
from ..files import files_below
from ..volumes.find import stem_of, tell_unread, volume_suffix
from .pair_table import list_table
from .pairs import Listing, Pair, Scans, Subject, Wanted, files_in, folders_below, pair_scans, safe_name, subfolders
from .t1_list import list_t1

__all__ = ["LAYOUTS", "Layout", "Pair", "list_pairs"]

logger = logging.getLogger(__name__)
_BRATS_SCAN = r"(BraTS-.*\d)-\d{3}"  # the person, and the time point
_BRATS_2018 = r"Brats\d\d_.+"


def list_pairs(
    layout: str,
    root: str | Path,
    source_contrast: str | None = None,
    target_contrast: str | None = None,
    contrasts: Sequence[str] = (),
) -> Listing:
    """The pairs of a data set, sorted by subject, and the subjects that are incomplete.

    Args:
        layout: one of `LAYOUTS`.
        root: the data set's folder; for a layout that is a file, that file or its folder.
        source_contrast: contrast to translate from; None is the layout's default.
        target_contrast: contrast to translate to; None is the layout's default.
        contrasts: instead of these two, all that are wanted: subjects are then `ContrastSet`s of those that each has,
            in this order, two at least.

    Returns:
        The pairs, and {"subject", "reason"} of each subject that lacks a volume; with several contrasts {"subject",
        "contrast", "reason"} of one that a subject has to do without.

    Raises:
        CaseError: no such layout, folder or contrast; nothing of that layout there (the error names the layout that
            would fit); two subjects whose files would have one name.
    """
    if layout not in LAYOUTS:
        raise CaseError(f"There is no layout {layout!r}; give one of {', '.join(LAYOUTS)}.")
    root = Path(str(root)).expanduser()
    if not root.exists():
        raise CaseError(f"There is no file or folder {root}; check the input.")
    pair = [None if name is None else contrast_named(name) for name in (source_contrast, target_contrast)]
    several = tuple(dict.fromkeys(map(contrast_named, contrasts)))
    looks_for = LAYOUTS[layout].looks_for
    if root.is_file() and not LAYOUTS[layout].is_file:
        raise CaseError(f"{root} is a file, and the layout {layout} is a folder: it looks for {looks_for}.")
    pairs, incomplete = LAYOUTS[layout](root, *([several] if several else pair))
    if root.is_dir():
        tell_unread(root)
    if not pairs and not incomplete:
        raise CaseError(
            f"{root} holds no subject of the layout {layout}, which looks for {looks_for}; {_advice(layout, root)}."
        )
    _refuse_clashes(pairs)
    return sorted(pairs, key=lambda pair: pair.subject), sorted(incomplete, key=lambda one: one["subject"])


def _advice(layout: str, root: Path) -> str:
    """What to do where a layout found nothing: try the one that finds the most."""
    if root.is_file():
        return "fill it in"
    counts = {}
    for other in LAYOUTS.keys() - {layout}:
        try:
            counts[other] = len(LAYOUTS[other](root)[0])
        except CaseError:
            counts[other] = 0
    best = max(sorted(counts), key=lambda name: counts[name])
    if counts[best]:
        return f"the layout {best} would fit, with {counts[best]} subjects"
    return "check the folder, or list the files in a table for the layout csv"


def _refuse_clashes(pairs: Iterable[Subject]) -> None:
    first: dict[str, Subject] = {}
    for pair in pairs:
        other = first.setdefault(pair.subject.casefold(), pair)
        if other is not pair:
            raise CaseError(
                f"The files of two subjects, with the {_named_volume(other)} and {_named_volume(pair)}, would both be "
                f"named {pair.subject}; rename one."
            )


def _named_volume(subject: Subject) -> str:
    if isinstance(subject, Pair):
        return f"target {subject.target}"
    return " ".join(map(str, next(iter(subject.files.items()))))


def synthrad2023(root: Path, source_contrast: Wanted, target_contrast: str | None) -> Listing:
    """SynthRAD2023, task 1, brain (Thummerer et al. 2023): Task1/brain/ID/{ct,mr}.nii.gz.

    `root` is the folder that holds Task1, Task1 itself, or Task1/brain. The folder `overview` is no subject, folders of
    the pelvis (1PA001) are none of the brain. `mask.nii.gz` is the outline of the patient, not the brain: it is not
    used.
    """
    contrasts = {"ct": "CT", "mr": "T1"}
    file_names = {contrast: f"{stem}.nii.gz" for stem, contrast in contrasts.items()}
    found = []
    for folder in subfolders(_descend(_descend(root, "task1"), "brain")):
        if re.fullmatch(r"\dP[A-Z]\d+", folder.name, re.IGNORECASE):
            continue
        volumes = [(contrasts.get((_stem(path) or "").lower()), path) for path in files_in(folder)]
        volumes = [(contrast, path) for contrast, path in volumes if contrast]
        if volumes or re.fullmatch(r"1B[A-Z]\d+", folder.name, re.IGNORECASE):
            found.append(Scans(safe_name(folder.name), folder.name))
            for contrast, path in volumes:
                found[-1].add(contrast, path)
    return pair_scans(found, source_contrast, target_contrast, file_names)


def brats2023(root: Path, source_contrast: Wanted, target_contrast: str | None) -> Listing:
    """BraTS 2023: ID/ID-{t1n,t1c,t2w,t2f}.nii.gz at any depth, skull-stripped.

    ID is that of a scan (BraTS-GLI-00000-000: its last number is the time point), the person is what stands before the
    time point. Of several contrasts the segmentation (ID-seg) goes along as the mask of the lesion.
    """
    endings = {"t1n": "T1", "t1c": "T1ce", "t2w": "T2", "t2f": "FLAIR"}
    found: dict[str, Scans] = {}

    def scans_of(name: str) -> Scans:
        scan = re.fullmatch(_BRATS_SCAN, name, re.IGNORECASE)
        return found.setdefault(name.lower(), Scans(safe_name(name), scan[1] if scan else name))

    for folder in folders_below(root):
        if re.fullmatch(_BRATS_SCAN, folder.name, re.IGNORECASE):
            scans_of(folder.name)
        for path in files_in(folder):
            if match := re.fullmatch(rf"(.+)-({'|'.join(endings)}|seg)", _stem(path) or "", re.IGNORECASE):
                ending = match[2].lower()
                if ending != "seg" or re.fullmatch(_BRATS_SCAN, match[1], re.IGNORECASE):
                    _add_of_brats(scans_of(match[1]), ending, endings, path)
    file_names = {contrast: f"ID-{ending}.nii.gz" for ending, contrast in endings.items()}
    return pair_scans(found.values(), source_contrast, target_contrast, file_names)


def _add_of_brats(scans: Scans, ending: str, endings: Mapping[str, str], path: Path) -> None:
    if ending == "seg":
        scans.lesion = path
    else:
        scans.add(endings[ending], path)


def brats2018(root: Path, source_contrast: Wanted, target_contrast: str | None) -> Listing:
    """BraTS 2018: ID/ID_{t1,t1ce,t2,flair}.nii.gz in the folders HGG and LGG or in one, skull-stripped.

    ID is Brats18_SITE_PATIENT_1, the person what stands before the last number. Of several contrasts the segmentation
    (ID_seg) goes along as the mask of the lesion.
    """
    endings = {"t1": "T1", "t1ce": "T1ce", "t2": "T2", "flair": "FLAIR"}
    found: dict[str, Scans] = {}

    def scans_of(name: str) -> Scans:
        return found.setdefault(name.lower(), Scans(safe_name(name), re.sub(r"_\d+$", "", name)))

    for folder in folders_below(root):
        if re.fullmatch(_BRATS_2018, folder.name, re.IGNORECASE):
            scans_of(folder.name)
        for path in files_in(folder):
            if match := re.fullmatch(rf"({_BRATS_2018})_({'|'.join(endings)}|seg)", _stem(path) or "", re.IGNORECASE):
                _add_of_brats(scans_of(match[1]), match[2].lower(), endings, path)
    file_names = {contrast: f"ID_{ending}.nii.gz" for ending, contrast in endings.items()}
    return pair_scans(found.values(), source_contrast, target_contrast, file_names)


def ixi(root: Path, source_contrast: Wanted, target_contrast: str | None) -> Listing:
    """IXI: IXI012-HH-1211-{T1,T2,PD}.nii.gz in folders IXI-T1, IXI-T2, IXI-PD or in one.

    The person is IXI012; what follows names the hospital and the scan.
    """
    found: dict[str, Scans] = {}
    for path in files_below(root):
        if match := re.fullmatch(r"((IXI\d+)-\w+-\w+?)[-_](T1|T2|PD)", _stem(path) or "", re.IGNORECASE):
            scans = found.setdefault(match[1].lower(), Scans(safe_name(match[1]), match[2].upper()))
            scans.add(match[3].upper(), path)
    file_names = {name: f"IXI...-{name}.nii.gz" for name in ("T1", "T2", "PD")}
    return pair_scans(found.values(), source_contrast, target_contrast, file_names)


def bids(root: Path, source_contrast: Wanted | None, target_contrast: str | None) -> Listing:
    """BIDS: sub-X[/ses-Y]/{anat,ct}/*_{CT,FLAIR,T2w,T1w,PDw}.nii[.gz]; a T1w with the entity `ce` is a T1ce.

    Where no source is given, it is the first of CT, FLAIR and T2 that any subject has beside its target, for the whole
    data set: a network learns from one contrast. Source and target come from one session; the subject
    is sub-X_ses-Y, the person sub-X. Of several volumes of a contrast the one with the fewest entities is taken (the
    plainest), then that with the lowest run, then the first by name, and a warning says so. Only folders sub-* are
    looked into: not derivatives, not sourcedata.
    """
    file_names = {"CT": "*_CT.nii.gz", "T1": "*_T1w.nii.gz", "T1ce": "*_ce-*_T1w.nii.gz"}
    file_names |= {"T2": "*_T2w.nii.gz", "FLAIR": "*_FLAIR.nii.gz", "PD": "*_PDw.nii.gz"}
    found = [scans for folder in subfolders(root) if _is(folder, "sub") for scans in _bids_subject(folder)]
    source = source_contrast or _likely_source(found, target_contrast)
    _take_plainest(found, set(source) if isinstance(source, tuple) else {source, target_contrast})
    return pair_scans(found, source, target_contrast, file_names)


def _likely_source(found: Iterable[Scans], target: str) -> str:
    usable = [one.volumes.keys() for one in found if target in one.volumes]
    likely = [name for name in ("CT", "FLAIR", "T2") if name != target]
    return next((name for name in likely if any(name in names for names in usable)), likely[0])


def _bids_subject(folder: Path) -> list[Scans]:
    """The sessions of a subject that hold a volume; one without volumes where none does."""
    sessions = [place for place in subfolders(folder) if _is(place, "ses")]
    found = [_bids_session(place, folder.name) for place in [folder, *sessions]]
    return [scans for scans in found if scans.volumes or scans.problem] or found[:1]


def _bids_session(place: Path, person: str) -> Scans:
    name = person if place.name == person else f"{person}_{place.name}"
    scans = Scans(safe_name(name), person)
    for path in [p for sub in subfolders(place) if sub.name.lower() in ("anat", "ct") for p in files_in(sub)]:
        entities, suffix = _bids_name(path)
        contrast = {"ct": "CT", "t1w": "T1", "t2w": "T2", "flair": "FLAIR", "pdw": "PD"}.get(suffix)
        if contrast is None or entities.get("part", "mag") != "mag":
            continue
        if entities.get("sub", "").lower() != person[len("sub-") :].lower():
            scans.problem = f"{path.name} is named for another subject; rename it or move it"
        if "ce" not in entities or contrast in ("CT", "T1"):
            scans.add("T1ce" if "ce" in entities and contrast == "T1" else contrast, path)
    return scans


def _bids_name(path: Path) -> tuple[dict[str, str], str]:
    """Entities and suffix of a BIDS file name, in small letters; suffix "" where it is no volume."""
    *parts, suffix = (_stem(path) or "").lower().split("_")
    return dict(part.split("-", 1) for part in parts if "-" in part), suffix


def _take_plainest(found: Iterable[Scans], contrasts: set[str]) -> None:
    """Leave one volume of each contrast; see `bids`."""

    def order(path: Path) -> tuple[int, int, str]:
        entities, _ = _bids_name(path)
        run = entities.pop("run", "0")
        return len(entities), int(run) if run.isdigit() else 0, path.name

    left = []
    for scans in found:
        for contrast, paths in scans.volumes.items():
            if len(paths) > 1 and contrast in contrasts:
                left.append(min(paths, key=order).name)
            scans.volumes[contrast] = [min(paths, key=order)]
    if left:
        logger.warning(
            "%d times a subject has several volumes of one contrast; the one with the fewest entities and the lowest "
            "run is used, such as %s.",
            len(left),
            left[0],
        )


def _is(folder: Path, entity: str) -> bool:
    return re.fullmatch(rf"{entity}-.+", folder.name, re.IGNORECASE) is not None


def _descend(folder: Path, name: str) -> Path:
    """The folder of that name in a folder, whatever its case; the folder itself where there is none."""
    return next((path for path in subfolders(folder) if path.name.lower() == name), folder)


def _stem(path: Path) -> str | None:
    """A volume's name without extension; None where it is no volume."""
    return None if volume_suffix(path) is None else stem_of(path)


@dataclass(frozen=True)
class Layout:
    """How to list a data set.

    Attributes:
        list_pairs: (root, contrast of the source, that of the target) -> pairs, and the subjects that are incomplete;
            or (root, contrasts that are wanted, None) -> `ContrastSet`s.
        looks_for: the files, as the middle of a sentence.
        default_source: contrast to translate from where none is asked for; None where the layout goes by what it finds.
        default_target: likewise.
        is_file: whether a file lists the data set; else it is a folder.
    """

    list_pairs: Callable[[Path, Wanted | None, str | None], Listing]
    looks_for: str
    default_source: str | None = None
    default_target: str | None = None
    is_file: bool = False

    def __call__(
        self, root: Path, source_contrast: Wanted | None = None, target_contrast: str | None = None
    ) -> Listing:
        """The listing, by the defaults where no contrast is given."""
        if isinstance(source_contrast, tuple):
            return self.list_pairs(root, source_contrast, None)
        return self.list_pairs(root, source_contrast or self.default_source, target_contrast or self.default_target)


LAYOUTS: dict[str, Layout] = {
    "synthrad2023": Layout(synthrad2023, "Task1/brain/ID/ct.nii.gz and mr.nii.gz", "CT", "T1"),
    "brats2023": Layout(brats2023, "ID/ID-t2f.nii.gz, ID-t1n.nii.gz, ID-t1c.nii.gz and ID-t2w.nii.gz", "FLAIR", "T1"),
    "brats2018": Layout(brats2018, "ID/ID_flair.nii.gz, ID_t1.nii.gz, ID_t1ce.nii.gz and ID_t2.nii.gz", "FLAIR", "T1"),
    "ixi": Layout(ixi, "IXI012-HH-1211-T1.nii.gz, -T2 and -PD", "T2", "T1"),
    "bids": Layout(
        bids, "sub-X/anat/sub-X_T1w.nii.gz, _CT, _FLAIR and _T2w, with or without sessions", default_target="T1"
    ),
    "csv": Layout(
        list_table, "a table with the columns subject, source and target, or a column for each contrast", is_file=True
    ),
    "t1": Layout(list_t1, "subjects.json, a list of T1 volumes without a source", default_target="T1", is_file=True),
}
