"""Files: their digests, writing them whole, and which there are below a folder."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def sha256_of_file(path: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes, 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_if_there(path: str | os.PathLike) -> str | None:
    """`sha256_of_file`, or None where there is no such file."""
    return sha256_of_file(path) if Path(path).is_file() else None


@contextmanager
def written_whole(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a temporary name beside `path` to write a file under, which becomes `path` at the end.

    Whoever reads `path` finds the old file or the whole new one; where the block raises, the old one stays and the
    temporary file is removed.
    """
    path = Path(path)
    # the process is part of the name: two may write the same file at once; the suffix stays, which writers go by
    temporary = path.with_name(f".{os.getpid()}.partial.{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: str | os.PathLike, content: str | bytes) -> None:
    """Write a file, text as UTF-8, that is either the old one or the whole new one, whenever it is read."""
    with written_whole(path) as temporary:
        temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


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
