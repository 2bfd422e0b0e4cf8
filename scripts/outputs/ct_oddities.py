"""What a histogram of a CT does not see: inverted grey levels, contrast agent, a window, a wrong scale.

A style key has no places and no HU: the median is moved to one value before it is made. These measures look at where in
the brain the CT is dark and bright, and at the values as they were stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import ndimage

__all__ = ["ct_measures", "ct_warnings"]

# Of five real CTs and 24 simulated ones of eight people of the training: the bright end of the deep brain is at most
# 1.2 times as far from the median as the dark end (3.6 times and more in nine of ten inverted ones) ...
LARGEST_INVERSION = 2.0
# ... and at most 1.3 per mille of the inner brain is brighter than 60 HU (3.8 and more with bright vessels).
LARGEST_BRIGHT_SHARE = 2.5e-3
# An end of the scale below that of bone, reached by many voxels
CLIPPED_BELOW_HU, LARGEST_CLIPPED_SHARE = 300.0, 0.01
# Air is at -1000 HU; below it there is padding
AIR_HU = -850.0
# Volume that is unlike its mirror side, whether or not the synthetic image shows it
LARGEST_ASYMMETRY_ML = 15.0


def ct_measures(
    image: np.ndarray, spacing_mm: np.ndarray, source: np.ndarray, window: Sequence[float] = (0.0, 80.0)
) -> dict[str, float]:
    """Measures of a CT.

    Args:
        image: as the network was given it, (H, W, Z), [0, 1], 0 outside the brain.
        spacing_mm: of its voxels.
        source: as loaded, (H, W, Z), HU.
        window: HU that 0 and 1 of the image stand for.

    Returns:
        `deep_dark_hu` and `deep_bright_hu`: how far the 3 and the 97 percentile of the deep brain, smoothed, lie below
        and above the brain's median; `bright_share`: of the inner brain above 60 HU; `clipped_share`: of what is above
        0 HU that has the largest value, 0 where that is bone's; `air_hu`: median of what is below -200 HU, where there
        is any.
    """
    mask = ndimage.binary_fill_holes(image > 0)
    low, high = window
    hu = low + (high - low) * np.asarray(image, np.float32)
    measured = {**_inner_measures(hu, mask, np.asarray(spacing_mm, dtype=np.float64))}
    largest = float(source.max())
    source = source[::2, ::2, ::2]  # an eighth of the voxels tells as much
    positive = source > 0
    clipped = largest < CLIPPED_BELOW_HU and positive.any()
    measured["clipped_share"] = float((source == largest).sum() / positive.sum()) if clipped else 0.0
    air = source[source < -200]
    if air.size > 0.02 * source.size:
        measured["air_hu"] = float(np.median(air[:: max(air.size // 100_000, 1)]))
    return measured


def _inner_measures(hu: np.ndarray, mask: np.ndarray, spacing: np.ndarray) -> dict[str, float]:
    """Those of places in the brain; none where it is too small to have an inside."""
    depth = ndimage.distance_transform_edt(mask, sampling=spacing)
    inner, deep = depth > 9, depth > 24
    if deep.sum() < 1000:
        return {}
    weight = ndimage.gaussian_filter(mask.astype(np.float32), 3.0 / spacing)
    smooth = ndimage.gaussian_filter(hu * mask, 3.0 / spacing) / np.maximum(weight, 1e-3)
    median = float(np.median(smooth[depth > 6]))
    low, high = np.percentile(smooth[deep], [3, 97])
    bright = ndimage.gaussian_filter(hu, 1.0 / spacing)[inner] > 60
    return {
        "deep_dark_hu": median - float(low),
        "deep_bright_hu": float(high) - median,
        "bright_share": float(bright.mean()),
    }


def ct_warnings(measured: Mapping[str, float], windowed: bool = False) -> list[str]:
    """What is odd about a CT, one sentence each; of one that is known to be windowed not that it is."""
    warnings = []
    dark, bright = measured.get("deep_dark_hu"), measured.get("deep_bright_hu")
    if dark is not None and bright is not None and bright > 10 and bright > LARGEST_INVERSION * max(dark, 0.0):
        warnings.append(
            f"The source has inverted grey levels: deep in the brain, where fluid should be dark, it is "
            f"up to {bright:.0f} HU brighter and only {dark:.0f} HU darker than the median."
        )
    elif (share := measured.get("bright_share", 0.0)) > LARGEST_BRIGHT_SHARE:
        warnings.append(
            f"The source has bright voxels inside the brain: {1000 * share:.1f} per mille are above 60 HU "
            f"({1000 * LARGEST_BRIGHT_SHARE:.1f} are usual at most); contrast agent, blood or calcium."
        )
    if not windowed and measured.get("clipped_share", 0.0) > LARGEST_CLIPPED_SHARE:
        warnings.append(
            f"The source has a clipped scale: {100 * measured['clipped_share']:.0f} % of its tissue and bone have the "
            "largest value; it may be a windowed CT (ct_window)."
        )
    if measured.get("air_hu", -1000.0) > AIR_HU:
        warnings.append(
            f"The source has a wrong scale: air is at {measured['air_hu']:.0f} HU instead of -1000; "
            "contrast or offset were changed."
        )
    asymmetric = measured.get("asymmetric_ml", 0.0)
    if asymmetric > LARGEST_ASYMMETRY_ML:
        warnings.append(
            f"The source has a large lesion or asymmetry: {asymmetric:.0f} mL are darker or brighter than their "
            "mirror side."
        )
    return warnings
