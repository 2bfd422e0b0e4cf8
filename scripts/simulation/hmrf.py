"""A brain divided into three tissues by brightness: the one place that calls dipy's hidden Markov random field."""

import numpy as np

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


def three_classes(
    image: np.ndarray, mask: np.ndarray, beta: float = 0.1, num_iterations: int = 6
) -> tuple[np.ndarray, np.ndarray]:
    """Dark, medium and bright tissue of a brain, by a hidden Markov random field.

    Zhang et al. 2001, as FSL's FAST; dipy's `TissueClassifierHMRF`, whose classes come in the order of their mean.

    Args:
        image: (H, W, Z), any unit.
        mask: (H, W, Z) bool, the brain.
        beta: smoothness of the random field.
        num_iterations: of its expectation maximisation.

    Returns:
        classes, (H, W, Z) uint8: 1 dark, 2 medium, 3 bright, 0 outside the mask; and their fractions, (3, H, W, Z)
        float32 with sum 1 in the mask and 0 outside. An image without a positive voxel is dark throughout.
    """
    from dipy.segment.tissue import TissueClassifierHMRF  # heavy import

    top = np.percentile(image[mask], 99.5)
    if top <= 0:
        dark = mask.astype(np.uint8)
        return dark, np.stack([dark, 0 * dark, 0 * dark]).astype(np.float32)
    # dipy draws noise from the global generator for voxels of exactly 0; small fixed noise keeps results reproducible
    background = np.random.default_rng(0).uniform(1e-5, 1e-4, image.shape)
    scaled = np.where(mask, np.clip(image / top, 0.005, 1), background)
    classify = TissueClassifierHMRF(verbose=False).classify
    with np.errstate(invalid="ignore", divide="ignore"):  # of classes that have no voxel at first
        _, classes, fractions = classify(scaled, 3, beta, tolerance=0, max_iter=num_iterations)
    # what dipy calls background inside the mask is the darkest
    return np.where(mask, np.maximum(classes, 1), 0).astype(np.uint8), _normalised(fractions, mask)


def _normalised(fractions: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(H, W, Z, 3) -> (3, H, W, Z), summing to 1 in the mask; voxels of no class become dark."""
    fractions = np.nan_to_num(np.moveaxis(fractions, -1, 0)) * mask
    fractions[0] += np.where(mask & (fractions.sum(0) < 1e-3), 1.0, 0.0)
    return (fractions / np.maximum(fractions.sum(0), 1e-3)).astype(np.float32)
