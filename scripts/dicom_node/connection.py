"""What a network connection may take: pynetdicom by itself waits for ever, and for any amount of data."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pynetdicom.events import Event

# What is no image data is short; 128 presentation contexts with all transfer syntaxes are less than this.
LONGEST_PDU = 1024 * 1024


def limit_connection(event: Event) -> None:
    """Handler of EVT_CONN_OPEN: end a connection that stands still within a PDU, or announces one of up to 4 GiB.

    Where a peer loses its power or its cable in the middle of a PDU, nobody closes the connection; after the
    association's network timeout it is closed here.
    """
    connection = event.assoc.dul.socket
    connection.socket.settimeout(event.assoc.network_timeout)
    receive = connection.recv

    def limited(length: int) -> bytearray:
        if length > LONGEST_PDU:
            raise OSError("the PDU is too long")
        return receive(length)

    connection.recv = limited
