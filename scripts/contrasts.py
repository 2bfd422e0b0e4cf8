"""The contrasts there are: their names, other spellings, and how files of them are called."""

from __future__ import annotations

import re

from .errors import CaseError

__all__ = ["CONTRASTS", "contrast_ending", "contrast_in_name", "contrast_named", "without_contrast_ending"]

CONTRASTS = ("CT", "T1", "T1ce", "T2", "FLAIR", "PD")
# What data sets and people call them, in small letters.
_SPELLINGS = {
    **{name.lower(): name for name in CONTRASTS},
    **{"t1w": "T1", "t1n": "T1", "mr": "T1", "mri": "T1", "t2w": "T2", "pdw": "PD"},
    **{"t1c": "T1ce", "t1gd": "T1ce", "t2f": "FLAIR", "t2flair": "FLAIR", "t2-flair": "FLAIR"},
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
# Words after the contrast that say what was done to a volume, or how it lies.
_NO_CONTRAST = re.compile(
    r"\d+|\d+mm|run|brain|bet|stripped|ss|n4|reg|registered|defaced|orig|resampled|mni|iso|[23]d|"
    "ax|axial|tra|sag|sagittal|cor|coronal|pre|post|gd|gad|ce|fs"
)
# Words before the contrast of another volume, onto which this one was registered.
_ONTO = ("to", "in", "on", "onto", "into", "space", "reg", "coreg", "registered", "aligned")


def contrast_in_name(stem: str) -> str | None:
    """What a file's name says it is: BraTS (`-t2f`, `_seg`), BIDS (`_T1w`, `_dseg`), IXI (`-T1`) and all like them.

    Args:
        stem: the name without folders and suffix.

    Returns:
        One of `CONTRASTS`, "labels", another kind of scan as the name has it ("adc"), or None where the name tells
        nothing; a name that ends in `_mri` tells no contrast.
    """
    words = [word for word in re.split(r"[^a-z0-9]+", stem.lower()) if word]
    known = {**_SPELLINGS, **_SEQUENCES, **_OTHERS}
    while words:
        word = words.pop()
        onto = words[-1:] and words[-1] in _ONTO and word in _SPELLINGS
        if onto and any(other in _SPELLINGS and other not in ("mr", "mri") for other in words):
            words = words[: -next(n for n, one in enumerate([*reversed(words), ""]) if one not in _ONTO)]
        elif not _NO_CONTRAST.fullmatch(word):
            return None if word in ("mr", "mri") else known.get(word)
    return None


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
