"""Scans in a store, such as S3: listed by their names, and brought to a worker for as long as it needs them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

from ..data.training import DATALIST
from ..errors import CaseError, MachineError, is_lasting, machine_reason
from ..files import remove, remove_remains, temporary_name
from ..volumes.find import stem_of, volume_suffix

__all__ = ["Store", "StoredCases", "is_store"]

_READ_WHEN_LISTED = (".hdr", DATALIST)
"""Endings of small files whose content decides what is a case."""
_SEVERAL_FILES = (".hdr", ".mhd", ".nhdr")
"""Endings of volumes whose voxels may be in files of the same name with other endings."""
_DICOM = (".dcm", ".ima")
_NO_SCANS = (".json", ".tsv", ".csv", ".txt", ".md", ".png", ".bval", ".bvec")
"""Endings of what often lies beside scans; any other file that is no volume is opened, as it may be DICOM."""


def is_store(dataset_dir: Any) -> bool:
    """Whether what was typed is a URL of a store, such as s3://BUCKET/FOLDER, and no path."""
    return "://" in str(dataset_dir)


@dataclass(frozen=True)
class Store:
    """What is below a URL of fsspec.

    Attributes:
        url: such as s3://BUCKET/FOLDER, or of one volume.
        listed_at: the folder that stood for it when its cases were listed; their paths begin with it.
    """

    url: str
    listed_at: str

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        try:
            return fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise CaseError(f"{self.url} cannot be opened ({error}).") from error

    def list(self) -> Path:
        """Put an empty file for each of its files into `listed_at`, as the names are what cases are listed by.

        Returns:
            what takes the place of the URL as `dataset_dir`.

        Raises:
            CaseError: nothing there, no access, or DICOM, which is known by its content.
        """
        files, root = self._opened
        try:
            names = {_below(root, path): path for path in files.find(root)}
        except Exception as error:  # each kind of store has its own
            raise CaseError(f"{self.url} cannot be listed ({_told(error)}); check the URL and your access.") from error
        if not names:
            raise CaseError(f"There is nothing at {self.url}; check the URL.")
        if any(name.lower().endswith(_DICOM) for name in names) or self._has_unnamed_dicom(names):
            raise CaseError(
                f"{self.url} holds DICOM files, which are not read from a store, because their content says "
                "what belongs together; copy or mount them as a folder, and give that."
            )
        for name in names:
            path = Path(self.listed_at, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            if name.lower().endswith(_READ_WHEN_LISTED):
                files.get_file(names[name], str(path))
        return self.place(self.listed_at)

    def _has_unnamed_dicom(self, names: Mapping[str, str]) -> bool:
        """Whether a file is DICOM by its content, and not by its name."""
        files, _ = self._opened
        for name, path in names.items():
            if volume_suffix(Path(name)) or name.lower().endswith((*_SEVERAL_FILES, *_NO_SCANS)):
                continue
            try:
                start = files.cat_file(path, start=0, end=132)
            except Exception as error:
                raise CaseError(f"{self.url}/{name} cannot be read ({_told(error)}); check your access.") from error
            if start[128:] == b"DICM":
                return True
        return False

    def place(self, folder: str | os.PathLike) -> Path:
        """What takes the place of the URL where its files are below `folder`: the folder, or its one file."""
        files, root = self._opened
        return Path(folder, PurePosixPath(root).name) if files.isfile(root) else Path(folder)

    def bring(self, name: str, folder: Path) -> Path:
        """Download a volume, with the other files it may consist of.

        Args:
            name: its path below the URL.
            folder: it gets the same path below this one.
        """
        files, root = self._opened
        path = root if files.isfile(root) else f"{root.rstrip('/')}/{name}"
        parts = [path]
        if name.lower().endswith(_SEVERAL_FILES):
            stem = stem_of(Path(path))
            parts = [one for one in files.ls(os.path.dirname(path), detail=False) if _name(one).startswith(f"{stem}.")]
        for part in parts:
            target = folder / PurePosixPath(name).with_name(_name(part))
            target.parent.mkdir(parents=True, exist_ok=True)
            files.get_file(part, str(target))
        return folder / name


class StoredCases:
    """The cases of a store on one worker, in a folder of temporary files that is empty between them.

    What workers that were killed left there is removed.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        temporary = Path(tempfile.gettempdir())
        remove_remains(temporary)
        self.folder = temporary_name(temporary / "brain_ct_to_mri_store")

    @property
    def dataset_dir(self) -> Path:
        """What takes the place of the URL on this worker."""
        return self.store.place(self.folder)

    @contextmanager
    def at_hand(self, item: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Gives the case with its files here, removed afterwards; with the reason where they cannot be had.

        Raises:
            MachineError: the disk of temporary files is full, or refuses everything for another reason.
        """
        try:
            yield self._brought(item)
        finally:
            self.close()

    def close(self) -> None:
        """Remove all of it."""
        remove(self.folder)

    def _brought(self, item: dict[str, Any]) -> dict[str, Any]:
        """The item with paths of this worker; what they name is downloaded, unless the case has failed already."""
        below = f"{self.store.listed_at}{os.sep}"
        paths = {key: value for key, value in item.items() if isinstance(value, str) and value.startswith(below)}
        names = {key: os.path.relpath(path, below) for key, path in paths.items()}
        here = {**item, **{key: str(self.folder / name) for key, name in names.items()}}
        if "failure" in item:
            return here
        for name in sorted(set(names.values())):
            try:
                self.store.bring(name, self.folder)
            except Exception as error:
                if is_lasting(error):
                    where = f"the temporary files ({self.folder.parent}, unless TMPDIR names another folder)"
                    raise MachineError(str(machine_reason(error, where))) from error
                why = f"{_name(name)} cannot be downloaded ({_told(error)}); check that it is there and your access."
                return {**here, "failure": why}
        return here


def _below(root: str, path: str) -> str:
    return _name(path) if path == root else path.removeprefix(root).lstrip("/")


def _name(path: str) -> str:
    return PurePosixPath(path).name


def _told(error: BaseException) -> str:
    return type(error).__name__
