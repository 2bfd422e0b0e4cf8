"""What descriptions of CT series tell where the elements that should say so are empty, or copied from the protocol.

Words that scanners and people write, in English, German, French, Spanish, Italian and Portuguese.
"""

from __future__ import annotations

import re

from ..contrast_agents import says_agent, says_none

_HEAD = re.compile(
    r"HEAD|BRAIN|SKULL|CRANI|CRANE|NEURO|KOPF|SCHAEDEL|SCHÄDEL|TETE|TÊTE|CABEZA|CEREBR|ENCEF|ENCEPH|HIRN|\bCCT"
)
_IN_HEAD = re.compile(r"ORBIT|IAC")
_OTHER_PART = re.compile(
    r"SPINE|SPINAL|CERVIC|\bNECK|HALS|\b[HBL]WS|LUMBA|THORA|CHEST|\bLUNG|\bABD|PELVI|BECKEN|SHOULDER|\bCOU\b|RACHIS"
    r"|CUELLO|COLUMNA|SINUS|\bNNH|\bFACE|FACIAL|MAXILL|GESICHT|MANDIB|\bDENTAL|ORBIT|TEMPORAL|FELSENBEIN|ROCHER|\bIAC\b"
)
_VESSELS = re.compile(r"\bCT[AVP]\b|\bVPCT|ANGIO|VENOGRA|PERF")
_PHASE = re.compile(r"ARTERI|VENOUS PHASE")
_WITHOUT = re.compile(r"WITHOUT|\bW/?O\b|OHNE|SANS|\bSIN\b|SENZA|\bSEM\b|\bNON?[ -]?(C\b|CON|CE\b|ENH)|\bPRE")
_MAPS = re.compile(
    r"\bR?CB[FV]\b|\bMTT\b|\bTTP\b|\bTMAX|PERMEAB|IODINE|\bJOD|Z ?EFF|EFFECTIVE Z|ELECTRON DENS|\bDSA\b|SUBTRA"
    r"|BONE ?(LESS|REMOV|FREE|SUB)"
)
_OTHER_UNITS = ("OD", "MGML", "Z_EFF", "ED", "EDW", "PCT")


def of_another_part(body_part: str, description: str) -> bool:
    """Whether a CT is of another part of the body than the head, or by its description of a part of the head alone.

    Args:
        body_part: BodyPartExamined (0018,0015), which may be that of a protocol of several parts.
        description: SeriesDescription (0008,103E).

    Returns:
        False where nothing says so.
    """
    part, words = body_part.upper(), _words(description)
    if part and not _HEAD.search(part) and not _IN_HEAD.search(part):
        return True
    return _OTHER_PART.search(words) is not None and _HEAD.search(words) is None


def with_contrast_agent(description: str) -> bool:
    """Whether the description speaks of a contrast agent, or of vessels or perfusion, which need one."""
    words = _words(description)
    told = says_agent(words) or _PHASE.search(words) is not None
    return _VESSELS.search(words) is not None or (told and not (says_none(words) or _WITHOUT.search(words)))


def not_in_hu(image_type: str, description: str, rescale_type: str) -> bool:
    """Whether the values are no attenuation: a map of perfusion or of a material, or a subtraction.

    Args:
        image_type: words of ImageType (0008,0008).
        description: SeriesDescription (0008,103E).
        rescale_type: RescaleType (0028,1054), PS3.3 C.11.1.1.2.
    """
    return rescale_type.upper() in _OTHER_UNITS or bool(_MAPS.search(f"{image_type} {_words(description)}"))


def _words(description: str) -> str:
    return description.upper().replace("_", " ")
