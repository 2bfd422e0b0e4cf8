"""The items of a run: a case that fails alone, and one that is made while the one before it is in use."""

from __future__ import annotations

import ctypes
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import Any

from monai.data import DataLoader, Dataset
from monai.transforms import Compose

from ..contrasts import contrasts_in
from ..errors import CaseError, reason
from ..volumes.parts import files_of_volume
from .threads import worker_thread

__all__ = ["STAMPS", "CaseDataset", "CaseLoader", "Overlap", "check_unchanged", "stamps_of", "timed"]

STAMPS = "stamps"
"""Key of an item for `stamps_of` its case."""


class CaseDataset(Dataset):
    """A dataset whose items do not fail: where the transform raises, the item is the case and the reason instead.

    Items are those of MONAI's `Dataset` with `stamps_of` their files, or `{"case": CASE, "image": path, "failure":
    reason}`.

    Args:
        data: `{"case": CASE, "image": path}` for each case; one that has a `failure` already comes out as it is.
        transform: the preprocessing; its first transform loads.

    Attributes:
        seconds: taken by all items so far: "loading", and "preprocessing" after it.
    """

    def __init__(self, data: Sequence[dict[str, str]], transform: Compose) -> None:
        super().__init__(data, transform)
        self.seconds: Counter[str] = Counter()

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.prepare(self.data[index])

    def prepare(self, case: dict[str, str]) -> dict[str, Any]:
        """The item of a case, which need not be one of `data`."""
        if "failure" in case:
            return case
        try:
            stamps = stamps_of(case)
            with timed(self.seconds, "loading"):
                loaded = self.transform(case, end=1)
            with timed(self.seconds, "preprocessing"):
                return {**self.transform(loaded, start=1), STAMPS: stamps}
        except Exception as error:
            return {**case, "failure": reason(error)}


def stamps_of(case: Mapping[str, Any]) -> str:
    """Size (bytes) and time of change (ns) of each file of a case by its path, as a text in JSON."""
    named = [case["image"], *contrasts_in(case).values()]
    paths = [path for value in named for path in (value if isinstance(value, list) else [value])]
    files = [file for path in paths for file in files_of_volume(os.path.expanduser(path))]
    return json.dumps({str(file): _stamp(file) for file in files})


def check_unchanged(stamps: str, case: str) -> None:
    """Refuse a case of which a file is not any more the one that was loaded: the digest in its record is taken later.

    Args:
        stamps: `stamps_of` it, before it was loaded.
        case: CASE.

    Raises:
        CaseError: a file changed, or is not there any more.
    """
    now = [(_stamp(path), stamp) for path, stamp in json.loads(stamps).items()]
    changed = [found for found, stamp in now if found != stamp]
    if None in changed:
        raise CaseError(
            f"The source of {case} is not there any more, so nothing was saved; put it back, and type the command "
            "again."
        )
    if changed:
        raise CaseError(
            f"The source of {case} was changed while it was translated, so nothing was saved; see that it is copied to "
            "its end, and type the command again."
        )


def _stamp(path: str | os.PathLike) -> list[int] | None:
    try:
        told = os.stat(path)
    except (OSError, ValueError):
        return None
    return [told.st_size, told.st_mtime_ns]


class Overlap(str, Enum):
    """What runs at the same time in a cohort. The outputs are the same bytes.

    none: nothing.
    saving: a case is postprocessed and saved while the next one is loaded and preprocessed. For sampling on the CPU,
        which takes all cores: whatever runs beside it makes its threads wait for each other.
    all: while a case is sampled, the one before is postprocessed and saved, and the next one loaded and preprocessed.
    """

    NONE = "none"
    SAVING = "saving"
    ALL = "all"

    __str__ = str.__str__

    @classmethod
    def _missing_(cls, value: object) -> None:
        raise CaseError(f"overlap is {value}; use one of {', '.join(cls)}.")


class CaseLoader(DataLoader):
    """MONAI's loader; with the overlap "all" each batch is made in a thread while the one before it is in use.

    There is one batch in advance, no more: MONAI's `ThreadDataLoader` would hold two, which for a large CT is another
    gigabyte, and would end without a word where its thread fails. Worker processes would need shared memory for whole
    volumes, of which containers have little.

    Args:
        dataset: such as `CaseDataset`.
        overlap: see `Overlap`.
        kwargs: of `DataLoader`.

    Raises:
        CaseError: another overlap.
    """

    def __init__(self, dataset: Dataset, overlap: str = Overlap.NONE, **kwargs: Any) -> None:
        super().__init__(dataset, **kwargs)
        self.in_advance = Overlap(overlap) == Overlap.ALL
        self._batches: Iterator[Any] | None = None

    def __iter__(self) -> Iterator[Any]:
        batches = super().__iter__()
        self._batches = _in_advance(batches) if self.in_advance else batches
        return self._batches

    def close(self) -> None:
        """End an iteration that is under way, and what is being loaded for it."""
        if self.in_advance and self._batches is not None:
            self._batches.close()


def _in_advance(items: Iterator[Any]) -> Iterator[Any]:
    """Items of an iterator, each made in a thread while the one before it is in use."""
    end = object()
    with worker_thread() as thread:
        identity = thread.submit(threading.get_ident).result()
        following = thread.submit(next, items, end)
        try:
            while (item := following.result()) is not end:
                following = thread.submit(next, items, end)
                yield item
        finally:
            # nobody waits for it; a skull strip may take minutes, and ends its own processes when interrupted
            if following.running():
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(identity), ctypes.py_object(KeyboardInterrupt)
                )


@contextmanager
def timed(seconds: Counter[str], phase: str) -> Iterator[None]:
    """Add the wall time of a block to those of its phase."""
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[phase] += time.perf_counter() - start
