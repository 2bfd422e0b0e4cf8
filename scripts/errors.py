"""The error a user can mend, in one sentence; how any error becomes one; and the end of a program that meets one."""

from __future__ import annotations

import logging
import sys
from types import TracebackType

import torch

__all__ = ["CaseError", "reason", "shorten_errors"]

logger = logging.getLogger(__name__)


def _server_errors() -> tuple[type[Exception], ...]:
    """Starlette's exception, which becomes the response of a request, where a server such as MONAI Label runs."""
    exceptions = sys.modules.get("starlette.exceptions")
    return () if exceptions is None else (exceptions.HTTPException,)


class CaseError(ValueError, *_server_errors()):
    """One case cannot be translated; its message is one sentence: the file, what is wrong, what to do.

    In a server it is an error 422 whose detail is that sentence; any other exception would reach the client as
    "Internal Server Error".
    """

    status_code = 422
    headers = None

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        self.detail = sentence

    __str__ = ValueError.__str__


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
