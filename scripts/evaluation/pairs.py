"""Which synthetic volume belongs to which real one: from a table, or from two folders by the files' names."""

import csv
import os
from dataclasses import dataclass
from pathlib import Path

from ..errors import CaseError
from ..volumes.find import volumes_below

_KINDS = {
    "synthetic": ("_synthetic", "_t1"),
    "real": ("_target", "_real", "_mr", "_t1"),
    "source": ("_source", "_ct", "_flair"),
    "mask": ("_mask",),
}
_ENDINGS = tuple(ending for endings in _KINDS.values() for ending in endings)
_ELSEWHERE = {"_labels", "_mask", "_source", "_ct", "_flair", "_synthetic", "_target", "_real"}


@dataclass(frozen=True)
class ResultPair:
    """Files of one subject; mask is that of the brain."""

    subject: str
    synthetic: Path
    real: Path
    mask: Path | None = None
    source: Path | None = None


def pairs_of_table(path: str | os.PathLike) -> tuple[list[ResultPair], dict[str, str]]:
    """Pairs of a CSV with the columns subject, synthetic, real and, as one likes, mask and source.

    Args:
        path: of the CSV; the paths in it are relative to it.

    Returns:
        pairs, and subject -> reason for rows that are left out.

    Raises:
        CaseError: no such table, or a column is missing.
    """
    file = Path(path)
    if not file.is_file():
        raise CaseError(f"There is no {file}; give a CSV with the columns subject, synthetic and real.")
    with open(file, newline="", encoding="utf-8-sig") as opened:
        reader = csv.DictReader(opened)
        missing = [c for c in ("subject", "synthetic", "real") if c not in (reader.fieldnames or ())]
        if missing:
            raise CaseError(f"{file} has no column {missing[0]}; it needs subject, synthetic and real.")
        rows = list(reader)
    pairs, left_out = {}, {}
    for row in rows:
        subject = (row["subject"] or "").strip()
        files = {k: file.parent / v.strip() for k in _KINDS if (v := row.get(k)) and v.strip()}
        if subject in pairs:
            left_out[subject] = f"{file.name} has it twice; keep one row"
        elif not {"synthetic", "real"} <= files.keys() or not subject:
            left_out[subject or f"row {len(pairs) + len(left_out) + 1}"] = "the row is not complete; fill it in"
        else:
            pairs[subject] = ResultPair(subject, **files)
    kept = [pair for subject, pair in pairs.items() if subject not in left_out]
    if not kept:
        raise CaseError(f"{file} has no complete row; it needs subject, synthetic and real in each.")
    return kept, left_out


def pairs_of_folders(
    synthetic: str | os.PathLike,
    real: str | os.PathLike,
    masks: str | os.PathLike | None = None,
    source: str | os.PathLike | None = None,
) -> tuple[list[ResultPair], dict[str, str]]:
    """Pairs of two folders, or of two files: by the files' names without what only says which image it is.

    `anna_t1`, `anna_ct_t1`, `anna_synthetic` and `anna` are all of anna, in the folder of the real images `anna`,
    `anna_t1`, `anna_mr`, `anna_target` and `anna_real`; below a folder its name is a part of it, with `_`.

    Returns:
        pairs, and subject -> reason for files that have no partner, or more than one.

    Raises:
        CaseError: a folder that is not there or empty, or no pair at all.
    """
    folders = {"synthetic": synthetic, "real": real, "mask": masks, "source": source}
    if Path(str(synthetic)).is_file() and Path(str(real)).is_file():
        files = {kind: Path(str(path)) for kind, path in folders.items() if path is not None}
        return [ResultPair(subject_of(_stem(files["synthetic"])), **files)], {}
    found = {kind: _by_subject(kind, folder) for kind, folder in folders.items() if folder is not None}
    pairs, left_out = [], {}
    for subject in sorted(found["synthetic"].keys() | found["real"].keys()):
        candidates = {kind: of.get(subject, {}) for kind, of in found.items()}
        reason = _why_not(candidates)
        if reason:
            left_out[subject] = reason
        else:
            pairs.append(ResultPair(subject, **{k: next(iter(c.values())) for k, c in candidates.items() if c}))
    if not pairs:
        raise CaseError(
            f"No file in {synthetic} has a partner in {real}; files of one subject need the same name, but for endings "
            f"such as {', '.join(_ENDINGS[:4])}, or give a CSV with --pairs."
        )
    return pairs, left_out


def subject_of(name: str) -> str:
    """A file's name without the endings that say which image it is: `anna_ct_t1` is anna."""
    lowered = name.lower()
    for ending in _ENDINGS:
        if lowered.endswith(ending) and len(name) > len(ending):
            return subject_of(name[: -len(ending)])
    return name


def _why_not(candidates: dict[str, dict[str, Path]]) -> str | None:
    """Why there is no pair; None where there is."""
    for kind, of in candidates.items():
        if len(of) > 1:
            return f"{len(of)} files could be its {kind} image ({', '.join(sorted(of))}); name one pair by --pairs"
    for kind in ("synthetic", "real"):
        if not candidates[kind]:
            return f"there is no {kind} image of it"
    return None


def _by_subject(kind: str, folder: str | os.PathLike) -> dict[str, dict[str, Path]]:
    """Subject -> name -> file of the files that can be of this kind."""
    found: dict[str, dict[str, Path]] = {}
    # the files themselves: a datalist.json there would name the sources alone
    items = volumes_below(Path(str(folder)).expanduser())
    own = [item for item in items if item["case"].lower().endswith(_KINDS[kind])]
    foreign = tuple(_ELSEWHERE - set(_KINDS[kind]))
    neutral = [item for item in items if not item["case"].lower().endswith((*foreign, *_KINDS[kind]))]
    for item in own + neutral:
        # a file that says what it is comes before one that does not
        known = found.setdefault(subject_of(item["case"]), {})
        if not (item in neutral and any(n.lower().endswith(_KINDS[kind]) for n in known)):
            known[item["case"]] = Path(item["image"])
    return found


def _stem(file: Path) -> str:
    return volumes_below(file)[0]["case"]
