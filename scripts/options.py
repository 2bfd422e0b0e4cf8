"""Options as they were typed: mistyped ones are refused."""

from __future__ import annotations

import ast
import difflib
import inspect
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from monai.bundle import ConfigParser, ConfigWorkflow, run

from .errors import CaseError

__all__ = ["check_options"]


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
