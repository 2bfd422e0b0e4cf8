"""Files as a user knows them: the error that names one, its digest, and which there are."""

import hashlib
import os
import sys
from pathlib import Path
from typing import Any


def _server_errors() -> tuple[type[Exception], ...]:
    """Starlette's exception, which becomes the response of a request, where a server such as MONAI Label runs."""
    exceptions = sys.modules.get("starlette.exceptions")
    return () if exceptions is None else (exceptions.HTTPException,)


class CaseError(ValueError, *_server_errors()):
    """One case cannot be translated; its message is one sentence: the file, what is wrong, what to do.

    In a server it is an error 422 whose detail is that sentence; any other exception would reach the client as
    "Internal Server Error".
    """

    status_code = 422
    headers = None

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        self.detail = sentence

    __str__ = ValueError.__str__


def sha256_of_file(path: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes, 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_if_there(path: str | os.PathLike) -> str | None:
    """`sha256_of_file`, or None where there is no such file."""
    return sha256_of_file(path) if Path(path).is_file() else None


def write_whole(path: Path, text: str) -> None:
    """Write a text file that is either the old one or the whole new one, whenever it is read."""
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def files_below(root: Path, left_out: Any = None) -> list[Path]:
    """Every file below a folder, sorted, without hidden files and folders; links are followed, no folder twice.

    Args:
        root: the folder.
        left_out: folder that is left out of the search.
    """
    seen = {os.path.realpath(root)}
    if left_out is not None:
        seen.add(os.path.realpath(Path(str(left_out)).expanduser()))
    files = []
    for folder, subfolders, names in os.walk(root, followlinks=True):  # it passes over what may not be read
        here = Path(folder)
        files += [here / name for name in names if not name.startswith(".")]
        shown = [here / name for name in subfolders if not name.startswith(".")]
        subfolders.clear()
        for path in sorted(shown, key=lambda path: (path.is_symlink(), path.name)):
            if (real := os.path.realpath(path)) not in seen:
                seen.add(real)
                subfolders.append(path.name)
    return sorted(files)
