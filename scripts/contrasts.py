"""The contrasts there are: their names, other spellings, and how files of them are called."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from .errors import CaseError

__all__ = ["CONTRASTS", "CONTRAST_PREFIX", "contrast_ending", "contrast_in_name", "contrast_key", "contrast_named"]
__all__ += ["contrasts_in", "contrasts_of", "name_before_contrast", "target_among", "without_contrast_ending"]

CONTRASTS = ("CT", "T1", "T1ce", "T2", "FLAIR", "PD")
CONTRAST_PREFIX = "contrast_"
"""Of an item's keys for the files or volumes of several contrasts."""
# What data sets and people call them, in small letters.
_SPELLINGS = {
    **{name.lower(): name for name in CONTRASTS},
    **{"t1w": "T1", "t1n": "T1", "mr": "T1", "mri": "T1", "t2w": "T2", "pdw": "PD"},
    **{"t1c": "T1ce", "t1gd": "T1ce", "t1post": "T1ce", "t2f": "FLAIR", "t2flair": "FLAIR", "t2-flair": "FLAIR"},
}
# Sequences that files are named after instead.
_SEQUENCES = {
    **dict.fromkeys(("mprage", "mp2rage", "bravo", "spgr"), "T1"),
    **dict.fromkeys(("tirm", "darkfluid", "fluid"), "FLAIR"),
}
# What else files are called, which is none of these.
_OTHERS = {
    **{
        name: name for name in ("cta", "ctp", "pet", "mra", "swi", "dwi", "adc", "dti", "bold", "asl", "t1map", "t2map")
    },
    **dict.fromkeys(("seg", "dseg", "segmentation", "mask", "brainmask", "label", "labels", "aseg", "roi"), "labels"),
}
# Words beside the contrast that say what was done to a volume, or how it lies.
_HOW = (
    r"\d+mm|brain|bet|stripped|ss|n4|reg|registered|defaced|orig|resampled|mni|iso|[23]d|"
    "ax|axial|tra|sag|sagittal|cor|coronal|gd|gad|ce|fs"
)
_NO_CONTRAST = re.compile(rf"{_HOW}|\d+|run|pre|post")
_ABOUT_CONTRAST = re.compile(_HOW)
# Words that make a T1 one with contrast agent: behind it, or before it (BIDS has `ce-gadolinium`).
_AGENT_BEHIND, _AGENT_BEFORE = ("post", "gd", "gad", "ce"), ("gd", "gad")
_AGENT_ENTITY = re.compile(r"(^|_)ce-", re.IGNORECASE)
# Words before the contrast of another volume, onto which this one was registered.
_ONTO = ("to", "in", "on", "onto", "into", "space", "reg", "coreg", "registered", "aligned")


def contrast_in_name(stem: str) -> str | None:
    """What a file's name says it is: BraTS (`-t2f`, `_seg`), BIDS (`_T1w`, `_dseg`), IXI (`-T1`) and all like them.

    Args:
        stem: the name without folders and suffix.

    Returns:
        One of `CONTRASTS`, "labels", another kind of scan as the name has it ("adc"), or None where the name tells
        nothing; a name that ends in `_mri` tells no contrast. A T1 is a T1ce where a word beside it says that there
        was a contrast agent (`t1_gd`, `t1_post`, `ce-gadolinium_T1w`).
    """
    return _split(stem)[0]


def name_before_contrast(stem: str) -> str:
    """What a file's name says beside the contrast: whose it is (`anna_t1` is anna, `3D_FLAIR` nobody's, "").

    Words that say how the volume lies or what was done to it (`ax`, `3d`, `brain`) go with the contrast. A name that
    tells no contrast comes back as it is.
    """
    contrast, count = _split(stem)
    if contrast is None:
        return stem
    words = list(re.finditer(r"[a-z0-9]+", stem.lower()))[:count]
    while words and _goes_with(words[-1][0], contrast):
        words.pop()
    return stem[: words[-1].end()] if words else ""


