"""A training of several processes, on one machine or several: what all must agree on, and one that is lost.

Also those of one machine that load slabs for it.
"""

from __future__ import annotations

from pathlib import Path
from traceback import walk_tb

import torch.distributed as dist
from ignite.engine import Engine, Events

from ..errors import CaseError

# what gloo says, in an error of no type of its own, where the other end of a connection is gone
_LOST = ("gloo/transport", "Connection closed by peer", "Connection reset by peer", "Broken pipe")

# what PyTorch says, in an error of no type of its own, where a process that loads was killed
_LOADER_LOST = "DataLoader worker (pid"


def tell_lost_loader(trainer: Engine) -> None:
    """Have a trainer say in one sentence that a process which loads slabs for it (`num_workers`) was killed.

    To be attached before what else hears of its exceptions.

    Raises:
        CaseError: in the trainer's run, in the place of PyTorch's errors.
    """
    trainer.add_event_handler(Events.EXCEPTION_RAISED, _raise_lost_loader)


def _raise_lost_loader(_engine: Engine, error: BaseException) -> None:
    if not _is_lost_loader(error):
        raise error
    said = str(error).strip().partition("\n")[0].rstrip(". ")[:200]
    raise CaseError(
        f"A process that loaded slabs was killed ({said}), for want of memory or shared memory as a rule; lower"
        " num_workers (0 loads in the training's own process), and type the same command again: the training goes on"
        " from its last checkpoint."
    ) from error


def _is_lost_loader(error: BaseException) -> bool:
    """Whether it is PyTorch's error of a loading process that ended, or of a connection to one."""
    if isinstance(error, RuntimeError) and str(error).startswith(_LOADER_LOST):
        return True
    modules = {frame.f_globals.get("__name__") for frame, _ in walk_tb(error.__traceback__)}
    return isinstance(error, ConnectionError | EOFError) and "torch.utils.data.dataloader" in modules


def run_together(trainer: Engine) -> None:
    """Run a trainer that is one of several processes of one training.

    Raises:
        CaseError: another process ended or cannot be reached any more.
    """
    try:
        trainer.run()
    except RuntimeError as error:
        if not isinstance(error, dist.DistNetworkError) and not any(words in str(error) for words in _LOST):
            raise
        said = str(error).strip().partition("\n")[0][:200]
        raise CaseError(
            f"Another process of this training ended or cannot be reached ({said}); start the same command again on"
            " all nodes: the training goes on from its last checkpoint."
        ) from error


def check_shared(folder: Path, newest: Path | None) -> None:
    """Refuse a folder that is not the same for all processes; does nothing where there is one process.

    Args:
        folder: of the checkpoints.
        newest: the checkpoint that this process found there, or None.

    Raises:
        CaseError: in all processes, where they found different ones; they would train different networks.
    """
    if not dist.is_initialized():
        return
    found = [None] * dist.get_world_size()
    dist.all_gather_object(found, newest and newest.name)
    if len(set(found)) > 1:
        seen = " and ".join(sorted(str(name or "none") for name in set(found)))
        raise CaseError(
            f"The nodes do not find the same newest checkpoint in {folder} ({seen}); give an output_dir on a disk"
            " that all of them share."
        )
