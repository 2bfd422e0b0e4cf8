"""Which synthetic volume belongs to which real one: from a table, or from two folders by the files' names."""

import json
import os
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..contrasts import CONTRASTS, contrast_ending, contrast_named
from ..errors import CaseError
from ..text import path_named, read_table, readable
from ..volumes.find import stem_of, volumes_below

_OPTIONAL = ("mask", "source", "target_contrast")
_CONTRAST_ENDINGS = tuple(contrast_ending(contrast) for contrast in CONTRASTS)
# endings that say what kind of image it is, whatever its contrast
_KINDS = {"synthetic": ("_synthetic",), "real": ("_target", "_real", "_mr"), "source": ("_source",), "mask": ("_mask",)}
_ENDINGS = (*(ending for endings in _KINDS.values() for ending in endings), *_CONTRAST_ENDINGS)
_ELSEWHERE = {
    *("_labels", "_mask", "_source", "_synthetic", "_target", "_real", "_uncertainty", "_watch", "_dense"),
    *_CONTRAST_ENDINGS,
}


@dataclass(frozen=True)
class ResultPair:
    """Files of one subject; mask is that of the brain, target_contrast what synthetic and real are of."""

    subject: str
    synthetic: Path
    real: Path
    mask: Path | None = None
    source: Path | None = None
    target_contrast: str = "T1"


def recorded_contrast(image: Path, kind: str = "target_contrast") -> str | None:
    """The contrast that the JSON beside a synthetic image tells; None where it tells none.

    Args:
        image: the synthetic image.
        kind: "target_contrast", which is T1 where a record of the main job does not say, or "source_contrast".
    """
    record = image.with_name(f"{stem_of(image)}.json")
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict):
        return None
    earlier = "T1" if kind == "target_contrast" and "bundle" in content else None
    contrast = content.get(kind, earlier)
    return None if contrast is None else contrast_named(contrast)


def real_endings(contrast: str) -> tuple[str, ...]:
    """What the names of real images of a contrast end in, the most telling one first."""
    return (contrast_ending(contrast), *_KINDS["real"])


def chosen_contrast(recorded: Iterable[str | None], wanted: str | None = None) -> str:
    """The one target contrast of an evaluation.

    Args:
        recorded: `recorded_contrast` of each synthetic image.
        wanted: what the user chose, in any spelling.

    Raises:
        CaseError: the images are of several contrasts and none was chosen, or the contrast is unknown.
    """
    if wanted is not None:
        return contrast_named(wanted)
    contrasts = sorted({contrast for contrast in recorded if contrast is not None})
    if len(contrasts) > 1:
        raise CaseError(
            f"The synthetic images are of {' and '.join(contrasts)}, whose figures make no common table; choose one by "
            "--target_contrast."
        )
    return contrasts[0] if contrasts else "T1"


def pairs_of_table(
    path: str | os.PathLike, target_contrast: str | None = None
) -> tuple[list[ResultPair], dict[str, str]]:
    """Pairs of a CSV with the columns subject, synthetic, real and, as one likes, mask, source and target_contrast.

    Args:
        path: of the CSV; the paths in it are relative to it.
        target_contrast: rows of another one are left out; without, the rows or the JSON beside the images tell it.

    Returns:
        pairs, and subject -> reason for rows that are left out.

    Raises:
        CaseError: no such table, or a column is missing.
    """
    file = Path(path)
    if not file.is_file():
        raise CaseError(f"There is no {file}; give a CSV with the columns subject, synthetic and real.")
    rows = [row for _, row in read_table(file, ("subject", "synthetic", "real"), _OPTIONAL) if any(row.values())]
    contrasts, left_out = _contrasts_of_rows(rows, file.parent)
    contrast = chosen_contrast(contrasts, target_contrast)
    pairs: dict[str, ResultPair] = {}
    for number, (row, own) in enumerate(zip(rows, contrasts, strict=True), start=1):
        subject = row["subject"]
        files = {kind: path_named(file.parent, row[kind]) for kind in _KINDS if row[kind]}
        if subject and subject in left_out:
            continue
        if own not in (None, contrast):
            left_out[subject] = f"its synthetic image is of {own}, not {contrast}"
        elif subject in pairs:
            left_out[subject] = f"{file.name} has it twice; keep one row"
        elif not {"synthetic", "real"} <= files.keys() or not subject:
            left_out[subject or f"row {number}"] = "the row is not complete; fill it in"
        else:
            pairs[subject] = ResultPair(subject, **files, target_contrast=contrast)
    kept = [pair for subject, pair in pairs.items() if subject not in left_out]
    if not kept:
        raise CaseError(f"{file} has no complete row; it needs subject, synthetic and real in each.")
    return kept, left_out


