"""The contrasts there are: their names, other spellings, and how files of them are called."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any

from .contrast_agents import AGENT, BEFORE_AGENT, NO_AGENT, SHORT_AGENTS, agent_at_edge, glued_to, words_of
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
    **dict.fromkeys(("mprage", "mp2rage", "bravo", "spgr", "fspgr", "irfspgr"), "T1"),
    **dict.fromkeys(("darkfluid", "fluid"), "FLAIR"),
}
# What else files are called, which is none of these.
_OTHERS = {
    **{
        name: name for name in ("cta", "ctp", "pet", "mra", "swi", "dwi", "adc", "dti", "bold", "asl", "t1map", "t2map")
    },
    **dict.fromkeys(("seg", "dseg", "segmentation", "mask", "brainmask", "label", "labels", "aseg", "roi"), "labels"),
}
_WITH_AGENT = glued_to("t1w?|mprage|bravo|spgr")
_AGENTS = (AGENT, *SHORT_AGENTS)
_AGENTS_BEHIND = (*_AGENTS, "post", "c")
_WITHOUT = ("pre", "vor", "no", "non", "without", "wo", "ohne", "sans", "sin", "senza")
_NONE = ("pre", "vor", "without", "ohne", "sans", "sin", "senza")  # `no` may be a number's
_AGENT_ENTITY = re.compile(r"(?:^|_)ce-(?!none|no|without)", re.IGNORECASE)
# Sequences by which a contrast can be acquired and stays what it is. A T2 by a gradient echo is a T2*.
_SPIN_ECHOES = ("se", "tse", "fse", "frfse", "space", "spc", "cube", "vista", "blade", "propeller", "multivane")
_GRADIENT_ECHOES = ("gre", "ffe", "tfe", "flash", "fl2d", "fl3d")
_BY = {
    **dict.fromkeys(
        ("T1", "T1ce"), (*_SPIN_ECHOES, *_GRADIENT_ECHOES, "vibe", "mpr", "lava", "thrive", "turbo", "view")
    ),
    "T2": (*_SPIN_ECHOES, "haste", "ssfse"),
    "FLAIR": (*_SPIN_ECHOES, "tirm", "dark"),
    "PD": ("se", "tse", "fse"),
    "CT": (),
}
_ALL_SEQUENCES = tuple(dict.fromkeys(word for words in _BY.values() for word in words))
# An entity of BIDS has no separators: those words of it that are known.
_WORD_OF_ENTITY = re.compile(rf"(t1w?|mprage|{'|'.join(sorted(_ALL_SEQUENCES, key=len, reverse=True))}|[23]d|\d+)")
# Words beside the contrast that say what was done to a volume, or how it lies.
_HOW = (
    r"\d+mm|p\d|brain|bet|stripped|ss|n4|reg|registered|defaced|orig|native?|resampled|mni|iso|[23]d|"
    "ax|axial|tra|sag|sagittal|cor|coronal|fs|fatsat|" + "|".join((*_AGENTS, NO_AGENT, BEFORE_AGENT))
)
_NO_CONTRAST = re.compile(rf"{_HOW}|\d+|run|c|post|{'|'.join((*_WITHOUT, *_ALL_SEQUENCES))}")
_ABOUT_CONTRAST = re.compile(_HOW)
# Words beside a contrast that make another kind of scan of it.
_OTHER_SCANS = (
    *("star", "hemo", "haemo", "swi", "dwi", "diff", "dti", "adc", "perf", "perfusion", "dsc", "dce", "dyn", "dynamic"),
    *("stir", "tirm", "inv", "inv1", "inv2", "sub", "subtraction", "minus", "map", "tof", "angio", "twist"),
    *_GRADIENT_ECHOES,
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
        T1ce where a word beside it says that there was a contrast agent (`t1_gd`, `t1_post`, `ce-gadolinium_T1w`).
        Words of sequences change nothing (`t1_vibe`, `t2_space`), but for those that make another scan (`t2_flash`).
        Not clear are a T1 after `post`, which may be the surgery, two contrasts (`T1_FLAIR`), one with and without
        agent, and words of other scans (`dwi_t2`, `t2_star`).
    """
    return _split(stem)[0]


def speaks_of_contrast(stem: str) -> bool:
    """Whether a word of a name is of a contrast, of a contrast agent or of another kind of scan.

    Where it is, and `contrast_in_name` is None, the folder must not tell the contrast: `T1/t1_post_op` may be a T1ce.
    """
    words = [word for word, _ in words_of(stem)]
    known = {*_SPELLINGS, *_SEQUENCES, *_OTHERS, *_OTHER_SCANS, *_AGENTS_BEHIND, NO_AGENT, BEFORE_AGENT}
    known -= {"mr", "mri", "sub", "c"}
    return any(word in known or _LIKE_CONTRAST.fullmatch(word) for word in words)


def is_agent(name: str) -> bool:
    """Whether a name ends in words of a contrast agent, or is nothing but one; `post` is none, it may be a visit."""
    words = [word for word, _ in words_of(name)]
    return words[-1:] == [AGENT] or (len(words) == 1 and words[0] in _AGENTS)


def agent_in_entity(key: str, value: str) -> bool | None:
    """Whether an entity of BIDS says that there was a contrast agent; None where it leaves that open (`acq-post`)."""
    value = value.lower()
    if key == "ce":
        return value not in ("none", "no", "without")
    words = [word for word, _ in words_of(" ".join(_WORD_OF_ENTITY.split(value)))]
    if NO_AGENT in words or BEFORE_AGENT in words:
        return False
    if AGENT in words or _named(value) == "T1ce" or _WITH_AGENT.fullmatch(value):
        return True
    if (glued := agent_at_edge(value)) is not None:
        return glued
    if re.search(r"post(?!erior)", value):
        return None
    return any(word in SHORT_AGENTS for word in words)


