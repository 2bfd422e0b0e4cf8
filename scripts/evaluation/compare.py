"""One synthetic volume against the real one, and against what a map of single grey levels of the source could do."""

from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from nibabel.processing import resample_from_to
from scipy import ndimage

from scripts.evaluation.metrics import inter_slice_ssim, nrmse, psnr, ssim

_LEVELS = 400


def pearson(image: np.ndarray, reference: np.ndarray, mask: np.ndarray) -> float:
    """Pearson correlation of two images (H, W, Z) inside a mask."""
    return float(np.corrcoef(image[mask], reference[mask])[0, 1])


def best_pointwise_map(source: np.ndarray, reference: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The source's grey levels, each replaced by the mean of the reference there: the best any lookup table can do.

    Args:
        source, reference: (H, W, Z), any unit.
        mask: (H, W, Z) bool; the table is made, and holds, inside it.

    Returns:
        (H, W, Z), 0 outside the mask. It has seen the reference, which makes it an upper bound and no method.
    """
    low, high = np.percentile(source[mask], [0.1, 99.9])
    level = np.clip((source - low) / max(high - low, 1e-6) * (_LEVELS - 1), 0, _LEVELS - 1).astype(int)
    total = np.bincount(level[mask], minlength=_LEVELS)
    summed = np.bincount(level[mask], weights=reference[mask], minlength=_LEVELS)
    return np.where(mask, (summed / np.maximum(total, 1))[level], 0.0)


def gradient_energy(image: np.ndarray, mask: np.ndarray) -> float:
    """Mean squared gradient (central differences) inside a mask: how sharp an image is."""
    return float(sum(g[mask] ** 2 for g in np.gradient(image)).mean())


def figures(image: np.ndarray, reference: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Pearson correlation, PSNR (dB), SSIM, NRMSE and I-SSIM inside the mask; sharpness as a share of the reference's."""
    tensors = [torch.from_numpy(np.ascontiguousarray(a, dtype=np.float32)).clamp(0, 1) for a in (image, reference)]
    inside = torch.from_numpy(mask)
    return {
        "pearson": pearson(image, reference, mask),
        "psnr": float(psnr(*tensors, inside)),
        "ssim": float(ssim(*tensors, inside)),
        "nrmse": float(nrmse(*tensors, inside)),
        "i_ssim": float(inter_slice_ssim(tensors[0], mask=inside)),
        "sharpness": gradient_energy(image, mask) / gradient_energy(reference, mask),
    }


def _read(path: str, grid: nib.spatialimages.SpatialImage | None = None) -> nib.spatialimages.SpatialImage:
    if not Path(path).is_file():
        raise SystemExit(f"{path} is not there; check the path.")
    image = nib.as_closest_canonical(nib.load(path))
    return image if grid is None else resample_from_to(image, grid, order=1)


def compare_volumes(
    synthetic: str, real: str, source: str | None = None, erode_mm: float = 0.0, percentile: float = 99.9
) -> dict[str, dict[str, float]]:
    """Figures of a synthetic MRI against the real one in the same space, inside the real one's brain.

    Args:
        synthetic: file in [0, 1].
        real: skull-stripped file (positive in the brain alone), any unit; its percentile becomes 1.
        source: the CT; adds the figures of its best pointwise map.
        erode_mm: how far to stay inside the mask.
        percentile: of the real volume's brain.

    Returns:
        {"real", "synthetic", "pointwise map"?, "left half", "right half"} -> ``figures``.
    """
    reference = _read(real)
    target = np.asarray(reference.dataobj, dtype=np.float64)
    mask = target > 0
    target = np.clip(target / np.percentile(target[mask], percentile), 0, 1)
    if erode_mm:
        distance = ndimage.distance_transform_edt(mask, reference.header.get_zooms()[:3])
        mask = distance > erode_mm
    image = np.asarray(_read(synthetic, reference).dataobj, dtype=np.float64)
    left = np.zeros_like(mask)
    left[: mask.shape[0] // 2] = True
    table = {"real": figures(target, target, mask), "synthetic": figures(image, target, mask)}
    if source:
        hounsfield = np.asarray(_read(source, reference).dataobj, dtype=np.float64)
        table["pointwise map"] = figures(best_pointwise_map(hounsfield, target, mask), target, mask)
    table["left half"] = figures(image, target, mask & left)
    table["right half"] = figures(image, target, mask & ~left)
    return table


def as_markdown(table: dict[str, dict[str, float]]) -> str:
    """A table of figures as Markdown."""
    columns = list(next(iter(table.values())))
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for name, row in table.items():
        lines.append(f"| {name} | {' | '.join(f'{row[c]:.4f}' for c in columns)} |")
    return "\n".join(lines)
