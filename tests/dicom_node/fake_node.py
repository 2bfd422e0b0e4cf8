"""A DICOM node whose translation is a copy: for tests, in their process or as one of its own that they kill."""

import json
import signal
import sys
import threading
from functools import partialmethod
from pathlib import Path
from socketserver import BaseServer

from pynetdicom.transport import AssociationServer

from scripts.dicom_node import loop
from scripts.dicom_node.arrivals import Arrivals
from scripts.dicom_node.receiver import Limits, Receiver
from scripts.dicom_node.sender import FolderDelivery, PeerDelivery, Sender
from scripts.dicom_node.spool import Spool
from scripts.dicom_node.worker import Worker
from scripts.errors import CaseError

TITLE = "BRAINCT2MRI"
SENDERS = ("CT1", "PACS")
loop.POLL_S = 0.05
AssociationServer.serve_forever = partialmethod(BaseServer.serve_forever, 0.02)  # it looks for its end so often


class Copier:
    """Stands for the main job: each CT slice becomes an MR one; UIDs follow from all that came in.

    Args:
        seconds: how long it takes.
        stop: ends it.
    """

    def __init__(self, seconds=0.0, stop=None):
        self.seconds = seconds
        self.stop = stop or threading.Event()
        self.translated = []  # how many files each translation saw

    def __call__(self, study, working):
        import pydicom
        from pydicom.uid import MRImageStorage, generate_uid

        headers = [pydicom.dcmread(path) for path in sorted(study.iterdir())]
        slices = [header for header in headers if header.Modality == "CT"]
        self.translated.append(len(headers))
        (working / "begun").touch()
        self.stop.wait(self.seconds)
        if not slices:
            raise CaseError("There is no CT series; send one.")
        seen = "".join(header.SOPInstanceUID for header in slices)
        series = working / "output" / "ct_0123_t1_dicom"
        series.mkdir(parents=True)
        for number, header in enumerate(slices, start=1):
            header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID = MRImageStorage
            made_uid = generate_uid(entropy_srcs=[seen, str(number)])
            header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = made_uid
            header.SeriesInstanceUID, header.Modality = generate_uid(entropy_srcs=[seen]), "MR"
            header.save_as(series / f"{number:04d}.dcm", enforce_file_format=True)
        return [series]


class FakeNode:
    """The node's parts as `serve_dicom` puts them together, on a free port, with its threads.

    Args:
        spool: folder.
        deliver: see `Sender`; a folder is enough.
        quiet_s: of `Arrivals`.
        seconds: of a translation.
        retry_s: of `Sender`.
        keep_received: of `Spool`.
        limits: of `Receiver`.
        port: 0 takes a free one.
    """

    def __init__(self, spool, deliver, quiet_s=0.3, seconds=0.0, retry_s=0.2, keep_received=False, limits=None, port=0):
        self.stop = threading.Event()
        self.translate = Copier(seconds, self.stop)
        self.spool = Spool(spool, keep_received)
        arrivals = Arrivals(quiet_s)
        self.deliver = FolderDelivery(deliver) if isinstance(deliver, str | Path) else deliver
        self.receiver = Receiver(self.spool, arrivals, TITLE, SENDERS, limits or Limits(free_bytes=0))
        self.sender = Sender(self.spool, self.deliver, retry_s)
        self.worker = Worker(self.spool, arrivals, self.translate)
        self.port = self.receiver.start("127.0.0.1", port)

    def run(self):
        """Until `stop` is set."""
        loop.run_until(self.stop, self.receiver, [self.worker.step, self.sender.step], 0.2)
        self.spool.close()


def serve(options):
    """A node with a process of its own, until SIGTERM; says its port."""
    options = dict(options)
    if "peer" in options:
        options["deliver"] = PeerDelivery(TITLE, tuple(options.pop("peer")))
    loop.log_without_names()
    node = FakeNode(**options)
    signal.signal(signal.SIGTERM, lambda *_: node.stop.set())
    print(node.port, flush=True)
    node.run()


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
