"""How well the tissues of a synthetic MRI agree with those of the real one."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from ..simulation.hmrf import three_classes

TISSUES = ("csf", "gm", "wm")
TISSUES_BY_BRIGHTNESS = {
    "T1": ("csf", "gm", "wm"),
    "T1ce": ("csf", "gm", "wm"),
    "T2": ("wm", "gm", "csf"),
    "FLAIR": ("csf", "wm", "gm"),
}
"""Contrast -> its tissues from dark to bright.

PD has no entry: white matter is darker than grey, but fluid may be the darkest or the brightest, as the repetition time
has it. CT has none either: noise and beam hardening are as large as the difference of its tissues.
"""
_TOO_FEW = 1000  # voxels of a brain in which three classes cannot be told apart


def tissue_classes(image: np.ndarray, mask: np.ndarray, contrast: str = "T1") -> np.ndarray:
    """Cerebrospinal fluid (1), grey (2) and white matter (3) of an MRI by `three_classes`; 0 outside the mask.

    Args:
        image: (H, W, Z), any unit.
        mask: (H, W, Z) bool, the brain.
        contrast: one of `TISSUES_BY_BRIGHTNESS`.

    Returns:
        (H, W, Z) uint8.
    """
    numbers = [1 + TISSUES.index(tissue) for tissue in TISSUES_BY_BRIGHTNESS[contrast]]
    return np.array([0, *numbers], np.uint8)[three_classes(image, mask)[0]]


def tissue_dice(
    image: np.ndarray,
    reference: np.ndarray,
    mask: np.ndarray,
    spacing_mm: Sequence[float],
    contrast: str = "T1",
    grid_mm: float = 1.5,
) -> dict[str, float]:
    """Dice of CSF, grey and white matter between a synthetic and a real MRI, both classified alike.

    Args:
        image, reference: (H, W, Z), [0, 1].
        mask: (H, W, Z) bool, the brain.
        spacing_mm: voxel size.
        contrast: of both; it says which tissue is the dark one.
        grid_mm: finer volumes are brought to about this voxel size first, which makes minutes into seconds.

    Returns:
        "dice_csf", "dice_gm", "dice_wm"; NaN where the brain is too small to be divided; nothing where the
        contrast is not one of `TISSUES_BY_BRIGHTNESS`.
    """
    if contrast not in TISSUES_BY_BRIGHTNESS:
        return {}
    box = tuple(slice(max(0, s.start - 1), s.stop + 1) for s in ndimage.find_objects(mask.astype(np.uint8))[0])
    volumes = [np.asarray(a[box], np.float32) for a in (image, reference, mask)]
    zoom = [min(1.0, s / grid_mm) for s in spacing_mm]
    if min(zoom) < 0.99:
        sigma = [0.4 * max(0.0, 1 / z - 1) for z in zoom]
        volumes = [ndimage.zoom(ndimage.gaussian_filter(v, sigma), zoom, order=1) for v in volumes]
    inside = volumes[2] > 0.5
    if inside.sum() < _TOO_FEW:
        return {f"dice_{name}": float("nan") for name in TISSUES}
    first, second = (tissue_classes(volume, inside, contrast) for volume in volumes[:2])
    return {f"dice_{name}": _dice(first == n, second == n) for n, name in enumerate(TISSUES, start=1)}


def _dice(first: np.ndarray, second: np.ndarray) -> float:
    total = int(first.sum()) + int(second.sum())
    return 2 * float((first & second).sum()) / total if total else float("nan")
