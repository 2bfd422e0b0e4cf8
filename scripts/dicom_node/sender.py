"""The side of the node that gives: results go to a peer by C-STORE, or into a folder."""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ..dicom.headers import quiet_pydicom
from ..errors import CaseError
from ..files import remove, remove_remains, temporary_name
from . import StoppedError
from .connection import limit_connection
from .spool import Spool, sync, sync_tree

if TYPE_CHECKING:
    from pynetdicom.association import Association

logger = logging.getLogger(__name__)

LONGEST_PAUSE_S = 3600.0


class Delivery(Protocol):
    """Where results go; as text it says so."""

    def __call__(self, folder: Path) -> None:
        """Deliver every file in the folders of a folder.

        Raises:
            UnreachableError: nothing can be delivered now.
            CaseError: this result was not taken.
            StoppedError: the node ends.
        """


class UnreachableError(Exception):
    """The destination of all results does not answer; the message says how."""


@dataclass
class Pause:
    """How long to wait after so many failures."""

    until: float = 0.0
    length: float = 0.0


class Sender:
    """Delivers what lies in the spool's outgoing folder, and tries again for ever, with growing pauses.

    Args:
        spool: where results wait.
        deliver: where they go.
        retry_s: the first pause in seconds; each is twice as long as the one before, up to an hour.
        clock: seconds that never go backwards.
    """

    def __init__(
        self, spool: Spool, deliver: Delivery, retry_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.spool = spool
        self.deliver = deliver
        self.retry_s = retry_s
        self._clock = clock
        self._pauses: dict[Path | None, Pause] = {}  # None: of the destination itself

    def step(self) -> None:
        """Deliver everything whose pause is over."""
        for folder in self.spool.outgoing():
            if not (self._due(None) and self._due(folder)):
                continue
            study = folder.name.partition(".")[0]
            try:
                self.deliver(folder)
            except UnreachableError as error:
                pause = self._pause(None)
                logger.error(f"{self.deliver} cannot be reached ({error}); the next try is in {pause:g} s.")
            except CaseError as error:
                pause = self._pause(folder)
                logger.error(f"Study {study} was not delivered: {error} The next try is in {pause:g} s.")
            else:
                self._pauses.pop(None, None)
                self._pauses.pop(folder, None)
                self.spool.delivered(folder)
                logger.info(f"Study {study}: delivered to {self.deliver}.")

    def _due(self, what: Path | None) -> bool:
        return self._clock() >= self._pauses.get(what, Pause()).until

    def _pause(self, what: Path | None) -> float:
        pause = self._pauses.setdefault(what, Pause(length=self.retry_s / 2))
        pause.length = min(2 * pause.length, max(LONGEST_PAUSE_S, self.retry_s))
        pause.until = self._clock() + pause.length
        return pause.length


class FolderDelivery:
    """Copies each series into a folder, which replaces an older one of the same name; whole or not at all.

    Args:
        output_dir: made where it is not there; what killed nodes left in it under temporary names is removed.

    Raises:
        CaseError: it cannot be made.
    """

    def __init__(self, output_dir: str | os.PathLike) -> None:
        self.output_dir = Path(output_dir).expanduser().resolve()
        try:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            remove_remains(self.output_dir)
        except OSError as error:
            raise CaseError(f"output_dir cannot be written ({error.strerror}); give another one.") from None

    def __str__(self) -> str:
        return str(self.output_dir)

    def __call__(self, folder: Path) -> None:
        try:
            for series in sorted(folder.iterdir()):
                self._place(series)
        except OSError as error:
            raise UnreachableError(error.strerror) from None

    def _place(self, series: Path) -> None:
        """Copy under a temporary name, then rename."""
        place = self.output_dir / series.name
        new, old = temporary_name(place), temporary_name(place.with_name(f"{series.name}.old"))
        for left in (new, old):
            remove(left)
        new.mkdir()  # with the permissions of the umask; the spool's are for its owner alone
        for file in sorted(series.iterdir()):
            shutil.copyfile(file, new / file.name)
        sync_tree(new)
        if place.exists():
            os.replace(place, old)
        os.replace(new, place)
        sync(self.output_dir)
        remove(old)


class PeerDelivery:
    """Sends each instance by C-STORE (PS3.4, annex B); what was confirmed once is not sent again.

    Success and warning statuses count as stored (PS3.4 table B.2-1).

    Args:
        ae_title: the node's own.
        peer: (AE title, host, port) of the receiver.
        stop: when set, no further instance is sent.
        timeout_s: how long an answer may take.
    """

    def __init__(
        self, ae_title: str, peer: tuple[str, str, int], stop: threading.Event | None = None, timeout_s: float = 120.0
    ) -> None:
        from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
        from pynetdicom import AE
        from pynetdicom.sop_class import MRImageStorage

        self.peer = peer
        self._stop = stop or threading.Event()
        self._confirmed: dict[Path, set[Path]] = {}
        self._ae = AE(ae_title)
        self._ae.add_requested_context(MRImageStorage, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
        for timeout in ("connection_timeout", "acse_timeout", "dimse_timeout", "network_timeout"):
            setattr(self._ae, timeout, timeout_s)

    def __str__(self) -> str:
        return "{}@{}:{}".format(*self.peer)

    def __call__(self, folder: Path) -> None:
        confirmed = self._confirmed.setdefault(folder, set())
        files = [file for file in sorted(folder.glob("*/*.dcm")) if file not in confirmed]
        if files:
            self._send(files, confirmed)
        del self._confirmed[folder]

    def _send(self, files: Sequence[Path], confirmed: set[Path]) -> None:
        from pynetdicom import evt

        title, host, port = self.peer
        try:
            association = self._ae.associate(
                host, port, ae_title=title, evt_handlers=[(evt.EVT_CONN_OPEN, limit_connection)]
            )
        except OSError as error:  # no such host
            raise UnreachableError(error.strerror) from None
        if not association.is_established:
            raise UnreachableError(_why_not(association))
        try:
            refused = [status for file in files if (status := self._store(association, file, confirmed))]
        finally:
            association.release()
        if refused:
            raise CaseError(f"{self} refused {len(refused)} of {len(files)} instances (status {refused[0]:04X}).")

    def _store(self, association: Association, file: Path, confirmed: set[Path]) -> int:
        """Send one instance; its status where it was refused, else 0."""
        from pynetdicom.status import code_to_category

        if self._stop.is_set():
            raise StoppedError
        if not association.is_established:
            raise UnreachableError("it ended the association")
        try:
            answer = association.send_c_store(quiet_pydicom().dcmread(file))
        except ValueError:
            raise CaseError(f"{self} takes no MR images; let it take MR Image Storage.") from None
        if "Status" not in answer:
            raise UnreachableError("it gave no answer")
        if code_to_category(answer.Status) not in ("Success", "Warning"):
            return answer.Status
        confirmed.add(file)
        return 0


def _why_not(association: Association) -> str:
    """Why there is no association."""
    if association.is_rejected:
        return "it rejects the association; check both AE titles"
    if association.rejected_contexts:
        return "it takes no MR images; let it take MR Image Storage"
    return "it does not answer"
