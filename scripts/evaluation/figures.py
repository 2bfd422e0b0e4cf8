"""All figures of one synthetic volume against the real one: over the whole volume, and inside the brain."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from .compare import gradient_energy, pearson
from .metrics import inter_slice_ssim, nrmse, psnr, ssim

LABELS = {
    "nrmse": "NRMSE",
    "psnr": "PSNR (dB)",
    "ssim": "SSIM",
    "i_ssim": "I-SSIM",
    "i_ssim_reference": "I-SSIM of the real image",
    "pearson": "Pearson",
    "sharpness": "sharpness",
    "adjacent_difference": "difference of adjacent slices",
    "dice_csf": "Dice CSF",
    "dice_gm": "Dice GM",
    "dice_wm": "Dice WM",
}
"""Name of a figure -> what a table calls it; names that end in "_brain" are those inside the brain."""


def adjacent_difference(image: np.ndarray, mask: np.ndarray) -> float:
    """Mean absolute difference of adjacent axial slices (H, W, Z) where both lie in the mask; flicker raises it."""
    inside = mask[..., 1:] & mask[..., :-1]
    return float(np.abs(np.diff(image, axis=2))[inside].mean())


def volume_figures(image: np.ndarray, reference: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """The figures of SPEC section 5 (CT2MRI, ReBrain), images clipped to [0, 1].

    Args:
        image, reference: (H, W, Z), [0, 1], Z axial; no axis shorter than SSIM's window of 7.
        mask: (H, W, Z) bool, the brain.

    Returns:
        NRMSE, PSNR (dB), SSIM, I-SSIM and the reference's own I-SSIM over the whole volume, and inside the brain under
        the same names with "_brain"; inside the brain also Pearson correlation, sharpness (gradient energy as a share
        of the reference's) and the difference of adjacent slices.

    Raises:
        ValueError: the mask is empty, or the volume has an axis shorter than 7.
    """
    if min(image.shape) < 7:
        raise ValueError(f"The volume has shape {image.shape}; SSIM's window needs 7 voxels along every axis.")
    image, reference = (np.clip(a, 0, 1).astype(np.float32) for a in (image, reference))
    tensors = [torch.from_numpy(np.ascontiguousarray(a)) for a in (image, reference)]
    values = {}
    for suffix, inside in (("", None), ("_brain", torch.from_numpy(np.ascontiguousarray(mask)))):
        values[f"nrmse{suffix}"] = nrmse(*tensors, inside)
        values[f"psnr{suffix}"] = psnr(*tensors, inside)
        values[f"ssim{suffix}"] = ssim(*tensors, inside)
        values[f"i_ssim{suffix}"] = inter_slice_ssim(tensors[0], mask=inside)
        values[f"i_ssim_reference{suffix}"] = inter_slice_ssim(tensors[1], mask=inside)
    values["pearson_brain"] = pearson(image, reference, mask)
    values["sharpness_brain"] = gradient_energy(image, mask) / gradient_energy(reference, mask)
    values["adjacent_difference_brain"] = adjacent_difference(image, mask)
    return {name: float(value) for name, value in values.items()}


def label(figure: str) -> str:
    """What a table calls a figure, such as "PSNR (dB), brain"."""
    name = figure.removesuffix("_brain")
    return LABELS.get(name, name) + (", brain" if name != figure else "")


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
    return 3 if figure.startswith("psnr") else 4


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as Markdown, numbers as they are given."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def finite(figures: Mapping[str, float]) -> dict[str, float | None]:
    """Figures as JSON takes them: it has no infinity, which the PSNR of the target against itself is."""
    return {name: value if np.isfinite(value) else None for name, value in figures.items()}
