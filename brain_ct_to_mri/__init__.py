"""Brain CT to MRI as a package: the command `brain-ct-to-mri`, and `translate` for programs.

The work is done by the MONAI Bundle that lies in this package (`bundle_root`). Nothing heavy is imported before it is
needed.
"""

from __future__ import annotations

from typing import Any

__all__ = ["CaseError", "__version__", "translate"]


def __getattr__(name: str) -> Any:
    if name in ("CaseError", "translate"):
        from . import api

        return getattr(api, name)
    if name == "__version__":
        from .info import version

        return version()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
