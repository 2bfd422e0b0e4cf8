"""Work that is done in one process an item: one that is killed, as for want of memory, takes no other with it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import TypeVar

import itk
import torch
from itk.support.lazy import ITKLazyLoadLock, LazyITKModule
from tqdm import tqdm

Item = TypeVar("Item")
Result = TypeVar("Result")


def run_isolated(
    function: Callable[[Item], Result], items: Sequence[Item], num_workers: int
) -> Iterator[tuple[Item, Result | None]]:
    """Each item and its result, in the order they are done.

    Args:
        function: of a module, or a `functools.partial` of one; what it prints is dropped. It computes on one thread.
        items: what it is called with; both go through pickle.
        num_workers: processes at a time; 0 computes in this process, one item after the other.

    Yields:
        (item, result); None where the process ended without one, because it was killed or crashed.
    """
    if num_workers < 1:
        yield from ((item, function(item)) for item in items)
        return
    # a clean server that has imported everything forks faster than a new interpreter starts, and safer than this one
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:
        context.set_forkserver_preload([getattr(function, "func", function).__module__])
    waiting, running = deque(items), {}
    try:
        while waiting or running:
            while waiting and len(running) < num_workers:
                receiver, process = _start(context, function, waiting[0])
                running[receiver] = process, waiting.popleft()
            for receiver in wait(list(running)):
                process, item = running.pop(receiver)
                yield item, _received(receiver)
                process.join()
    finally:
        for process, _ in running.values():
            process.terminate()
            process.join()


def _start(context, function: Callable, item: object) -> tuple[Connection, multiprocessing.Process]:
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(sender, function, item), daemon=True)
    process.start()
    sender.close()  # so that the end of the process is the end of the pipe
    return receiver, process


def _received(receiver: Connection) -> object | None:
    with receiver:
        try:
            return receiver.recv()
        except EOFError:
            return None


def with_own_locks() -> None:
    """Give this process locks of its own where libraries share one among all that are forked from one server.

    A process that is killed while it holds such a lock would leave the others waiting for ever.
    """
    tqdm.set_lock(threading.RLock())
    ITKLazyLoadLock.mp_lock = None
    LazyITKModule.set_lock(ITKLazyLoadLock())


def _work(sender: Connection, function: Callable, item: object) -> None:
    """What a process does."""
    with_own_locks()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C is answered by the parent alone
    torch.set_num_threads(1)
    itk.MultiThreaderBase.SetGlobalMaximumNumberOfThreads(1)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        result = function(item)
    sender.send(result)


def _end_with_parent() -> None:
    """Nobody waits for the result of a process whose parent was killed, and a new run may write the same files."""
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
