"""Knowledge bases, and references for training: what ReBrain's retrieval learns from and its ControlNet is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from ..retrieval import VERSION, KnowledgeBase, ThresholdReading, new_secret, person_code
from ..transforms.references import choose_references, encoded
from ..volumes.brain_coordinates import slice_positions
from .packed_volume import PackedVolume
from .slab_dataset import SlabDataset

__all__ = ["HintedSlabs", "NeighbourSlices", "build_base", "hinted_volumes", "reference_table", "retrieval_figures"]

Table = Mapping[tuple[str, int], tuple[int, float]]
"""(subject, slice) -> (row of the base or -1, similarity)."""


def build_base(
    volumes: Sequence[PackedVolume],
    people: Sequence[str],
    encoder: nn.Module,
    spacing: Sequence[float],
    record: Mapping[str, Any],
    progress: Callable = iter,
) -> KnowledgeBase:
    """A knowledge base of the slices with brain of packed volumes, in their first rendering and first contrast.

    Args:
        volumes: of the training set.
        people: the name of the person of each.
        encoder: slices (n, 1, H, W) to unit vectors.
        spacing: edges of the voxels, mm.
        record: further entries of the record, such as the contrasts; "encoder" among them.
        progress: wraps the loop (tqdm).
    """
    secret = new_secret()
    columns: dict[str, list[Tensor]] = {}
    for number, volume in enumerate(progress(volumes)):
        kept = np.flatnonzero(volume.in_brain[0] & volume.sources[0, 0].any(axis=(1, 2)))
        sources, targets = (torch.from_numpy(_as_bytes(v[kept])) for v in (volume.sources[0, 0], volume.targets[0]))
        rows = {
            "embeddings": encoded(encoder, sources / 255),
            "person": torch.full((len(kept),), person_code(people[number], secret)),
            "subject": torch.full((len(kept),), number),
            "slice_index": torch.from_numpy(kept),
            "position": torch.from_numpy(_positions(volume, spacing)[kept]),
            "sources": sources,
            "targets": targets,
        }
        for name, values in rows.items():
            columns.setdefault(name, []).append(values)
    size = volumes[0].sources.shape[-2:]
    about = {"version": VERSION, "spacing": [*map(float, spacing)], "slab_shape": [*size], "secret": secret}
    return KnowledgeBase(**{name: torch.cat(values) for name, values in columns.items()}, record={**about, **record})


def reference_table(
    volumes: Sequence[PackedVolume],
    encoder: nn.Module,
    base: KnowledgeBase,
    sparsity: Sequence[int | Sequence[float]] = (2, 4, 8),
    people: Sequence[str] | None = None,
    tolerance: float = 0.05,
    threshold: str | float = ThresholdReading.PERCENTILE,
    choice: str = "similar",
    seed: int = 0,
) -> dict[tuple[str, int], tuple[int, float]]:
    """A reference for every slice of a training set, as if that slice were missing.

    The query is what linear fill makes of the slice in the middle of a gap; of several gaps, the mean of their vectors.

    Args:
        volumes: of the training set, on the base's grid.
        encoder: the base's.
        base: the knowledge base; its slices of the same person are not looked at.
        sparsity: distances of given slices, as `SlabDataset` has them.
        people: the name of the person of each volume, as the base was built with; None takes the subjects' names.
        tolerance, choice, seed: see `choose_references`; the oracle sees the true target.
        threshold: similarity below which a slice has no reference: a number, or one of `ThresholdReading`.

    Returns:
        (subject, slice) -> (row of the base or -1, similarity).

    Raises:
        CaseError: a base of slices of another size.
    """
    base.check(slab_shape=volumes[0].sources.shape[-2:])
    tau = base.threshold(threshold) if choice == "similar" else -1.0
    gaps = sorted({round(np.mean(one)) for one in sparsity} - {1}) or [1]
    table = {}
    for number, volume in enumerate(volumes):
        source, target = (
            torch.from_numpy(_as_bytes(images)).float() / 255 for images in (volume.sources[0, 0], volume.targets[0])
        )
        query = functional.normalize(sum(encoded(encoder, _in_gap(source, gap)) for gap in gaps), dim=1)
        rows, similarity = choose_references(
            base,
            torch.from_numpy(_positions(volume, base.record["spacing"])),
            query,
            target,
            tolerance,
            base.code_of(people[number] if people else volume.subject),
            choice,
            seed + number,
        )
        rows = torch.where((similarity >= tau) & source.amax((1, 2)).gt(0), rows, -1)
        pairs = zip(rows.tolist(), similarity.tolist(), strict=True)
        table |= {(volume.subject, z): pair for z, pair in enumerate(pairs)}
    return table


def retrieval_figures(
    volumes: Sequence[PackedVolume],
    people: Sequence[str],
    held_out: Sequence[PackedVolume],
    encoders: Mapping[str, nn.Module],
    spacing: Sequence[float],
    sparsity: Sequence[int | Sequence[float]] = (2, 4, 8),
) -> dict[str, dict[str, float]]:
    """How near the references of other people's slices come, for each encoder, a random slice and the best there is.

    The paper's accuracy, the share of references that are of the query's own scan, rewards the opposite.

    Args:
        volumes, people: what the base is made of, as in `build_base`.
        held_out: scans of other people, on the same grid.
        encoders: by the names of the rows.
        spacing: edges of the voxels, mm.
        sparsity: see `reference_table`.

    Returns:
        row -> "position_error" (median, in lengths of the brain) and "target_rmse" (mean, of the reference's target
        against the true one, of [0, 1]), over the slices with brain; "above_tau", the share of slices whose similarity
        reaches the base's own threshold.
    """
    figures = {}
    rows = [(name, encoder, "similar") for name, encoder in encoders.items()]
    rows += [(choice, next(iter(encoders.values())), choice) for choice in ("random", "oracle")]
    for name, encoder, choice in rows:
        base = build_base(volumes, people, encoder, spacing, {"encoder": name})
        table = reference_table(held_out, encoder, base, sparsity, threshold=-1.0, choice=choice)
        figures[name] = _nearness(held_out, table, base)
        similarity = np.array([s for row, s in table.values() if row >= 0])
        figures[name]["above_tau"] = float((similarity >= base.threshold()).mean())
    return figures


def _nearness(volumes: Sequence[PackedVolume], table: Table, base: KnowledgeBase) -> dict[str, float]:
    """`position_error` and `target_rmse` of a table's references."""
    positions, errors = [], []
    for volume in volumes:
        own = _positions(volume, base.record["spacing"])
        for z in np.flatnonzero(volume.in_brain[0]):
            row = table[volume.subject, int(z)][0]
            if row >= 0:
                difference = base.targets[row].numpy() / 255 - _as_bytes(volume.targets[0, z]) / 255
                errors.append(np.sqrt(np.square(difference).mean()))
                positions.append(abs(float(base.position[row]) - own[z]))
    return {"position_error": float(np.median(positions)), "target_rmse": float(np.mean(errors))}