def _contrasts_of_rows(rows: Iterable[dict[str, str]], folder: Path) -> tuple[list[str | None], dict[str, str]]:
    """The target contrast that each row or its record tells, None where none does; and whose is none that there is."""
    contrasts, left_out = [], {}
    for row in rows:
        try:
            told = row["target_contrast"]
            image = path_named(folder, row["synthetic"]) if row["synthetic"] else None
            contrasts.append(contrast_named(told) if told else image and recorded_contrast(image))
        except CaseError as error:
            contrasts.append(None)
            left_out[row["subject"]] = str(error)
    return contrasts, left_out


def pairs_of_folders(
    synthetic: str | os.PathLike,
    real: str | os.PathLike,
    masks: str | os.PathLike | None = None,
    source: str | os.PathLike | None = None,
    target_contrast: str | None = None,
) -> tuple[list[ResultPair], dict[str, str]]:
    """Pairs of two folders, or of two files: by the files' names without what only says which image it is.

    `anna_t1`, `anna_ct_t1`, `anna_synthetic` and `anna` are all of anna, in the folder of the real images `anna`,
    `anna_t1`, `anna_mr`, `anna_target` and `anna_real`; below a folder its name is a part of it, with `_`. For another
    target contrast its ending stands in place of `_t1`, and what ends in `_t1` is none of either.

    Args:
        synthetic, real, masks, source: folders or files.
        target_contrast: of both; without, the JSON beside the synthetic images tell it, T1 where there are none.

    Returns:
        pairs, and subject -> reason for files that have no partner, or more than one.

    Raises:
        CaseError: a folder that is not there or empty, no pair at all, or synthetic images of several contrasts.
    """
    folders = {"synthetic": synthetic, "real": real, "mask": masks, "source": source}
    paths = {kind: Path(str(path)).expanduser() for kind, path in folders.items() if path is not None}
    if paths["synthetic"].is_file() and paths["real"].is_file():
        contrast = chosen_contrast([recorded_contrast(paths["synthetic"])], target_contrast)
        return [ResultPair(subject_of(_stem(paths["synthetic"])), **paths, target_contrast=contrast)], {}
    # the files themselves: a datalist.json there would name the sources alone
    items = {kind: volumes_below(path) for kind, path in paths.items()}
    recorded, unknown = _recorded(items["synthetic"])
    items["synthetic"] = [item for item in items["synthetic"] if item["image"] in recorded]
    contrast = chosen_contrast(recorded.values(), target_contrast)
    items["synthetic"] = [item for item in items["synthetic"] if recorded[item["image"]] in (None, contrast)]
    translated = {recorded_contrast(Path(item["image"]), "source_contrast") for item in items["synthetic"]}
    sources = contrast_ending(translated.pop()) if len(translated) == 1 and None not in translated else None
    found = {kind: _by_subject(kind, listed, contrast, sources) for kind, listed in items.items()}
    pairs, left_out = _matched(found, contrast)
    left_out |= unknown
    if not pairs:
        raise CaseError(
            f"No file in {synthetic} has a partner in {real}; files of one subject need the same name, but for endings "
            f"such as {', '.join(dict.fromkeys(('_synthetic', *real_endings(contrast))))} of {contrast} images "
            "(--target_contrast), or give a CSV with --pairs."
        )
    return pairs, left_out


