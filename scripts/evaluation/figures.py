"""All figures of one synthetic volume against the real one: over the whole volume, and inside the brain.

Beside them what a plain baseline reaches: the best that any map of single grey levels of the source could do.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from scipy import ndimage

from .metrics import inter_slice_ssim, nrmse, psnr, slice_psnr, slice_ssim, ssim

LABELS = {
    "nrmse": "NRMSE",
    "psnr": "PSNR (dB)",
    "ssim": "SSIM",
    "i_ssim": "I-SSIM",
    "i_ssim_reference": "I-SSIM of the real image",
    "i_ssim_error": "I-SSIM, difference to the real image's",
    "pearson": "Pearson",
    "sharpness": "sharpness",
    "highpass": "high-pass correlation",
    "lowpass": "low-pass correlation",
    "adjacent_difference": "difference of adjacent slices",
    "adjacent_ratio": "difference of adjacent slices, share of the real image's",
    "mae": "MAE (8 bits)",
    "gflop_network": "GFLOP, network",
    "gflop_encode": "GFLOP, encoding",
    "gflop_decode": "GFLOP, decoding",
    "seconds_encode": "seconds, encoding",
    "seconds_decode": "seconds, decoding",
    "dice_csf": "Dice CSF",
    "dice_gm": "Dice GM",
    "dice_wm": "Dice WM",
    "ml_csf": "CSF (mL)",
    "ml_gm": "GM (mL)",
    "ml_wm": "WM (mL)",
    "bias_csf": "CSF, bias (%)",
    "bias_gm": "GM, bias (%)",
    "bias_wm": "WM, bias (%)",
}
"""Name of a figure -> what a table calls it; names that end in "_brain" are those inside the brain."""
PLACES = {"_brain": "brain", "_missing": "missing slices", "_given": "given slices", "_slices": "by slice"}
"""Endings of figures -> where they were measured."""


CASE_FIGURES = ("pearson", "psnr", "ssim", "nrmse", "i_ssim", "sharpness", "highpass", "lowpass")
"""What the table of a single case and its page show, inside the brain."""
LOWPASS_MM = 3.0
"""Standard deviation of the Gaussian that parts an image into coarse and fine."""


def pearson(image: np.ndarray, reference: np.ndarray, mask: np.ndarray) -> float:
    """Pearson correlation of two images (H, W, Z) inside a mask; NaN where one of them is constant there."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.corrcoef(image[mask], reference[mask])[0, 1])


def gradient_energy(image: np.ndarray, mask: np.ndarray) -> float:
    """Mean squared gradient (central differences) inside a mask: how sharp an image is."""
    return float(sum(g[mask] ** 2 for g in np.gradient(image)).mean())


def sharpness(image: np.ndarray, reference: np.ndarray, mask: np.ndarray) -> float:
    """Gradient energy as a share of the reference's; NaN where the reference is constant inside the mask."""
    whole = gradient_energy(reference, mask)
    return gradient_energy(image, mask) / whole if whole > 0 else float("nan")


def adjacent_difference(image: np.ndarray, mask: np.ndarray) -> float:
    """Mean absolute difference of adjacent axial slices (H, W, Z) where both lie in the mask; flicker raises it."""
    inside = mask[..., 1:] & mask[..., :-1]
    return float(np.abs(np.diff(image, axis=2))[inside].mean())


def low_pass(
    image: np.ndarray, mask: np.ndarray, spacing_mm: Sequence[float], width_mm: float = LOWPASS_MM
) -> np.ndarray:
    """A Gaussian mean of the voxels inside a mask alone, (H, W, Z) float32; 0 outside.

    Args:
        image: (H, W, Z).
        mask: (H, W, Z) bool; the weights are normalised within it, so that its edge does not darken.
        spacing_mm: voxel size.
        width_mm: standard deviation.
    """
    sigma = [width_mm / s for s in spacing_mm]
    summed, weights = (ndimage.gaussian_filter(np.where(mask, a, 0).astype(np.float32), sigma) for a in (image, 1.0))
    return np.where(mask, summed / np.maximum(weights, 1e-6), 0)


def band_correlations(
    image: np.ndarray, reference: np.ndarray, mask: np.ndarray, spacing_mm: Sequence[float]
) -> dict[str, float]:
    """Pearson correlation of what is finer than `LOWPASS_MM`, "highpass", and of what is coarser, "lowpass".

    Sharpness counts any detail; the high-pass correlation counts detail that is where the reference has it.
    """
    coarse = [low_pass(a, mask, spacing_mm) for a in (image, reference)]
    fine = [a - low for a, low in zip((image, reference), coarse, strict=True)]
    return {"highpass": pearson(*fine, mask), "lowpass": pearson(*coarse, mask)}


