"""Training slabs drawn from volumes that are packed in 8 or 16 bits and held in memory."""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch.nn import functional
from torch.utils.data import Dataset

from ..conditioning.style_key import compute_style_key, style_key_from_histogram
from ..errors import CaseError
from .volume_cache import Arrays, prepared_arrays

_TYPES = {8: np.uint8, 16: np.uint16}
_FINE_BINS = 4096


@dataclass(frozen=True)
class PackedVolume:
    """One subject as the dataset keeps it.

    Attributes:
        subject: its name.
        target: (Z, H, W) uint8 or uint16, whose largest value is 1.0.
        sources: (K, Z, H, W) of the same type: the K renderings of the source (one for a real pair).
        histogram: (4096,) counts of the target's voxels in the brain over [0, 1], before they were rounded.
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
        return ContrastCurve.identity().style_key(self.histogram, num_bins)

    def source_keys(self, num_bins: int = 128) -> dict[str, np.ndarray]:
        """Key of each source, (3, num_bins) float32, by name: the subject's, with "#0", "#1", ... for several."""
        names = [self.subject] if len(self.sources) == 1 else [f"{self.subject}#{k}" for k in range(len(self.sources))]
        top = np.iinfo(self.sources.dtype).max
        return {name: compute_style_key(s / top, num_bins) for name, s in zip(names, self.sources, strict=True)}


def _fit(volume: np.ndarray, centre: Sequence[int], size: Sequence[int]) -> np.ndarray:
    """Crop or zero-pad (Z, H, W) in H and W to ``size`` around ``centre``."""
    out = np.zeros((volume.shape[0], *size), volume.dtype)
    begin = [int(c) - s // 2 for c, s in zip(centre, size, strict=True)]
    take = [slice(max(0, b), min(n, b + s)) for b, s, n in zip(begin, size, volume.shape[1:], strict=True)]
    put = [slice(t.start - b, t.stop - b) for t, b in zip(take, begin, strict=True)]
    out[:, put[0], put[1]] = volume[:, take[0], take[1]]
    return out


def _pack(image: torch.Tensor, dtype: type[np.unsignedinteger]) -> np.ndarray:
    """(1, H, W, Z) in [0, 1] to (Z, H, W) of an integer type, whose largest value is 1.0."""
    array = torch.as_tensor(image)[0].permute(2, 0, 1).float().clamp(0, 1).numpy()
    return np.round(array * np.float32(np.iinfo(dtype).max)).astype(dtype)


def pack_volume(
    item: Mapping,
    volume_transform: Callable,
    source_transform: Callable | None,
    num_sources: int,
    size: Sequence[int],
    seed: int,
    bits: int = 8,
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
        bits: of a packed voxel, 8 or 16.
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
        target=_fit(_pack(target, _TYPES[bits]), centre, size),
        sources=np.stack([_fit(_pack(source, _TYPES[bits]), centre, size) for source in rendered]),
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
    def identity(cls) -> "ContrastCurve":
        """The curve that changes nothing."""
        return cls(np.array([0.0, 1.0]), np.array([0.0, 1.0]))

    @classmethod
    def draw(cls, rng: np.random.Generator, spread: float, num_knots: int = 5) -> "ContrastCurve":
        """Draw one: the inner knots move by up to ``spread`` (less than half their distance)."""
        knots = np.linspace(0, 1, num_knots)
        values = knots.copy()
        values[1:-1] += rng.uniform(-spread, spread, num_knots - 2)
        return cls(knots, values)

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
        self.volumes = list(data)
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
        centre = int(rng.choice(volume.slices))
        source = self._slab(volume.sources[rng.integers(len(volume.sources))], centre)
        # draws of its own: the others stay what they are without it
        source_rng = np.random.default_rng([self.seed, self.epoch, index, 1])
        source_curve = ContrastCurve.draw(source_rng, self.source_contrast_spread if self.augment else 0.0)
        source = torch.from_numpy(source_curve(source))
        curve = ContrastCurve.draw(rng, self.contrast_spread if self.augment else 0.0)
        target = torch.from_numpy(curve(self._slab(volume.target, centre)))
        if self.augment:
            source, target = self._transform(torch.cat([source, target]), rng).split(self.slab_size)
            source = self._degrade(source, source_rng)
        key = torch.from_numpy(curve.style_key(volume.histogram, self.num_bins)).float()
        return {"source": source, "target": target, "style_key": key}

    def _slab(self, volume: np.ndarray, centre: int) -> np.ndarray:
        """(2N+1, H, W) around a slice of (Z, H, W), with zeros beyond the ends."""
        wanted = np.arange(self.slab_size) + centre - self.slab_size // 2
        there = (wanted >= 0) & (wanted < len(volume))
        slab = volume[wanted.clip(0, len(volume) - 1)]
        slab[~there] = 0
        return slab

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
    bits: int = 8,
    cache_dir: str | os.PathLike | None = None,
    num_workers: int | None = 1,
) -> list[PackedVolume]:
    """``pack_volume`` for each entry of a datalist, in several processes and only once: see ``prepared_arrays``.

    Raises:
        CaseError: bits that are neither 8 nor 16, or what a transform refuses.
    """
    if bits not in _TYPES:
        raise CaseError(f"packed_bits is {bits}; a voxel is packed in 8 or 16 bits.")
    make = functools.partial(
        _packed_arrays,
        volume_transform=volume_transform,
        source_transform=source_transform,
        num_sources=num_sources,
        size=tuple(size),
        seed=seed if source_transform else 0,
        bits=bits,
    )
    numbered = [{**item, "number": number} for number, item in enumerate(items)]
    unused = {"subject", "weight"} if source_transform else {"subject", "weight", "number"}
    packed = prepared_arrays(numbered, make, cache_dir, num_workers, progress, unused)
    return [
        PackedVolume(subject=str(item.get("subject", "")), weight=float(item.get("weight", 1.0)), **arrays)
        for item, arrays in zip(items, packed, strict=True)
    ]


def _packed_arrays(item: Mapping, seed: int, **settings: object) -> Arrays:
    """``pack_volume`` without what the datalist knows."""
    volume = pack_volume(item, seed=seed + item["number"], **settings)
    return {f.name: getattr(volume, f.name) for f in fields(volume) if f.name not in ("subject", "weight")}
