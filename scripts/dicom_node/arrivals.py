"""When a study is finished: nobody in the network says so."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol


class Association(Protocol):
    """The part of an association that is used here."""

    def is_alive(self) -> bool:
        """Whether it is open."""


class Arrivals:
    """Studies of which something came; each is finished when nothing more of it came for a while.

    While an association is open, the study that it sent last is not finished: its sender may be slow. One that goes on
    to another study holds up the first no longer: routers keep one association open all day.

    Args:
        quiet_s: how long nothing must have come, in seconds.
        clock: seconds that never go backwards.
    """

    def __init__(self, quiet_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.quiet_s = quiet_s
        self._clock = clock
        self._guard = threading.Lock()
        self._latest: dict[str, float] = {}
        self._sending: dict[Association, str] = {}

    def note(self, study: str, association: Association | None = None) -> None:
        """Something of a study came, through an association."""
        with self._guard:
            self._latest.pop(study, None)
            self._latest[study] = self._clock()
            if association is not None:
                self._sending[association] = study

    def take_finished(self) -> str | None:
        """The finished study that has waited longest, which is given out once; None where there is none."""
        with self._guard:
            self._sending = {a: study for a, study in self._sending.items() if a.is_alive()}
            under_way = set(self._sending.values())
            long_ago = self._clock() - self.quiet_s
            finished = [study for study, at in self._latest.items() if at <= long_ago and study not in under_way]
            if not finished:
                return None
            del self._latest[finished[0]]
            return finished[0]
