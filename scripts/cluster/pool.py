"""Workers of a Ray cluster: cases are handed out one at a time, and those of a lost worker again."""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from ..errors import CaseError

__all__ = ["Pool"]

logger = logging.getLogger(__name__)

_LOOK_S = 2.0
"""Seconds after which it looks whether there is room for more workers, where nothing else happens."""
_PATIENCE_S = 10.0
"""Seconds that workers have to remove what they downloaded."""


class Pool:
    """Workers, each with one case at a time.

    There are as many as the cluster has room for: one that is lost is replaced, unless its machine is gone, and
    machines that join get theirs.

    Args:
        make: makes a worker, an actor of `CaseWorker`, which Ray starts where there is room for it.
        room: how many workers the cluster has room for at the moment.
        retries: how often a case is given to another worker when its own was lost.
        lacking: says why there is no room, in half a sentence.
        joining_s: seconds that it waits for a machine with room where there is none.
    """

    def __init__(
        self,
        make: Callable[[], ActorHandle],
        room: Callable[[], int],
        retries: int,
        *,
        lacking: Callable[[], str],
        joining_s: float,
    ) -> None:
        self.make = make
        self.room = room
        self.retries = retries
        self.lacking = lacking
        self.joining_s = joining_s
        self._cases: Sequence[dict[str, Any]] = ()
        self._waiting: deque[int] = deque()
        self._lost: Counter[int] = Counter()
        self._idle: list[ActorHandle] = []
        self._busy: dict[ray.ObjectRef, tuple[ActorHandle, int | None]] = {}  # None: it loads the network
        self._lost_at_start = 0
        self._no_room_since: float | None = None

    def translate(self, cases: Sequence[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any] | None]]:
        """Translate cases.

        Yields:
            the place of a case and what `CaseWorker.translate` gave, in the order in which they are done; `failure`
            too where the case has lost one worker more than there are retries.

        Raises:
            CaseError: what would end the main job, such as weights that are not there or a full disk; or workers are
                lost before they have a case, or fit on no machine.
        """
        self._cases, self._waiting, self._lost = cases, deque(range(len(cases))), Counter()
        num_open = len(cases)
        while num_open:
            self._hand_out()
            self._check_room()
            for done in ray.wait(list(self._busy), timeout=_LOOK_S)[0]:
                worker, index = self._busy.pop(done)
                for outcome in self._outcomes(done, worker, index):
                    num_open -= 1
                    yield index, outcome

    def _outcomes(self, done: ray.ObjectRef, worker: ActorHandle, index: int | None) -> Iterator[dict[str, Any] | None]:
        """What came of a case; nothing where it is to be tried again, or the worker had none yet."""
        try:
            outcome = self._result(done)
        except RayError as error:
            self._lose(worker, index, error)
            if index is None:
                return
            self._lost[index] += 1
            if self._lost[index] <= self.retries:
                self._waiting.append(index)  # behind the others: it may be what its worker was lost for
                return
            outcome = {"case": self._cases[index]["case"], "failure": _why_lost(self._lost[index])}
        else:
            self._idle.append(worker)
        if index is not None:
            self._lost_at_start = 0
            yield outcome

    def close(self) -> None:
        """End the workers, also those that are at work."""
        if closing := [worker.close.remote() for worker in self._idle]:
            ray.wait(closing, num_returns=len(closing), timeout=_PATIENCE_S)
        for worker in (*self._idle, *(worker for worker, _ in self._busy.values())):
            _end(worker)

    def _hand_out(self) -> None:
        """Give each idle worker a case; where none is left, start as many as there is room and work for."""
        while self._waiting and self._idle:
            worker, index = self._idle.pop(), self._waiting.popleft()
            self._busy[worker.translate.remote(self._cases[index])] = worker, index
        num_starting = sum(index is None for _, index in self._busy.values())
        # at least one, for which a cluster that grows on demand gets a machine
        num_new = min(max(self.room(), 1) - len(self._busy), len(self._waiting) - num_starting)
        for _ in range(num_new):
            worker = self.make()
            self._busy[worker.load.remote()] = worker, None

    def _check_room(self) -> None:
        """Say that no worker can start, where none is at work.

        Raises:
            CaseError: it stayed so.
        """
        if any(index is not None for _, index in self._busy.values()) or self.room():
            self._no_room_since = None
            return
        now = time.monotonic()
        if self._no_room_since is None:
            self._no_room_since = now
            if self.joining_s:
                logger.warning(f"{self.lacking()}; waiting {self.joining_s:g} s for another machine to join.")
        if now - self._no_room_since >= self.joining_s:
            raise CaseError(f"{self.lacking()}; give fewer cpus or gpus, or add a machine that has them.")

    @staticmethod
    def _result(done: ray.ObjectRef) -> Any:
        """What a worker gave; its own errors are raised as they were there."""
        try:
            return ray.get(done)
        except RayTaskError as error:
            raise error.cause if isinstance(error.cause, CaseError) else RuntimeError(str(error)) from None

    def _lose(self, worker: ActorHandle, index: int | None, error: RayError) -> None:
        """Count a worker that was lost.

        Raises:
            CaseError: more were lost while they loaded the network than chance explains.
        """
        logger.warning(f"A worker was lost ({type(error).__name__}).")
        _end(worker)
        self._lost_at_start += index is None
        if self._lost_at_start > self.retries + max(self.room(), 1):
            raise CaseError(
                f"{self._lost_at_start} workers were lost while they loaded the network, as when the memory runs out; "
                "start fewer at a time (workers), and see the logs of Ray."
            )


def _why_lost(times: int) -> str:
    return (
        f"Its worker was lost {times} times, as when the memory runs out; translate it with fewer workers at a time "
        "(workers), or on one machine."
    )


def _end(worker: ActorHandle) -> None:
    with suppress(RayError, ValueError):  # ValueError: the connection is closed already
        ray.kill(worker)
