"""How well the tissues of a synthetic T1 agree with those of the real one."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

TISSUES = ("csf", "gm", "wm")
_TOO_FEW = 1000  # voxels of a brain in which three classes cannot be told apart


def tissue_classes(image: np.ndarray, mask: np.ndarray, *, beta: float = 0.1, num_iterations: int = 6) -> np.ndarray:
    """Cerebrospinal fluid (1), grey (2) and white matter (3) of a T1 volume; 0 outside the mask.

    A hidden Markov random field (Zhang et al. 2001, as FSL's FAST; dipy's ``TissueClassifierHMRF``). Its classes come
    in the order of their mean intensity, which on a T1 is CSF, grey, white.

    Args:
        image: (H, W, Z), any unit, larger in white matter than in grey matter than in CSF.
        mask: (H, W, Z) bool, the brain.
        beta: smoothness of the random field.
        num_iterations: of its expectation maximisation.

    Returns:
        (H, W, Z) uint8.
    """
    from dipy.segment.tissue import TissueClassifierHMRF  # heavy import

    top = np.percentile(image[mask], 99.5)
    if top <= 0:
        return mask.astype(np.uint8)
    # dipy draws noise from the global generator for voxels of exactly 0; small fixed noise keeps results reproducible
    background = np.random.default_rng(0).uniform(1e-5, 1e-4, image.shape)
    scaled = np.where(mask, np.clip(image / top, 0.005, 1), background)
    classes = TissueClassifierHMRF(verbose=False).classify(scaled, 3, beta, tolerance=0, max_iter=num_iterations)[1]
    # what dipy calls background inside the mask is the darkest, fluid
    return np.where(mask, np.maximum(classes, 1), 0).astype(np.uint8)


def tissue_dice(
    image: np.ndarray, reference: np.ndarray, mask: np.ndarray, spacing_mm: Sequence[float], grid_mm: float = 1.5
) -> dict[str, float]:
    """Dice of CSF, grey and white matter between a synthetic and a real T1, both classified alike.

    Args:
        image, reference: (H, W, Z), [0, 1].
        mask: (H, W, Z) bool, the brain.
        spacing_mm: voxel size.
        grid_mm: finer volumes are brought to about this voxel size first, which makes minutes into seconds.

    Returns:
        "dice_csf", "dice_gm", "dice_wm"; NaN where the brain is too small to be divided.
    """
    box = tuple(slice(max(0, s.start - 1), s.stop + 1) for s in ndimage.find_objects(mask.astype(np.uint8))[0])
    volumes = [np.asarray(a[box], np.float32) for a in (image, reference, mask)]
    zoom = [min(1.0, s / grid_mm) for s in spacing_mm]
    if min(zoom) < 0.99:
        sigma = [0.4 * max(0.0, 1 / z - 1) for z in zoom]
        volumes = [ndimage.zoom(ndimage.gaussian_filter(v, sigma), zoom, order=1) for v in volumes]
    inside = volumes[2] > 0.5
    if inside.sum() < _TOO_FEW:
        return {f"dice_{name}": float("nan") for name in TISSUES}
    first, second = (tissue_classes(volume, inside) for volume in volumes[:2])
    return {f"dice_{name}": _dice(first == n, second == n) for n, name in enumerate(TISSUES, start=1)}


def _dice(first: np.ndarray, second: np.ndarray) -> float:
    total = int(first.sum()) + int(second.sum())
    return 2 * float((first & second).sum()) / total if total else float("nan")
