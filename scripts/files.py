"""Files as a user knows them: the error that names one, and its digest."""

import hashlib
import os
from pathlib import Path


class CaseError(ValueError):
    """One case cannot be translated; its message is one sentence: the file, what is wrong, what to do."""


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
