"""How a slab changes in training: another contrast, another place, a coil's shading."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from ..conditioning.style_key import style_key_from_histogram
from ..contrasts import CONTRASTS

# Oedema, relative to the tissue's median signal, where water is bright. Elsewhere it darkens what is there.
_WATER_IS_BRIGHT = {"T2": (1.3, 1.9), "FLAIR": (1.35, 1.7), "PD": (1.1, 1.3)}
# Where fluid is told from tissue: shares of the tissue's median signal at which it is no tissue, and all tissue. In PD
# both are too much alike.
_TISSUE = {"T1": (0.45, 0.65), "FLAIR": (0.5, 0.75), "T1ce": (0.45, 0.65), "CT": (0.4, 0.65), "T2": (2.0, 1.5)}


@dataclass(frozen=True)
class ContrastCurve:
    """A rising map of [0, 1] onto itself, linear between knots: another scanner's or sequence's contrast."""

    knots: np.ndarray
    values: np.ndarray

    @classmethod
    def identity(cls) -> "ContrastCurve":
        """The curve that changes nothing."""
        return cls(np.array([0.0, 1.0]), np.array([0.0, 1.0]))

    @classmethod
    def draw(
        cls, rng: np.random.Generator, spread: float, num_knots: int = 5, anchor: float | None = None
    ) -> "ContrastCurve":
        """Draw one: the inner knots move by up to ``spread`` (less than half their distance).

        Values up to ``anchor`` are scaled so that the anchor stays where it is, and those above fill the rest: what the
        scaling of a volume has put there (`scaled_by_mode`) is there in training too.
        """
        knots = np.linspace(0, 1, num_knots)
        values = knots.copy()
        values[1:-1] += rng.uniform(-spread, spread, num_knots - 2)
        if anchor is None:
            return cls(knots, values)
        return cls(knots, values)._through(anchor)

    def _through(self, anchor: float) -> "ContrastCurve":
        """The curve that goes through (anchor, anchor) and is this one, stretched, on either side of it."""
        at = float(np.interp(anchor, self.knots, self.values))
        knots = np.union1d(self.knots, [anchor])
        values = np.interp(knots, self.knots, self.values)
        return ContrastCurve(knots, np.interp(values, [0, at, 1], [0, anchor, 1]))

    def __call__(self, packed: np.ndarray) -> np.ndarray:
        """The curve at packed voxels of any shape, uint8 or uint16: float32 in [0, 1]."""
        top = np.iinfo(packed.dtype).max
        if packed.size < top:
            return np.interp(packed / top, self.knots, self.values).astype(np.float32)
        return np.interp(np.arange(top + 1) / top, self.knots, self.values).astype(np.float32)[packed]

    def style_key(self, histogram: np.ndarray, num_bins: int) -> np.ndarray:
        """(3, num_bins): the key of the volume after the curve, exactly, from the histogram before it."""
        edges = np.linspace(0.001, 1, num_bins + 1)
        before = np.interp(edges, self.values, self.knots)
        cumulative = np.concatenate([[0], np.cumsum(histogram)])
        at_edges = np.interp(before, np.linspace(0, 1, len(cumulative)), cumulative)
        return style_key_from_histogram(np.diff(at_edges))


def affine_slab(slab: torch.Tensor, angle: float, zoom: float, shift: Sequence[float], flip: bool) -> torch.Tensor:
    """Rotate (radians), zoom, shift (pixels) and mirror (C, H, W) in [0, 1] about its centre, zeros outside.

    Bicubic, as a network that learns from bilinearly moved images learns to blur.
    """
    height, width = slab.shape[-2:]
    cos, sin = np.cos(angle) / zoom, np.sin(angle) / zoom
    # affine_grid works in coordinates where both sides are 2 long, x (columns) first
    theta = torch.tensor(
        [[cos, -sin * height / width, 2 * shift[1] / width], [sin * width / height, cos, 2 * shift[0] / height]]
    )
    if flip:
        theta[1] = -theta[1]  # rows of a slab run left to right
    grid = functional.affine_grid(theta[None].float(), [1, *slab.shape], align_corners=False)
    return functional.grid_sample(slab[None], grid, mode="bicubic", align_corners=False)[0].clamp_(0, 1)


def smooth_plane(rng: np.random.Generator, shape: Sequence[int], num_knots: int) -> torch.Tensor:
    """A smooth random field of a plane, (H, W): U(-1, 1) at num_knots x num_knots places and cubic between them."""
    knots = torch.from_numpy(rng.uniform(-1, 1, (1, 1, num_knots, num_knots)).astype(np.float32))
    return functional.interpolate(knots, size=tuple(shape), mode="bicubic", align_corners=True)[0, 0]


def smooth_shading(rng: np.random.Generator, shape: Sequence[int], strength: float) -> torch.Tensor:
    """A smooth positive field of a plane, (H, W), as a receive coil leaves it; its logarithm is up to ``strength``."""
    return (strength * smooth_plane(rng, shape, num_knots=4)).exp()


def bright_lesion(
    source: torch.Tensor, target: torch.Tensor, rng: np.random.Generator, tissue: tuple[float, float] = (0.35, 0.5)
) -> tuple[torch.Tensor, torch.Tensor]:
    """Oedema in a FLAIR and its T1: brighter in the source, darker in the target, in a smooth region of the plane.

    Fluid of the source is no tissue and stays dark, and both images keep their texture.

    Args:
        source, target: (K, H, W), [0, 1].
        rng: draws the region, where a smooth field is above its 70 to 95 percentile in the tissue, and the strengths.
        tissue: values of the source that are no tissue yet, and all tissue.

    Returns:
        source and target, [0, 1]; unchanged where the slab has no tissue.
    """
    field = smooth_plane(rng, source.shape[-2:], num_knots=6)
    share, level, darkening = rng.uniform(0.7, 0.95), rng.uniform(0.8, 1.0), rng.uniform(0.1, 0.4)
    weight = ((source - tissue[0]) / (tissue[1] - tissue[0])).clamp(0, 1)
    inside = weight[len(weight) // 2] > 0.5
    if not inside.any():
        return source, target
    border = torch.quantile(field[inside], float(share))
    # a tenth of the field's range is a soft border of a few voxels
    region = ((field - border) / 0.2 + 0.5).clamp(0, 1) * weight
    return source + 0.8 * region * (level - source).clamp(min=0), target * (1 - darkening * region)


def watery_lesion(
    sources: Mapping[str, torch.Tensor], target: torch.Tensor, target_contrast: str, rng: np.random.Generator
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Oedema in all contrasts of a head: brighter in T2, FLAIR and PD, darker in T1, T1ce and CT, in the same region.

    As in `bright_lesion`, the region lies in the tissue, which the sources tell and never the target; all keep their
    texture.

    Args:
        sources: contrast -> slabs (K, H, W), [0, 1], of those that are there.
        target: (K, H, W), [0, 1].
        target_contrast: what it is.
        rng: draws the region, where a smooth field is above its 70 to 95 percentile in the tissue, and the strength of
            each contrast.

    Returns:
        sources and target, [0, 1]; unchanged where no source tells tissue from fluid.
    """
    field = smooth_plane(rng, target.shape[-2:], num_knots=6)
    share = rng.uniform(0.7, 0.95)
    # as many draws whatever is there
    strengths = {name: rng.uniform(size=2) for name in CONTRASTS}
    weight = _tissue_weight(sources)
    if weight is None or not (inside := weight[len(weight) // 2] > 0.5).any():
        return dict(sources), target
    border = torch.quantile(field[inside], float(share))
    region = ((field - border) / 0.2 + 0.5).clamp(0, 1) * weight

    def changed(slab: torch.Tensor, name: str) -> torch.Tensor:
        first, second = map(float, strengths[name])
        if name not in _WATER_IS_BRIGHT:
            return slab * (1 - (0.1 + 0.3 * first) * region * (0.4 if name == "CT" else 1))
        least, most = _WATER_IS_BRIGHT[name]
        inside = slab > 0
        level = (least + (most - least) * first) * (slab[inside].median() if inside.any() else 0)
        return slab + (0.5 + 0.4 * second) * region * inside * (min(float(level), 1.0) - slab).clamp(min=0)

    return {name: changed(slab, name) for name, slab in sources.items()}, changed(target, target_contrast)


def _tissue_weight(sources: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
    """How much of each voxel is tissue, [0, 1], by the first contrast that tells it from fluid; None without one."""
    for name, (none, full) in _TISSUE.items():
        slab = sources.get(name)
        if slab is not None and (slab > 0).any():
            relative = slab / slab[slab > 0].median()
            return ((relative - none) / (full - none)).clamp(0, 1) * (slab > 0)
    return None
