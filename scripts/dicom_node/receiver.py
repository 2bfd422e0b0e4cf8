"""The side of the node that takes: C-ECHO and C-STORE (DICOM PS3.4, annexes A and B; PS3.7, section 9.1.1)."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from threading import Lock
from typing import TYPE_CHECKING

from ..dicom.identities import of_one_patient
from ..errors import CaseError
from .arrivals import Arrivals
from .connection import limit_connection
from .instance import Instance, read_uids
from .spool import Spool, digest

if TYPE_CHECKING:
    from pynetdicom.events import Event

logger = logging.getLogger(__name__)

# status of a C-STORE response, PS3.4 table B.2-1
STORED, OUT_OF_RESOURCES, DOES_NOT_MATCH, NOT_UNDERSTOOD = 0x0000, 0xA700, 0xA900, 0xC000
DUPLICATE = 0x0111  # PS3.7, annex C.5.4

MAXIMUM_PDU = 128 * 1024


@dataclass(frozen=True)
class Limits:
    """What a sender may use up.

    Attributes:
        free_bytes: space that must be left on the spool's disk.
        instance_bytes: of one instance, which is held in memory while it comes.
        associations: at a time.
        idle_s: seconds for which an open association may say nothing.
    """

    free_bytes: int = 2 * 2**30
    instance_bytes: int = 2**30
    associations: int = 10
    idle_s: float = 60.0


class Receiver:
    """Takes instances from known senders, and confirms each when it is safely in the spool.

    All storage SOP classes and transfer syntaxes are taken as they come, since senders push whole studies; the main
    job chooses among them. Only an association from one of the AE titles `allowed`, to `ae_title`, is accepted.

    Args:
        spool: where instances go.
        arrivals: each is noted there.
        ae_title: the node's.
        allowed: AE titles of those who may send.
        limits: what they may use up.
    """

    def __init__(
        self, spool: Spool, arrivals: Arrivals, ae_title: str, allowed: Sequence[str], limits: Limits | None = None
    ) -> None:
        from pynetdicom import AE, _config
        from pynetdicom.sop_class import Verification

        _config.UNRESTRICTED_STORAGE_SERVICE = True  # private SOP classes and transfer syntaxes too
        self.spool = spool
        self.arrivals = arrivals
        self._storing = Lock()
        self.limits = limits or Limits()
        self._ae = AE(ae_title)
        self._ae.add_supported_context(Verification)
        self._ae.require_called_aet = True
        self._ae.require_calling_aet = list(allowed)
        self._ae.maximum_associations = self.limits.associations
        self._ae.maximum_pdu_size = MAXIMUM_PDU
        self._ae.network_timeout = self.limits.idle_s
        self._coming: Counter[object] = Counter()

    def start(self, host: str, port: int) -> int:
        """Listen, in threads of its own; returns the port (0 takes a free one).

        Raises:
            CaseError: the address is in use, or is none of this machine.
        """
        from pynetdicom import evt

        handlers = [
            (evt.EVT_CONN_OPEN, limit_connection),
            (evt.EVT_CONN_CLOSE, lambda event: self._coming.pop(event.assoc, None)),
            (evt.EVT_DATA_RECV, self._limit_instance),
            (evt.EVT_DIMSE_RECV, lambda event: self._coming.pop(event.assoc, None)),
            (evt.EVT_REJECTED, _tell_rejected),
            (evt.EVT_C_STORE, self._store),
        ]
        try:
            server = self._ae.start_server((host, port), block=False, evt_handlers=handlers)
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or error
            raise CaseError(f"Cannot listen on {host}:{port} ({why}); give another port or host.") from None
        return server.server_address[1]

    def stop(self) -> None:
        """Take nothing more; open associations are aborted, and their senders know what was confirmed."""
        self._ae.shutdown()

    def _store(self, event: Event) -> int:
        """Answer to a C-STORE request: its status."""
        data = event.encoded_dataset()
        if self.spool.free_bytes() - len(data) < self.limits.free_bytes:
            logger.error("The spool's disk is full; instances are refused (status A700).")
            return OUT_OF_RESOURCES
        try:
            instance = read_uids(BytesIO(data))
        except CaseError as error:
            logger.error(f"Refused an instance (status C000): {error}")
            return NOT_UNDERSTOOD
        request = event.request
        if (instance.class_uid, instance.instance_uid) != (request.AffectedSOPClassUID, request.AffectedSOPInstanceUID):
            logger.error("Refused an instance whose data set has other UIDs than its C-STORE request (status A900).")
            return DOES_NOT_MATCH
        try:
            with self._storing:  # two associations may send the same UID at once
                if self._is_another_patients(instance):
                    logger.error(
                        "Refused an instance whose UID one of another patient has (status 0111); correct its UIDs."
                    )
                    return DUPLICATE
                if self.spool.put(instance.study_uid, instance.instance_uid, data):
                    self.arrivals.note(digest(instance.study_uid), event.assoc)
        except OSError as error:
            logger.error(f"An instance could not be stored ({error.strerror}; status A700).")
            return OUT_OF_RESOURCES
        return STORED

    def _is_another_patients(self, instance: Instance) -> bool:
        """Whether the spool has an instance of the same UID that tells of another patient."""
        there = self.spool.received(digest(instance.study_uid)) / f"{digest(instance.instance_uid, 32)}.dcm"
        try:
            return there.exists() and not of_one_patient(read_uids(there).patient, instance.patient)
        except CaseError:  # it was taken away meanwhile, or is damaged: nobody's
            return False

    def _limit_instance(self, event: Event) -> None:
        """Count what came of an instance, and end the association where it is too large."""
        self._coming[event.assoc] += len(event.data)
        if self._coming[event.assoc] > self.limits.instance_bytes:
            logger.error(f"Ended an association: an instance had more than {self.limits.instance_bytes} bytes.")
            event.assoc.abort(block=False)


def _tell_rejected(event: Event) -> None:
    calling = event.assoc.requestor
    logger.warning(f"Rejected an association from {calling.ae_title!a} at {calling.address}.")
