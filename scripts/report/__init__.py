"""Pages that open from disk: a table of a folder of results, and a viewer for each case."""

from .report import report

__all__ = ["report"]
