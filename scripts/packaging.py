"""The bundle as one zip file, in the form in which MONAI's Model Zoo hands bundles out."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

from .errors import CaseError
from .files import write_whole, written_whole

NAME = "brain_ct_to_mri"
"""The zoo's name of the bundle; monai.bundle download expects the folder inside the zip to have it."""

BUNDLE_FILES = (
    *("LICENSE", "metadata.json", "requirements*.txt", "large_files.yml", "large_files.yaml", "large_files.json"),
    *("configs/*", "docs/*", "scripts/*", "models/*.pt", "models/*.json", "models/*.md"),
)
"""What belongs to the bundle; `*` stands for folders too."""
NOT_BUNDLE_FILES = (".*", "*/.*", "*__pycache__*", "*.pyc", "requirements-dev.txt")

LARGEST_FILE = 25 * 1000**2
"""Bytes; the zoo takes no larger file, but a line in large_files.yml that says where it is."""

ZOO_URL = "https://github.com/Project-MONAI/model-zoo/releases/download/hosting_storage_v1"
_TIMESTAMP = (2022, 5, 30, 0, 0, 0)  # the zoo's own for all files, so that the bytes depend on the content alone


def package(output_dir: str | None = None, base_url: str = ZOO_URL) -> str:
    """Write brain_ct_to_mri_vX.Y.Z.zip, X.Y.Z being the version of metadata.json, and its line in model_info.json.

    The zip holds one folder, brain_ct_to_mri: what users of the bundle need, without tests. Of a git checkout only
    files that git knows get in. Links become files; what large_files.yml names is downloaded, compared with its
    checksum and put in its place. The same files give the same bytes.

    Args:
        output_dir: folder for both files; `dist` in the bundle's folder if not given. A model_info.json that is there
            keeps its other lines.
        base_url: where the zip will be hosted, the beginning of its source in model_info.json.
    """
    root = Path(__file__).resolve().parents[1]
    return "\n".join(build_package(root, Path(output_dir) if output_dir else root / "dist", base_url))


def build_package(root: Path, folder: Path, base_url: str) -> list[str]:
    """`package` of the bundle in `root`; gives remarks for the user, of which the last names the zip.

    Raises:
        CaseError: a file that must not be handed out, a download that fails, a folder that cannot be written; what was
            there before is left as it was.
    """
    name = f"{NAME}_v{_version(root)}"
    paths, remarks = _bundle_files(root)
    with tempfile.TemporaryDirectory() as temporary:
        staged, packed = Path(temporary) / NAME, Path(temporary) / f"{name}.zip"
        for path in paths:
            _copy(root, path, staged)
        _resolve_large_files(staged)
        _refuse_paths_of_this_machine(staged, root)
        _write_zip(staged, packed)
        checksum = hashlib.sha1(packed.read_bytes(), usedforsecurity=False).hexdigest()
        try:
            models = _model_info(folder / "model_info.json")
            models[name] = {"checksum": checksum, "source": f"{base_url.rstrip('/')}/{packed.name}"}
            folder.mkdir(parents=True, exist_ok=True)
            with written_whole(folder / packed.name) as copy:
                shutil.copyfile(packed, copy)
            write_whole(folder / "model_info.json", json.dumps(models, indent=4) + "\n")
        except OSError as error:
            raise CaseError(f"{folder} cannot be written ({error.strerror}); give another output_dir.") from error
        size = packed.stat().st_size / 1000**2
    return [*remarks, f"{folder / packed.name}: {size:.1f} MB, SHA-1 {checksum}"]


def _version(root: Path) -> str:
    version = json.loads((root / "configs" / "metadata.json").read_text(encoding="utf-8"))["version"]
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise CaseError(f"The version in configs/metadata.json is {version}: write it as X.Y.Z.")
    return version


def _belongs(path: str) -> bool:
    """Whether a path relative to the bundle's folder, with `/`, belongs to the bundle."""
    included, excluded = (
        any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns) for patterns in (BUNDLE_FILES, NOT_BUNDLE_FILES)
    )
    return included and not excluded


