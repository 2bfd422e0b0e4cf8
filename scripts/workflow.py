"""What all workflows share: the bundle's folder, and how each of them starts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from .devices import keep_freed_memory
from .errors import shorten_errors
from .options import check_options

__all__ = ["bundle_root", "start"]


def bundle_root() -> str:
    """The folder above this package, wherever the command was typed."""
    return str(Path(__file__).resolve().parents[1])


def start(arguments: Sequence[str] | None = None) -> None:
    """Start a workflow of `python -m monai.bundle run`: errors are shortened, memory kept, mistyped options refused.

    Args:
        arguments: the command line; `sys.argv` if None.

    Raises:
        CaseError: an option that no config file knows.
    """
    shorten_errors()
    keep_freed_memory()
    check_options(sys.argv if arguments is None else arguments)
