"""The inference run that a user meets: cases that fail alone, progress, resumption, the last line, the exit status."""

from __future__ import annotations

import ast
import ctypes
import difflib
import inspect
import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from ignite.engine import Engine
from monai.bundle import ConfigParser, ConfigWorkflow, run
from monai.data import Dataset
from monai.engines import SupervisedEvaluator
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from scripts.files import CaseError
from scripts.transforms.saver import SaveSyntheticd

__all__ = [
    "CaseDataset",
    "CaseEvaluator",
    "bundle_root",
    "check_options",
    "compute_dtype",
    "keep_freed_memory",
    "pending_cases",
    "reason",
    "shorten_errors",
]

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
    page faults and 15 % of the processor's time of a training step on two cores.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD of malloc.h
        for option, size in ((-3, 2**30), (-1, 2**31 - 1), (-2, 2**28)):
            mallopt(option, size)


def pending_cases(cases: Sequence[dict[str, str]], saver: SaveSyntheticd, overwrite: bool) -> list[dict[str, str]]:
    """The cases that `saver` has not saved before with the same settings; all of them with `overwrite`."""
    pending = [item for item in cases if overwrite or not saver.is_done(item)]
    if len(pending) < len(cases):
        logger.info(f"{len(cases) - len(pending)} of {len(cases)} cases are done already (overwrite does them again).")
    return pending


class CaseDataset(Dataset):
    """A dataset whose items do not fail: where the transform raises, the item is the case and the reason instead.

    Items are those of MONAI's `Dataset`, or `{"case": CASE, "image": path, "failure": reason}`.
    """

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            return super().__getitem__(index)
        except Exception as error:
            return {**self.data[index], "failure": reason(error)}


class CaseEvaluator(SupervisedEvaluator):
    """MONAI's evaluator for cases that stand alone: one that fails is noted, and the others go on.

    Args:
        saver: where the outputs go; `failures.json` is written there while cases fail, and is absent when none did.
        num_cases: cases there are, those done before included; for the last line.
        kwargs: of `SupervisedEvaluator`. The loader gives one `CaseDataset` item at a time.
    """

    def __init__(self, saver: SaveSyntheticd, num_cases: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.saver = saver
        self.num_cases = num_cases
        self.failures: list[dict[str, str]] = []

    def run(self, global_epoch: int = 1) -> None:
        """Translate every case of the loader; raises nothing for a single case."""
        try:
            self.saver.output_dir.mkdir(parents=True, exist_ok=True)
            self.saver.remove_partial()
            self._failures_file.unlink(missing_ok=True)
        except OSError as error:
            raise CaseError(f"output_dir cannot be written ({error}); give another one.") from None
        if len(self.data_loader) == 0:
            return
        with logging_redirect_tqdm(), tqdm(total=len(self.data_loader), desc="cases", unit="case") as self._bar:
            super().run(global_epoch)

    def _iteration(self, engine: Engine, batchdata: Mapping[str, Any]) -> dict[str, Any]:
        """One case: translate and save it, or note why not."""
        self._bar.set_postfix_str(batchdata["case"][0])
        engine.state.output = {}
        try:
            if "failure" in batchdata:
                self._note(batchdata["failure"][0])
            else:
                super()._iteration(engine, batchdata)
        except Exception as error:
            self._note(reason(error))
        self._bar.update()
        return engine.state.output

    def _note(self, why: str) -> None:
        item = self.data_loader.dataset.data[self.state.iteration - 1]
        failure = {"case": item["case"], "file": self.saver.source_name(Path(item["image"])), "reason": why}
        self.failures.append(failure)
        temporary = self._failures_file.with_name(f".{self._failures_file.name}.partial")
        temporary.write_text(json.dumps(self.failures, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, self._failures_file)
        logger.error(f"{item['case']} failed: {why}")

    @property
    def _failures_file(self) -> Path:
        return self.saver.output_dir / "failures.json"

    def finish(self) -> None:
        """Say where the outputs are; where cases failed, end the program with status 1 and a sentence."""
        done = self.num_cases - len(self.failures)
        folder = self.saver.output_dir.resolve()
        logger.info(f"Translated {done} of {self.num_cases}; the outputs are in {folder}")
        if self.failures:
            sys.exit(f"{len(self.failures)} of {self.num_cases} cases failed; {folder / 'failures.json'} tells why.")


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