def _bundle_files(root: Path) -> tuple[list[str], list[str]]:
    """Sorted relative paths of the bundle's files, and remarks for the user."""
    tracked = _git(root, "ls-files") if any((folder / ".git").exists() for folder in (root, *root.parents)) else set()
    if not tracked:
        files = (path for path in root.rglob("*") if path.is_file() or path.is_symlink())
        remarks = ["git knows no file of this folder, so every file in configs, docs, scripts and of models is packed."]
        return sorted(filter(_belongs, (path.relative_to(root).as_posix() for path in files))), remarks
    remarks = []
    changed = sorted(filter(_belongs, _git(root, "diff", "--name-only", "--relative", "HEAD")))
    if changed:
        remarks.append(f"Not as in the last commit, packed as it lies here: {_listed(changed)}")
    unknown = sorted(filter(_belongs, _git(root, "ls-files", "--others", "--exclude-standard")))
    if unknown:
        remarks.append(f"Left out, because git does not know it: {_listed(unknown)}")
    return sorted(path for path in tracked if _belongs(path) and os.path.lexists(root / path)), remarks


def _git(root: Path, *arguments: str) -> set[str]:
    """The paths that a git command lists, relative to the bundle's folder."""
    try:
        done = subprocess.run(["git", *arguments, "-z"], cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        message = getattr(error, "stderr", None) or error
        raise CaseError(f"git cannot say which files belong to the bundle ({message}); mend that first.") from error
    return set(filter(None, done.stdout.split("\0")))


def _listed(paths: list[str], at_most: int = 5) -> str:
    return ", ".join(paths[:at_most]) + (f" and {len(paths) - at_most} more" if len(paths) > at_most else "")


def _copy(root: Path, path: str, staged: Path) -> None:
    """Copy one file, links followed, if it may be handed out."""
    source = (root / path).resolve()
    if not source.is_file():
        raise CaseError(f"{path} is a link to no file; put the file itself there.")
    if not source.is_relative_to(root):
        raise CaseError(f"{path} is a link to a file outside the bundle; put the file itself there.")
    if source.stat().st_size > LARGEST_FILE:
        raise CaseError(
            f"{path} is larger than 25 MB, which the Model Zoo does not take; put it on a server, "
            "remove it from git, and name its path, url and checksum in large_files.yml."
        )
    (staged / path).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, staged / path)


def _resolve_large_files(staged: Path) -> None:
    """Download what large_files.yml (.yaml, .json) names into its places, and remove the list."""
    from monai.bundle import download_large_files

    lists = [path for path in staged.glob("large_files.*") if path.is_file()]
    if not lists:
        return
    try:
        download_large_files(bundle_path=str(staged))
    except Exception as error:  # a server's, a checksum's, or the list's own
        message = str(error).partition("\n")[0]
        raise CaseError(f"What {lists[0].name} names cannot be had: {message}") from error
    for path in lists:
        path.unlink()


def _refuse_paths_of_this_machine(staged: Path, root: Path) -> None:
    """The bundle's and the user's own folder must be in no file; /root or /app say nothing of a machine."""
    folders = [folder for folder in (root, Path.home()) if len(folder.parts) > 2]
    for path, name in _sorted_files(staged):
        for folder in folders:
            if re.search(rb"(?<![\w.-])" + re.escape(os.fsencode(folder)) + rb"\b", path.read_bytes()):
                raise CaseError(f"{name} holds {folder}, a path of this machine; write it without.")


def _write_zip(staged: Path, packed: Path) -> None:
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for path, name in _sorted_files(staged):
            info = zipfile.ZipInfo(f"{NAME}/{name}", _TIMESTAMP)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.create_system = 3  # Unix, wherever it is packed, for the permissions
            info.external_attr = 0o100644 << 16
            archive.writestr(info, path.read_bytes())


def _sorted_files(folder: Path) -> Iterable[tuple[Path, str]]:
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return ((files[name], name) for name in sorted(files))


def _model_info(path: Path) -> dict[str, dict[str, str]]:
    """The zoo's list of bundles: "NAME_vX.Y.Z" -> its checksum and source."""
    try:
        models = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError:
        models = None
    if not isinstance(models, dict):
        raise CaseError(f"{path} is not the Model Zoo's list of bundles; mend or remove it.")
    return models
