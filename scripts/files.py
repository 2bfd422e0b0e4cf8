"""Files: their digests, writing them whole, what the machine refuses, and which there are below a folder."""

import errno
import hashlib
import os
import re
import shutil
import socket
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import CaseError, MachineError, RefusedError, is_lasting, machine_reason
from .text import readable

# what a file system says that cannot rename, or not across its parts; then the content is copied
_NO_RENAMING = {errno.EXDEV, errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
_LITTLE = 2**20  # bytes; with less than that free, a disk is full
_BLOCK = 2**20  # bytes that are read at a time


def _host() -> str:
    """Names this computer, and on Linux the container too, whose processes have numbers of their own."""
    try:
        processes = os.readlink("/proc/self/ns/pid")
    except OSError:
        processes = ""
    return f"{zlib.crc32((socket.gethostname() + processes).encode()):08x}"


_HOST = _host()
_TEMPORARY = re.compile(r"\.(\d+)-([0-9a-f]{8})\.partial\..+", re.DOTALL)
_ABANDONED_S = 86400.0  # a temporary file of another computer, whose processes are not seen from here


def sha256_of_file(path: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def sha256_of_files(paths: Sequence[str | os.PathLike]) -> str:
    """SHA-256 of one file; of several that of their digests, one after another."""
    digests = [sha256_of_file(path) for path in paths]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def sha256_if_there(path: str | os.PathLike) -> str | None:
    """`sha256_of_file`, or None where there is no such file."""
    return sha256_of_file(path) if Path(path).is_file() else None


@contextmanager
def written_whole(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a temporary name beside `path` to write a file under, which becomes `path` at the end.

    Whoever reads `path` finds the old file or the whole new one; where the block raises, the old one stays and the
    temporary file is removed.

    Raises:
        RefusedError: see `writing_into`.
    """
    path = Path(path)
    temporary = temporary_name(path)
    try:
        with writing_into(path.parent):  # looks at the disk while what filled it is still there
            yield temporary
            move(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_name(path: Path) -> Path:
    """Name beside a file or folder under which this process writes it, until it is whole.

    The process and its computer are part of the name: two may write the same at once, and `remove_remains` tells what
    a dead one left. The suffix stays, which writers go by.
    """
    return path.with_name(f".{os.getpid()}-{_HOST}.partial.{path.name}")


def is_temporary(name: str) -> bool:
    """Whether a file's name is one of `temporary_name`."""
    return _TEMPORARY.fullmatch(name) is not None


def move(source: Path, target: Path) -> None:
    """Rename a file or folder, in one step where the file system can, else by a copy."""
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno not in _NO_RENAMING:
            raise
        if source.is_dir():
            shutil.copytree(source, target)
            shutil.rmtree(source)
        else:
            shutil.copyfile(source, target)
            source.unlink()


@contextmanager
def writing_into(folder: str | os.PathLike, called: str | None = None) -> Iterator[None]:
    """What the operating system refuses in the block, where files are written to a folder, becomes one sentence.

    Args:
        folder: where the files are.
        called: the folder in the sentence; its path where it is not given.

    Raises:
        MachineError: the next file would meet the same, as on a full disk.
        RefusedError: something else is wrong with this file or folder.
    """
    try:
        yield
    except CaseError:
        raise
    except (OSError, RuntimeError) as error:
        if isinstance(error, OSError) and error.filename is not None and not _is_below(error.filename, folder):
            raise  # of a file that is read
        if machine_reason(error) is None and not isinstance(error, FileNotFoundError) and _is_full(folder):
            error = OSError(errno.ENOSPC, "")  # numpy and torch do not say why they could not write
        sentence = machine_reason(error, called or folder)
        if sentence is None:
            raise
        raise (MachineError if is_lasting(error) else RefusedError)(sentence) from error


def _is_below(name: str | bytes | int, folder: str | os.PathLike) -> bool:
    return isinstance(name, int) or Path(os.path.abspath(os.fsdecode(name))).is_relative_to(os.path.abspath(folder))


def _is_full(folder: str | os.PathLike) -> bool:
    try:
        return shutil.disk_usage(folder).free < _LITTLE
    except OSError:
        return False


def check_folder(folder: str | os.PathLike) -> Path:
    """Make a folder where it is not there, and try in it what will be done: write, rename, remove.

    What killed programs left under temporary names of `written_whole` is removed.

    Returns:
        the folder.

    Raises:
        MachineError: it cannot be made or written; told before anything is computed.
    """
    folder = Path(folder)
    working = temporary_name(folder / "trial")
    try:
        with writing_into(folder):
            folder.mkdir(parents=True, exist_ok=True)
            remove_remains(folder)
            try:
                working.mkdir()
                (working / "trial").write_bytes(bytes(_LITTLE))
                move(working / "trial", working.with_name(f"{working.name}.moved"))
            finally:
                shutil.rmtree(working, ignore_errors=True)
                working.with_name(f"{working.name}.moved").unlink(missing_ok=True)
    except RefusedError as error:
        raise MachineError(str(error)) from None
    except FileNotFoundError as error:  # as below /proc, or where a disk that comes when it is asked for does not come
        raise MachineError(f"{folder} cannot be made ({error.strerror}); give another folder.") from error
    return folder


def remove_remains(folder: Path) -> None:
    """Remove the temporary files and folders of programs that do not run any more."""
    for name in os.listdir(folder):
        made_by = _TEMPORARY.fullmatch(name)
        if made_by and _is_abandoned(folder / name, int(made_by[1]), made_by[2]):
            remove(folder / name)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all in it, as far as the system lets it; no error where it is not there."""
    if os.path.isdir(path) and not os.path.islink(path):  # not Path.is_dir, which raises for a name that cannot be
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _is_abandoned(path: Path, process: int, host: str) -> bool:
    if host == _HOST:
        return not _runs(process)
    return is_old(path)


def is_old(path: Path) -> bool:
    """Whether nothing was written to a file, or into a folder, for so long that its program will not go on."""
    try:
        return time.time() - path.stat().st_mtime > _ABANDONED_S
    except FileNotFoundError:  # its program has ended it meanwhile
        return False


def _runs(process: int) -> bool:
    if os.name == "nt":  # there `kill` would end the process that it asks about
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Gives a folder that is removed at the end, for files that others have to read from disk.

    Raises:
        CaseError: in the block too, the disk of temporary files is full or cannot be written; the sentence says how to
            choose another. A case that needs no such file can still go well.
    """
    try:
        where = tempfile.gettempdir()
    except OSError as error:
        raise CaseError(f"There is no folder for temporary files ({error}); set TMPDIR to one that is.") from error
    try:
        with writing_into(where), tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
    except RefusedError as error:
        called = f"the temporary files ({where}, unless TMPDIR names another folder)"
        raise CaseError(str(machine_reason(error, called))) from error


def longest_name(folder: Path) -> int:
    """Bytes that a file's name may have in a folder, or in the first of its parents that is there."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        return os.pathconf(folder, "PC_NAME_MAX")
    except (OSError, ValueError, AttributeError):
        return 255


def write_whole(path: str | os.PathLike, content: str | bytes | memoryview) -> None:
    """Write a file, text as UTF-8, that is either the old one or the whole new one, whenever it is read."""
    with written_whole(path) as temporary:
        temporary.write_bytes(readable(content).encode("utf-8") if isinstance(content, str) else content)


def files_below(root: Path, left_out: Any = None, unseen: list[Path] | None = None) -> list[Path]:
    """Every file below a folder, sorted, without hidden files and folders; links are followed, no folder twice.

    Args:
        root: the folder.
        left_out: folder that is left out of the search.
        unseen: hidden files and folders, and folders that may not be read, are added to it.
    """
    unseen = [] if unseen is None else unseen
    seen = {os.path.realpath(root)}
    if left_out is not None:
        seen.add(os.path.realpath(Path(str(left_out)).expanduser()))
    files = []
    walk = os.walk(root, followlinks=True, onerror=lambda error: unseen.append(Path(error.filename)))
    for folder, subfolders, names in walk:
        here = Path(folder)
        unseen += [here / name for name in (*names, *subfolders) if name.startswith(".")]
        files += [here / name for name in names if not name.startswith(".")]
        shown = [here / name for name in subfolders if not name.startswith(".")]
        subfolders.clear()
        for path in sorted(shown, key=lambda path: (path.is_symlink(), path.name)):
            if (real := os.path.realpath(path)) not in seen:
                seen.add(real)
                subfolders.append(path.name)
    return sorted(files)