def _goes_with(word: str, contrast: str) -> bool:
    """Whether a word before a contrast's own says no more than that: T2 of `T2_FLAIR`, T1 of `T1_mprage`."""
    known = {**_SPELLINGS, **_SEQUENCES}.get(word)
    broader = {"FLAIR": ("T2",), "T1ce": ("T1",)}.get(contrast, ())
    return known == contrast or known in broader or _ABOUT_CONTRAST.fullmatch(word) is not None


def _split(stem: str) -> tuple[str | None, int]:
    """The contrast that a name tells (see `contrast_in_name`), and how many words stand before it."""
    words = re.findall(r"[a-z0-9]+", stem.lower())
    known = {**_SPELLINGS, **_SEQUENCES, **_OTHERS}
    with_agent = _AGENT_ENTITY.search(stem) is not None
    while words:
        word = words.pop()
        onto = words[-1:] and words[-1] in _ONTO and word in _SPELLINGS
        if onto and any(other in _SPELLINGS and other not in ("mr", "mri") for other in words):
            words = words[: -next(n for n, one in enumerate([*reversed(words), ""]) if one not in _ONTO)]
        elif not _NO_CONTRAST.fullmatch(word):
            name = None if word in ("mr", "mri") else known.get(word)
            with_agent = with_agent or bool(words[-1:] and words[-1] in _AGENT_BEFORE)
            return ("T1ce" if name == "T1" and with_agent else name), len(words)
        with_agent = with_agent or word in _AGENT_BEHIND
    return None, 0


def contrast_key(contrast: str) -> str:
    """Key of an item for the file or volume of one of several contrasts: `contrast_T2`."""
    return f"{CONTRAST_PREFIX}{contrast}"


def contrasts_in(item: Mapping) -> dict[str, Any]:
    """What an item has under `contrast_key`, by contrast, in the item's order."""
    return {
        str(key).removeprefix(CONTRAST_PREFIX): value
        for key, value in item.items()
        if str(key).startswith(CONTRAST_PREFIX)
    }


def contrasts_of(name: str, typed: Any, known: Iterable[str]) -> list[str]:
    """Contrasts in any spelling, as a list or as "T2,FLAIR", in the order of the known ones; None is all of these.

    Args:
        name: of the option, for the sentence.
        typed: what was typed.
        known: those that may be named.

    Raises:
        CaseError: one that is no contrast or not among the known ones, or none at all.
    """
    known = list(known)
    if typed is None:
        return known
    listed = typed if isinstance(typed, list | tuple) else str(typed).strip("[]()").split(",")
    wanted = [contrast_named(str(one).strip(" '\"")) for one in listed if str(one).strip()]
    if not wanted or not set(wanted) <= set(known):
        raise CaseError(f"{name} is {typed}; use some of {', '.join(known)}.")
    return [one for one in known if one in wanted]


def target_among(target: str, known: Iterable[str]) -> str:
    """The contrast of a spelling, if the weights have learned to make it.

    Args:
        target: what was asked for.
        known: contrasts that they have learned.

    Raises:
        CaseError: they have not, or there is no such contrast.
    """
    known = list(known)
    if (name := contrast_named(target)) not in known:
        raise CaseError(f"The weights have not learned to make a {name}; give as target_contrast {_any_of(known)}.")
    return name


def _any_of(names: list[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}" if len(names) > 1 else names[0]


def contrast_named(text: str) -> str:
    """The contrast of a spelling ("t1w", "T2F", "flair", ...), one of `CONTRASTS`.

    Raises:
        CaseError: no contrast is called so.
    """
    if (name := _SPELLINGS.get(str(text).strip().lower())) is None:
        raise CaseError(f"There is no contrast {text!r}; give one of {', '.join(CONTRASTS)}.")
    return name


def contrast_ending(contrast: str) -> str:
    """What the files of a contrast end in, before the extension: `_t1`, `_flair`."""
    return f"_{contrast.lower()}"


def without_contrast_ending(stem: str, contrasts: tuple[str, ...] = CONTRASTS) -> str:
    """A file's name without extension, less the ending of one of the contrasts, if it has one (`anna_t1` is anna)."""
    for contrast in sorted(contrasts, key=len, reverse=True):
        if stem.lower().endswith(ending := contrast_ending(contrast)) and len(stem) > len(ending):
            return stem[: -len(ending)]
    return stem
