"""The threads of the node, how it ends, and what it logs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

from ..dicom.headers import quiet_pydicom
from ..errors import place_of
from . import StoppedError
from .receiver import Receiver

logger = logging.getLogger(__name__)

POLL_S = 0.5


def run_until(stop: threading.Event, receiver: Receiver, steps: Sequence[Callable[[], Any]], retry_s: float) -> None:
    """Do each of the steps over and over in a thread of its own, until `stop` is set; then end all."""
    threads = [threading.Thread(target=_repeat, args=(step, stop, retry_s), daemon=True) for step in steps]
    for thread in threads:
        thread.start()
    while not stop.wait(POLL_S):  # a wait without end would not be woken by a signal everywhere
        pass
    receiver.stop()
    for thread in threads:
        thread.join(60)


def _repeat(step: Callable[[], Any], stop: threading.Event, retry_s: float) -> None:
    """Do a step until it is time to stop; what fails unforeseen is tried again after a pause."""
    while not stop.is_set():
        try:
            if not step():
                stop.wait(POLL_S)
        except StoppedError:
            return
        except Exception as error:  # its message may quote a data set
            logger.error(f"Unforeseen {type(error).__name__} ({place_of(error)}); the next try is in {retry_s:g} s.")
            stop.wait(retry_s)


def log_without_names() -> None:
    """Log to standard error what this package says, and of others no message that could quote a data set."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    # pynetdicom logs exceptions, whose messages come from wherever they were raised; of its own, warnings quote values
    handler.addFilter(lambda record: record.exc_info is None)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("pynetdicom").setLevel(logging.ERROR)
    quiet_pydicom()
