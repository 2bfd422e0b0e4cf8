"""What is installed: the bundle's folder, its version, its tasks and the checksums of its weights."""

from __future__ import annotations

import hashlib
import json
import platform
import re
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

__all__ = ["TASKS", "bundle_root", "config_of", "info", "settings_of", "version"]

TASKS = {"ct_to_t1": (), "flair_to_t1": ("flair_to_t1",), "many_to_one": ("many_to_one",)}
"""Task -> names of the config files that make it of `inference`."""
_PACKAGES = ("torch", "monai", "numpy", "nibabel", "itk", "pytorch-ignite", "scipy", "pydicom")


def bundle_root() -> Path:
    """The folder of the MONAI Bundle: in this package where it is installed, above it in a clone."""
    here = Path(__file__).resolve().parent
    return here / "bundle" if (here / "bundle").is_dir() else here.parent


def config_of(name: str) -> Path:
    """Path of a config file that the bundle has under this name, without suffix."""
    return bundle_root() / "configs" / f"{name}.json"


def settings_of(task: str) -> dict[str, Any]:
    """The settings of the main job as its config files have them; nothing is resolved."""
    settings: dict[str, Any] = {}
    for name in ("inference", *TASKS[task]):
        settings |= json.loads(config_of(name).read_text(encoding="utf-8"))
    return settings


def version() -> str:
    """The bundle's version, which is the package's."""
    return json.loads(config_of("metadata").read_text(encoding="utf-8"))["version"]


def info() -> dict[str, Any]:
    """Version, folder, tasks with their weights, SHA-256 of every file in `models`, versions of what is used."""
    root = bundle_root()
    files = {path.relative_to(root).as_posix(): path for path in sorted((root / "models").glob("*.*"))}
    return {
        "version": version(),
        "path": str(root),
        "tasks": {task: _task(task) for task in TASKS},
        "sha256": {name: _sha256(path) for name, path in files.items()},
        "python": platform.python_version(),
        "packages": {name: _installed(name) for name in _PACKAGES},
        "intended_use": json.loads(config_of("metadata").read_text(encoding="utf-8"))["intended_use"],
    }


def _task(task: str) -> dict[str, Any]:
    """What a task translates, and with which weights."""
    settings = settings_of(task)
    weights = str(settings.get("shipped_weights", settings["weights"]))
    return {
        "sources": settings.get("contrasts", [settings["source_contrast"]]),
        "targets": settings.get("target_contrasts", [settings["target_contrast"]]),
        "config_files": [f"configs/{name}.json" for name in ("inference", *TASKS[task])],
        "weights": re.findall(r"models/[\w.]+", weights)[0],
    }


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _installed(package: str) -> str | None:
    try:
        return installed_version(package)
    except PackageNotFoundError:
        return None
