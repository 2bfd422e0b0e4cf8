"""Prepared volumes kept on disk, so that a second start of a training does not prepare them again."""

from __future__ import annotations

import copy
import enum
import functools
import hashlib
import json
import logging
import os
import pickle
import types
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..contrasts import CONTRAST_PREFIX
from ..errors import CaseError
from ..files import sha256_of_file, written_whole
from ..processes import run_isolated
from ..volumes.parts import sha256_of_volume

logger = logging.getLogger(__name__)

Arrays = dict[str, np.ndarray]

IMAGES = ("source", "target", "mask", "labels", "lesion")
FORMAT = 3
"""Of the cached files; raised when the arrays in them change their meaning or shape."""

_SUFFIX = f".v{FORMAT}.npz"
_CODE = Path(__file__).resolve().parents[1]
_PACKAGES = ("dipy", "itk", "monai", "numpy", "scipy", "torch")
_DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


def prepared_arrays(
    items: Sequence[Mapping],
    make: Callable[[Mapping], Arrays],
    cache_dir: str | os.PathLike | None = None,
    num_workers: int | None = 1,
    progress: Callable[[Iterable], Iterable] = iter,
    unused: Iterable[str] = (),
) -> list[Arrays]:
    """`make(item)` for each entry of a datalist, from the cache where it is there, else made and put there.

    A cached file belongs to the contents of the item's images, its other entries, `make` with all its arguments
    (transforms down to their attributes), this package's code and the versions of the libraries it uses. A damaged one
    is made again. Files of another `FORMAT` are left alone, which is logged once for the whole list.

    Args:
        items: {"subject", and paths where `is_image`}.
        make: function of a module, or a `functools.partial` of one, that depends on nothing but its arguments. One
            with a lambda in its arguments is computed anew each time, in this process.
        cache_dir: folder of the cache, made if need be; None for none.
        num_workers: processes that make what is not there; None for one a core, 1 for none but this one.
        progress: wraps the loop over what has to be made (tqdm).
        unused: entries of the items that `make` does not look at.

    Returns:
        the arrays of each item, by name.

    Raises:
        CaseError: what `make` raises, or that its process was killed.
    """
    paths: list[Path | None] = [None] * len(items)
    if cache_dir is not None:
        paths = _cache_paths(items, make, Path(cache_dir), set(unused))
    results = [None if path is None else _load(path) for path in paths]
    pending = [index for index, result in enumerate(results) if result is None]
    if items and cache_dir is not None and len(pending) < len(items):
        logger.info(f"{len(items) - len(pending)} of {len(items)} subjects come prepared from {cache_dir}")
    if pending and cache_dir is not None and _has_other_formats(Path(cache_dir)):
        logger.info(f"Volumes in {cache_dir} that another version prepared are in another format and not read again")
    made = run_isolated(functools.partial(_attempt, make, items), pending, _num_processes(make, num_workers, pending))
    for _, (index, result) in zip(progress(pending), made, strict=False):
        results[index] = _checked(result, items[index])
        if paths[index] is not None:
            _save(results[index], paths[index])
    return results


def is_image(key: str) -> bool:
    """Whether an item has the path of an image there: one of `IMAGES`, or one of several contrasts."""
    return key in IMAGES or key.startswith(CONTRAST_PREFIX)


def _attempt(make: Callable[[Mapping], Arrays], items: Sequence[Mapping], index: int) -> Arrays | Exception:
    """The arrays of an item, or why there are none; an exception could not say so from another process."""
    try:
        # a copy, since what a transform remembers of one subject must not reach the next
        return copy.deepcopy(make)(items[index])
    except Exception as error:
        return _sendable(error)


def _sendable(error: Exception) -> Exception:
    """The `CaseError` that MONAI wrapped, else the error with a note of its root: causes are lost between processes."""
    root: BaseException = error
    while not isinstance(root, CaseError) and root.__cause__ is not None:
        root = root.__cause__
    if isinstance(root, CaseError):
        return root
    if root is not error and hasattr(error, "add_note"):  # not in Python 3.10
        error.add_note(f"caused by {root!r}")
    return error