def name_before_contrast(stem: str) -> str:
    """What a file's name says beside the contrast: whose it is (`anna_t1` is anna, `3D_FLAIR` nobody's, "").

    Words that say how the volume lies or what was done to it (`ax`, `3d`, `brain`) go with the contrast. A name that
    tells no contrast comes back as it is.
    """
    contrast, count = _split(stem)
    if contrast is None:
        return stem
    words = words_of(stem)[:count]
    while words and _goes_with(words[-1][0], contrast):
        words.pop()
    return stem[: words[-1][1]] if words else ""


def _goes_with(word: str, contrast: str) -> bool:
    """Whether a word before a contrast's own says no more than that: T2 of `T2_FLAIR`, T1 of `T1_mprage`."""
    known = _named(word)
    broader = {"FLAIR": ("T2",), "T1ce": ("T1",)}.get(contrast, ())
    about = word in _BY.get(contrast, ()) or _ABOUT_CONTRAST.fullmatch(word) is not None
    return known == contrast or known in broader or about


def _named(word: str) -> str | None:
    """The contrast whose own word this is."""
    return "T1ce" if _WITH_AGENT.fullmatch(word) else {**_SPELLINGS, **_SEQUENCES}.get(word)


def _split(stem: str) -> tuple[str | None, int]:
    """The contrast that a name tells (see `contrast_in_name`), and how many words stand before it."""
    words = [word for word, _ in words_of(stem.lower().replace("t2*", "t2_star"))]
    behind: list[str] = []
    while words:
        word = words.pop()
        onto = words[-1:] and words[-1] in _ONTO and word in _SPELLINGS
        if onto and any(other in _SPELLINGS and other not in ("mr", "mri") for other in words):
            if words[-1] == "space" and words[-2:-1] in (["t2"], ["t2w"]) and "space-" not in stem.lower():
                return None, len(words)  # SPACE is a sequence, too: T2_SPACE_FLAIR
            words = words[: -next(n for n, one in enumerate([*reversed(words), ""]) if one not in _ONTO)]
            behind.clear()  # those words are of the other volume
        elif not _NO_CONTRAST.fullmatch(word):
            name = None if word in ("mr", "mri") else _named(word)
            return (_OTHERS.get(word) if name is None else _made_clear(name, words, behind, stem)), len(words)
        else:
            behind.append(word)
    return None, 0


def _made_clear(name: str, before: list[str], behind: list[str], stem: str) -> str | None:
    """What the words about a contrast's own make of it: a T1ce of a T1, or None where they speak of another scan.

    Args:
        name: the contrast's own word says this.
        before: words before it.
        behind: words behind it.
        stem: the whole name.
    """
    beside = _beside(before)
    others = {_named(word) or name for word in beside} - {name}
    odd = {*beside, *behind} & {*_OTHER_SCANS, *_OTHERS, *_ALL_SEQUENCES} - {*_BY[name]}
    in_its_space = others and "space" in behind  # `T2_FLAIR_space` may be a T2 that was brought there
    if others - {"FLAIR": {"T2"}, "T1ce": {"T1"}}.get(name, set()) or odd or in_its_space:
        return None
    return _with_or_without(name, beside, behind, before[: len(before) - len(beside)], stem)


def _with_or_without(name: str, beside: list[str], behind: list[str], far: list[str], stem: str) -> str | None:
    """T1ce of a T1 whose words tell of an agent, None where that is not clear; other contrasts stay what they are.

    Args:
        name: the contrast.
        beside: words before the contrast that belong to it, the nearest first.
        behind: words behind it.
        far: words before all these.
        stem: the whole name.
    """
    if name not in ("T1", "T1ce"):
        return name
    with_agent = _AGENT_ENTITY.search(stem) is not None or any(word in _AGENTS_BEHIND for word in behind)
    without = {NO_AGENT, BEFORE_AGENT, *(_NONE if with_agent else ())} & {*behind}
    if name == "T1ce" or BEFORE_AGENT in beside:
        return None if without or {NO_AGENT, BEFORE_AGENT} & {*beside} else name
    if beside[:1] == ["post"] and not with_agent and not re.search(r"(sub|ses)-post_", stem, re.IGNORECASE):
        return None
    agent = any(word in _AGENTS for word in beside)
    without |= {NO_AGENT, *(_WITHOUT if agent else ())} & {*beside}
    if without and (agent or with_agent):
        return None
    if agent or with_agent:
        return "T1ce"
    return None if AGENT in far and not without else name


def _beside(before: list[str]) -> list[str]:
    """Words before a contrast that belong to it, the nearest first; a number ends them, but that of an inversion."""
    found: list[str] = []
    about_it = {*_ALL_SEQUENCES, *_OTHER_SCANS, *_OTHERS, *_WITHOUT, "post"}
    for place in range(len(before) - 1, -1, -1):
        word = before[place]
        if word.isdigit() and before[place - 1 : place] == ["inv"]:
            continue
        named = _named(word) is not None and word not in ("mr", "mri")
        if named and before[place - 1 : place] and before[place - 1] in _ONTO:
            break
        about = _ABOUT_CONTRAST.fullmatch(word) or word in about_it
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
