"""A device: whether it is there, its memory, how many slabs it holds, and whether an error says that it ran out."""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .errors import CaseError

__all__ = ["PeakMemory", "available_memory", "batch_that_fits", "check_device", "is_out_of_memory", "keep_freed_memory"]

SHARE = 0.5  # of the free memory that a batch may take: convolutions need workspace, and others use the machine too
MOST_ON_CPU = 8  # slabs; more of them are not faster there

_SIGNS = (
    "out of memory",
    "can't allocate memory",  # torch on the CPU
    "not enough memory",  # the same on Windows
    "could not create a memory object",  # oneDNN, as the next two
    "could not create a primitive",
    "could not execute a primitive",
    "bad_alloc",
    "Failed to allocate memory",  # ONNX Runtime
)


class PeakMemory(TorchDispatchMode):
    """Counts what the tensors made inside the `with` block hold at once; `peak` is the most, bytes.

    Tensors alone: the workspace of a kernel is not seen, and neither is what other libraries allocate.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._now = 0
        self._known: dict[int, weakref.ref] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation, and count the storages that came with it."""
        kwargs = kwargs or {}
        for tensor in tree_leaves((args, dict(kwargs))):
            self._meet(tensor, new=False)
        result = func(*args, **kwargs)
        for tensor in tree_leaves(result):
            self._meet(tensor, new=True)
        return result

    def _meet(self, tensor: Any, new: bool) -> None:
        """Count the storage of a tensor if it is new, and forget it when it is freed."""
        if not isinstance(tensor, Tensor):
            return
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes() if new else 0
        if key in self._known:
            return

        def freed(_: weakref.ref) -> None:
            self._now -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, freed)
        self._now += size
        self.peak = max(self.peak, self._now)


def check_device(name: object) -> str:
    """The name of a device, such as "cuda:0" or "cpu", that is there.

    Raises:
        CaseError: it is not, or the name is no device's.
    """
    try:
        torch.empty(0, device=str(name))
    except (RuntimeError, AssertionError):
        raise CaseError(f"The device {name} is not here; use cpu, or cuda:0 where there is a GPU.") from None
    return str(name)


def batch_that_fits(call: Callable[[], Any], device: torch.device, most: int) -> int:
    """How many slabs one call of a network can take.

    Args:
        call: evaluates one slab; run once, under `PeakMemory`.
        device: where.
        most: slabs there are.

    Returns:
        from 1 to `most`: as many as fit into `SHARE` of the free memory, on the CPU at most `MOST_ON_CPU`.
    """
    most = most if device.type == "cuda" else min(most, MOST_ON_CPU)
    free = available_memory(device)
    if free is None:
        return most
    with PeakMemory() as memory:
        call()
    return max(1, min(most, int(SHARE * free) // max(1, memory.peak)))


def available_memory(device: torch.device) -> int | None:
    """Bytes that can be had on a device; None where the system does not tell."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type != "cpu" or not Path("/proc/meminfo").is_file():
        return None
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    free = next((1024 * int(words[1]) for words in lines if words[0] == "MemAvailable:"), None)
    limit = _container_memory(Path("/sys/fs/cgroup"))
    return limit if free is None else free if limit is None else min(free, limit)


def _container_memory(groups: Path) -> int | None:
    """What the limit of a container leaves, from the folder of its cgroups (version 2 or 1); None without one."""
    for limit, used, stat, cache in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
    ):
        try:
            counts = dict(line.split() for line in (groups / stat).read_text().splitlines())
            # the system gives up cached files before anything else
            taken = int((groups / used).read_text()) - int(counts.get(cache, 0))
            return max(0, int((groups / limit).read_text()) - taken)
        except (OSError, ValueError):  # not there, or "max"
            continue
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(sign in str(error) for sign in _SIGNS)


def keep_freed_memory() -> None:
    """Let glibc keep the memory that tensors free, for the next ones; other C libraries are left as they are.

    By default large tensors are given back to the system when they are freed and mapped again page by page: 49,000
    page faults and 15 % of the processor's time of a training step on two cores. Threads share one arena: what one of
    them frees, the others can use.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD, M_ARENA_MAX of malloc.h
        for option, value in ((-3, 2**30), (-1, 2**31 - 1), (-2, 2**28), (-8, 1)):
            mallopt(option, value)