def _checked(result: Arrays | Exception | None, item: Mapping) -> Arrays:
    if isinstance(result, Exception):
        raise result
    if result is None:
        raise CaseError(
            f"The process that prepared subject {item.get('subject')} was killed, for want of memory as a rule; lower "
            "prepare_workers."
        )
    return result


def _num_processes(make: Callable, num_workers: int | None, pending: Sequence[int]) -> int:
    """How many processes `run_isolated` shall start; 0 is none."""
    workers = min(len(pending), num_workers or num_cores())
    if workers < 2:
        return 0
    try:
        pickle.dumps(make)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        logger.warning(f"The volumes are prepared one after the other, since a transform cannot be sent ({error})")
        return 0
    return workers


def num_cores() -> int:
    """Cores that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cache_paths(items: Sequence[Mapping], make: Callable, folder: Path, unused: set[str]) -> list[Path | None]:
    try:
        recipe = [fingerprint(make), {name: version(name) for name in _PACKAGES}, _code_digest()]
    except TypeError as error:
        logger.warning(f"The prepared volumes are not kept for the next start: {error}")
        return [None] * len(items)
    return [folder / f"{_digest([recipe, _contents(item, unused)])}{_SUFFIX}" for item in items]


def _contents(item: Mapping, unused: set[str]) -> dict[str, Any]:
    """An item with the checksums of its images in the place of their paths."""
    used = {key: value for key, value in item.items() if key not in unused}
    return {key: sha256_of_volume(value) if is_image(key) else fingerprint(value) for key, value in used.items()}


def _has_other_formats(folder: Path) -> bool:
    return any(not path.name.endswith(_SUFFIX) for path in folder.glob("*.npz"))


def _digest(description: object) -> str:
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:32]


@functools.cache
def _code_digest() -> str:
    """Checksum of the sources that prepare volumes."""
    rooms = ("data", "simulation", "transforms", "volumes")
    sources = sorted(path for room in rooms for path in (_CODE / room).glob("*.py"))
    return _digest([path.name + sha256_of_file(path) for path in sources])


def fingerprint(value: Any) -> Any:
    """Describe an object by its class and attributes, all the way down, in JSON's types; the state of generators of
    random numbers is left out.

    Raises:
        TypeError: for a lambda or local function, whose name does not tell what it does.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.random.RandomState | np.random.Generator | torch.Generator):
        return None
    if isinstance(value, np.ndarray | np.generic | torch.Tensor):
        return [str(value.dtype), np.asarray(value).tolist()]
    if isinstance(value, Mapping):
        return {"items": sorted(([fingerprint(k), fingerprint(v)] for k, v in value.items()), key=repr)}
    if isinstance(value, set | frozenset):
        return sorted((fingerprint(v) for v in value), key=repr)
    if isinstance(value, list | tuple):
        return [fingerprint(v) for v in value]
    return _of_object(value)


def _of_object(value: Any) -> Any:
    if isinstance(value, functools.partial):
        return ["partial", fingerprint(value.func), fingerprint(value.args), fingerprint(value.keywords)]
    if isinstance(value, types.MethodType):
        return [value.__name__, fingerprint(value.__self__)]
    if isinstance(value, type | types.FunctionType | types.BuiltinFunctionType):
        if "<" in value.__qualname__:
            raise TypeError(f"{value.__module__}.{value.__qualname__} is a function without a name of its own")
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, enum.Enum | torch.dtype | torch.device | os.PathLike):
        return str(value)
    return [fingerprint(type(value)), fingerprint(getattr(value, "__dict__", {}))]


def _load(path: Path) -> Arrays | None:
    """The arrays of a cached file; None where there is none or it is damaged."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except _DAMAGED as error:
        logger.warning(f"{path} is damaged ({error}); the subject is prepared again")
        return None


def _save(arrays: Arrays, path: Path) -> None:
    """Write a file whole or not at all; a cache that cannot be written is no reason to stop."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **arrays)
    except OSError as error:
        logger.warning(f"The cache {path.parent} cannot be written ({error})")
