"""The contrasts there are: their names, other spellings, and how files of them are called."""

from __future__ import annotations

from .errors import CaseError

__all__ = ["CONTRASTS", "contrast_ending", "contrast_named", "without_contrast_ending"]

CONTRASTS = ("CT", "T1", "T1ce", "T2", "FLAIR", "PD")
# What data sets and people call them, in small letters.
_SPELLINGS = {
    **{name.lower(): name for name in CONTRASTS},
    **{"t1w": "T1", "t1n": "T1", "mr": "T1", "mri": "T1", "t2w": "T2", "pdw": "PD"},
    **{"t1c": "T1ce", "t1gd": "T1ce", "t2f": "FLAIR", "t2flair": "FLAIR", "t2-flair": "FLAIR"},
}


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
