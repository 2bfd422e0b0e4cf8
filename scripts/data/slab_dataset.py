"""Training slabs drawn from packed volumes."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from ..slabs import repeats_end
from .augmentation import ContrastCurve, affine_slab, bright_lesion, smooth_shading
from .packed_volume import PackedVolume
from .sparsity import Distances, SparseScan, check_sparsity, filled_slab


class SlabDataset(Dataset):
    """Random slabs of random subjects: {"source", "target", "style_key"}, and more where there is more.

    An item has "source" (C (2N+1), H, W), contrast after contrast, and "target" (2N+1, H, W), both in [0, 1];
    "style_key" (3, B); of several contrasts "presence" (C,), 1 where the subject has the contrast and 0 where it is
    absent, so that its channels are 0; "extras" (E (2N+1), H, W) in [0, 1], if the subjects have some; and of sparse
    scans "missing" (2N+1, H, W), see `missing_share`. One affine map and one mirror go for all of an item's channels.

    Item ``index`` depends on (seed, epoch, index) alone: a resumed training draws what an uninterrupted one would.

    Slices beyond a volume's ends are what they are in sampling: the end slice again where the brain is cut there, zeros
    elsewhere (`repeats_end`).

    Args:
        data: packed subjects.
        length: items of an epoch.
        slab_size: 2N+1 slices.
        num_bins: B of the style key.
        augment: draw a mirror image, an affine map of the plane and, for the target, a contrast curve with its key.
        contrast_spread: largest shift of a contrast curve's knots; 0 leaves the target's contrast.
        source_contrast_spread: the same for the source, each of whose contrasts has another curve and no key. For
            sources whose intensities have no unit (MRI); a CT's have one.
        source_anchor: value that the source's curves leave where it is; None for none. For sources that are scaled to
            have their commonest value there (`scaled_by_mode`).
        source_lesions: how often a slab gets a `bright_lesion`, in the source's first contrast and the target.
        source_shading: largest logarithm of a smooth field that multiplies the source, one for each contrast.
        source_noise: largest standard deviation of white noise added to the source where it is not background; each
            slab's is drawn uniformly, for each contrast.
        contrast_dropout: how often each contrast that is there is left out; one always stays.
        sparsity: distances of the acquired slices, in slices of the volume, of which each slab draws one; see
            `Distances`. What lies between is filled linearly. (1,) is a dense scan, and items are without "missing".
        seed: of the draws.

    Raises:
        ValueError: no data, or subjects of different numbers of contrasts.
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
        source_anchor: float | None = None,
        source_lesions: float = 0.0,
        source_shading: float = 0.0,
        source_noise: float = 0.0,
        contrast_dropout: float = 0.0,
        sparsity: Sequence[Distances] = (1,),
        seed: int = 0,
    ) -> None:
        if not data:
            raise ValueError("there is no training volume: the datalist's list is empty or every subject failed")
        if len({volume.sources.shape[1] for volume in data}) > 1:
            raise ValueError("the subjects have different numbers of contrasts")
        self.volumes = list(data)
        self.length = length
        self.slab_size = slab_size
        self.num_bins = num_bins
        self.augment = augment
        self.contrast_spread = contrast_spread
        self.source_contrast_spread = source_contrast_spread
        self.source_anchor = source_anchor
        self.source_lesions = source_lesions
        self.source_shading = source_shading
        self.source_noise = source_noise
        self.contrast_dropout = contrast_dropout
        self.sparsity = check_sparsity(sparsity)
        self.seed = seed
        self.epoch = 0
        self.num_contrasts = data[0].sources.shape[1]
        self._presence = [volume.presence() for volume in data]
        weights = np.array([v.weight * v.in_brain.mean(axis=0).sum() for v in data], dtype=float)
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
        # draws of their own: the others stay what they are without them
        source_rng = np.random.default_rng([self.seed, self.epoch, index, 1])
        number = int(np.searchsorted(self._cumulative, rng.random()).clip(0, len(self.volumes) - 1))
        volume = self.volumes[number]
        rendering = int(rng.integers(len(volume.sources)))
        which = volume.target_of(rendering)
        centre = int(rng.choice(np.flatnonzero(volume.in_brain[which])))
        places = centre + np.arange(self.slab_size) - self.slab_size // 2
        sources = volume.sources[rendering]
        present = self._kept(self._presence[number][rendering], index)
        repeated = _repeated(sources, places, present)
        scan = SparseScan.draw(np.random.default_rng([self.seed, self.epoch, index, 4]), self.sparsity)
        curve = ContrastCurve.draw(rng, self.contrast_spread if self.augment else 0.0)
        item = {
            "source": self._source(_scanned(volume, rendering, scan, places, repeated), present, source_rng),
            "target": torch.from_numpy(curve(_slab(volume.targets[which], places, repeated))),
        }
        if volume.extras is not None:
            extras = _slab(volume.extras, places, repeated)
            item["extras"] = torch.from_numpy(ContrastCurve.identity()(extras)).flatten(0, 1)
        if self.augment:
            item = self._transform(item, rng)
            item = self._with_lesion(item, index)
            item["source"] = self._degrade(item["source"], source_rng)
        item["style_key"] = torch.from_numpy(curve.style_key(volume.histograms[which], self.num_bins)).float()
        if self.sparsity != (1,):
            missing = torch.from_numpy(scan.missing(places, sources.shape[1]))
            item["missing"] = missing[:, None, None].expand_as(item["target"]).contiguous()
        if self.num_contrasts > 1:
            item["presence"] = torch.from_numpy(present).float()
        return item

    def _kept(self, present: np.ndarray, index: int) -> np.ndarray:
        """Which of the contrasts (C,) that are there stay."""
        if not self.contrast_dropout or not present.any():
            return present
        rng = np.random.default_rng([self.seed, self.epoch, index, 2])
        kept = present & (rng.random(len(present)) >= self.contrast_dropout)
        if not kept.any():
            kept[rng.choice(np.flatnonzero(present))] = True
        return kept

    def _source(self, slab: np.ndarray, present: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
        """Packed slabs (C, 2N+1, H, W) to (C (2N+1), H, W) in [0, 1], each contrast by a curve of its own."""
        spread = self.source_contrast_spread if self.augment else 0.0
        curves = [ContrastCurve.draw(rng, spread, anchor=self.source_anchor) for _ in slab]
        slabs = [curve(one if there else 0 * one) for curve, one, there in zip(curves, slab, present, strict=True)]
        return torch.from_numpy(np.concatenate(slabs))

    @staticmethod
    def _transform(item: dict[str, torch.Tensor], rng: np.random.Generator) -> dict[str, torch.Tensor]:
        """Draw the plane's affine map and apply it to all channels."""
        angle = np.deg2rad(rng.uniform(-10, 10))
        shift = rng.uniform(-4, 4, size=2)
        zoom, flip = rng.uniform(0.9, 1.12), rng.random() < 0.5
        moved = affine_slab(torch.cat(list(item.values())), angle, zoom=zoom, shift=shift, flip=flip)
        return dict(zip(item, moved.split([len(slab) for slab in item.values()]), strict=True))

    def _with_lesion(self, item: dict[str, torch.Tensor], index: int) -> dict[str, torch.Tensor]:
        """Draw whether there is a lesion, and add it."""
        rng = np.random.default_rng([self.seed, self.epoch, index, 3])
        if not self.source_lesions or rng.random() >= self.source_lesions:
            return item
        first, *others = item["source"].split(self.slab_size)
        first, target = bright_lesion(first, item["target"], rng)
        return {**item, "source": torch.cat([first, *others]), "target": target}

    def _degrade(self, source: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """Draw shading and noise for each contrast of the source; background stays 0."""
        return torch.cat([self._degrade_contrast(one, rng) for one in source.split(self.slab_size)])

    def _degrade_contrast(self, source: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        if self.source_shading:
            source = source * smooth_shading(rng, source.shape[-2:], self.source_shading)
        if self.source_noise:
            noise = torch.from_numpy(rng.standard_normal(source.shape, dtype=np.float32))
            source = source + rng.uniform(0, self.source_noise) * noise * (source > 0)
        return source.clamp_(0, 1)


def _repeated(sources: np.ndarray, places: np.ndarray, present: np.ndarray) -> tuple[bool, bool]:
    """Whether the slices at these places that lie before and after (C, Z, H, W) repeat its end slices."""
    top = np.iinfo(sources.dtype).max

    def cut(end: int) -> bool:
        return present.any() and repeats_end(torch.from_numpy(sources[present, end].astype(np.float32) / top))

    return places[0] < 0 and cut(0), places[-1] >= sources.shape[1] and cut(-1)


def _scanned(
    volume: PackedVolume, rendering: int, scan: SparseScan, places: np.ndarray, repeated: tuple[bool, bool]
) -> np.ndarray:
    """(C, 2N+1, H, W): a rendering's slices at these places as a scan shows them, packed."""
    sources = volume.sources[rendering]
    if scan.is_dense:
        return _slab(sources, places, repeated)
    inside = (sources > 0).any(axis=0) | (volume.targets[volume.target_of(rendering)] > 0)
    reading = scan.reading(places.clip(0, len(inside) - 1), len(inside))
    within = _slab(inside, places, repeated)
    return filled_slab(sources, inside, reading, within)


def _slab(volume: np.ndarray, places: np.ndarray, repeated: tuple[bool, bool]) -> np.ndarray:
    """(..., 2N+1, H, W): the slices of (..., Z, H, W) at these places; beyond an end that is not repeated, zeros."""
    last = volume.shape[-3] - 1
    slab = volume[..., places.clip(0, last), :, :]
    for beyond, repeat in zip((places < 0, places > last), repeated, strict=True):
        if not repeat:
            slab[..., beyond, :, :] = 0
    return slab
