"""What all workflows share: the bundle's folder."""

from __future__ import annotations

import logging
from pathlib import Path

__all__ = ["bundle_root"]

logger = logging.getLogger(__name__)


def bundle_root() -> str:
    """The folder above this package, wherever the command was typed."""
    return str(Path(__file__).resolve().parents[1])
