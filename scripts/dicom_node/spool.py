"""The folder in which a DICOM node keeps all it knows, so that a node that was killed goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import CaseError

FOLDERS = ("incoming", "received", "working", "outgoing", "failed", "ledger")


def digest(uid: str, digits: int = 16) -> str:
    """The first hexadecimal digits of a UID's SHA-256: how files and logs name a study or an instance."""
    return hashlib.sha256(uid.encode()).hexdigest()[:digits]


class Spool:
    """Received studies and where each of them stands, on disk alone.

    ::

        incoming/             instances while they are written
        received/STUDY/       instances, INSTANCE.dcm
        working/STUDY/        the translation under way; nothing in here outlives a restart
        outgoing/STUDY.STATE/ results that are to be delivered, one folder a series
        failed/STUDY.json     why a study could not be translated
        ledger/STUDY.json     which instances a delivered result was made of, and which ones were made

    STUDY and INSTANCE are digests of UIDs; STATE is one of the study's instances as they were translated (`state`).
    A study is due while its state is neither failed, nor outgoing, nor delivered; so nothing has to be written when an
    instance arrives but the instance, and one that comes late makes the study due again. Whatever appears under
    its own name was complete before (written or gathered elsewhere in the spool, then renamed).

    When a result was delivered the received files are removed, unless `keep_received`. If some of the study's
    instances then come anew, the others are missing, and what would be made of the rest is no whole brain: `missing`
    counts them from the ledger. Instances of the node's own making that come back, as from an archive that passes on
    whatever it gets, are not stored (`put`): they would make their study due for ever.

    Args:
        root: made where it is not there; readable by its owner alone.
        keep_received: keep the received files after the delivery.

    Raises:
        CaseError: a folder with other files in it, one that cannot be written, or one that another node uses.
    """

    def __init__(self, root: str | os.PathLike, keep_received: bool = False) -> None:
        self.root = Path(root).expanduser().resolve()
        self.keep_received = keep_received
        self._guard = threading.Lock()  # between an arrival and the removal of what was there before
        self._own()
        for name in FOLDERS:
            (self.root / name).mkdir(mode=0o700, exist_ok=True)
        self._clear("incoming", "working")
        self._clear("failed")  # whoever starts the node again wants them tried again
        for folder in (self.root / "received").iterdir():
            delivered = self._ledger(folder.name)["delivered"] == self.state(folder.name)
            if not any(folder.iterdir()) or (delivered and not self.keep_received):
                self._discard(folder)

    def _own(self) -> None:
        """Lock the folder for this process; the system unlocks it however the process ends."""
        import fcntl  # not on Windows, where the other commands shall still work

        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not (self.root / "lock").exists() and any(self.root.iterdir()):
                raise CaseError(f"The spool {self.root} holds other files; give an empty folder, or a new one.")
            self._lock = open(self.root / "lock", "w")  # noqa: SIM115 (it is held until the node ends)
            self.root.chmod(0o700)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CaseError(
                f"Another node uses the spool {self.root}; give another folder, or stop that one."
            ) from None
        except OSError as error:
            raise CaseError(f"The spool {self.root} cannot be used ({error.strerror}); give another folder.") from None

    def close(self) -> None:
        """Let another node have the folder."""
        self._lock.close()

    def free_bytes(self) -> int:
        """Free space of its file system."""
        return shutil.disk_usage(self.root).free

    def put(self, study_uid: str, instance_uid: str, data: bytes) -> bool:
        """Store an instance; when this returns it is on the disk, and would survive a power failure.

        Args:
            data: a whole DICOM file.

        Returns:
            False where it was not stored, since this node made it.
        """
        study, instance = digest(study_uid), digest(instance_uid, 32)
        if instance in self._ledger(study)["made"]:
            return False
        folder = self.received(study)
        with self._on_disk(data) as temporary, self._guard:
            folder.mkdir(mode=0o700, exist_ok=True)
            os.replace(temporary, folder / f"{instance}.dcm")
            sync(folder, folder.parent)
        return True

    def received(self, study: str) -> Path:
        """Folder of a study's instances."""
        return self.root / "received" / study

    def state(self, study: str) -> str:
        """Digest of a study's instances: another one when an instance came, or came again."""
        with os.scandir(self.received(study)) as entries:
            files = sorted((entry.name, entry.stat().st_size, entry.stat().st_mtime_ns) for entry in entries)
        return digest(repr(files))

    def due(self) -> list[str]:
        """Studies that have to be translated, the one that has waited longest first."""
        folders = sorted((self.root / "received").iterdir(), key=lambda folder: folder.stat().st_mtime_ns)
        return [folder.name for folder in folders if not self.settled(folder.name)]

    def settled(self, study: str) -> bool:
        """Whether a study needs no translation, as it is now."""
        if not self.received(study).exists():
            return True
        state = self.state(study)
        failed = _read_json(self.root / "failed" / f"{study}.json").get("state")
        return state in (failed, self._ledger(study)["delivered"]) or self._outgoing(study, state).exists()

    def missing(self, study: str) -> int:
        """How many instances of a delivered study are no longer here, of one of which others came since."""
        here = set(self._instances(study))
        return sum(name not in here for name in self._ledger(study)["instances"])

    def begin(self, study: str) -> Path:
        """A new empty folder to translate a study in."""
        folder = self.root / "working" / study
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
        return folder

    def finish(self, study: str, state: str, series: Iterable[Path], made_uids: Iterable[str]) -> None:
        """Hand the result of a translation over to be delivered.

        Args:
            state: of the study when the translation began.
            series: folders in the one that `begin` gave; they are moved.
            made_uids: SOP Instance UIDs in them.
        """
        gathered = self.root / "working" / f"{study}.{state}"
        gathered.mkdir(mode=0o700)
        for folder in series:
            os.replace(folder, gathered / folder.name)
        sync_tree(gathered)
        ledger = self._ledger(study)
        ledger["made"] = sorted({*ledger["made"], *(digest(uid, 32) for uid in made_uids)})
        self._write_json("ledger", study, ledger)
        os.replace(gathered, self._outgoing(study, state))
        (self.root / "failed" / f"{study}.json").unlink(missing_ok=True)
        self.end(study)

    def fail(self, study: str, state: str, study_uid: str, why: str) -> None:
        """Note why a study was not translated; its files stay, and it is tried again when one of them comes anew."""
        note = {"study": study, "study_uid": study_uid, "instances": len(self._instances(study)), "reason": why}
        self._write_json("failed", study, {**note, "state": state})
        self.end(study)

    def end(self, study: str) -> None:
        """Remove what a translation left."""
        shutil.rmtree(self.root / "working" / study, ignore_errors=True)

    def outgoing(self) -> list[Path]:
        """Folders to deliver, oldest first; of a study that was translated again the newest alone."""
        newest = {}
        for folder in sorted((self.root / "outgoing").iterdir(), key=lambda folder: folder.stat().st_mtime_ns):
            study = folder.name.partition(".")[0]
            if study in newest:
                self._discard(newest.pop(study))
            newest[study] = folder
        return list(newest.values())

    def delivered(self, folder: Path) -> None:
        """A folder of `outgoing` was delivered: note it and remove what is no longer needed."""
        study, _, state = folder.name.partition(".")
        with self._guard:
            as_translated = self.received(study).exists() and self.state(study) == state
            if as_translated:
                delivery = {"delivered": state, "instances": self._instances(study)}
                self._write_json("ledger", study, {**self._ledger(study), **delivery})
            self._discard(folder)
            if as_translated and not self.keep_received:
                self._discard(self.received(study))

    def _outgoing(self, study: str, state: str) -> Path:
        return self.root / "outgoing" / f"{study}.{state}"

    def _instances(self, study: str) -> list[str]:
        return sorted(path.stem for path in self.received(study).iterdir())

    def _ledger(self, study: str) -> dict[str, Any]:
        blank = {"delivered": None, "instances": [], "made": []}
        return {**blank, **_read_json(self.root / "ledger" / f"{study}.json")}

    def _write_json(self, folder: str, study: str, content: dict[str, Any]) -> None:
        with self._on_disk((json.dumps(content, indent=2) + "\n").encode()) as temporary:
            os.replace(temporary, self.root / folder / f"{study}.json")
            sync(self.root / folder)

    @contextmanager
    def _on_disk(self, data: bytes) -> Iterator[Path]:
        """A temporary file in the spool, its content safe on the disk, to be renamed; else it is removed.

        `written_whole` does not wait for the disk, which alone survives a power failure, and does not hide patient data
        from other users.
        """
        temporary = self.root / "incoming" / uuid.uuid4().hex
        try:
            _write(temporary, data)
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)

    def _discard(self, folder: Path) -> None:
        """Remove a folder at one stroke, so that never a part of it is taken for the whole."""
        doomed = self.root / "working" / uuid.uuid4().hex
        os.replace(folder, doomed)
        shutil.rmtree(doomed, ignore_errors=True)

    def _clear(self, *names: str) -> None:
        for name in names:
            for path in (self.root / name).iterdir():
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink()


def sync_tree(root: Path) -> None:
    """Bring the files of a folder and of the folders in it to the disk."""
    for folder, _, names in os.walk(root):
        sync(*(Path(folder) / name for name in names), Path(folder))


def _write(path: Path, data: bytes) -> None:
    """Write a new file, for its owner alone, to the disk."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync(*paths: Path) -> None:
    """Bring files and folders (their names) to the disk."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
