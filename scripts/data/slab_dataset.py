"""Training slabs drawn from packed volumes."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from ..simulation.source_fractions import structure_contrast
from ..slabs import repeats_end
from .augmentation import ContrastCurve, affine_slab, bright_lesion, smooth_shading, watery_lesion
from .packed_volume import PackedVolume
from .sparsity import Distances, SparseScan, check_sparsity, filled_slab


class SlabDataset(Dataset):
    """Random slabs of random subjects: {"source", "target", "style_key"}, and more where there is more.

    An item has "source" (C (2N+1), H, W), contrast after contrast, and "target" (2N+1, H, W), both in [0, 1];
    "style_key" (3, B); of several contrasts "presence" (C,), 1 where the subject has the contrast and 0 where it is
    absent, so that its channels are 0; "extras" (E (2N+1), H, W) in [0, 1], if the subjects have some; and of sparse
    scans "missing" (2N+1, H, W), see `missing_share`. One affine map and one mirror go for all of an item's channels.

    With `draw_target` the target is one of the contrasts: it is drawn among those that are there, taken out of the
    source, and named by "target_contrast", a float tensor () of its index. One other contrast always stays. Nothing of
    an item but "target" and "style_key" depends on the target's values.

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
        source_contrast_spread: the same for the source, each of whose contrasts has another curve and no key; one
            number for all contrasts, or one for each. For sources whose intensities have no unit (MRI); a CT's have
            one.
        source_anchor: value that the source's curves leave where it is; None for none. For sources that are scaled to
            have their commonest value there (`scaled_by_mode`).
        source_lesions: how often a slab gets a lesion: a `bright_lesion` in the source's first contrast and the target,
            with `draw_target` a `watery_lesion` in all contrasts.
        source_shading: largest logarithm of a smooth field that multiplies the source, another one for each contrast.
            One number for all contrasts, or one for each.
        source_noise: largest standard deviation of white noise added to the source where it is not background; each
            slab's is drawn uniformly, for each contrast. One number for all contrasts, or one for each.
        contrast_dropout: how often each contrast that is there is left out; one always stays.
        draw_target: whether the target is drawn among the contrasts.
        targets: indices of the contrasts that may be drawn; None for all.
        contrasts: names of the contrasts, which lesions and fractions go by.
        fractions: whether the subjects' extras are the fractions of each contrast (`SourceFractionsd`). An item then
            has "fractions" (4 (2N+1), H, W) in their place, those of a contrast that stays.
        lesion_dropout: how often the lesions among the fractions are left out, as they are where nobody drew them.
        sparsity: distances of the acquired slices, in slices of the volume, of which each slab draws one; see
            `Distances`. What lies between is filled linearly. (1,) is a dense scan, and items are without "missing".
        seed: of the draws.

    Raises:
        ValueError: no data, subjects of different numbers of contrasts or without a target to draw, with targets of
            their own where it is drawn, or without the fractions that are asked for.
    """

    def __init__(
        self,
        data: Sequence[PackedVolume],
        length: int,
        slab_size: int = 3,
        num_bins: int = 128,
        augment: bool = True,
        contrast_spread: float = 0.09,
        source_contrast_spread: float | Sequence[float] = 0.0,
        source_anchor: float | None = None,
        source_lesions: float = 0.0,
        source_shading: float | Sequence[float] = 0.0,
        source_noise: float | Sequence[float] = 0.0,
        contrast_dropout: float = 0.0,
        sparsity: Sequence[Distances] = (1,),
        seed: int = 0,
        draw_target: bool = False,
        targets: Sequence[int] | None = None,
        contrasts: Sequence[str] | None = None,
        fractions: bool = False,
        lesion_dropout: float = 0.5,
    ) -> None:
        _check_volumes(data, draw_target, fractions)
        self.volumes = list(data)
        self.length = length
        self.slab_size = slab_size
        self.num_bins = num_bins
        self.augment = augment
        self.contrast_spread = contrast_spread
        self.num_contrasts = data[0].sources.shape[1]
        self.source_contrast_spread = _for_each(source_contrast_spread, self.num_contrasts)
        self.source_anchor = source_anchor
        self.source_lesions = source_lesions
        self.source_shading = _for_each(source_shading, self.num_contrasts)
        self.source_noise = _for_each(source_noise, self.num_contrasts)
        self.contrast_dropout = contrast_dropout
        self.sparsity = check_sparsity(sparsity)
        self.seed = seed
        self.epoch = 0
        self.draw_target = draw_target
        self.contrasts = None if contrasts is None else list(contrasts)
        self.fractions = fractions
        self.lesion_dropout = lesion_dropout
        self._may_be_target = np.isin(
            np.arange(self.num_contrasts), range(self.num_contrasts) if targets is None else targets
        )
        self._presence = [volume.presence() for volume in data]
        if draw_target:
            self._check_targets()
        weights = np.array([v.weight * v.in_brain.mean(axis=0).sum() for v in data], dtype=float)
        self._cumulative = np.cumsum(weights / weights.sum())

    def _check_targets(self) -> None:
        """Raises ValueError: a subject, or a rendering of it, without two contrasts, or without one to draw."""
        for volume, presence in zip(self.volumes, self._presence, strict=True):
            if (presence.sum(axis=1) < 2).any() or not (presence & self._may_be_target).any(axis=1).all():
                raise ValueError(f"{volume.subject} has no contrast that can be its target beside another one")

    def set_epoch(self, epoch: int) -> None:
        """Number of the epoch, which goes into each item's draws."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if not 0 <= index < self.length:
            raise IndexError(index)
        rng = np.random.default_rng([self.seed, self.epoch, index])
        number = int(np.searchsorted(self._cumulative, rng.random()).clip(0, len(self.volumes) - 1))
        volume = self.volumes[number]
        rendering = int(rng.integers(len(volume.sources)))
        present = self._presence[number][rendering]
        drawn = self._drawn(present, index)
        if drawn is not None:
            present = present & (np.arange(self.num_contrasts) != drawn)
        present = self._kept(present, index)
        item = self._slabs(volume, rendering, present, drawn, rng, index)
        if self.num_contrasts > 1:
            item["presence"] = torch.from_numpy(present).float()
        if drawn is not None:
            item["target_contrast"] = torch.tensor(float(drawn))
        return item

    def _slabs(
        self,
        volume: PackedVolume,
        rendering: int,
        present: np.ndarray,
        drawn: int | None,
        rng: np.random.Generator,
        index: int,
    ) -> dict[str, torch.Tensor]:
        """What is cut out of a subject's rendering, and the target's key."""
        # draws of their own: the others stay what they are without them
        source_rng = np.random.default_rng([self.seed, self.epoch, index, 1])
        image, histogram, in_brain = volume.target(rendering, drawn)
        centre = int(rng.choice(np.flatnonzero(in_brain)))
        places = centre + np.arange(self.slab_size) - self.slab_size // 2
        sources = volume.sources[rendering]
        repeated = _repeated(sources, places, present)
        scan = SparseScan.draw(np.random.default_rng([self.seed, self.epoch, index, 4]), self.sparsity)
        curve = ContrastCurve.draw(rng, self.contrast_spread if self.augment else 0.0)
        seen = [image[None], sources] if drawn is None else [sources[present]]
        item = {
            "source": self._source(_scanned(sources, seen, scan, places, repeated), present, source_rng),
            "target": torch.from_numpy(curve(_slab(image, places, repeated))),
        }
        if volume.extras is not None:
            extras = _slab(volume.extras, places, repeated)
            if self.fractions:
                extras = self._fractions(extras, present, index)
            name = "fractions" if self.fractions else "extras"
            item[name] = torch.from_numpy(ContrastCurve.identity()(extras)).flatten(0, 1)
        if self.augment:
            item = self._transform(item, rng)
            item = self._with_lesion(item, present, drawn, index)
            item["source"] = self._degrade(item["source"], source_rng)
        item["style_key"] = torch.from_numpy(curve.style_key(histogram, self.num_bins)).float()
        if self.sparsity != (1,):
            missing = torch.from_numpy(scan.missing(places, sources.shape[1]))
            item["missing"] = missing[:, None, None].expand_as(item["target"]).contiguous()
        return item

    def _fractions(self, extras: np.ndarray, present: np.ndarray, index: int) -> np.ndarray:
        """Of the extras (E, ...) those of a contrast that stays, and lesions, which may be left out, (4, ...)."""
        first = 3 * structure_contrast(self.contrasts, present)
        chosen = extras[[first, first + 1, first + 2, -1]]
        if np.random.default_rng([self.seed, self.epoch, index, 6]).random() < self.lesion_dropout:
            chosen[-1] = 0
        return chosen

    def _drawn(self, present: np.ndarray, index: int) -> int | None:
        """Which of the contrasts (C,) that are there is the target; None where subjects have targets of their own."""
        if not self.draw_target:
            return None
        rng = np.random.default_rng([self.seed, self.epoch, index, 5])
        return int(rng.choice(np.flatnonzero(present & self._may_be_target)))

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
        spreads = self.source_contrast_spread if self.augment else [0.0] * len(slab)
        curves = [ContrastCurve.draw(rng, spread, anchor=self.source_anchor) for spread in spreads]
        slabs = [curve(one if there else 0 * one) for curve, one, there in zip(curves, slab, present, strict=True)]
        return torch.from_numpy(np.concatenate(slabs))

    @staticmethod
    def _transform(item: dict[str, torch.Tensor], rng: np.random.Generator) -> dict[str, torch.Tensor]:
        """Draw the plane's affine map and apply it to all channels."""
        angle = np.deg2rad(rng.uniform(-10, 10))
        shift = rng.uniform(-4, 4, size=2)
        zoom, flip = rng.uniform(0.9, 1.12), rng.random() < 0.5
        planes = torch.cat(list(item.values()))
        filled = planes.flatten(1).any(dim=1)
        moved = torch.zeros_like(planes)  # as an absent contrast stays
        moved[filled] = affine_slab(planes[filled], angle, zoom=zoom, shift=shift, flip=flip)
        return dict(zip(item, moved.split([len(slab) for slab in item.values()]), strict=True))

    def _with_lesion(
        self, item: dict[str, torch.Tensor], present: np.ndarray, drawn: int | None, index: int
    ) -> dict[str, torch.Tensor]:
        """Draw whether there is a lesion, and add it."""
        rng = np.random.default_rng([self.seed, self.epoch, index, 3])
        if not self.source_lesions or rng.random() >= self.source_lesions:
            return item
        slabs = item["source"].split(self.slab_size)
        if drawn is None:
            first, *others = slabs
            first, target = bright_lesion(first, item["target"], rng)
            return {**item, "source": torch.cat([first, *others]), "target": target}
        names = self.contrasts or []
        there = {name: slab for name, slab, kept in zip(names, slabs, present, strict=True) if kept}
        there, target = watery_lesion(there, item["target"], names[drawn], rng)
        source = torch.cat([there.get(name, slab) for name, slab in zip(names, slabs, strict=True)])
        return {**item, "source": source, "target": target}

    def _degrade(self, source: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """Draw shading and noise for each contrast of the source; background stays 0."""
        slabs = source.split(self.slab_size)
        strengths = zip(slabs, self.source_shading, self.source_noise, strict=True)
        return torch.cat([_degraded(slab, shading, noise, rng) for slab, shading, noise in strengths])


def _degraded(slab: torch.Tensor, shading: float, most_noise: float, rng: np.random.Generator) -> torch.Tensor:
    """A slab of one contrast with shading and noise."""
    if shading:
        slab = slab * smooth_shading(rng, slab.shape[-2:], shading)
    if most_noise:
        noise = torch.from_numpy(rng.standard_normal(slab.shape, dtype=np.float32))
        slab = slab + rng.uniform(0, most_noise) * noise * (slab > 0)
    return slab.clamp_(0, 1)


def _check_volumes(data: Sequence[PackedVolume], draw_target: bool, fractions: bool) -> None:
    """Raises ValueError: subjects that do not go together, or not with the way in which the target is found."""
    if not data:
        raise ValueError("there is no training volume: the datalist's list is empty or every subject failed")
    if len({volume.sources.shape[1] for volume in data}) > 1:
        raise ValueError("the subjects have different numbers of contrasts")
    for volume in data:
        if volume.draws_target != draw_target:
            own = "no target of its own" if volume.draws_target else "a target of its own"
            raise ValueError(f"{volume.subject} has {own}, and draw_target is {draw_target}")
        if fractions and (volume.extras is None or len(volume.extras) != 3 * volume.sources.shape[1] + 1):
            raise ValueError(f"{volume.subject} has no tissue fractions of its contrasts; train without a structure")


def _for_each(value: float | Sequence[float], count: int) -> list[float]:
    """One number for each contrast, of one for all or one for each.

    Raises:
        ValueError: another number of them.
    """
    values = [float(value)] * count if isinstance(value, int | float) else [float(v) for v in value]
    if len(values) != count:
        raise ValueError(f"{len(values)} numbers are given for {count} contrasts")
    return values


def _repeated(sources: np.ndarray, places: np.ndarray, present: np.ndarray) -> tuple[bool, bool]:
    """Whether the slices at these places that lie before and after (C, Z, H, W) repeat its end slices."""
    top = np.iinfo(sources.dtype).max

    def cut(end: int) -> bool:
        return present.any() and repeats_end(torch.from_numpy(sources[present, end].astype(np.float32) / top))

    return places[0] < 0 and cut(0), places[-1] >= sources.shape[1] and cut(-1)


def _scanned(
    sources: np.ndarray, seen: Sequence[np.ndarray], scan: SparseScan, places: np.ndarray, repeated: tuple[bool, bool]
) -> np.ndarray:
    """(C, 2N+1, H, W): the slices of (C, Z, H, W) at these places as a scan shows them, packed.

    The head is where one of the volumes `seen` is above 0.
    """
    if scan.is_dense:
        return _slab(sources, places, repeated)
    inside = np.any([(volumes > 0).any(axis=0) for volumes in seen], axis=0)
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
