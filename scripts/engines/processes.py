"""A training of several processes, on one machine or several: what all must agree on, and one that is lost."""

from __future__ import annotations

from pathlib import Path

import torch.distributed as dist
from ignite.engine import Engine

from ..errors import CaseError

# what gloo says, in an error of no type of its own, where the other end of a connection is gone
_LOST = ("gloo/transport", "Connection closed by peer", "Connection reset by peer", "Broken pipe")


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
