"""The words by which names of files and descriptions of DICOM series tell of a contrast agent, and that there was none.

In English, German, French, Spanish, Italian and Portuguese; all patterns are for small letters.
"""

from __future__ import annotations

import re

__all__ = ["AGENT", "BEFORE_AGENT", "NO_AGENT", "SHORT_AGENTS", "agent_at_edge", "glued_to", "says_agent"]
__all__ += ["says_none", "words_of"]

AGENT, NO_AGENT, BEFORE_AGENT = "with agent", "no agent", "before the agent"
"""What `words_of` makes of several words; with a blank, so that it is no word of a name."""
SHORT_AGENTS = ("ce", "km", "mdc")
"""Words of an agent that may be somebody's initials, too."""

_BRANDS = "dotarem|magnevist|omniscan|prohance|multihance|clariscan|primovist|eovist|elucirem|vueway|gad[oa]vist"
_MEDIUM = rf"gd(?:dtpa)?|gado?|gado(?:lin|but|ter|ben|dia|pen|pic|xet)[a-z]*|{_BRANDS}"
_DONE = "enh(?:anced|ancement)?|inj(?:ected|ection|ektion|ecte|iziert)?"
_LONG = rf"{_MEDIUM}|[ck]ontrast(?:ed|e|o|mittel|medium)?|{_DONE}"
_WORD = rf"(?:{_LONG}|{'|'.join(SHORT_AGENTS)})"
_WITH = "with|w|mit|nach|avec|apres|con|com|after|plus|post"
_WITHOUT = "without|w[^a-z0-9]?o|wo|non?|not|ohne|sans|sin|senza|sem|minus"
_BEFORE = "pre|vor|before|avant|prima|antes"
_APART = r"[^a-z0-9]+"
_GLUED_NONE = rf"(?:un|non?|pre)(?:{_LONG})|noncon|ncct"
_GLUED = rf"post(?:{_LONG}|con)"
_TOKEN = re.compile(
    rf"(?<![a-z0-9])(?:(?P<none>(?:{_WITHOUT}){_APART}(?:iv{_APART})?(?:{_WORD}|c)|{_GLUED_NONE}|c-)"
    rf"|(?P<before>(?:{_BEFORE}){_APART}(?:{_WORD}|c))"
    rf"|(?P<agent>(?:(?:{_WITH}){_APART}(?:iv{_APART})?)+(?:{_WORD}|c)|{_LONG}|{_GLUED}))(?![a-z0-9])"
    r"|(?P<minus>(?<=[ _])-c(?![a-z0-9]))|(?P<plus>\+ ?c(?![a-z0-9])|(?<![a-z0-9])c ?\+)|(?P<word>[a-z0-9]+)"
)
_KINDS = {"agent": AGENT, "plus": AGENT, "none": NO_AGENT, "minus": NO_AGENT, "before": BEFORE_AGENT}
_AT_EDGE = re.compile(rf"(?:{_LONG})|(?:.*?(?P<not>{_WITHOUT}|{_BEFORE})|.*?)(?:{_LONG})$")

# In descriptions words stand close to numbers, and behind the name of a sequence. `pre gd` may be before the surgery.
_SAID = re.compile(
    rf"(?:(?<![a-z])|(?<=t1w)|(?<=mprage)|(?<=bravo))(?:{_WORD}|{_GLUED}|[ck]ontrast[a-z]*|inje[ck]t[a-z]*|gado[a-z]*"
    r"|post[^a-z0-9]*(?:km|iv(?:[^a-z0-9]*con)?|con(?:tr?)?))(?![a-z])"
    r"|(?<![a-z])t1w?c(?![a-z])|(?<![a-z])(?:with|w/?) ?c(?![a-z])|\+ ?c(?![a-z])|(?<![a-z])c ?\+"
)
_SAID_NONE = re.compile(
    rf"(?<![a-z])(?:(?:{_WITHOUT})[^a-z0-9]*(?:iv[^a-z0-9]*)?(?:{_WORD}|[ck]ontrast[a-z]*|con|c)|{_GLUED_NONE}|nativ[a-z]*"
    rf"|(?:{_BEFORE})[^a-z0-9]*(?:[ck]ontrast[a-z]*|con|km|enhanced)|pre)(?![a-z])|(?<![a-z])c-(?![a-z0-9])"
)


def words_of(name: str) -> list[tuple[str, int]]:
    """The words of a file's name in small letters, and where each ends; numbers are words, all else stands between.

    Words that together tell of an agent are one, `AGENT`, `NO_AGENT` or `BEFORE_AGENT` (`with_contrast`, `nogd`,
    `pre_km`). The `SHORT_AGENTS` stay as they are.
    """
    found = _TOKEN.finditer(name.lower())
    return [(_KINDS.get(word.lastgroup or "", word[0]), word.end()) for word in found]


def glued_to(names: str) -> re.Pattern[str]:
    """Pattern of a word that ends in an agent, behind one of some names of sequences: `t1gd`, `mpragekm`, `t1post`."""
    return re.compile(rf"(?:{names})(?:{_WORD}|{_GLUED}|post)")


def agent_at_edge(word: str) -> bool | None:
    """Whether a word without separators begins or ends in an agent (`axgd`): False after `no`, None if neither."""
    found = _AT_EDGE.match(word)
    return None if found is None else not found["not"]


def says_agent(text: str) -> bool:
    """Whether a description says that there was an agent, where it does not say that there was none.

    `post` alone is left to those who know whether it is the surgery or a place.
    """
    return _SAID.search(_SAID_NONE.sub(" ", text.lower())) is not None


def says_none(text: str) -> bool:
    """Whether a description says of something that there was no agent, or that it was before it."""
    return _SAID_NONE.search(text.lower()) is not None