def hinted_volumes(
    volumes: Sequence[PackedVolume], table: Table, base: KnowledgeBase, hint: Sequence[str] = ("source", "target")
) -> list[PackedVolume]:
    """The same volumes with the references of their slices as `extras`, which training moves with the other channels.

    Args:
        volumes: without extras.
        table: from `reference_table`.
        base: the same base.
        hint: what of a reference is the hint, "source", "target" or both.

    Raises:
        ValueError: volumes with extras.
    """
    if any(volume.extras is not None for volume in volumes):
        raise ValueError("the volumes have extras already, whose place the hints would take")
    hinted = []
    for volume in volumes:
        rows = torch.tensor([table[volume.subject, z][0] for z in range(volume.targets.shape[1])])
        extras = (base.images(rows, hint) * 255).round().byte().movedim(1, 0)
        hinted.append(replace(volume, extras=extras.numpy()))
    return hinted


class HintedSlabs(Dataset):
    """Training slabs of sparse scans with a "hint" (E (2N+1), H, W), [0, 1], in their missing slices.

    Args:
        dataset: of `hinted_volumes` and with a `sparsity`.
        dropout: how often a slab is left without a hint, so that the network knows that as well.
        target: "own": what is learnt is the subject's own missing slice. "retrieved": the reference's, as in the paper,
            whose authors see that the results then copy it; its hint has to have the target as its last channel.

    Raises:
        ValueError: another target.
    """

    def __init__(self, dataset: SlabDataset, dropout: float = 0.1, target: str = "own") -> None:
        if target not in ("own", "retrieved"):
            raise ValueError(f"target is {target}; use own or retrieved.")
        self.dataset = dataset
        self.dropout = dropout
        self.target = target

    def set_epoch(self, epoch: int) -> None:
        """Number of the epoch, which goes into each item's draws."""
        self.dataset.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        item = dict(self.dataset[index])
        missing = item["missing"] > 0
        hint = item.pop("extras").unflatten(0, (-1, len(missing))) * missing
        if self.target == "retrieved":
            there = missing & hint[-1].amax(dim=(1, 2), keepdim=True).gt(0)
            item["target"] = torch.where(there, hint[-1], item["target"])
        rng = np.random.default_rng([self.dataset.seed, self.dataset.epoch, index, 5])
        item["hint"] = hint.flatten(0, 1) * float(rng.random() >= self.dropout)
        return item


