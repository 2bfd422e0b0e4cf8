"""Slices of other people as hints for the slices that a scan lacks (ReBrain, section 3.2)."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import StrEnum
from torch import Tensor, nn
from torch.nn import functional

from ..errors import CaseError
from ..networks import PixelEncoder, SliceEncoder
from ..retrieval import ENCODER_NAME, Fill, KnowledgeBase, ThresholdReading, fill_slices
from ..volumes.brain_coordinates import slice_positions
from ..weights import load_weights

__all__ = ["Choice", "ReferenceHints", "RetrieveReferencesd", "choose_references", "encoded", "load_base"]


class Choice(StrEnum):
    """Which slice of the base becomes a hint, of those at about the same height.

    similar: the one whose source is most similar to what fills the gap.
    random: any of them; for comparison.
    oracle: the one whose target is nearest to the true one, by mean squared error; for comparison.
    """

    SIMILAR = "similar"
    RANDOM = "random"
    ORACLE = "oracle"


def load_base(folder: str | os.PathLike | None, **wanted: Any) -> tuple[KnowledgeBase, nn.Module]:
    """A knowledge base and the encoder that it was built with, ready to use.

    Args:
        folder: of the base.
        wanted: what it has to be of, see `KnowledgeBase.check`.

    Raises:
        CaseError: none is given, it is damaged, of other images, or its encoder is not there.
    """
    if not folder:
        raise CaseError(
            "No knowledge base is given: build one with python -m scripts knowledge_base build --dataset_dir MY_PAIRS "
            "--output kb, and add --knowledge_base kb."
        )
    base = KnowledgeBase.load(folder)
    base.check(**wanted)
    if base.record["encoder"] == "pixels":
        return base, PixelEncoder()
    encoder = SliceEncoder(base.record["slab_shape"])
    load_weights(encoder, Path(folder) / ENCODER_NAME)
    return base, encoder.eval()


def _placed(slices: Tensor, begin: Sequence[int], size: Sequence[int]) -> Tensor:
    """The part of (..., H, W) slices that begins at a pixel (it may lie outside) and has a size; zeros beyond them."""
    (top, left), (height, width) = begin, size
    bottom, right = top + height - slices.shape[-2], left + width - slices.shape[-1]
    return functional.pad(slices, (-left, right, -top, bottom))


def encoded(encoder: nn.Module, slices: Tensor) -> Tensor:
    """Unit vectors (n, D) of slices (n, H, W), [0, 1], a few at a time and without gradients."""
    with torch.no_grad():
        return torch.cat([encoder(part[:, None]) for part in slices.float().split(64)])


def choose_references(
    base: KnowledgeBase,
    position: Tensor,
    query: Tensor | None = None,
    truth: Tensor | None = None,
    tolerance: float = 0.05,
    exclude: int | None = None,
    choice: str = Choice.SIMILAR,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """A row of the base for each slice.

    Args:
        base: the knowledge base.
        position: (n,), see `slice_positions`.
        query: vectors (n, D) of what fills the gaps in the source, for the choice "similar".
        truth: the true target (n, H, W), [0, 1], of the base's size, for the choice "oracle".
        tolerance: largest difference of position.
        exclude: number of the person that the slices are of; None looks at everybody.
        choice: see `Choice`.
        seed: of the random choice.

    Returns:
        rows (n,), -1 where nothing lies near enough; the cosine of the vectors (n,), -inf there and inf where the
        choice does not go by it.
    """
    choice = Choice(choice)
    if choice == Choice.SIMILAR:
        return base.search(query, position, tolerance, exclude)
    who = None if exclude is None else torch.tensor(exclude).expand(len(position))
    allowed = base.allowed(position, tolerance, who)
    if choice == Choice.RANDOM:
        score = torch.rand(allowed.shape, generator=torch.Generator().manual_seed(seed))
    else:
        score = -torch.cdist(truth.flatten(1), base.targets.float().flatten(1) / 255)
    best, rows = score.masked_fill(~allowed, -torch.inf).max(dim=1)
    found = best > -torch.inf
    return torch.where(found, rows, -1), torch.where(found, torch.inf, -torch.inf)


class ReferenceHints:
    """Hints for the missing slices of a volume, out of a knowledge base.

    The query is what fills the gap in the source. In the plane both brains are laid centre on centre. Given slices, and
    those for which nothing is similar enough, have hints of zeros.

    Args:
        base: folder of the knowledge base.
        hint: what of a reference is the hint, "source", "target" or both, in the order of the channels.
        threshold: similarity below which a search has failed: a number, or one of `ThresholdReading`.
        tolerance: largest difference of position, in lengths of the brain.
        fallback: what the hint's source channel holds where the search failed: one of `Fill`, of the given slices
            (ReBrain, section 3.4: "slerp"), or None for zeros.
        choice: see `Choice`; the oracle needs the truth in each call.
        share, share_of, seed: of the base that is searched, see `KnowledgeBase.shared`.
        wanted: what the base has to be of, such as {"source_contrast": "CT", "target_contrast": "T1"}.

    Raises:
        CaseError: no base, a damaged one, or one of other images.
    """

    def __init__(
        self,
        base: str | os.PathLike | None,
        hint: Sequence[str] = ("source", "target"),
        threshold: str | float = ThresholdReading.PERCENTILE,
        tolerance: float = 0.05,
        fallback: str | None = None,
        choice: str = Choice.SIMILAR,
        share: float = 1.0,
        share_of: str = "people",
        seed: int = 0,
        wanted: Mapping[str, Any] | None = None,
    ) -> None:
        whole, self.encoder = load_base(base, **(wanted or {}))
        self.base = whole if share == 1 else whole.shared(share, share_of, seed)
        self.hint = tuple(hint)
        self.choice = Choice(choice)
        self.tau = self.base.threshold(threshold) if self.choice == Choice.SIMILAR else -1.0
        self.tolerance = tolerance
        self.fallback = None if fallback is None else Fill(fallback)
        self.seed = seed

    def __call__(self, volume: Tensor, missing: Tensor, truth: Tensor | None = None) -> Tensor:
        """Volumes (B, C, H, W, Z), [0, 1], whose first contrast counts, and missing (B, 1, H, W, Z) -> (B, E, H, W, Z).

        The volumes have the base's spacing, and are of people who are not in it. The oracle alone looks at the truth,
        (B, 1, H, W, Z).
        """
        hints = []
        for number, (source, flags) in enumerate(zip(volume[:, 0], missing[:, 0], strict=True)):
            true = None if truth is None else truth[number, 0].movedim(-1, 0).cpu()
            wanted = flags.amax(dim=(0, 1)).cpu() > 0
            hints.append(self.of_slices(source.movedim(-1, 0).cpu().float(), wanted, truth=true)[0].movedim(0, -1))
        return torch.stack(hints).to(volume)

    def of_slices(
        self, source: Tensor, missing: Tensor, person: str | None = None, truth: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Hints of all slices of a volume.

        Args:
            source: (Z, H, W), [0, 1], background 0, at the base's spacing; missing slices are filled.
            missing: (Z,) bool.
            person: name of the person, whose own slices are not looked at.
            truth: the true target (Z, H, W), [0, 1], for the oracle.

        Returns:
            (Z, contrasts, H, W), and (Z,) bool: which slices have a reference.
        """
        hints = torch.zeros(len(source), len(self.hint), *source.shape[1:])
        found = torch.zeros(len(source), dtype=torch.bool)
        wanted = torch.nonzero(missing & source.amax(dim=(1, 2)).gt(0)).flatten()
        if len(wanted):
            hints[wanted], found[wanted] = self._search(source, wanted, person, truth)
        if self.fallback is not None and "source" in self.hint and not missing.all():
            failed = missing & ~found
            hints[failed, self.hint.index("source")] = fill_slices(source, ~missing, self.fallback)[failed]
        return hints, found

    def _search(
        self, source: Tensor, wanted: Tensor, person: str | None, truth: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Hints (n, contrasts, H, W) of the wanted slices, and whether each has one."""
        spacing, size = self.base.record["spacing"], self.base.record["slab_shape"]
        begin = _begin(source, size)
        rows, similarity = choose_references(
            self.base,
            torch.from_numpy(slice_positions(source.movedim(0, -1).numpy() > 0, spacing))[wanted],
            encoded(self.encoder, _placed(source[wanted], begin, size)),
            None if truth is None else _placed(truth[wanted].float(), begin, size),
            self.tolerance,
            None if person is None else self.base.code_of(person),
            self.choice,
            self.seed,
        )
        rows = torch.where(similarity >= self.tau, rows, -1)
        back = [-first for first in begin]
        return _placed(self.base.images(rows, self.hint), back, source.shape[1:]), rows >= 0


class RetrieveReferencesd(MapTransform):
    """Adds channels of hints to a sparse volume: for each missing slice another person's, out of a knowledge base.

    The volume's meta has as `references` how many slices are "missing", for how many a reference was "found", and the
    "threshold" of similarity. A dense volume has hints of zeros.

    Args:
        keys: of the volumes, MetaTensors (C, H, W, Z) in RAS axes at the base's spacing; channel 0 is the source,
            [0, 1], background 0.
        base: folder of the knowledge base.
        missing_channel: channel that is above 0 in missing slices.
        person_key: where the data has it, it holds the person's name, whose own slices are not looked at.
        target_key: of the true target on the same grid, (1, H, W, Z), [0, 1], for the oracle.
        allow_missing_keys: no error where a key is missing.
        search: further arguments of `ReferenceHints`.

    Raises:
        CaseError: no base, a damaged one, one of other images; for a volume, one of another spacing.
    """

    def __init__(
        self,
        keys: KeysCollection,
        base: str | os.PathLike | None,
        missing_channel: int = 1,
        person_key: str = "person",
        target_key: str | None = None,
        allow_missing_keys: bool = False,
        **search: Any,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.hints = ReferenceHints(base, **search)
        self.missing_channel = missing_channel
        self.person_key = person_key
        self.target_key = target_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add the hints to the volume at each key."""
        d = dict(data)
        person = None if d.get(self.person_key) is None else str(d[self.person_key])
        truth = None if self.target_key is None else torch.as_tensor(d[self.target_key])[0].movedim(-1, 0)
        for key in self.key_iterator(d):
            d[key] = self._with_hints(d[key], person, truth)
        return d

    def _with_hints(self, volume: MetaTensor, person: str | None, truth: Tensor | None) -> MetaTensor:
        self.hints.base.check(spacing=np.asarray(volume.pixdim, dtype=float))
        slices = volume.as_tensor().movedim(-1, 1).float()  # (C, Z, H, W)
        missing = slices[self.missing_channel].amax(dim=(1, 2)) > 0
        hints, found = self.hints.of_slices(slices[0], missing, person, truth)
        stacked = torch.cat([volume.as_tensor(), hints.movedim(0, -1).to(volume.as_tensor())])
        result = MetaTensor(stacked).copy_meta_from(volume)
        counts = {"missing": int(missing.sum()), "found": int(found.sum()), "threshold": self.hints.tau}
        result.meta["references"] = counts
        return result


def _begin(source: Tensor, size: Sequence[int]) -> list[int]:
    """First pixel of a window of a size around the middle of a brain (Z, H, W), as training packs its volumes."""
    inside = (source > 0).any(dim=0)
    extents = [torch.nonzero(inside.any(dim=1 - axis)).flatten() for axis in (0, 1)]
    return [int(e[0] + e[-1] + 1) // 2 - length // 2 for e, length in zip(extents, size, strict=True)]