def _recorded(items: Iterable[dict[str, str]]) -> tuple[dict[str, str | None], dict[str, str]]:
    """`recorded_contrast` by image, and subject -> reason for images whose record names none that there is."""
    recorded, unknown = {}, {}
    for item in items:
        try:
            recorded[item["image"]] = recorded_contrast(Path(item["image"]))
        except CaseError as error:
            unknown[subject_of(item["case"])] = f"the JSON beside it is damaged: {error}"
    return recorded, unknown


def subject_of(name: str) -> str:
    """A file's name without the endings that say which image it is: `anna_ct_t1` is anna.

    Accents are one character each, and bytes that are no UTF-8 letters, so that files meet that were named on Windows,
    macOS and Linux.
    """
    name = unicodedata.normalize("NFC", readable(name))
    lowered = name.lower()
    for ending in _ENDINGS:
        if lowered.endswith(ending) and len(name) > len(ending):
            return subject_of(name[: -len(ending)])
    return name


def _matched(found: dict[str, dict[str, dict[str, Path]]], contrast: str) -> tuple[list[ResultPair], dict[str, str]]:
    """The subjects that have one file of each kind, and why the others are left out."""
    pairs, left_out = [], {}
    for subject in sorted(found["synthetic"].keys() | found["real"].keys()):
        candidates = {kind: of.get(subject, {}) for kind, of in found.items()}
        reason = _why_not(candidates)
        if reason:
            left_out[subject] = reason
        else:
            files = {kind: next(iter(of.values())) for kind, of in candidates.items() if of}
            pairs.append(ResultPair(subject, **files, target_contrast=contrast))
    return pairs, left_out


def _why_not(candidates: dict[str, dict[str, Path]]) -> str | None:
    """Why there is no pair; None where there is."""
    for kind, of in candidates.items():
        if len(of) > 1:
            return f"{len(of)} files could be its {kind} image ({', '.join(sorted(of))}); name one pair by --pairs"
    for kind in ("synthetic", "real"):
        if not candidates[kind]:
            return f"there is no {kind} image of it"
    return None


def _by_subject(
    kind: str, items: Iterable[dict[str, str]], contrast: str, source_ending: str | None
) -> dict[str, dict[str, Path]]:
    """Subject -> name -> file of the files that can be of this kind, for each subject those that say it best.

    Args:
        kind: a key of `_KINDS`.
        items: files with their "case".
        contrast: target contrast.
        source_ending: of the contrast that was translated, where it is known.
    """
    best = {"real": contrast_ending(contrast), "source": source_ending}.get(kind)
    ranked: dict[str, dict[int, dict[str, Path]]] = {}
    for item in items:
        name = item["case"].lower()
        rank = 0 if best and name.endswith(best) else _rank(name, kind, contrast_ending(contrast))
        if rank is not None:
            ranks = ranked.setdefault(subject_of(item["case"]), {})
            ranks.setdefault(rank, {})[item["case"]] = Path(item["image"])
    return {subject: ranks[min(ranks)] for subject, ranks in ranked.items()}


def _rank(name: str, kind: str, target_ending: str) -> int | None:
    """1 where a name says that it is of a kind, 2 where it says nothing, None where it is of another kind."""
    others = tuple(ending for ending in _CONTRAST_ENDINGS if ending != target_ending)
    of_contrast = {"synthetic": (target_ending,), "real": (target_ending,), "source": others, "mask": ()}[kind]
    endings = (*_KINDS[kind], *of_contrast)
    if name.endswith(endings):
        return 1
    # a source or a mask may be called like the image it belongs to
    foreign = _ELSEWHERE - {*endings, target_ending}
    return None if name.endswith(tuple(foreign)) else 2


def _stem(file: Path) -> str:
    return volumes_below(file)[0]["case"]
