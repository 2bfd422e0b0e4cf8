"""A knowledge base of other people's slices: exact search by similarity, and filling the slices between given ones.

Source: ReBrain (Liu et al.), sections 3.2 and 3.4. What the paper leaves open is decided here: a slice is looked for
among those that lie as far from the top of the brain, and never in the same person. `position` is that distance, the
coordinate w of `brain_coordinates`: 0 at the top, negative below it, in lengths of the brain.

A base holds patients' images. Its folder is the owner's alone, and no name stands in it: a person is a number that
comes from the name and from a secret of the base.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.utils import StrEnum, optional_import
from torch import Tensor

from .errors import CaseError
from .files import sha256_of_file, writing_into, written_whole

__all__ = ["FILE_NAME", "Fill", "KnowledgeBase", "ThresholdReading", "fill_slices", "person_code", "slerp", "threshold"]

logger = logging.getLogger(__name__)

FILE_NAME = "knowledge_base.npz"
ENCODER_NAME = "encoder.pt"
VERSION = 1
LARGE = 100_000
"""Slices above which a library searches, where one is installed."""
_CANDIDATES = 512  # nearest slices that a library is asked for, before position and person are looked at
_AT_ONCE = 2**24  # similarities in memory
_COLUMNS = ("embeddings", "person", "subject", "slice_index", "position", "sources", "targets")


class ThresholdReading(StrEnum):
    """How the similarity below which a search has failed is read from the base, of pairs of different people.

    percentile: that which the given share of all pairs exceeds (the paper's section 4.4).
    top_mean: the mean of that share, never below `percentile` (section 3.4, over pairs).
    best_mean: the mean of that share of each slice's best (section 3.4, over queries).
    """

    PERCENTILE = "percentile"
    TOP_MEAN = "top_mean"
    BEST_MEAN = "best_mean"


class Fill(StrEnum):
    """What lies between two given slices: a straight line from one to the other, the great circle, or the nearer."""

    LINEAR = "linear"
    SLERP = "slerp"
    NEAREST = "nearest"


def slerp(a: Tensor, b: Tensor, alpha: float | Tensor) -> Tensor:
    """Spherical linear interpolation of slices (ReBrain, eq. 15).

    Linear where the angle is undefined or has no direction: below 1e-4 rad, for a slice of zeros, and for opposite
    slices.

    Args:
        a, b: slices (..., H, W), each a vector of H W numbers.
        alpha: 0 gives a, 1 gives b; one for all, or (...).
    """
    alpha = torch.as_tensor(alpha, dtype=torch.float64, device=a.device)[..., None, None]
    # in double precision: near 0 and pi the angle loses half of the cosine's digits
    first, second = a.double(), b.double()
    norms = (first.square().sum((-2, -1)) * second.square().sum((-2, -1))).sqrt()[..., None, None]
    cosine = (first * second).sum((-2, -1))[..., None, None] / norms.clamp(min=torch.finfo(norms.dtype).tiny)
    theta = torch.acos(cosine.clamp(-1, 1))
    curved = (norms > 0) & (theta > 1e-4) & (theta < torch.pi - 1e-4)
    theta = torch.where(curved, theta, 1.0)
    weights = (torch.where(curved, torch.sin(w * theta) / torch.sin(theta), w) for w in (1 - alpha, alpha))
    return sum(weight * image for weight, image in zip(weights, (first, second), strict=True)).to(a.dtype)


def fill_slices(slices: Tensor, given: Tensor, fill: str = Fill.LINEAR) -> Tensor:
    """Slices of which some are given, the others made of their two given neighbours.

    Beyond the outermost given slices, those are repeated.

    Args:
        slices: (Z, ..., H, W); what is not given is not looked at.
        given: (Z,) bool, at least one True.
        fill: see `Fill`.

    Returns:
        (Z, ..., H, W), given slices untouched.
    """
    fill = Fill(fill)
    places = torch.arange(len(slices), device=slices.device)
    known = torch.nonzero(given.to(slices.device)).flatten()
    after = torch.searchsorted(known, places).clamp(max=len(known) - 1)
    above = known[after]
    below = known[torch.where(above > places, (after - 1).clamp(min=0), after)]
    alpha = ((places - below) / (above - below).clamp(min=1)).clamp(0, 1).to(slices.dtype)
    low, high = slices[below], slices[above]
    alpha = alpha.reshape(-1, *(1,) * (slices.ndim - 3)).expand(low.shape[:-2])
    if fill == Fill.SLERP:
        filled = slerp(low, high, alpha)
    else:
        weight = alpha[..., None, None]
        filled = torch.lerp(low, high, (weight > 0.5).to(weight) if fill == Fill.NEAREST else weight)
    return torch.where(given.to(slices.device).reshape(-1, *(1,) * (slices.ndim - 1)), slices, filled)


def threshold(
    embeddings: Tensor,
    person: Tensor,
    percent: float = 5.0,
    reading: str = ThresholdReading.PERCENTILE,
    pairs: int = 100_000,
    seed: int = 0,
) -> float:
    """tau, the similarity below which a search has failed.

    Args:
        embeddings: (M, D) unit vectors.
        person: (M,), whose slice each is; pairs are of different people.
        percent: the share of pairs, or of slices, that is looked at.
        reading: see `ThresholdReading`.
        pairs: at most so many pairs are drawn; all are taken where there are no more.
        seed: of the draw.

    Raises:
        ValueError: there are fewer than two people.
    """
    if len(person.unique()) < 2:
        raise ValueError("a threshold compares slices of different people, and there is one person")
    if ThresholdReading(reading) == ThresholdReading.BEST_MEAN:
        return _top_mean(_best_of_others(embeddings, person), percent)
    values = _pair_similarities(embeddings, person, pairs, seed)
    if reading == ThresholdReading.TOP_MEAN:
        return _top_mean(values, percent)
    return float(np.percentile(values.double().numpy(), 100 - percent))


def _top_mean(values: Tensor, percent: float) -> float:
    count = max(1, int(len(values) * percent / 100))
    return float(values.double().topk(count).values.mean())


def _pair_similarities(embeddings: Tensor, person: Tensor, pairs: int, seed: int) -> Tensor:
    """Cosines of pairs of slices of different people: all, or as many as asked for."""
    count = len(person)
    if count * (count - 1) // 2 <= pairs:
        first, second = torch.triu_indices(count, count, offset=1)
        apart = person[first] != person[second]
    else:
        first, second = torch.randint(count, (2, 2 * pairs), generator=torch.Generator().manual_seed(seed))
        apart = person[first] != person[second]
    first, second = first[apart][:pairs], second[apart][:pairs]
    parts = zip(first.split(8192), second.split(8192), strict=True)
    return torch.cat([(embeddings[a] * embeddings[b]).sum(1) for a, b in parts])


def _best_of_others(embeddings: Tensor, person: Tensor) -> Tensor:
    """(M,) the highest cosine of each slice with one of another person."""
    rows = max(1, _AT_ONCE // len(person))
    best = []
    for part, who in zip(embeddings.split(rows), person.split(rows), strict=True):
        similarity = (part @ embeddings.T).masked_fill(who[:, None] == person, -torch.inf)
        best.append(similarity.amax(dim=1))
    return torch.cat(best)


def person_code(name: str, secret: str) -> int:
    """The number by which a base knows a person; without a guess at the name it does not lead back to it.

    Args:
        name: of the person.
        secret: of the base; hexadecimal digits.
    """
    digest = hashlib.pbkdf2_hmac("sha256", name.encode("utf-8", "surrogateescape"), bytes.fromhex(secret), 20_000, 8)
    return int.from_bytes(digest, "big") >> 1  # a positive int64


@dataclass(frozen=True)
class KnowledgeBase:
    """Slices of several people in both contrasts, and where each lies.

    Attributes:
        embeddings: (M, D) float32 unit vectors of the source's slices; zeros for an empty slice.
        person: (M,) int64, `person_code` of each slice's person.
        subject: (M,) int64, the number of the scan.
        slice_index: (M,) int64, of the slice in the scan.
        position: (M,) float32, distance from the top of the brain in its lengths, negative.
        sources, targets: (M, H, W) uint8, whose 255 is 1.0.
        record: what the slices are of: "encoder" (pixels or vit) and "encoder_sha256", "source_contrast",
            "target_contrast", "spacing" (mm), "slab_shape", "secret", "version"; JSON values.
    """

    embeddings: Tensor
    person: Tensor
    subject: Tensor
    slice_index: Tensor
    position: Tensor
    sources: Tensor
    targets: Tensor
    record: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not len(self):
            raise ValueError("a knowledge base needs at least one slice")
        lengths = {len(getattr(self, name)) for name in _COLUMNS}
        if len(lengths) > 1 or self.sources.shape != self.targets.shape or self.sources.ndim != 3:
            raise ValueError("the columns of a knowledge base have one row for each slice")

    def __len__(self) -> int:
        return len(self.embeddings)

    @cached_property
    def _nearest(self) -> Callable[[np.ndarray], np.ndarray] | None:
        return _library_search(self.embeddings.numpy())

    def code_of(self, name: str) -> int:
        """The number of a person in this base."""
        return person_code(name, self.record["secret"])

    def search(
        self, query: Tensor, position: Tensor, tolerance: float = 0.05, exclude: int | Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The most similar slice of another person at about the same height.

        Args:
            query: (n, D) unit vectors.
            position: (n,), of the wanted slices.
            tolerance: largest difference of position.
            exclude: the person of the queries, one for all or (n,); None looks at everybody.

        Returns:
            rows of the base (n,), -1 where none is near enough; their cosines (n,), -inf there.
        """
        position = torch.as_tensor(position, dtype=self.position.dtype)
        exclude = None if exclude is None else torch.as_tensor(exclude).expand(len(query))
        found = self._search_by_library(query, position, tolerance, exclude)
        left = torch.nonzero(found[0] < 0).flatten()
        for part in left.split(max(1, _AT_ONCE // len(self))):
            who = None if exclude is None else exclude[part]
            similarity = query[part] @ self.embeddings.T
            similarity[~self.allowed(position[part], tolerance, who)] = -torch.inf
            best, row = similarity.max(dim=1)
            found[0][part], found[1][part] = torch.where(best > -torch.inf, row, -1), best
        return found

    def allowed(
        self, position: Tensor, tolerance: float, exclude: Tensor | None = None, rows: Tensor | None = None
    ) -> Tensor:
        """Which rows of the base are near enough to queries and of another person.

        Args:
            position, tolerance, exclude: as in `search`, (n,) each.
            rows: the rows that are looked at for each query, (n, k); None for all.

        Returns:
            (n, k) or (n, M) bool.
        """
        heights, people = (column if rows is None else column[rows] for column in (self.position, self.person))
        allowed = (heights - position[:, None]).abs() <= tolerance
        return allowed if exclude is None else allowed & (people != exclude[:, None])

    def _search_by_library(
        self, query: Tensor, position: Tensor, tolerance: float, exclude: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """What the index of a large base answers; -1 where there is none, or none of its nearest will do."""
        nothing = torch.full((len(query),), -1), torch.full((len(query),), -torch.inf)
        if len(self) <= LARGE or self._nearest is None:
            return nothing
        nearest = torch.from_numpy(self._nearest(query.numpy()).astype(np.int64))
        similarity = (query[:, None] * self.embeddings[nearest]).sum(dim=-1)
        similarity[~self.allowed(position, tolerance, exclude, nearest)] = -torch.inf
        best, place = similarity.max(dim=1)
        row = nearest.gather(1, place[:, None])[:, 0]
        return torch.where(best > -torch.inf, row, -1), best

    def threshold(self, reading: str | float = ThresholdReading.PERCENTILE, percent: float = 5.0) -> float:
        """tau of this base: a number as it is, or one of `ThresholdReading`; -1, which all pass, for one person."""
        if not isinstance(reading, str):
            return float(reading)
        if reading not in list(ThresholdReading):
            raise CaseError(f"reference_threshold is {reading}; use a number, or one of {', '.join(ThresholdReading)}.")
        if len(self.person.unique()) < 2:
            logger.warning("The knowledge base has one person, so that every reference passes: it gives no threshold.")
            return -1.0
        return threshold(self.embeddings, self.person, percent, reading)

    def images(self, rows: Tensor, names: Sequence[str] = ("source", "target")) -> Tensor:
        """Slices (n, contrasts, H, W), [0, 1], of some rows; zeros where a row is -1.

        Args:
            rows: (n,).
            names: "source", "target", or both, in the order of the channels.
        """
        columns = {"source": self.sources, "target": self.targets}
        taken = torch.stack([columns[name][rows.clamp(min=0)] for name in names], dim=1).float() / 255
        return taken * (rows >= 0)[:, None, None, None]

    def shared(self, share: float, of: str = "people", seed: int = 0) -> KnowledgeBase:
        """The same base with a share of its people, or of all its slices, drawn; at least one.

        Args:
            share: above 0, at most 1.
            of: "people" or "slices".
            seed: of the draw; a larger share has all that a smaller one has.

        Raises:
            CaseError: another share, or another word.
        """
        if not 0 < share <= 1 or of not in ("people", "slices"):
            raise CaseError(f"share is {share} of {of}; use a number above 0, at most 1, of people or slices.")
        keys = self.person if of == "people" else torch.arange(len(self))
        choices = keys.unique()
        order = torch.randperm(len(choices), generator=torch.Generator().manual_seed(seed))
        kept = choices[order[: max(1, round(share * len(choices)))]]
        rows = torch.isin(keys, kept)
        return replace(self, **{name: getattr(self, name)[rows] for name in _COLUMNS})

    def check(self, **wanted: Any) -> None:
        """Refuse a base of other images than those at hand.

        Args:
            wanted: entries of the record, such as `source_contrast="CT"` and `spacing=(1.5, 1.5, 1.5)`.

        Raises:
            CaseError: one of them differs.
        """
        for name, value in wanted.items():
            held = self.record.get(name)
            if not _agree(held, value):
                raise CaseError(
                    f"The knowledge base is of {name.replace('_', ' ')} {_said(held)}, and this is {_said(value)}: "
                    "build one with the same settings (python -m scripts knowledge_base build)."
                )

    def save(self, folder: str | os.PathLike) -> Path:
        """Write the base to a folder of its own, which nobody but its owner can read; returns the file.

        Raises:
            RefusedError: the folder cannot be written.
        """
        path = Path(folder) / FILE_NAME
        columns = {name: getattr(self, name).numpy() for name in _COLUMNS}
        columns["embeddings"] = columns["embeddings"].astype(np.float32)
        with writing_into(folder):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.parent.chmod(0o700)
        with written_whole(path) as temporary, open(os.open(temporary, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
            np.savez_compressed(file, record=np.array(json.dumps(dict(self.record))), **columns)
        return path

    @classmethod
    def load(cls, folder: str | os.PathLike) -> KnowledgeBase:
        """Read the base of a folder.

        Raises:
            CaseError: there is none, it is torn, empty, of another version, or its encoder is not the one it was built
                with.
        """
        path = Path(folder) / FILE_NAME
        if not path.is_file():
            raise CaseError(
                f"There is no knowledge base in {folder} (no {FILE_NAME}); build one with "
                f"python -m scripts knowledge_base build --dataset_dir MY_PAIRS --output {folder}."
            )
        base = cls(**_read(path))
        if path.parent.stat().st_mode & 0o077:
            logger.warning(f"The knowledge base {folder} holds patients' images, and others can open it: chmod 700.")
        encoder = path.with_name(ENCODER_NAME)
        wanted = base.record.get("encoder_sha256")
        if wanted and (not encoder.is_file() or sha256_of_file(encoder) != wanted):
            raise CaseError(
                f"{ENCODER_NAME} in {folder} is not the encoder that this knowledge base was built with: put that one "
                "back, or build the base again."
            )
        return base


_DAMAGED = (OSError, ValueError, KeyError, EOFError, AttributeError, TypeError)


def _read(path: Path) -> dict[str, Any]:
    """The columns of a base's file as tensors, and its record."""
    try:
        with np.load(path, allow_pickle=False) as file:
            record = json.loads(str(file["record"]))
            version = record.get("version")
            columns = {name: torch.from_numpy(file[name]) for name in _COLUMNS} if version == VERSION else {}
        if columns and len(columns["embeddings"]):
            _check_columns(columns, record)
    except (*_DAMAGED, zipfile.BadZipFile, zlib.error) as error:
        raise CaseError(f"The knowledge base {path} is torn or damaged: copy it again, or build it again.") from error
    if version != VERSION:
        raise CaseError(f"The knowledge base {path} has version {version}, not {VERSION}: build it again.")
    if not len(columns["embeddings"]):
        raise CaseError(f"The knowledge base {path} is empty: build it from a training set with subjects.")
    return {**columns, "record": record}


def _check_columns(columns: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Raises ValueError: columns that do not belong together or to the record."""
    lengths = {len(column) for column in columns.values()}
    images = [columns[name] for name in ("sources", "targets")]
    size = record.get("slab_shape", [*images[0].shape[1:]])
    whole = all(image.dtype == torch.uint8 and [*image.shape[1:]] == [*size] for image in images)
    if len(lengths) > 1 or not whole or not columns["embeddings"].isfinite().all():
        raise ValueError("columns that do not belong together")


def new_secret() -> str:
    """A secret for `person_code`."""
    return secrets.token_hex(16)


def _agree(held: Any, wanted: Any) -> bool:
    if isinstance(wanted, str) or held is None:
        return held == wanted
    held, wanted = np.atleast_1d(np.asarray(held, dtype=float)), np.atleast_1d(np.asarray(wanted, dtype=float))
    return held.shape == wanted.shape and bool(np.allclose(held, wanted, rtol=0, atol=1e-2))


def _said(value: Any) -> str:
    if isinstance(value, str) or value is None:
        return str(value)
    return " x ".join(f"{float(number):.4g}" for number in np.atleast_1d(value))


def _library_search(vectors: np.ndarray) -> Callable[[np.ndarray], np.ndarray] | None:
    """Queries (n, D) -> (n, k) nearest rows, by faiss or hnswlib; None, and a line in the log, without either."""
    count = min(_CANDIDATES, len(vectors))
    faiss, found = optional_import("faiss")
    if found:
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(vectors)
        return lambda query: index.search(query, count)[1]
    hnswlib, found = optional_import("hnswlib")
    if not found:
        logger.warning(
            f"The knowledge base has {len(vectors)} slices, which are searched one by one; it is faster with the "
            "package faiss-cpu or hnswlib."
        )
        return None
    index = hnswlib.Index("ip", vectors.shape[1])
    index.init_index(len(vectors))
    index.add_items(vectors)
    index.set_ef(2 * count)
    return lambda query: index.knn_query(query, count)[0]