def best_pointwise_map(
    source: np.ndarray, reference: np.ndarray, mask: np.ndarray, num_levels: int = 400
) -> np.ndarray:
    """The source's grey levels, each replaced by the mean of the reference there: the best any lookup table can do.

    Args:
        source, reference: (H, W, Z), any unit.
        mask: (H, W, Z) bool; the table is made, and holds, inside it.
        num_levels: of the table, between the 0.1 and the 99.9 percentile of the source inside the mask.

    Returns:
        (H, W, Z), 0 outside the mask. It has seen the reference, which makes it an upper bound and no method.
    """
    low, high = np.percentile(source[mask], [0.1, 99.9])
    level = np.clip((source - low) / max(high - low, 1e-6) * (num_levels - 1), 0, num_levels - 1).astype(int)
    total = np.bincount(level[mask], minlength=num_levels)
    summed = np.bincount(level[mask], weights=reference[mask], minlength=num_levels)
    return np.where(mask, (summed / np.maximum(total, 1))[level], 0.0)


def volume_figures(
    image: np.ndarray, reference: np.ndarray, mask: np.ndarray, spacing_mm: Sequence[float] | None = None
) -> dict[str, float]:
    """The figures of SPEC section 5 (CT2MRI, ReBrain), images clipped to [0, 1].

    Args:
        image, reference: (H, W, Z), [0, 1], Z axial; no axis shorter than SSIM's window of 7.
        mask: (H, W, Z) bool, the brain.
        spacing_mm: voxel size; without it there are no `band_correlations`.

    Returns:
        NRMSE, PSNR (dB), SSIM, I-SSIM and the reference's own I-SSIM over the whole volume, and `brain_figures` under
        the same names with "_brain".

    Raises:
        ValueError: the mask is empty, or the volume has an axis shorter than 7.
    """
    whole = _image_figures(*_clipped(image, reference), None)
    inside = brain_figures(image, reference, mask, spacing_mm)
    return {**whole, **{f"{name}_brain": value for name, value in inside.items()}}


def brain_figures(
    image: np.ndarray, reference: np.ndarray, mask: np.ndarray, spacing_mm: Sequence[float] | None = None
) -> dict[str, float]:
    """Those of `volume_figures` inside the mask, without "_brain"; arguments and errors as there.

    Beside NRMSE, PSNR, SSIM and I-SSIM: Pearson correlation, sharpness (gradient energy as a share of the reference's),
    `band_correlations` and the difference of adjacent slices.
    """
    image, reference = _clipped(image, reference)
    bands = {} if spacing_mm is None else band_correlations(image, reference, mask, spacing_mm)
    return {
        **_image_figures(image, reference, mask),
        "pearson": pearson(image, reference, mask),
        "sharpness": sharpness(image, reference, mask),
        **bands,
        "adjacent_difference": adjacent_difference(image, mask),
    }


