"""The error a user can mend, in one sentence; how any error becomes one; and the end of a program that meets one."""

from __future__ import annotations

import errno
import logging
import os
import re
import signal
import sys
import threading
from contextlib import suppress
from functools import partial
from traceback import extract_tb
from types import FrameType, TracebackType
from typing import NoReturn

import torch

__all__ = [
    *("CaseError", "MachineError", "RefusedError", "TERMINATED"),
    *("is_lasting", "machine_error", "machine_reason", "place_of", "reason", "shorten_errors"),
]

logger = logging.getLogger(__name__)

_ELSEWHERE = "give another folder, and type the command again"
# What the operating system may refuse -> what is wrong, and what to do; {} is the file or folder.
_REFUSALS = {
    errno.ENOSPC: ("The disk of {} is full", f"free space on it, or {_ELSEWHERE}"),
    errno.EDQUOT: ("The quota on the disk of {} is used up", f"delete what is not needed there, or {_ELSEWHERE}"),
    errno.EFBIG: ("A file is larger than the disk of {} allows", _ELSEWHERE),
    errno.EROFS: ("The disk of {} can only be read", _ELSEWHERE),
    errno.EIO: ("The disk of {} reports an error", f"check the disk, or {_ELSEWHERE}"),
    errno.ESTALE: ("The disk of {} is not connected any more", "connect it again, and type the command again"),
    errno.ENOTCONN: ("The disk of {} is not connected any more", "connect it again, and type the command again"),
    errno.EACCES: ("There is no permission for {}", f"ask for it, or {_ELSEWHERE}"),
    errno.EPERM: ("There is no permission for {}", f"ask for it, or {_ELSEWHERE}"),
    errno.ENAMETOOLONG: ("A name at {} is longer than the disk allows", "shorten the names of it and its folders"),
    errno.ENOTDIR: ("{} is no folder, or a part of its path is none", "give another folder"),
    errno.EEXIST: ("{} is there already and no folder", "give another folder"),
    errno.EMFILE: (
        "{} cannot be opened because too many files are open",
        "raise the limit (ulimit -n), and type the command again",
    ),
}
_INTERRUPTED = "Interrupted; files that were written are whole, and the same command can be typed again."
TERMINATED = 128 + signal.SIGTERM
"""Exit status of a program that SIGTERM ended in order, as of a shell whose program died of it."""
_LASTING = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOTCONN}


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


class RefusedError(CaseError, OSError):
    """The operating system refused to write a file."""


class MachineError(RefusedError):
    """The machine is in the way of every case, such as by a full disk: none that follows would fare better."""


def machine_reason(error: BaseException, where: object = "a file that was to be read or written") -> str | None:
    """What the operating system refused, in one sentence with what to do; None where it was nothing of that kind.

    Args:
        error: an OSError, or what it caused.
        where: the file or folder; without it no name stands in the sentence, because names may be a patient's.
    """
    number = _os_number(error)
    if number not in _REFUSALS:
        return None
    what, remedy = _REFUSALS[number]
    return f"{what.format(where)} ({os.strerror(number)}); {remedy}."


def machine_error(error: BaseException) -> MachineError | None:
    """The `MachineError` at the root of an error, which MONAI wraps in others; None where there is none."""
    return next((cause for cause in _chain(error) if isinstance(cause, MachineError)), None)


def is_lasting(error: BaseException) -> bool:
    """Whether the next file would meet the same refusal, as on a full disk."""
    return _os_number(error) in _LASTING


def _os_number(error: BaseException) -> int | None:
    return next((cause.errno for cause in reversed(_chain(error)) if isinstance(cause, OSError) and cause.errno), None)


def reason(error: BaseException) -> str:
    """Why a case failed, in one sentence; what nobody foresaw goes to the log with its traceback as well."""
    sentence = _own_sentence(error)
    if sentence is not None:
        return sentence
    sentence = machine_reason(error)
    if sentence is not None:
        logger.error(f"{type(_chain(error)[-1]).__name__}: {_chain(error)[-1]}")  # the log may name the file
        return sentence
    cause = _chain(error)[-1]
    logger.error("unforeseen error", exc_info=error)
    if isinstance(cause, torch.OutOfMemoryError | MemoryError):
        return "The memory ran out; lower batch_size, or choose another device."
    # a foreign message may hold paths and names; the log has it
    return f"Unforeseen {type(cause).__name__}; the log shows where it arose, and a report of it is welcome."


