"""`python -m scripts serve_dicom`: the node's options, and what they are made of."""

from __future__ import annotations

import inspect
import ipaddress
import logging
import re
import signal
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

from ..errors import CaseError
from ..options import check_options
from ..workflow import bundle_root
from .arrivals import Arrivals
from .job import MainJob
from .loop import log_without_names, run_until
from .receiver import Limits, Receiver
from .sender import Delivery, FolderDelivery, PeerDelivery, Sender
from .spool import Spool
from .worker import Worker

logger = logging.getLogger(__name__)

_OPEN = (
    "{} is reached from other machines: AE titles are no protection, and DICOM is not encrypted; let a firewall or a "
    "VPN decide who reaches the port."
)
CONFIG_FILES = ("configs/inference.json", "configs/dicom.json")


def serve_dicom(
    allowed: Any = None,
    peer: str | None = None,
    output_dir: str | None = None,
    ae_title: str = "BRAINCT2MRI",
    host: str = "127.0.0.1",
    port: int = 11112,
    spool: str = "runs/dicom_node",
    keep_received: bool = False,
    quiet_s: float = 30,
    retry_s: float = 60,
    timeout_s: float = 7200,
    min_free_gb: float = 2,
    max_instance_mb: float = 1024,
    max_associations: int = 10,
    config_file: Any = CONFIG_FILES,
    **options: Any,
) -> None:
    """Serve as a DICOM node: take CT studies by C-STORE, translate each, send the synthetic MRI to a peer or a folder.

    It runs until it is stopped (Ctrl-C, SIGTERM). Further options are those of the main job, such as --style_key.

    A study is finished when nothing of it came for `quiet_s` and no association is open that sent it last. Instances
    that come later have it translated again, together with those before. Once the result was delivered those are
    removed (unless `keep_received`); a study of which only a part comes after that fails, until the whole is sent.

    Args:
        allowed: AE titles that may send, separated by commas; required.
        peer: AETITLE@host:port that gets the results by C-STORE; either this or output_dir.
        output_dir: folder that gets the results, one folder a series.
        ae_title: the node's own; associations to another one are rejected.
        host: address to listen on; the default is reached from this machine alone.
        port: to listen on.
        spool: folder for studies that are not yet delivered; it holds patient data.
        keep_received: keep received studies after their results were delivered.
        quiet_s: seconds without an instance after which a study is finished.
        retry_s: seconds to the next try to deliver; doubled after each, up to an hour.
        timeout_s: longest time a translation may take.
        min_free_gb: space (2^30 bytes) that the spool's disk must have left, or instances are refused.
        max_instance_mb: largest instance (2^20 bytes).
        max_associations: at a time.
        config_file: of the main job.
        options: of the main job.

    Raises:
        CaseError: an option that cannot be, a port or spool in use.
    """
    if "help" in options:  # Fire takes it for one of the further options
        print(inspect.getdoc(serve_dicom))
        return
    _check_numbers(port=port, quiet_s=quiet_s, retry_s=retry_s, timeout_s=timeout_s, max_associations=max_associations)
    _check_numbers(min_free_gb=min_free_gb, max_instance_mb=max_instance_mb)
    titles = [checked_title(title) for title in _listed(allowed)]
    if not titles:
        raise CaseError('Nobody may send; give the AE titles of the senders, as in --allowed "CT1,PACS".')
    title, stop = checked_title(ae_title), threading.Event()
    job = MainJob(_config_files(config_file), options, timeout_s, stop)
    _check_settings(job)
    deliver = _delivery(title, peer, output_dir, stop)
    limits = Limits(int(min_free_gb * 2**30), int(max_instance_mb * 2**20), max_associations)
    log_without_names()
    with closing(Spool(spool, keep_received)) as store:
        arrivals = Arrivals(quiet_s)
        receiver = Receiver(store, arrivals, title, titles, limits)
        steps = [Worker(store, arrivals, job).step, Sender(store, deliver, retry_s).step]
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        place = f"{host}:{receiver.start(str(host), port)}"
        logger.info(f"{title} listens on {place} for {', '.join(titles)}; results go to {deliver}; spool: {store.root}")
        if not _is_loopback(str(host)):
            logger.warning(_OPEN.format(host))
        run_until(stop, receiver, steps, retry_s)
    logger.info("Stopped; what is unfinished goes on at the next start.")


def checked_title(title: Any) -> str:
    """An AE title without spaces around it (PS3.5, table 6.2-1).

    Raises:
        CaseError: it is none.
    """
    text = str(title).strip()
    if not re.fullmatch(r"[ -\[\]-~]{1,16}", text):
        raise CaseError(f"{text!r} is no AE title; give 1 to 16 letters, digits and signs without backslash.")
    return text


def parsed_peer(peer: str) -> tuple[str, str, int]:
    """AE title, host and port of "AETITLE@host:port".

    Raises:
        CaseError: it reads otherwise.
    """
    match = re.fullmatch(r"(.+)@(.+):(\d{1,5})", str(peer))
    if match is None or not 0 < int(match[3]) < 65536:
        raise CaseError(f"The peer {peer} cannot be read; write it as AETITLE@host:port.")
    return checked_title(match[1]), match[2].strip("[]"), int(match[3])


def _delivery(title: str, peer: str | None, output_dir: str | None, stop: threading.Event) -> Delivery:
    if (peer is None) == (output_dir is None):
        raise CaseError("Results need one place to go; give either --peer AETITLE@host:port or --output_dir FOLDER.")
    return FolderDelivery(str(output_dir)) if peer is None else PeerDelivery(title, parsed_peer(peer), stop)


def _listed(value: Any) -> list[str]:
    """Items of "A,B", which the command line may have made a tuple of."""
    items = str(value or "").split(",") if not isinstance(value, (list, tuple)) else value
    return [str(item).strip() for item in items if str(item).strip()]


def _config_files(value: Any) -> tuple[str, ...]:
    files = tuple(str(Path(bundle_root(), name)) for name in _listed(value))
    for file in files:
        if not Path(file).is_file():
            raise CaseError(f"There is no config file {file}; name one of the bundle's folder configs.")
    return files


def _check_numbers(**options: Any) -> None:
    for name, value in options.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise CaseError(f"{name} is {value}; give a number, 0 or more.")


def _check_settings(job: MainJob) -> None:
    """Refuse at the start what would make every study fail."""
    for name in ("dataset_dir", "overwrite"):
        if name in job.options:
            raise CaseError(f"{name} is no option of the node, which chooses its own for each study; leave it out.")
    check_options([str(Path("monai", "bundle", "__main__.py")), *job.arguments()])


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