def slice_figures(image: np.ndarray, reference: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """PSNR and SSIM of the axial slices that hold brain, averaged: what papers on single slices most likely give.

    Args:
        image, reference: (H, W, Z), [0, 1]; whole slices count, the background too.
        mask: (H, W, Z) bool, the brain.

    Returns:
        "psnr_slices" (dB) and "ssim_slices".
    """
    pair = [torch.from_numpy(np.ascontiguousarray(a)) for a in _clipped(image, reference)]
    inside = torch.from_numpy(np.asarray(mask).any(axis=(0, 1)))
    values = {"psnr_slices": slice_psnr(*pair), "ssim_slices": slice_ssim(*pair)}
    return {name: float(of_slices[inside].mean()) for name, of_slices in values.items()}


def pointwise_figures(
    source: np.ndarray, reference: np.ndarray, mask: np.ndarray, spacing_mm: Sequence[float]
) -> dict[str, float]:
    """`brain_figures` of the source's `best_pointwise_map`, the plain baseline beside every gain."""
    return brain_figures(best_pointwise_map(source, reference, mask), reference, mask, spacing_mm)


def unsharp_mask(
    image: np.ndarray, reference: np.ndarray, mask: np.ndarray, spacing_mm: Sequence[float], width_mm: float = 2.0
) -> np.ndarray:
    """The image as sharp as the reference, by adding a multiple of what is finer than a Gaussian: no detail is new.

    Whoever gains sharpness has to gain more high-pass correlation than this. The multiple makes the gradient energies
    equal (but for the clipping); an image that is sharper than the reference already stays as it is.

    Args:
        image, reference: (H, W, Z), [0, 1].
        mask: (H, W, Z) bool, the brain.
        spacing_mm: voxel size.
        width_mm: standard deviation of the Gaussian.

    Returns:
        (H, W, Z) in [0, 1].
    """
    fine = np.where(mask, image - low_pass(image, mask, spacing_mm, width_mm), 0)
    # the gradient energy is quadratic in the multiple a: E(a) = E(0) + 2 b a + c a^2
    slopes = zip(np.gradient(image), np.gradient(fine), strict=True)
    b = float(sum(own[mask] * finer[mask] for own, finer in slopes).mean())
    c = gradient_energy(fine, mask)
    missing = gradient_energy(reference, mask) - gradient_energy(image, mask)
    amount = (np.sqrt(b * b + c * missing) - b) / c if missing > 0 and c > 0 else 0.0
    return np.clip(image + amount * fine, 0, 1)


def unsharp_figures(
    image: np.ndarray, reference: np.ndarray, mask: np.ndarray, spacing_mm: Sequence[float]
) -> dict[str, float]:
    """`brain_figures` of the image's `unsharp_mask`: how much of a gain in sharpness is none in detail."""
    return brain_figures(unsharp_mask(image, reference, mask, spacing_mm), reference, mask, spacing_mm)


def case_rows(
    image: np.ndarray,
    reference: np.ndarray,
    mask: np.ndarray,
    spacing_mm: Sequence[float],
    source: np.ndarray | None = None,
) -> dict[str, dict[str, float]]:
    """A single case in parts: row -> `brain_figures`.

    Args:
        image, reference, source: (H, W, Z), the first two in [0, 1], axes nearest to R, A, S.
        mask: (H, W, Z) bool, the brain.
        spacing_mm: voxel size.

    Returns:
        "real" against itself, "synthetic", its "unsharp mask", with a source its "pointwise map", and the synthetic
        image's "left half" and "right half" of the field of view, where there is brain in them.
    """
    rows = {"real": brain_figures(reference, reference, mask, spacing_mm)}
    rows["synthetic"] = brain_figures(image, reference, mask, spacing_mm)
    rows["unsharp mask"] = unsharp_figures(image, reference, mask, spacing_mm)
    if source is not None:
        rows["pointwise map"] = pointwise_figures(source, reference, mask, spacing_mm)
    left = np.zeros_like(mask)
    left[: mask.shape[0] // 2] = True
    for name, half in (("left half", mask & left), ("right half", mask & ~left)):
        if half.any():
            rows[name] = brain_figures(image, reference, half, spacing_mm)
    return rows


def case_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """`case_rows` as Markdown."""
    cells = [[name, *(f"{row[figure]:.{digits_of(figure)}f}" for figure in CASE_FIGURES)] for name, row in rows.items()]
    return markdown_table(["inside the brain", *map(label, CASE_FIGURES)], cells)


def _clipped(*images: np.ndarray) -> list[np.ndarray]:
    """Images in [0, 1], float32.

    Raises:
        ValueError: an axis is too short for SSIM's window.
    """
    if min(images[0].shape) < 7:
        raise ValueError(f"The volume has shape {images[0].shape}; SSIM's window needs 7 voxels along every axis.")
    return [np.clip(a, 0, 1).astype(np.float32) for a in images]


def _image_figures(image: np.ndarray, reference: np.ndarray, mask: np.ndarray | None) -> dict[str, float]:
    """What is computed alike over the whole volume, mask None, and inside the brain."""
    pair = [torch.from_numpy(np.ascontiguousarray(a)) for a in (image, reference)]
    inside = None if mask is None else torch.from_numpy(np.ascontiguousarray(mask))
    values = {
        "nrmse": nrmse(*pair, inside),
        "psnr": psnr(*pair, inside),
        "ssim": ssim(*pair, inside),
        "i_ssim": inter_slice_ssim(pair[0], mask=inside),
        "i_ssim_reference": inter_slice_ssim(pair[1], mask=inside),
    }
    return {name: float(value) for name, value in values.items()}


def label(figure: str) -> str:
    """What a table calls a figure, such as "PSNR (dB), brain"."""
    for ending, where in PLACES.items():
        if figure.endswith(ending):
            name = figure.removesuffix(ending)
            return f"{LABELS.get(name, name)}, {where}"
    return LABELS.get(figure, figure)


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (0 for one value) of the finite values; without any, their mean and NaN."""
    array = np.asarray(values, dtype=float)
    finite = array[np.isfinite(array)]
    if not len(finite):
        return float(array.mean()), float("nan")
    return float(finite.mean()), float(finite.std(ddof=1)) if len(finite) > 1 else 0.0


def format_spread(values: Sequence[float], digits: int = 4) -> str:
    """Values as "mean ± standard deviation", and how many are finite where some are not; one value as it is."""
    mean, deviation = mean_and_deviation(values)
    count = int(np.isfinite(values).sum())
    text = f"{mean:.{digits}f} ± {deviation:.{digits}f}" if count > 1 else f"{mean:.{digits}f}"
    return f"{text} (n = {count})" if 0 < count < len(values) else text


def digits_of(figure: str) -> int:
    """Decimals that a figure is told with."""
    return {"psnr": 3, "dice": 3, "mae": 3, "seconds": 2, "gflop": 1, "bias": 1, "ml": 0}.get(figure.split("_")[0], 4)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as Markdown, numbers as they are given."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def finite(figures: Mapping[str, float]) -> dict[str, float | None]:
    """Figures as JSON takes them: it has no infinity, which the PSNR of the target against itself is."""
    return {name: value if np.isfinite(value) else None for name, value in figures.items()}
