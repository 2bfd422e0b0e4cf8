"""Training slabs drawn from packed 8-bit volumes held in memory."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn import functional
from torch.utils.data import Dataset

from scripts.style_key import style_key_from_histogram

_FINE_BINS = 4096


@dataclass(frozen=True)
class PackedVolume:
    """One subject as the dataset keeps it.

    Attributes:
        subject: its name.
        target: (Z, H, W) uint8, 255 is 1.0.
        sources: (K, Z, H, W) uint8: the K renderings of the source (one for a real pair).
        histogram: (4096,) counts of the target's voxels over (0, 1], before the rounding to 8 bits.
        slices: indices of the slices that hold brain.
        weight: how often the subject is drawn, relative to the others.
    """

    subject: str
    target: np.ndarray
    sources: np.ndarray
    histogram: np.ndarray
    slices: np.ndarray
    weight: float = 1.0

    def style_key(self, num_bins: int = 128) -> np.ndarray:
        """(3, num_bins) float32: the key of the target as it is."""
        return ContrastCurve(np.array([0.0, 1.0]), np.array([0.0, 1.0])).style_key(self.histogram, num_bins)


def _fit(volume: np.ndarray, centre: Sequence[int], size: Sequence[int]) -> np.ndarray:
    """Crop or zero-pad (Z, H, W) in H and W to ``size`` around ``centre``."""
    out = np.zeros((volume.shape[0], *size), volume.dtype)
    begin = [int(c) - s // 2 for c, s in zip(centre, size, strict=True)]
    take = [slice(max(0, b), min(n, b + s)) for b, s, n in zip(begin, size, volume.shape[1:], strict=True)]
    put = [slice(t.start - b, t.stop - b) for t, b in zip(take, begin, strict=True)]
    out[:, put[0], put[1]] = volume[:, take[0], take[1]]
    return out


def _to_uint8(image: torch.Tensor) -> np.ndarray:
    """(1, H, W, Z) in [0, 1] to (Z, H, W) uint8."""
    array = torch.as_tensor(image)[0].permute(2, 0, 1).clamp(0, 1).mul(255).round()
    return array.to(torch.uint8).numpy()


def pack_volume(
    item: Mapping,
    volume_transform: Callable,
    source_transform: Callable | None,
    num_sources: int,
    size: Sequence[int],
    seed: int,
) -> PackedVolume:
    """Prepare one subject.

    Args:
        item: an entry of the datalist.
        volume_transform: gives "target" and "mask" (1, H, W, Z), the target in [0, 1], and either "source" in [0, 1] or
            what ``source_transform`` needs.
        source_transform: random transform that adds "source" in [0, 1] (``pairs=simulated``); None for real pairs.
        num_sources: renderings drawn from it.
        size: (H, W) of the slabs.
        seed: of this subject's draws.
    """
    data = volume_transform(dict(item))
    mask = torch.as_tensor(data["mask"])[0] > 0
    target = torch.as_tensor(data["target"])
    if source_transform is None:
        rendered = [data["source"]]
    else:
        source_transform.set_random_state(seed=seed)
        rendered = [source_transform(data)["source"] for _ in range(num_sources)]
    extent = [torch.nonzero(mask.any(dim=2).any(dim=1 - axis)).flatten() for axis in (0, 1)]
    centre = [int(e[0] + e[-1] + 1) // 2 for e in extent]
    inside = target[0][mask].float().numpy()
    return PackedVolume(
        subject=str(item.get("subject", "")),
        target=_fit(_to_uint8(target), centre, size),
        sources=np.stack([_fit(_to_uint8(source), centre, size) for source in rendered]),
        histogram=np.histogram(inside, bins=_FINE_BINS, range=(0, 1))[0],
        slices=torch.nonzero(mask.flatten(0, 1).any(dim=0)).flatten().numpy(),
        weight=float(item.get("weight", 1.0)),
    )


@dataclass(frozen=True)
class ContrastCurve:
    """A rising map of [0, 1] onto itself, linear between knots: another scanner's or sequence's contrast."""

    knots: np.ndarray
    values: np.ndarray

    @classmethod
    def draw(cls, rng: np.random.Generator, spread: float, num_knots: int = 5) -> "ContrastCurve":
        """Draw one: the inner knots move by up to ``spread`` (less than half their distance)."""
        knots = np.linspace(0, 1, num_knots)
        values = knots.copy()
        values[1:-1] += rng.uniform(-spread, spread, num_knots - 2)
        return cls(knots, values)

    def table(self) -> np.ndarray:
        """(256,) float32: the curve at the 8-bit levels."""
        return np.interp(np.arange(256) / 255, self.knots, self.values).astype(np.float32)

    def style_key(self, histogram: np.ndarray, num_bins: int) -> np.ndarray:
        """(3, num_bins): the key of the volume after the curve, exactly, from the histogram before it."""
        edges = np.linspace(0.001, 1, num_bins + 1)
        before = np.interp(edges, self.values, self.knots)
        cumulative = np.concatenate([[0], np.cumsum(histogram)])
        at_edges = np.interp(before, np.linspace(0, 1, len(cumulative)), cumulative)
        return style_key_from_histogram(np.diff(at_edges))


def affine_slab(slab: torch.Tensor, angle: float, zoom: float, shift: Sequence[float], flip: bool) -> torch.Tensor:
    """Rotate (radians), zoom, shift (pixels) and mirror (C, H, W) about its centre, bilinear, zeros outside."""
    height, width = slab.shape[-2:]
    cos, sin = np.cos(angle) / zoom, np.sin(angle) / zoom
    # affine_grid works in coordinates where both sides are 2 long, x (columns) first
    theta = torch.tensor(
        [[cos, -sin * height / width, 2 * shift[1] / width], [sin * width / height, cos, 2 * shift[0] / height]]
    )
    if flip:
        theta[1] = -theta[1]  # rows of a slab run left to right
    grid = functional.affine_grid(theta[None].float(), [1, *slab.shape], align_corners=False)
    return functional.grid_sample(slab[None], grid, align_corners=False)[0]


def smooth_shading(rng: np.random.Generator, shape: Sequence[int], strength: float, num_knots: int = 4) -> torch.Tensor:
    """A smooth positive field of a plane, as a receive coil leaves it: (H, W), its logarithm U(-strength, strength)
    at num_knots x num_knots places and cubic between them."""
    knots = torch.from_numpy(rng.uniform(-strength, strength, (1, 1, num_knots, num_knots)).astype(np.float32))
    return functional.interpolate(knots, size=tuple(shape), mode="bicubic", align_corners=True)[0, 0].exp()


class SlabDataset(Dataset):
    """Random slabs of random subjects: {"source", "target": (2N+1, H, W) in [0, 1], "style_key": (3, B)}.

    Item ``index`` depends on (seed, epoch, index) alone: a resumed training draws what an uninterrupted one would.

    Args:
        data: packed subjects.
        length: items of an epoch.
        slab_size: 2N+1 slices.
        num_bins: B of the style key.
        augment: draw a mirror image, an affine map of the plane and, for the target, a contrast curve with its key.
        contrast_spread: largest shift of a contrast curve's knots; 0 leaves the target's contrast.
        source_contrast_spread: the same for the source, whose curve is another one and has no key. For sources whose
            intensities have no unit (MRI); a CT's have one.
        source_shading: largest logarithm of a smooth field that multiplies the source.
        source_noise: largest standard deviation of white noise added to the source where it is not background; each
            slab's is drawn uniformly.
        seed: of the draws.
    """

    def __init__(
        self,
        data: Sequence[PackedVolume],
        length: int,
        slab_size: int = 3,
        num_bins: int = 128,
        augment: bool = True,
        contrast_spread: float = 0.09,
        source_contrast_spread: float = 0.0,
        source_shading: float = 0.0,
        source_noise: float = 0.0,
        seed: int = 0,
    ) -> None:
        if not data:
            raise ValueError("there is no training volume: the datalist's list is empty or every subject failed")
        reach = slab_size // 2
        pad = [(reach, reach), (0, 0), (0, 0)]
        self.volumes = [
            replace(v, target=np.pad(v.target, pad), sources=np.pad(v.sources, [(0, 0), *pad])) for v in data
        ]
        self.length = length
        self.slab_size = slab_size
        self.num_bins = num_bins
        self.augment = augment
        self.contrast_spread = contrast_spread
        self.source_contrast_spread = source_contrast_spread
        self.source_shading = source_shading
        self.source_noise = source_noise
        self.seed = seed
        self.epoch = 0
        weights = np.array([v.weight * len(v.slices) for v in data], dtype=float)
        self._cumulative = np.cumsum(weights / weights.sum())

    def set_epoch(self, epoch: int) -> None:
        """Number of the epoch, which goes into each item's draws."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if not 0 <= index < self.length:
            raise IndexError(index)
        rng = np.random.default_rng([self.seed, self.epoch, index])
        volume = self.volumes[int(np.searchsorted(self._cumulative, rng.random()).clip(0, len(self.volumes) - 1))]
        first = int(rng.choice(volume.slices))  # the padding makes this the slab's first slice
        chosen = slice(first, first + self.slab_size)
        source = volume.sources[rng.integers(len(volume.sources)), chosen]
        # draws of its own: the others stay what they are without it
        source_rng = np.random.default_rng([self.seed, self.epoch, index, 1])
        source_curve = ContrastCurve.draw(source_rng, self.source_contrast_spread if self.augment else 0.0)
        source = torch.from_numpy(source_curve.table()[source])
        curve = ContrastCurve.draw(rng, self.contrast_spread if self.augment else 0.0)
        target = torch.from_numpy(curve.table()[volume.target[chosen]])
        if self.augment:
            source, target = self._transform(torch.cat([source, target]), rng).split(self.slab_size)
            source = self._degrade(source, source_rng)
        key = torch.from_numpy(curve.style_key(volume.histogram, self.num_bins)).float()
        return {"source": source, "target": target, "style_key": key}

    @staticmethod
    def _transform(slab: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """Draw the plane's affine map and apply it."""
        angle = np.deg2rad(rng.uniform(-10, 10))
        shift = rng.uniform(-4, 4, size=2)
        return affine_slab(slab, angle, zoom=rng.uniform(0.9, 1.12), shift=shift, flip=rng.random() < 0.5)

    def _degrade(self, source: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """Draw shading and noise for the source; background stays 0."""
        if self.source_shading:
            source = source * smooth_shading(rng, source.shape[-2:], self.source_shading)
        if self.source_noise:
            noise = torch.from_numpy(rng.standard_normal(source.shape, dtype=np.float32))
            source = source + rng.uniform(0, self.source_noise) * noise * (source > 0)
        return source.clamp_(0, 1)


def build_volumes(
    items: Sequence[Mapping],
    volume_transform: Callable,
    source_transform: Callable | None = None,
    num_sources: int = 1,
    size: Sequence[int] = (104, 128),
    seed: int = 0,
    progress: Callable = iter,
) -> list[PackedVolume]:
    """``pack_volume`` for each entry of a datalist; ``progress`` wraps the loop (tqdm)."""
    return [
        pack_volume(item, volume_transform, source_transform, num_sources, size, seed + number)
        for number, item in enumerate(progress(items))
    ]
