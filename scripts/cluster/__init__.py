"""A cohort on many machines: cases as tasks on the workers of a Ray cluster. `run` is the way in."""

from .command import run

__all__ = ["run"]