class NeighbourSlices(Dataset):
    """What a retrieval network learns from: a slice and its next neighbours in the same scan, mirrored half the time.

    Items are {"slices" (offsets + 1, H, W) in [0, 1], "scan", "index" and "position" (offsets + 1,)}. Item ``index``
    depends on (seed, epoch, index) alone.

    Args:
        volumes: of the training set.
        length: items of an epoch.
        spacing: edges of the voxels, mm.
        offsets: neighbours p+1..p+offsets.
        seed: of the draws.

    Raises:
        ValueError: no volume has that many slices with brain.
    """

    def __init__(
        self, volumes: Sequence[PackedVolume], length: int, spacing: Sequence[float], offsets: int = 3, seed: int = 0
    ) -> None:
        self.length, self.offsets, self.seed, self.epoch = length, offsets, seed, 0
        self.volumes = [volume for volume in volumes if volume.in_brain[0].sum() > offsets]
        if not self.volumes:
            raise ValueError("no volume has as many slices with brain as a slice and its neighbours")
        self._positions = [_positions(volume, spacing) for volume in self.volumes]

    def set_epoch(self, epoch: int) -> None:
        """Number of the epoch, which goes into each item's draws."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < self.length:
            raise IndexError(index)
        rng = np.random.default_rng([self.seed, self.epoch, index])
        number = int(rng.integers(len(self.volumes)))
        volume = self.volumes[number]
        sources = volume.sources[int(rng.integers(len(volume.sources))), 0]
        first = int(rng.choice(np.flatnonzero(volume.in_brain[0])[: -self.offsets]))
        places = np.arange(first, first + self.offsets + 1)
        slices = torch.from_numpy(_as_bytes(sources[places])).float() / 255
        return {
            "slices": slices.flip(1) if rng.random() < 0.5 else slices,
            "scan": torch.full((len(places),), number),
            "index": torch.from_numpy(places),
            "position": torch.from_numpy(self._positions[number][places]),
        }


def _as_bytes(images: np.ndarray) -> np.ndarray:
    """Packed images as uint8."""
    return images if images.dtype == np.uint8 else np.round(images / 257).astype(np.uint8)


def _positions(volume: PackedVolume, spacing: Sequence[float]) -> np.ndarray:
    """(Z,) positions of the slices, by the source as it is all that a case has."""
    return slice_positions(volume.sources[0, 0].transpose(1, 2, 0) > 0, spacing)


def _in_gap(source: Tensor, gap: int) -> Tensor:
    """What linear fill makes of each slice (Z, H, W) in the middle of a gap; the ends are repeated."""
    before, places = gap // 2, torch.arange(len(source))
    low, high = (places - before).clamp(min=0), (places - before + gap).clamp(max=len(source) - 1)
    return torch.lerp(source[low], source[high], before / gap)
