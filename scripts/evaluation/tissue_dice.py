"""How well the tissues of a synthetic MRI agree with those of the real one, in place and in volume."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from scipy import ndimage

from ..simulation.hmrf import TISSUES, TISSUES_BY_BRIGHTNESS, three_classes
from ..transforms.intensity import FlattenHUTrend
from .figures import best_pointwise_map, digits_of, format_spread, label, low_pass, markdown_table
from .tissue_segmentation import SEGMENTER_MM, segmented_tissues

# What comes of a CT's own classes all the same is told as a row beside the synthetic image, see `ct_tissues`.
_CT_TISSUES = ("csf", "wm", "gm")
_CT_WINDOW = (0.0, 80.0)  # HU
_TOO_FEW = 1000  # voxels of a brain in which three classes cannot be told apart
TISSUE_FIGURES = tuple(f"{kind}_{tissue}" for kind in ("dice", "ml", "bias") for tissue in TISSUES)
REAL, SYNTHETIC, POINTWISE, BY_HU = "real image", "synthetic image", "pointwise map of the source", "CT's own classes"


def tissue_classes(image: np.ndarray, mask: np.ndarray, contrast: str = "T1") -> np.ndarray:
    """Cerebrospinal fluid (1), grey (2) and white matter (3) of an MRI; 0 outside the mask.

    A T1 is divided by the bundle's segmenter, which knows that thalamus and pallidum are grey matter however bright
    they are; other contrasts by `three_classes`, in their order of brightness.

    Args:
        image: (H, W, Z), about 1.5 mm, axes nearest to R, A, S; of a T1 in [0, 1], else in any unit.
        mask: (H, W, Z) bool, the brain.
        contrast: one of `TISSUES_BY_BRIGHTNESS`.

    Returns:
        (H, W, Z) uint8.
    """
    return segmented_tissues(image, mask) if contrast == "T1" else _by_brightness(image, mask, contrast)


def _by_brightness(image: np.ndarray, mask: np.ndarray, contrast: str) -> np.ndarray:
    return _numbered(three_classes(image, mask)[0], TISSUES_BY_BRIGHTNESS[contrast])


def _numbered(classes: np.ndarray, tissues: Sequence[str]) -> np.ndarray:
    """Classes from dark (1) to bright (3), named so, as the numbers of `TISSUES`."""
    return np.array([0, *(1 + TISSUES.index(tissue) for tissue in tissues)], np.uint8)[classes]


def ct_tissues(hu: np.ndarray, mask: np.ndarray, spacing_mm: Sequence[float], smoothing_mm: float = 1.5) -> np.ndarray:
    """Fluid, grey and white matter of a CT by its HU alone: what a synthetic image has to do better than.

    The slow trend of HU is removed, noise is smoothed within the brain, and `three_classes` divides what lies within 0
    to 80 HU; white matter is the darker of the two solid tissues.

    Args:
        hu: (H, W, Z) HU.
        mask: (H, W, Z) bool, the brain.
        spacing_mm: voxel size.
        smoothing_mm: standard deviation of the Gaussian.

    Returns:
        (H, W, Z) uint8 as from `tissue_classes`.
    """
    pair = [torch.from_numpy(np.ascontiguousarray(a))[None] for a in (np.asarray(hu, np.float32), mask)]
    flat = np.clip(FlattenHUTrend()(*pair, spacing_mm)[0].numpy(), *_CT_WINDOW)
    return _numbered(three_classes(low_pass(flat, mask, spacing_mm, smoothing_mm), mask)[0], _CT_TISSUES)


def tissue_rows(
    image: np.ndarray,
    reference: np.ndarray,
    mask: np.ndarray,
    spacing_mm: Sequence[float],
    contrast: str = "T1",
    source: np.ndarray | None = None,
    source_is_ct: bool = False,
    grid_mm: float = SEGMENTER_MM,
) -> dict[str, dict[str, float]]:
    """Tissues of the synthetic image and of what it has to beat, each against those of the real image.

    Args:
        image, reference: (H, W, Z), [0, 1].
        mask: (H, W, Z) bool, the brain.
        spacing_mm: voxel size.
        contrast: of both.
        source: (H, W, Z); adds its `best_pointwise_map`.
        source_is_ct: whether the source is in HU; adds its `ct_tissues`.
        grid_mm: voxel size that the volumes are brought to first.

    Returns:
        row -> "dice_csf", "dice_gm", "dice_wm"; "ml_..." (mL) and "bias_..." (how much larger than in the real image,
        %) of the same. NaN where the brain is too small to be divided; no row where the contrast is not one of
        `TISSUES_BY_BRIGHTNESS`.
    """
    if contrast not in TISSUES_BY_BRIGHTNESS:
        return {}
    millilitres = float(mask.sum()) * float(np.prod(spacing_mm)) / 1000
    images = {REAL: reference, SYNTHETIC: image}
    if source is not None:
        images[POINTWISE] = best_pointwise_map(source, reference, mask)
    if source is not None and source_is_ct:
        images[BY_HU] = source
    inside, images, spacing_mm = _on_grid(images, mask, spacing_mm, grid_mm)
    if inside.sum() < _TOO_FEW:
        nothing = np.zeros_like(inside, np.uint8)
        return {name: tissue_agreement(nothing, nothing, float("nan")) for name in images}
    classes = {
        name: ct_tissues(a, inside, spacing_mm) if name == BY_HU else tissue_classes(a, inside, contrast)
        for name, a in images.items()
    }
    # the voxels of the new grid together are the brain's volume on the old one
    voxel_ml = millilitres / float(inside.sum())
    return {name: tissue_agreement(divided, classes[REAL], voxel_ml) for name, divided in classes.items()}


def _on_grid(
    images: Mapping[str, np.ndarray], mask: np.ndarray, spacing_mm: Sequence[float], grid_mm: float
) -> tuple[np.ndarray, dict[str, np.ndarray], list[float]]:
    """The mask and the images cropped to the brain at about `grid_mm`, smoothed where that is coarser; its spacing."""
    box = tuple(slice(max(0, s.start - 1), s.stop + 1) for s in ndimage.find_objects(mask.astype(np.uint8))[0])
    zoom = [s / grid_mm for s in spacing_mm]
    if max(abs(z - 1) for z in zoom) < 0.01:
        return mask[box], {name: np.asarray(a[box], np.float32) for name, a in images.items()}, list(spacing_mm)
    sigma = [0.4 * max(0.0, 1 / z - 1) for z in zoom]

    def resampled(volume: np.ndarray) -> np.ndarray:
        return ndimage.zoom(ndimage.gaussian_filter(np.asarray(volume[box], np.float32), sigma), zoom, order=1)

    return resampled(mask) > 0.5, {name: resampled(a) for name, a in images.items()}, [grid_mm] * 3


def tissue_agreement(classes: np.ndarray, reference: np.ndarray, voxel_ml: float) -> dict[str, float]:
    """Dice, volume (mL) and bias of the volume (%) of each tissue: "dice_csf", "ml_csf", "bias_csf" and so on.

    Args:
        classes, reference: of the same shape, as from `tissue_classes`.
        voxel_ml: mL of a voxel.
    """
    pairs = {name: (classes == n, reference == n) for n, name in enumerate(TISSUES, start=1)}
    volumes = {name: [float(tissue.sum()) for tissue in pair] for name, pair in pairs.items()}
    return {
        **{f"dice_{name}": _dice(*pair) for name, pair in pairs.items()},
        **{f"ml_{name}": voxel_ml * own for name, (own, _) in volumes.items()},
        **{f"bias_{n}": 100 * (own / real - 1) if real else float("nan") for n, (own, real) in volumes.items()},
    }


def _dice(first: np.ndarray, second: np.ndarray) -> float:
    total = int(first.sum()) + int(second.sum())
    return 2 * float((first & second).sum()) / total if total else float("nan")


def tissue_table(subjects: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Markdown: a line for each of the `tissue_rows`, mean ± standard deviation over the subjects that have it.

    Args:
        subjects: subject -> its rows.
    """
    lines = []
    for row in dict.fromkeys(row for rows in subjects.values() for row in rows):
        values = [rows[row] for rows in subjects.values() if row in rows]
        shown = [name for name in TISSUE_FIGURES if row != REAL or name.startswith("ml")]
        spreads = {name: format_spread([value[name] for value in values], digits_of(name)) for name in shown}
        lines.append([row, *(spreads.get(name, "") for name in TISSUE_FIGURES)])
    return markdown_table(["", *map(label, TISSUE_FIGURES)], lines)
