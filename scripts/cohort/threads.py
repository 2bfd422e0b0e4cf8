"""A thread beside the one that samples, with a number of OpenMP threads of its own."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

__all__ = ["worker_thread"]


@contextmanager
def worker_thread(num_threads: int | None = None) -> Iterator[ThreadPoolExecutor]:
    """A thread that does what it is given, one thing after the other; at the end, all of it.

    That is so where the block is interrupted, too: what must not be waited for has to be ended in the block.

    Each thread has its own number of OpenMP threads, and one that is started later has the number that was set last, in
    whichever thread. So this one sets its own, and at the end those started later get the caller's back; the caller's
    never changes. What changes it for a block in the caller's own thread needs no thread and is not made by this.

    Args:
        num_threads: OpenMP threads of the thread; None for as many as the caller's.
    """
    number = torch.get_num_threads()
    own = number if num_threads is None else num_threads
    try:
        with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(own,)) as thread:
            yield thread
    finally:
        torch.set_num_threads(number)
