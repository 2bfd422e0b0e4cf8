"""What a histogram of a CT does not see: inverted grey levels, contrast agent, a window, a wrong scale.

A style key has no places and no HU: the median is moved to one value before it is made. These measures look at where in
the brain the CT is dark and bright, and at the values as they were stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import nibabel as nib
import numpy as np
from scipy import ndimage

from ..transforms.ct_brain_mask import BONE, block_means, close_mask

__all__ = ["ct_measures", "ct_warnings", "metal_measures"]

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
# Above the densest enamel; scanners without an extended scale end at 3071 HU
METAL_HU = 2900.0
# Metal farther from the brain, such as a tooth's, spoils other slices
METAL_NEAR_MM = 25.0
LARGEST_METAL_ML = 0.1
# Darker than any tissue inside the skull but fat, and brighter than any but calcium
STREAK_HU = (-25.0, 120.0)
# Of three real CTs without metal at most 1 and 0 mL
LARGEST_STREAKS_ML, LARGEST_MISSING_ML = 10.0, 40.0


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


def metal_measures(source: np.ndarray, mask: np.ndarray, affine: np.ndarray) -> dict[str, float]:
    """How much metal there is at the brain, what its streaks have spoilt, and what the mask leaves out of the skull.

    The skull's inside is looked for above its base, where there is nothing but brain, and in the axial slices that bone
    encloses.

    Args:
        source: CT, (H, W, Z), HU.
        mask: of the brain, the same shape, bool.
        affine: (4, 4), voxel to RAS mm.

    Returns:
        `metal_ml` above `METAL_HU` within `METAL_NEAR_MM` of the brain; `streaks_ml` in the brain or its gaps beyond
        `STREAK_HU`, bone aside; `missing_ml` of the skull's inside that is not in the mask.
    """
    axes = nib.io_orientation(affine)
    source, mask = (nib.apply_orientation(volume, axes) for volume in (source, mask))
    spacing = np.linalg.norm(np.asarray(affine, dtype=np.float64)[:3, :3], axis=0)[np.argsort(axes[:, 0])]
    hu, edges = block_means(source, spacing, 3.0)
    inside = block_means(np.float32(100) * mask, spacing, 3.0)[0] > 50
    block_ml = float(edges.prod()) / 1000
    gaps = close_mask(inside, 12.0, edges) & (hu < STREAK_HU[0])
    deep = ndimage.distance_transform_edt(inside, sampling=edges) > 9  # at its rim the mask has bone
    metal = np.argwhere(source > METAL_HU)
    if len(metal) and inside.any():
        places = np.minimum((metal * spacing / edges).astype(int), np.array(inside.shape) - 1)
        distance = ndimage.distance_transform_edt(~inside, sampling=edges)
        metal = metal[distance[tuple(places.T)] < METAL_NEAR_MM]
    return {
        "metal_ml": len(metal) * float(spacing.prod()) / 1000,
        "streaks_ml": float((gaps | (deep & (hu > STREAK_HU[1]))).sum()) * block_ml,
        "missing_ml": float((_upper_cavity(hu, edges) & ~ndimage.binary_dilation(inside)).sum()) * block_ml,
    }


def _upper_cavity(hu: np.ndarray, edges: np.ndarray, depth: float = 90.0) -> np.ndarray:
    """What bone encloses in axial slices, down to `depth` mm below its top; bool like hu, in RAS order."""
    bone = hu > BONE
    filled = np.stack([ndimage.binary_fill_holes(bone[..., z]) for z in range(bone.shape[2])], axis=2)
    cavity = ndimage.binary_opening(filled & ~bone, iterations=2)
    levels = np.flatnonzero(cavity.any(axis=(0, 1)))
    if levels.size:
        cavity[..., : max(0, levels[-1] - round(depth / edges[2]))] = False
    return cavity


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
    metal, streaks, missing = (measured.get(f"{name}_ml", 0.0) for name in ("metal", "streaks", "missing"))
    if metal > LARGEST_METAL_ML:
        warnings.append(
            f"The source has metal at the brain: {metal:.1f} mL are above {METAL_HU:.0f} HU, streaks spoil "
            f"{streaks:.0f} mL inside the skull, and {missing:.0f} mL of it are left out; the synthetic image is wrong "
            "around it."
        )
    elif streaks > LARGEST_STREAKS_ML:
        warnings.append(
            f"The source has streaks or air inside the skull: {streaks:.0f} mL are darker or brighter than tissue, "
            f"where {LARGEST_STREAKS_ML:.0f} are usual at most; the synthetic image is wrong there."
        )
    elif missing > LARGEST_MISSING_ML:
        warnings.append(
            f"The brain mask leaves out {missing:.0f} mL inside the skull, where {LARGEST_MISSING_ML:.0f} are usual at "
            "most; look at the picture."
        )
    asymmetric = measured.get("asymmetric_ml", 0.0)
    if asymmetric > LARGEST_ASYMMETRY_ML:
        warnings.append(
            f"The source has a large lesion or asymmetry: {asymmetric:.0f} mL are darker or brighter than their "
            "mirror side."
        )
    return warnings
