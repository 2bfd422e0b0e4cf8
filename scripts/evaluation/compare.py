"""One synthetic volume against the real one, and against what a map of single grey levels of the source could do."""

from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from nibabel.processing import resample_from_to
from scipy import ndimage

from .metrics import inter_slice_ssim, nrmse, psnr, ssim


def pearson(image: np.ndarray, reference: np.ndarray, mask: np.ndarray) -> float:
    """Pearson correlation of two images (H, W, Z) inside a mask."""
    return float(np.corrcoef(image[mask], reference[mask])[0, 1])


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


def gradient_energy(image: np.ndarray, mask: np.ndarray) -> float:
    """Mean squared gradient (central differences) inside a mask: how sharp an image is."""
    return float(sum(g[mask] ** 2 for g in np.gradient(image)).mean())


def figures(image: np.ndarray, reference: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Pearson correlation, PSNR (dB), SSIM, NRMSE, I-SSIM and sharpness of an image inside a mask.

    Args:
        image, reference: (H, W, Z), [0, 1].
        mask: (H, W, Z) bool.

    Returns:
        The figures by name; "sharpness" is the gradient energy as a share of the reference's.
    """
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
    """A volume in RAS order, on another one's grid where that is given."""
    if not Path(path).is_file():
        raise ValueError(f"{path} is not there; check the path.")
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
        {"real", "synthetic", "pointwise map"?, "left half", "right half"} -> `figures`. "real" is the real volume
        against itself; the halves are those of its field of view, of the synthetic volume.

    Raises:
        ValueError: a file that is not there, or no voxel of the real volume left to compare.
    """
    reference = _read(real)
    target = np.asarray(reference.dataobj, dtype=np.float64)
    mask = target > 0
    if not mask.any():
        raise ValueError(f"{real} has no voxel above 0; give the skull-stripped real volume.")
    target = np.clip(target / np.percentile(target[mask], percentile), 0, 1)
    if erode_mm:
        distance = ndimage.distance_transform_edt(mask, reference.header.get_zooms()[:3])
        mask = distance > erode_mm
        if not mask.any():
            raise ValueError(f"Nothing of {real} lies {erode_mm:g} mm inside its brain; lower erode_mm.")
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


def compare(
    synthetic: str, real: str, source: str | None = None, erode_mm: float = 0.0, percentile: float = 99.9
) -> str:
    """Compare a synthetic MRI with the real one of the same person: a table of figures inside the brain.

    Args:
        synthetic: the bundle's CASE_t1.nii.gz.
        real: skull-stripped T1 in the same space (above 0 in the brain alone), any unit.
        source: the CT; adds a row for the best that a map of single grey levels of the CT could do.
        erode_mm: how far inside the brain's edge to compare.
        percentile: of the real volume's brain that becomes 1.
    """
    return as_markdown(compare_volumes(synthetic, real, source, erode_mm, percentile))
