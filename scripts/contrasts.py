"""The contrasts there are: their names, other spellings, and how files of them are called."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any

from .errors import CaseError

__all__ = ["CONTRASTS", "CONTRAST_PREFIX", "contrast_ending", "contrast_in_name", "contrast_key", "contrast_named"]
__all__ += ["agent_in_entity", "contrasts_in", "contrasts_of", "is_agent", "name_before_contrast", "speaks_of_contrast"]
__all__ += ["shown_key", "target_among", "without_contrast_ending"]

logger = logging.getLogger(__name__)

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
    **dict.fromkeys(("darkfluid", "fluid"), "FLAIR"),
}
# What else files are called, which is none of these.
_OTHERS = {
    **{
        name: name for name in ("cta", "ctp", "pet", "mra", "swi", "dwi", "adc", "dti", "bold", "asl", "t1map", "t2map")
    },
    **dict.fromkeys(("seg", "dseg", "segmentation", "mask", "brainmask", "label", "labels", "aseg", "roi"), "labels"),
}
# Words that make a T1 one with contrast agent: behind it or before it, and those that do so only behind it.
_AGENTS = (
    *("gd", "gad", "gado", "gadolinium", "gadovist", "dotarem", "ce", "km", "kontrast", "contrast", "contrasted"),
    *("enhanced", "postcontrast", "postgd", "postgad"),
)
_AGENTS_BEHIND = (*_AGENTS, "post", "c")
_WITHOUT = ("pre", "vor", "no", "non", "without", "wo", "ohne", "sans")
_AGENT_ENTITY = re.compile(r"(?:^|_)ce-(?!none|no|without)", re.IGNORECASE)
# Words beside the contrast that say what was done to a volume, or how it lies.
_HOW = (
    r"\d+mm|brain|bet|stripped|ss|n4|reg|registered|defaced|orig|resampled|mni|iso|[23]d|"
    "ax|axial|tra|sag|sagittal|cor|coronal|fs|" + "|".join(_AGENTS)
)
_NO_CONTRAST = re.compile(rf"{_HOW}|\d+|run|c|post|tse|fse|{'|'.join(_WITHOUT)}")
_ABOUT_CONTRAST = re.compile(_HOW)
_OF_FLAIR = ("dark", "spc", "space", "tirm")
# Words beside a contrast that make another kind of scan of it.
_OTHER_SCANS = (
    *("star", "hemo", "haemo", "gre", "ffe", "swi", "dwi", "diff", "dti", "adc", "perf", "perfusion", "dsc", "dce"),
    *("stir", "tirm", "inv", "inv1", "inv2", "sub", "subtraction", "minus", "map"),
)
_LIKE_CONTRAST = re.compile(r"(ce)?(t[12](?!\d)|mprage|mp2rage).*|.*flair.*")
# Words before the contrast of another volume, onto which this one was registered.
_ONTO = ("to", "in", "on", "onto", "into", "space", "reg", "coreg", "registered", "aligned")


def contrast_in_name(stem: str) -> str | None:
    """What a file's name says it is: BraTS (`-t2f`, `_seg`), BIDS (`_T1w`, `_dseg`), IXI (`-T1`) and all like them.

    Args:
        stem: the name without folders and suffix.

    Returns:
        One of `CONTRASTS`, "labels", another kind of scan as the name has it ("adc"), or None where the name tells
        nothing, or nothing clear (see `speaks_of_contrast`); a name that ends in `_mri` tells no contrast. A T1 is a
        T1ce where a word beside it says that there was a contrast agent (`t1_gd`, `t1_post`, `ce-gadolinium_T1w`). Not
        clear are a T1 after `post`, which may be the surgery, two contrasts (`T1_FLAIR`) and words of other scans
        (`dwi_t2`, `t2_star`).
    """
    return _split(stem)[0]


def speaks_of_contrast(stem: str) -> bool:
    """Whether a word of a name is of a contrast, of a contrast agent or of another kind of scan.

    Where it is, and `contrast_in_name` is None, the folder must not tell the contrast: `T1/t1_post_op` may be a T1ce.
    """
    words = re.findall(r"[a-z0-9]+", stem.lower())
    known = {*_SPELLINGS, *_SEQUENCES, *_OTHERS, *_OTHER_SCANS, *_AGENTS_BEHIND} - {"mr", "mri", "sub", "c"}
    return any(word in known or _LIKE_CONTRAST.fullmatch(word) for word in words)


def is_agent(name: str) -> bool:
    """Whether a name is nothing but the word of a contrast agent; `post` is none, it may be a visit."""
    return name.lower() in _AGENTS


def agent_in_entity(key: str, value: str) -> bool | None:
    """Whether an entity of BIDS says that there was a contrast agent; None where it leaves that open (`acq-post`)."""
    value = value.lower()
    if key == "ce":
        return value not in ("none", "no", "without")
    if any(f"{word}{agent}" in value for word in _WITHOUT for agent in ("contrast", "gd", "gad", "km")):
        return False
    if re.search(r"post(?!erior)", value) and not any(agent in value for agent in ("contrast", "gd", "gad", "km")):
        return None
    return any(value.startswith(agent) or value.endswith(agent) for agent in _AGENTS)


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
    of_flair = contrast == "FLAIR" and word in _OF_FLAIR
    return known == contrast or known in broader or of_flair or _ABOUT_CONTRAST.fullmatch(word) is not None


def _split(stem: str) -> tuple[str | None, int]:
    """The contrast that a name tells (see `contrast_in_name`), and how many words stand before it."""
    words = re.findall(r"[a-z0-9]+", stem.lower().replace("t2*", "t2_star"))
    known = {**_SPELLINGS, **_SEQUENCES, **_OTHERS}
    with_agent = _AGENT_ENTITY.search(stem) is not None
    while words:
        word = words.pop()
        onto = words[-1:] and words[-1] in _ONTO and word in _SPELLINGS
        if onto and any(other in _SPELLINGS and other not in ("mr", "mri") for other in words):
            if words[-1] == "space" and words[-2:-1] in (["t2"], ["t2w"]) and "space-" not in stem.lower():
                return None, len(words)  # SPACE is a sequence, too: T2_SPACE_FLAIR
            words = words[: -next(n for n, one in enumerate([*reversed(words), ""]) if one not in _ONTO)]
        elif not _NO_CONTRAST.fullmatch(word):
            name = None if word in ("mr", "mri") else known.get(word)
            return (_made_clear(name, words, with_agent, stem) if name in CONTRASTS else name), len(words)
        negated = words[-1:] and words[-1] in _WITHOUT
        with_agent = with_agent or (word in _AGENTS_BEHIND and not negated)
    return None, 0


def _made_clear(name: str, before: list[str], with_agent: bool, stem: str) -> str | None:
    """What the words before a contrast's own make of it: a T1ce of a T1, or None where they speak of another scan.

    Args:
        name: the contrast's own word says this.
        before: words before it.
        with_agent: whether something else says that there was a contrast agent.
        stem: the whole name.
    """
    beside = _beside(before)
    others = {{**_SPELLINGS, **_SEQUENCES}.get(word, name) for word in beside} - {name}
    scans = set(beside) & set(_OTHER_SCANS) - ({"tirm"} if name == "FLAIR" else set())
    if others - {"FLAIR": {"T2"}, "T1ce": {"T1"}}.get(name, set()) or scans:
        return None
    if name != "T1":
        return name
    if beside[:1] == ["post"] and not with_agent and not re.search(r"(sub|ses)-post_", stem, re.IGNORECASE):
        return None
    agent = any(word in _AGENTS for word in beside)
    if agent and any(word in _WITHOUT for word in beside):
        return None
    return "T1ce" if agent or with_agent else name


def _beside(before: list[str]) -> list[str]:
    """Words before a contrast that belong to it, the nearest first; a number ends them, but that of an inversion."""
    found: list[str] = []
    for place in range(len(before) - 1, -1, -1):
        word = before[place]
        if word.isdigit() and before[place - 1 : place] == ["inv"]:
            continue
        named = word in {**_SPELLINGS, **_SEQUENCES} and word not in ("mr", "mri")
        if named and before[place - 1 : place] and before[place - 1] in _ONTO:
            break
        about = _ABOUT_CONTRAST.fullmatch(word) or word in (*_OF_FLAIR, *_OTHER_SCANS, *_WITHOUT, "post")
        if not (named or about) or (word == "sub" and found):
            break
        found.append(word)
    return found


def contrast_key(contrast: str) -> str:
    """Key of an item for the file or volume of one of several contrasts: `contrast_T2`."""
    return f"{CONTRAST_PREFIX}{contrast}"


def shown_key(key: Any) -> str:
    """Key for where a volume shows the head, if not everywhere; `key` is the volume's."""
    return f"shown_{key}"


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
    if name == "T1ce":
        logger.warning("A synthetic T1ce has no enhancement that its sources do not show: a tumour may be missing.")
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
