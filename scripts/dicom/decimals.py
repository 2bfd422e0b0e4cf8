"""Decimals as programs write them that do not keep to PS3.5 6.2: with a comma, or under another VR than DS."""

from __future__ import annotations

import re
from typing import Any

_TEXTS = ("DS", "LO", "LT", "SH", "ST", "UC", "UT")


def mend_decimals() -> None:
    """From here on, pydicom reads such decimals as what they mean; those that stay unclear remain an error.

    pydicom before 3, as MONAI Label needs it, cannot be taught that: there they all remain an error.
    """
    try:
        from pydicom.hooks import hooks
    except ImportError:
        return
    hooks.register_callback("raw_element_value", _value)


def mended(text: bytes) -> bytes:
    """One or several decimals with points, backslashes between them; unchanged where it is not clear what is meant.

    "0,5" is a half, and "0.5,0.5" are two of them.
    """
    if b"." not in text:
        return re.sub(rb"(?<=\d),(?=\d)", b".", text)
    return text.replace(b",", b"\\") if all(b"." in part for part in text.split(b",")) else text


def _value(raw: Any, data: dict[str, Any], **options: Any) -> None:
    """As `pydicom.hooks.raw_element_value`, which converts an element that was read, with mended decimals."""
    from pydicom.datadict import dictionary_VR
    from pydicom.hooks import raw_element_value

    if raw.value and data["VR"] in _TEXTS and (b"," in raw.value or data["VR"] != "DS"):
        try:
            decimal = dictionary_VR(raw.tag) == "DS"
        except KeyError:  # a private element
            decimal = False
        if decimal:
            data["VR"], raw = "DS", raw._replace(value=mended(raw.value))
    raw_element_value(raw, data, **options)
