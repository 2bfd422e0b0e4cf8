"""Whether a CT was reconstructed with a sharp kernel, as for bone and lung, by what each maker calls them."""

from __future__ import annotations

import re

# Siemens: H30s, B70f, J40s, Hr40f, Br64d, ...: the higher the number, the sharper; soft tissue up to about 45.
_SIEMENS = re.compile(r"[A-Z][a-z]?(\d\d)[a-z]?")
_SIEMENS_SHARP = 50
# Canon (Toshiba): FC01 to FC28 and FC41 to FC49 body and head, FC62 to FC68 the head of children;
# the thirties are inner ear and bone, the fifties lung, the eighties high resolution.
_CANON = re.compile(r"FC(\d\d)")
_CANON_SHARP = (3, 5, 8)
# Philips: A and B (EB, UA, UB) are smooth, C to F and L sharpen, all Y (Y-sharp, Y-detail) do.
_PHILIPS_SOFT = {"A", "B", "EA", "EB", "UA", "UB", "UC", "SA", "SB", "XA", "XB", "XCA", "XCB"}
_PHILIPS_SHARP = {"C", "D", "E", "F", "L", "LA", "EC", "SC", "SD", "XC", "XD", "XCC", "XCD"}
_PHILIPS_SHARP |= {"YA", "YB", "YC", "YD", "YE", "DETAIL"}
# GE: SOFT, STANDARD and so on; United Imaging and others write words as well: H_SOFT_B, B_SHARP_C.
_SHARP_WORDS = {"BONE", "BONEPLUS", "EDGE", "LUNG", "DETAIL", "ULTRA", "SHARP", "BONE+"}
_SOFT_WORDS = {"SOFT", "STANDARD", "STND", "STD", "SMOOTH", "BRAIN", "HEAD", "CHEST"}
# What people write into a series' description: English, German, French, Italian, Spanish, Portuguese, Dutch.
_DESCRIBED = re.compile(
    r"(?<![a-z])(bones?|knochen\w*|os|osseux|oss[oea]|hueso|[oó]seo|bot|temporal|lungs?|lunge|poumons?|polmon[ei]|pulm\w*"
    r"|sharp|edge|boneplus)(?![a-z])"
)


def is_sharp(kernel: str, description: str = "") -> bool:
    """Whether a kernel is one for bone, lung or the inner ear.

    Args:
        kernel: ConvolutionKernel (0018,1210), its first value.
        description: SeriesDescription (0008,103E), used where the kernel's name tells nothing.

    Returns:
        False where nothing says so.
    """
    name = kernel.strip()
    if match := _SIEMENS.fullmatch(name):
        return int(match[1]) >= _SIEMENS_SHARP
    if match := _CANON.match(name.upper()):
        return int(match[1][0]) in _CANON_SHARP
    if name.upper() in _PHILIPS_SHARP | _PHILIPS_SOFT:
        return name.upper() in _PHILIPS_SHARP
    words = set(re.split(r"[\s_\-/]+", name.upper()))
    if words & _SHARP_WORDS:
        return True
    if words & _SOFT_WORDS:
        return False
    return _DESCRIBED.search(description.lower()) is not None
