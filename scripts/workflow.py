"""What all workflows share: the bundle's folder, floating type and memory; mistyped options; errors in one sentence."""

from __future__ import annotations

import ast
import ctypes
import difflib
import inspect
import logging
import os
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from types import TracebackType

import torch
from monai.bundle import ConfigParser, ConfigWorkflow, run

from .files import CaseError

__all__ = ["bundle_root", "check_options", "compute_dtype", "keep_freed_memory", "reason", "shorten_errors"]

logger = logging.getLogger(__name__)


def bundle_root() -> str:
    """The folder above this package, wherever the command was typed."""
    return str(Path(__file__).resolve().parents[1])


def compute_dtype(name: str, device: torch.device | str) -> torch.dtype:
    """The floating type of the network's call.

    Args:
        name: "float32", "bfloat16" or "float16", or "auto": bfloat16 where the processor or GPU multiplies it natively,
            else float32.
        device: where the network runs.

    Raises:
        CaseError: another name.
    """
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name in names:
        return names[name]
    if name != "auto":
        raise CaseError(f"dtype is {name}; use auto or one of {', '.join(names)}.")
    device = torch.device(device)
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return torch.bfloat16 if native else torch.float32


def keep_freed_memory() -> None:
    """Let glibc keep the memory that tensors free, for the next ones; other C libraries are left as they are.

    By default large tensors are given back to the system when they are freed and mapped again page by page: 49,000
    page faults and 15 % of the processor's time of a training step on two cores. Threads share one arena: what one of
    them frees, the others can use.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD, M_ARENA_MAX of malloc.h
        for option, value in ((-3, 2**30), (-1, 2**31 - 1), (-2, 2**28), (-8, 1)):
            mallopt(option, value)


def reason(error: BaseException) -> str:
    """Why a case failed, in one sentence; what nobody foresaw goes to the log with its traceback as well."""
    sentence = _own_sentence(error)
    if sentence is not None:
        return sentence
    cause = _chain(error)[-1]
    logger.error("unforeseen error", exc_info=error)
    if isinstance(cause, torch.OutOfMemoryError | MemoryError):
        return "The memory ran out; lower batch_size, or choose another device."
    # a foreign message may hold paths and names; the log has it
    return f"Unforeseen {type(cause).__name__}; the log shows where it arose, and a report of it is welcome."


def shorten_errors() -> None:
    """From here on, an error that this package states in one sentence ends the program without its traceback."""
    previous = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        sentence = _own_sentence(error)
        if sentence is None:
            previous(kind, error, traceback)
        else:
            print(sentence, file=sys.stderr)

    sys.excepthook = hook


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


def _own_sentence(error: BaseException) -> str | None:
    """The message of the error at the root, where this package raised it; MONAI wraps it in others."""
    for cause in reversed(_chain(error)):
        if isinstance(cause, CaseError) or (isinstance(cause, ValueError) and _raised_in(cause).startswith("scripts.")):
            return str(cause)
    return None


def _chain(error: BaseException) -> list[BaseException]:
    """An error, what caused it, and so on."""
    chain = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    return chain


def _raised_in(error: BaseException) -> str:
    """Name of the module that raised an error."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return "" if traceback is None else traceback.tb_frame.f_globals.get("__name__", "")
