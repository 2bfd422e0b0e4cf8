"""What all workflows share: the bundle's folder, and how each of them starts."""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import fire
from monai.bundle import ConfigParser, ConfigWorkflow, create_workflow
from monai.bundle.reference_resolver import ReferenceResolver

from .devices import check_device, keep_freed_memory
from .errors import shorten_errors
from .options import check_options, texts_as_written, typed_options

__all__ = ["bundle_root", "config_as_read", "start", "started_workflow"]

Caller = TypeVar("Caller", ReferenceResolver, ConfigParser)


def bundle_root() -> str:
    """The folder above this package, wherever the command was typed."""
    return str(Path(__file__).resolve().parents[1])


def config_as_read() -> dict[str, Any]:
    """The config that is being evaluated: its files, one over the other, with what was typed; nothing is resolved.

    To be called in an expression of that config, by what makes another config of it.

    Raises:
        RuntimeError: no config is being evaluated.
    """
    parser = _caller(ConfigParser)
    if parser is None:
        raise RuntimeError("config_as_read is for expressions of a config; no config is being evaluated.")
    return copy.deepcopy(parser.config)


def start(arguments: Sequence[str] | None = None) -> None:
    """Start a workflow of `python -m monai.bundle run`, before anything else of its config is evaluated.

    Errors are shortened, memory is kept, mistyped options and absent devices are refused, and paths and names are taken
    as typed.

    Args:
        arguments: the command line; `sys.argv` if None.

    Raises:
        CaseError: an option that no config file knows, or a device that is not there.
    """
    arguments = sys.argv if arguments is None else arguments
    shorten_errors()
    keep_freed_memory()
    check_options(arguments)
    device = typed_options(arguments).get("device")
    if device and device[0] not in "$@":
        check_device(device)
    resolver = _caller(ReferenceResolver)
    if resolver is not None:
        _take_as_typed(arguments, resolver)


def started_workflow(words: Sequence[str], **replaced: Any) -> ConfigWorkflow:
    """The workflow of `python -m monai.bundle run WORDS` after its first step, `start`, for who takes the others.

    Args:
        words: the command line, such as `["--config_file", "configs/inference.json", "--output_dir=out"]`.
        replaced: settings that take the place of those in the config files, by name.

    Raises:
        RuntimeError: MONAI's, caused by a CaseError: see `start`.
    """
    made: list[ConfigWorkflow] = []
    typed, sys.argv = sys.argv, [find_spec("monai.bundle.__main__").origin, "run", *words]
    try:
        fire.Fire(lambda **options: made.append(create_workflow(**{**options, **replaced})), command=list(words))
        made[0].parser.get_parsed_content("run#0")
    finally:
        sys.argv = typed
    return made[0]


def _take_as_typed(arguments: Sequence[str], resolver: ReferenceResolver) -> None:
    """Put what was typed where the config's references find it, whatever the command line and MONAI made of it."""
    for name, text in texts_as_written(arguments).items():
        if name in resolver.items and not (text == "None" and resolver.items[name].get_config() is None):
            resolver.resolved_content[name] = text
    for name, text in typed_options(arguments).items():  # MONAI would pass over a None and keep the default
        if text == "None" and name in resolver.items and name not in resolver.resolved_content:
            resolver.resolved_content[name] = None


def _caller(kind: type[Caller]) -> Caller | None:
    """What evaluates the config at this moment; MONAI hands it to nobody, so it is looked for among the callers."""
    frame = inspect.currentframe()
    while frame is not None and not isinstance(frame.f_locals.get("self"), kind):
        frame = frame.f_back
    return None if frame is None else frame.f_locals["self"]
