"""Options as they were typed: mistyped names are refused, and values are checked, each kind in one way."""

from __future__ import annotations

import ast
import difflib
import inspect
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from math import inf
from pathlib import Path
from types import NoneType
from typing import Any, get_args

from fire.decorators import SetParseFn, SetParseFns
from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser, ConfigWorkflow, run

from .errors import CaseError
from .text import as_on_disk

__all__ = [
    *("check_options", "is_text", "taking_text", "texts_as_written", "typed_options"),
    *("config_files", "names", "number", "one_of", "true_or_false", "two_increasing", "whole_number"),
]

# settings of the configs whose value is text, beside all that end in _dir, _file and _weights
TEXTS = frozenset(
    {
        *("weights", "against"),
        *("style_key", "shipped_style_key", "skull_strip"),
        *("knowledge_base", "codec"),
        *("section", "section_of", "val_section", "fit_section", "subjects", "rows", "series_uid"),
        *("source_contrast", "target_contrast", "tracking_uri", "experiment_name", "run_name"),
    }
)


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


def config_files(typed: str | Sequence[str]) -> list[str]:
    """Absolute paths of config files, typed as `monai.bundle` takes them: one, a list, or several with commas.

    Raises:
        CaseError: one of them is not there, or is no config file.
    """
    if isinstance(typed, str):
        typed = ast.literal_eval(typed) if re.match(r"\[\s*['\"]", typed) else typed.split(",")
    for file in typed:
        if not Path(file).is_file():
            raise CaseError(f"There is no config file {file}; check config_file.")
        try:
            ConfigParser.load_config_file(file)
        except Exception as error:  # of JSON, YAML, or of MONAI where it is neither
            what = " ".join(str(error).split())[:120]
            raise CaseError(f"{file} is no config file ({what}); repair it, or check config_file.") from error
    return [str(Path(file).absolute()) for file in typed]


def _range(least: float, most: float) -> str:
    return f"of at least {least:g}" if most == inf else f"from {least:g} to {most:g}"


def is_text(name: str) -> bool:
    """Whether the value of a setting is text: a path, or a name that somebody gave."""
    return name in TEXTS or (name.endswith(("_dir", "_file", "_weights")) and name not in _of_monai())


def typed_options(arguments: Sequence[str]) -> dict[str, str | None]:
    """Name -> value, as typed after `python -m monai.bundle run`; None where no value follows the name.

    Fire, which reads that command line, makes Python of the values: `hs #2` becomes `hs`, `Doe, Jane` a tuple, 3.10 the
    number 3.1. The words are told apart here as there.

    Args:
        arguments: the command line, `sys.argv`; of any other command it is nothing.
    """
    if Path(arguments[0]).parts[-3:] != ("monai", "bundle", "__main__.py"):
        return {}
    typed: dict[str, str | None] = {}
    for word, following in pairwise([*arguments[1:], "--"]):
        if _is_flag(word):
            name, equals, value = word.lstrip("-").partition("=")
            following_value = None if _is_flag(following) else following
            typed[name.replace("-", "_").replace("::", "#")] = value if equals else following_value
    return typed


def _is_flag(word: str) -> bool:
    return re.match("--|-[a-zA-Z]", word) is not None


def taking_text(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command of `python -m scripts` whose arguments that are annotated `str` come as they were typed.

    Fire makes Python of all others, such as 3.10 and [1, 2]; where several texts may be given, it does so of a list in
    brackets. "None" is None where that is allowed. Further options by name (`**options`) are text as well.
    """
    parse = {}
    for name, parameter in inspect.signature(command, eval_str=True).parameters.items():
        kinds = {parameter.annotation, *get_args(parameter.annotation)}
        if str in kinds:
            parse[name] = partial(_text, or_none=NoneType in kinds, or_list=Sequence[str] in kinds)
        elif parameter.kind is not parameter.VAR_KEYWORD:
            parse[name] = DefaultParseValue
    return SetParseFn(str)(SetParseFns(**parse)(command))


def _text(word: str, or_none: bool, or_list: bool) -> Any:
    as_python = (or_none and word == "None") or (or_list and word.startswith("["))
    return DefaultParseValue(word) if as_python else _as_path(word)


def check_arguments(command: Callable[..., Any], arguments: Sequence[str]) -> None:
    """Refuse options that a command of `python -m scripts` does not have; Fire would only say so after its work.

    Args:
        command: the function; one that takes any option by name (`**options`) looks after them itself.
        arguments: what was typed after its name.

    Raises:
        CaseError: an unknown option; the sentence names the nearest one that is known.
    """
    parameters = inspect.signature(command).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for word in arguments:
        name = word[2:].partition("=")[0].replace("-", "_")
        if word.startswith("--") and name not in {*parameters, "help", ""}:
            raise CaseError(f"There is no option {name}; {_hint(name, parameters)}")


def _hint(name: str, known: Collection[str], otherwise: str = "--help lists them.") -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else otherwise


def check_options(arguments: Sequence[str]) -> None:
    """Refuse options typed after `python -m monai.bundle run` that no config file knows, and paths without a value.

    MONAI takes any name as a new setting, so that a mistyped `--dataset_dir` would translate something else.

    Args:
        arguments: the command line, `sys.argv`; anything but that command is left alone.

    Raises:
        CaseError: an unknown option; the sentence names the nearest one that is known. Or one that has no value.
    """
    typed = typed_options(arguments)
    settings = _settings_of_files(typed)
    for name, value in typed.items():
        top = name.split("#")[0].lstrip("+")
        if settings and top not in settings.keys() | _of_monai():
            hint = _hint(top, settings.keys() | _of_monai(), "use a key of the config file.")
            raise CaseError(f"There is no setting {top}; {hint}")
        if is_text(name) and not value:
            raise CaseError(f"{name} has no value; type one, as in --{name}=VALUE where it begins with a hyphen.")


def texts_as_written(arguments: Sequence[str]) -> dict[str, str]:
    """Settings that are text, as they were typed, or written in a config file that MONAI would read otherwise.

    MONAI evaluates what begins with `$` or `@`, and turns each `#` into `::`. What is typed for a path is none of that.
    In a file `$` and `@` keep their meaning.

    Args:
        arguments: the command line, `sys.argv`.
    """
    typed = typed_options(arguments)
    written = {
        name: value
        for name, value in _settings_of_files(typed).items()
        if is_text(name) and isinstance(value, str) and "#" in value and value[0] not in "$@%"
    }
    return written | {name: _as_path(value) for name, value in typed.items() if is_text(name) and value}


def _as_path(text: str) -> str:
    """A text as typed, but with accents as they are stored on the disk, and a `~` of nobody's home below its folder.

    `pathlib` would look for the home of a user of that name.
    """
    text = as_on_disk(text)
    return os.path.abspath(text) if text.startswith("~") and os.path.expanduser(text) == text else text


def _of_monai() -> set[str]:
    """The names that the command itself takes."""
    return {*inspect.signature(run).parameters, *inspect.signature(ConfigWorkflow).parameters}


def _settings_of_files(typed: Mapping[str, str | None]) -> dict[str, Any]:
    """What the config files say, and the args_file over them; nothing where the config files stand in an args_file."""
    files, more = typed.get("config_file"), typed.get("args_file")
    if not files:
        return {}
    listed = ast.literal_eval(files) if files.startswith("[") else files
    return {**ConfigParser.load_config_files(listed), **(ConfigParser.load_config_file(more) if more else {})}
