"""Options as they were typed: mistyped names are refused, and values are checked, each kind in one way."""

from __future__ import annotations

import ast
import difflib
import inspect
from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow, run

from .errors import CaseError

__all__ = ["check_options", "names", "number", "one_of", "true_or_false", "two_increasing", "whole_number"]


def one_of(name: str, value: Any, choices: Iterable[str]) -> str:
    """A value that is one of `choices`, such as the keys of a table.

    Raises:
        CaseError: it is not; the sentence lists the choices. So it is for every function here.
    """
    choices = list(choices)
    if value not in choices:
        raise CaseError(f"{name} is {value}; use one of {', '.join(choices)}.")
    return value


def names(name: str, value: Any, known: Iterable[str] | None = None) -> list[str]:
    """Several names, typed as "A,B" (which the command line may have made a tuple of) or given as a list.

    Args:
        name: of the option.
        value: what was typed; None and "" are none.
        known: the names that there are; None lets any pass.

    Returns:
        the names, each once; where the known ones are given, in their order.
    """
    listed = value if isinstance(value, list | tuple) else str("" if value is None else value).strip("[]()").split(",")
    typed = list(dict.fromkeys(str(item).strip() for item in listed if str(item).strip()))
    if known is None:
        return typed
    known = list(known)
    for item in typed:
        if item not in known:
            raise CaseError(f"{name} names {item}, which is not there; use some of {', '.join(known)}.")
    return [item for item in known if item in typed]


def true_or_false(name: str, value: Any) -> bool:
    """A value that is True or False, no text that looks like it."""
    if not isinstance(value, bool):
        raise CaseError(f"{name} is {value}; use True or False.")
    return value


def whole_number(name: str, value: Any, least: int = 1, most: float = inf) -> int:
    """A whole number from `least` to `most`."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise CaseError(f"{name} is {value}; use a whole number {_range(least, most)}.")
    return value


def number(name: str, value: Any, least: float = 0, most: float = inf, below: float = inf, unit: str = "") -> float:
    """A finite number from `least` to `most`, and below `below`; the sentence names its unit, such as "mm"."""
    a_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not a_number or not least <= value <= most or not value < below:
        limits = f"of at least {least:g} and below {below:g}" if below < inf else _range(least, most)
        raise CaseError(f"{name} is {value}; use a number {limits}{unit and ' ' + unit}.")
    return float(value)


def two_increasing(name: str, value: Any, unit: str, example: str = "0,80") -> tuple[float, float]:
    """Two finite numbers, the first below the second, such as a window in HU."""
    try:
        low, high = (float(item) for item in value)
    except (TypeError, ValueError):
        low = high = 0.0
    if not -inf < low < high < inf:
        raise CaseError(f"{name} is {value}; use two increasing numbers of {unit}, for example {example}.")
    return low, high


def _range(least: float, most: float) -> str:
    return f"of at least {least:g}" if most == inf else f"from {least:g} to {most:g}"


def check_options(arguments: Sequence[str]) -> None:
    """Refuse options typed after `python -m monai.bundle run` that no config file knows.

    MONAI takes any name as a new setting, so that a mistyped `--dataset_dir` would translate something else.

    Args:
        arguments: the command line, `sys.argv`; anything but that command is left alone.

    Raises:
        CaseError: an unknown option; the sentence names the nearest one that is known.
    """
    if Path(arguments[0]).parts[-3:] != ("monai", "bundle", "__main__.py"):
        return
    typed = [word.lstrip("-") for word in arguments[1:] if word.startswith("--")]
    names = [word.split("=")[0].replace("-", "_").replace("::", "#").split("#")[0].lstrip("+") for word in typed]
    known = {*inspect.signature(run).parameters, *inspect.signature(ConfigWorkflow).parameters}
    files = _config_files(arguments)
    known |= ConfigParser.load_config_files(files).keys()
    for name in names:
        if files and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else "the keys of the config files are what can be set."
            raise CaseError(f"There is no setting {name}; {hint}")


def _config_files(arguments: Sequence[str]) -> list[str]:
    """The config files that a command line names; none where they stand in an args_file."""
    for word, following in pairwise([*arguments, ""]):
        name, _, value = word.partition("=")
        if name in ("--config_file", "--config-file"):
            files = value or following
            return ast.literal_eval(files) if files.startswith("[") else files.split(",")
    return []
