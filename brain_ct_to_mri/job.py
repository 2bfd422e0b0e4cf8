"""The bundle's main job as somebody types it, and where a process finds the bundle's modules."""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from .info import TASKS, bundle_root, config_of

__all__ = ["bundle_modules", "command_line", "config_files", "put_bundle_first"]

_PACKAGE = "scripts"  # what the Model Zoo calls the Python of every bundle
_lock = threading.RLock()
_modules: dict[str, ModuleType] = {}  # the bundle's, while they are not in sys.modules


def config_files(
    task: str = "ct_to_t1",
    fast: bool = False,
    best: bool = False,
    bids: bool = False,
    dicom: bool = False,
    more: Sequence[str] = (),
) -> list[str]:
    """Paths of the config files, in the order in which docs/configs.md combines them.

    Args:
        task: one of `TASKS`.
        fast: one evaluation of the network.
        best: each prediction averaged with that of the mirror image.
        bids: a BIDS derivative beside the results.
        dicom: a DICOM series beside the results.
        more: further files, each the path of one or the name of one of the bundle's, such as "sparse".
    """
    switches = {"fast": fast, "best": best}
    names = ["inference", *TASKS[task], *(name for name, on in switches.items() if on)]
    last = [name for name, on in (("bids", bids), ("dicom", dicom)) if on]
    own = [str(config_of(name)) for name in names]
    return [*own, *map(_config_file, more), *(str(config_of(name)) for name in last)]


def _config_file(name: str) -> str:
    return str(config_of(name)) if config_of(name).is_file() else name


def command_line(files: Sequence[str], options: Mapping[str, Any], cluster: str | None = None) -> list[str]:
    """The words of `python -m monai.bundle run`, or on a cluster those of `python -m scripts cluster`.

    An option that is None stands without a value.
    """
    words = [f"--{name}" if value is None else f"--{name}={value}" for name, value in options.items()]
    typed = ["--config_file", str(list(files)), *words]
    if cluster is None:
        return [str(_monai_bundle()), "run", *typed]
    return ["scripts", "cluster", f"--cluster={cluster}", *typed]


def _monai_bundle() -> Path:
    """The file that `python -m monai.bundle` runs; MONAI itself is not imported for it."""
    found = importlib.util.find_spec("monai")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("MONAI is not installed; install this package with its dependencies.")
    return Path(found.origin).parent / "bundle" / "__main__.py"


def put_bundle_first() -> None:
    """Make `scripts` the bundle's in a process that is all its own, for the processes that it starts too."""
    sys.path.insert(0, str(bundle_root()))


@contextmanager
def bundle_modules() -> Iterator[None]:
    """In the block `scripts` is the bundle's package, whatever else of that name the program has or will have.

    What the program has imported as `scripts` is set aside and put back. One block runs at a time.
    """
    with _lock:
        if _is_ours(sys.modules.get(_PACKAGE)):  # in a clone, or in a block within a block
            yield
            return
        others, path = _taken(), list(sys.path)
        sys.modules.update(_modules)
        put_bundle_first()
        try:
            yield
        finally:
            _modules.update(_taken())
            sys.modules.update(others)
            sys.path[:] = path


def _taken() -> dict[str, ModuleType]:
    """The modules of every package `scripts`, taken out of `sys.modules`."""
    names = [name for name in sys.modules if name.partition(".")[0] == _PACKAGE]
    return {name: sys.modules.pop(name) for name in names}


def _is_ours(module: ModuleType | None) -> bool:
    return module is not None and str(bundle_root() / _PACKAGE) in map(str, getattr(module, "__path__", ()))
