"""Subjects as the training holds them in memory: volumes packed in 8 or 16 bits."""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch

from ..conditioning.style_key import compute_style_key
from ..errors import CaseError
from .augmentation import ContrastCurve
from .volume_cache import Arrays, prepared_arrays

_TYPES = {8: np.uint8, 16: np.uint16}
_FINE_BINS = 4096


@dataclass(frozen=True)
class PackedVolume:
    """One subject as the dataset keeps it.

    Attributes:
        subject: its name.
        targets: (R, Z, H, W) uint8 or uint16, whose largest value is 1.0: one for all renderings of the source, or
            one for each (R = K), where a rendering changes the target as well: another shape of the head, a lesion. Of
            contrasts among which the target is drawn there is none (R = 0), since it is one of the sources.
        sources: (K, C, Z, H, W) of the same type: K renderings of the source (one for a real pair) in C contrasts, of
            which an absent one is 0 everywhere.
        histograms: (R, 4096) counts of each target's voxels in the brain over [0, 1], before they were rounded; without
            targets (K, C, 4096), those of each contrast.
        in_brain: (R, Z) bool: the slices that hold brain; without targets (K, Z).
        weight: how often the subject is drawn, relative to the others.
        extras: (E, Z, H, W) uint8, whose 255 is 1.0: further volumes on the same grid, such as tissue fractions; None
            for none.
    """

    subject: str
    targets: np.ndarray
    sources: np.ndarray
    histograms: np.ndarray
    in_brain: np.ndarray
    weight: float = 1.0
    extras: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.sources.ndim != 5:
            raise ValueError(f"sources of shape {self.sources.shape}; they are (K, C, Z, H, W)")
        if self.draws_target:
            if self.histograms.shape[:2] != self.sources.shape[:2]:
                raise ValueError("without targets there is a histogram for each contrast of each source")
        elif len(self.targets) not in (1, len(self.sources)):
            raise ValueError(
                f"{len(self.targets)} targets of {len(self.sources)} sources; there is one, or one for each"
            )

    @property
    def draws_target(self) -> bool:
        """Whether the target is one of the contrasts of the sources."""
        return not len(self.targets)

    def target_of(self, rendering: int) -> int:
        """Which of the targets belongs to a rendering of the source."""
        return rendering if len(self.targets) > 1 else 0

    def target(self, rendering: int, contrast: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A rendering's target (Z, H, W), its histogram (4096,) and the slices that hold its brain (Z,).

        Args:
            rendering: of the sources.
            contrast: index of the one that is the target, for subjects without targets of their own.
        """
        if contrast is None:
            which = self.target_of(rendering)
            return self.targets[which], self.histograms[which], self.in_brain[which]
        image = self.sources[rendering, contrast]
        return image, self.histograms[rendering, contrast], self.in_brain[rendering] & image.any(axis=(1, 2))

    def style_key(self, num_bins: int = 128) -> np.ndarray:
        """(3, num_bins) float32: the key of the target as it is, of several the key of all their voxels together."""
        return ContrastCurve.identity().style_key(self.histograms.sum(axis=0), num_bins)

    def source_keys(self, num_bins: int = 128) -> dict[str, np.ndarray]:
        """Key of each source, (3, num_bins) float32, by name: the subject's, with "#0", "#1", ... for several.

        Of several contrasts it is the key of all their voxels together.
        """
        names = [self.subject] if len(self.sources) == 1 else [f"{self.subject}#{k}" for k in range(len(self.sources))]
        top = np.iinfo(self.sources.dtype).max
        return {name: compute_style_key(s / top, num_bins) for name, s in zip(names, self.sources, strict=True)}

    def presence(self) -> np.ndarray:
        """(K, C) bool: which contrasts each rendering has."""
        return self.sources.any(axis=(2, 3, 4))


def training_style_keys(volumes: Sequence[PackedVolume], num_bins: int = 128) -> dict:
    """The style key of each packed volume, by subject: (3, num_bins) float32."""
    return {volume.subject: volume.style_key(num_bins) for volume in volumes}


def contrast_style_keys(
    volumes: Sequence[PackedVolume], contrasts: Sequence[str], num_bins: int = 128
) -> dict[str, np.ndarray]:
    """The style key of each contrast that a subject has, under `SUBJECT#CONTRAST`: (3, num_bins) float32.

    Args:
        volumes: subjects without targets of their own.
        contrasts: names of the contrasts of the sources, in their order.
        num_bins: of a key.
    """
    keys = {}
    for volume in volumes:
        counts = volume.histograms.sum(axis=0)  # of all renderings together
        for name, histogram, there in zip(contrasts, counts, volume.presence().any(axis=0), strict=True):
            if there:
                keys[f"{volume.subject}#{name}"] = ContrastCurve.identity().style_key(histogram, num_bins)
    return keys


def contrast_source_keys(
    volumes: Sequence[PackedVolume], contrasts: Sequence[str], num_bins: int = 128
) -> dict[str, np.ndarray]:
    """The key of each contrast of each source, under `SUBJECT#CONTRAST`: (3, num_bins) float32.

    Several renderings of a subject have a key each, `SUBJECT#0#CONTRAST`; else these are the contrasts' style keys,
    since each of them is source and target in turn.

    Args:
        volumes, contrasts, num_bins: as in `contrast_style_keys`.
    """
    keys = {}
    for volume in volumes:
        several = len(volume.sources) > 1
        for k, (histograms, there) in enumerate(zip(volume.histograms, volume.presence(), strict=True)):
            subject = f"{volume.subject}#{k}" if several else volume.subject
            for name, histogram, is_there in zip(contrasts, histograms, there, strict=True):
                if is_there:
                    keys[f"{subject}#{name}"] = ContrastCurve.identity().style_key(histogram, num_bins)
    return keys


def build_volumes(
    items: Sequence[Mapping],
    load: Callable,
    render: Callable | None = None,
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
        load=load,
        render=render,
        num_sources=num_sources if render else 1,
        size=tuple(size),
        seed=seed if render else 0,
        bits=bits,
    )
    numbered = [{**item, "number": number} for number, item in enumerate(items)]
    unused = {"subject", "weight"} if render else {"subject", "weight", "number"}
    packed = prepared_arrays(numbered, make, cache_dir, num_workers, progress, unused)
    return [
        PackedVolume(subject=str(item.get("subject", "")), weight=float(item.get("weight", 1.0)), **arrays)
        for item, arrays in zip(items, packed, strict=True)
    ]


def pack_volume(
    item: Mapping,
    load: Callable,
    render: Callable | None,
    num_sources: int,
    size: Sequence[int],
    seed: int,
    bits: int = 8,
) -> PackedVolume:
    """Prepare one subject.

    Args:
        item: an entry of the datalist.
        load: transform that gives "target" and "mask" (1, H, W, Z), the target in [0, 1], and either "source" (C, H, W,
            Z) in [0, 1] or what ``render`` needs; also "extras" (E, H, W, Z) in [0, 1], if there are any.
        render: random transform that adds "source" in [0, 1], such as a simulated CT, and may change "target" and
            "mask" (then there are no extras, which would stay behind), all renderings on one grid; None where ``load``
            gives the source. What comes without "target" in the end has it among the contrasts of "source".
        num_sources: renderings drawn from it.
        size: (H, W) of the slabs.
        seed: of this subject's draws.
        bits: of a packed voxel, 8 or 16.
    """
    data = load(dict(item))
    renderings = _renderings(data, render, num_sources, seed)
    drawn = "target" not in renderings[0]
    changed = renderings if drawn or any(r["target"] is not data["target"] for r in renderings) else [data]
    masks = [torch.as_tensor(r["mask"])[0] > 0 for r in changed]
    fit = functools.partial(_fit, centre=_centre(torch.stack(masks).any(dim=0)), size=size)
    sources = np.stack([fit(_pack(r["source"], _TYPES[bits])) for r in renderings])
    targets = [fit(_pack(r["target"], _TYPES[bits])) for r in changed if not drawn]
    counts = [_histograms(r["source" if drawn else "target"], m) for r, m in zip(changed, masks, strict=True)]
    return PackedVolume(
        subject=str(item.get("subject", "")),
        targets=np.concatenate(targets or [sources[:0, 0]]),
        sources=sources,
        histograms=np.stack(counts) if drawn else np.concatenate(counts),
        in_brain=torch.stack([m.flatten(0, 1).any(dim=0) for m in masks]).numpy(),
        weight=float(item.get("weight", 1.0)),
        extras=fit(_pack(data["extras"], np.uint8)) if "extras" in data else None,
    )


def _packed_arrays(item: Mapping, seed: int, **settings: object) -> Arrays:
    """``pack_volume`` without what the datalist knows."""
    volume = pack_volume(item, seed=seed + item["number"], **settings)
    arrays = {f.name: getattr(volume, f.name) for f in fields(volume) if f.name not in ("subject", "weight")}
    return {name: array for name, array in arrays.items() if array is not None}


def _renderings(data: Mapping, render: Callable | None, num_sources: int, seed: int) -> list[Mapping]:
    """The subject as it is, or that many renderings of it."""
    if render is None:
        return [data]
    render.set_random_state(seed=seed)
    return [render(data) for _ in range(num_sources)]


def _histograms(images: torch.Tensor, mask: torch.Tensor) -> np.ndarray:
    """(C, 4096) counts of the voxels of (C, H, W, Z) in a mask (H, W, Z)."""
    inside = torch.as_tensor(images)[:, mask].float().numpy()
    return np.stack([np.histogram(values, bins=_FINE_BINS, range=(0, 1))[0] for values in inside])


def _centre(mask: torch.Tensor) -> list[int]:
    """Where the brain's middle lies in H and W of (H, W, Z)."""
    extent = [torch.nonzero(mask.any(dim=2).any(dim=1 - axis)).flatten() for axis in (0, 1)]
    return [int(e[0] + e[-1] + 1) // 2 for e in extent]


def _pack(image: torch.Tensor, dtype: type[np.unsignedinteger]) -> np.ndarray:
    """(C, H, W, Z) in [0, 1] to (C, Z, H, W) of an integer type, whose largest value is 1.0."""
    array = torch.as_tensor(image).permute(0, 3, 1, 2).float().clamp(0, 1).numpy()
    return np.round(array * np.float32(np.iinfo(dtype).max)).astype(dtype)


def _fit(volume: np.ndarray, centre: Sequence[int], size: Sequence[int]) -> np.ndarray:
    """Crop or zero-pad (C, Z, H, W) in H and W to ``size`` around ``centre``."""
    out = np.zeros((*volume.shape[:2], *size), volume.dtype)
    begin = [int(c) - s // 2 for c, s in zip(centre, size, strict=True)]
    take = [slice(max(0, b), min(n, b + s)) for b, s, n in zip(begin, size, volume.shape[2:], strict=True)]
    put = [slice(t.start - b, t.stop - b) for t, b in zip(take, begin, strict=True)]
    out[..., put[0], put[1]] = volume[..., take[0], take[1]]
    return out