def place_of(error: BaseException) -> str:
    """File and line where an error was raised, for logs in which its message could quote a name."""
    where = extract_tb(error.__traceback__)[-1]
    return f"{os.path.basename(where.filename)}, line {where.lineno}"


def shorten_errors() -> None:
    """From here on, an error that can be said in one sentence ends the program without its traceback.

    These are the package's own, what the operating system refused, and Ctrl-C. SIGTERM, which schedulers of jobs send,
    ends it as Ctrl-C does, with the status `TERMINATED`, except in an interactive session, which would catch that, and
    under torchrun, which waits for processes that sit in an exchange with a lost one. Names that are no UTF-8 can be
    printed. A log that cannot be written, as on a full disk, is told once.
    """
    _tell_refused_log_once()
    _end_in_order_when_told()
    previous = sys.excepthook
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        sentence = _last_words(error)
        if sentence is None:
            previous(kind, error, traceback)
        else:
            print(sentence, file=sys.stderr)

    sys.excepthook = hook


def _tell_refused_log_once() -> None:
    previous, told = logging.Handler.handleError, []

    def handle(handler: logging.Handler, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            previous(handler, record)
        elif not told:
            told.append(error)
            with suppress(OSError):
                print(f"The log cannot be written ({error.strerror}); free space on its disk.", file=sys.stderr)

    logging.Handler.handleError = handle


def _end_in_order_when_told() -> None:
    """What is being saved is saved and temporary files are removed, unless the program has a handler of its own."""
    in_main_thread = threading.current_thread() is threading.main_thread()  # no other may set it
    hosted = hasattr(sys, "ps1") or "TORCHELASTIC_RUN_ID" in os.environ
    handler = signal.getsignal(signal.SIGTERM)
    # of the process that this one was forked from; a fork that comes here has something to save
    inherited = isinstance(handler, partial) and handler.func is _terminate and handler.args != (os.getpid(),)
    if in_main_thread and not hosted and (handler is signal.SIG_DFL or inherited):
        signal.signal(signal.SIGTERM, partial(_terminate, os.getpid()))
        if os.name != "nt" and not inherited:  # there no program tells another, and `os.kill` ends it at once
            _insist_on_ending()


def _terminate(process: int, number: int, _frame: FrameType | None) -> None:
    if os.getpid() != process:  # forked a moment ago, such as one that loads slabs: it has nothing to save
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        return
    if hasattr(signal, "SIGCHLD"):  # of a whole group that is told, PyTorch would report the end of its own processes
        signal.signal(signal.SIGCHLD, lambda *_: None)  # not SIG_DFL, of which Python complains where one is on its way
    with suppress(OSError):
        os.write(2, f"{_INTERRUPTED}\n".encode())  # print may be what was interrupted
    _leave(number)


def _leave(number: int, _frame: FrameType | None = None) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)  # a second one must not cut the orderly end off
    sys.exit(TERMINATED)


def _insist_on_ending() -> None:
    """End also where SIGTERM or Ctrl-C came in what Python lets no exception out of, such as a fork or a `__del__`.

    Without it the program would go on, and ignore the SIGTERM that comes next.
    """
    previous = sys.unraisablehook

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        error = unraisable.exc_value
        told = isinstance(error, SystemExit) and error.code == TERMINATED
        in_main_thread = threading.current_thread() is threading.main_thread()
        if not in_main_thread or not (told or isinstance(error, KeyboardInterrupt)):
            previous(unraisable)
            return
        if told:
            signal.signal(signal.SIGTERM, _leave)
        again = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM if told else signal.SIGINT))
        again.daemon = True
        with suppress(RuntimeError):  # no thread is started any more where the program is ending anyway
            again.start()

    sys.unraisablehook = hook


def _last_words(error: BaseException) -> str | None:
    if isinstance(error, KeyboardInterrupt):
        return _INTERRUPTED
    name = next((cause.filename for cause in reversed(_chain(error)) if isinstance(cause, OSError)), None)
    return _own_sentence(error) or machine_reason(error, *([] if name is None else [name]))


def _own_sentence(error: BaseException) -> str | None:
    """The message of the error at the root, where this package raised it; MONAI wraps it in others."""
    for cause in reversed(_chain(error)):
        if isinstance(cause, CaseError) or (isinstance(cause, ValueError) and _raised_in(cause).startswith("scripts.")):
            return re.sub(r"[\x00-\x1f\x7f]", " ", str(cause))  # a file's name may have a line break
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
