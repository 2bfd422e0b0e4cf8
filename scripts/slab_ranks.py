"""Several processes sample one volume: each its share of the slices, with what overlaps at its ends from the others.

Rank 0 reads, saves and calls its inferer as if it were alone. With each volume it tells the others the arguments of the
call, and they make the same one, each on its slices. A rank that fails ends all of them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .devices import check_device
from .errors import CaseError, MachineError, reason

if TYPE_CHECKING:
    from monai.inferers import Inferer

_PATIENCE = timedelta(seconds=60)  # after which a rank asks again whether there is a volume


class OneProcess:
    """A process that samples alone: all slices are its share."""

    rank, size = 0, 1

    def shares(self, num_slices: int) -> list[range]:
        """The slices of each rank, as equal in number as can be.

        Raises:
            CaseError: there are fewer slices than ranks.
        """
        if num_slices < self.size:
            raise CaseError(
                f"The volume has {num_slices} slices at the network's spacing, fewer than the {self.size} processes "
                "that would share them: start fewer."
            )
        borders = [num_slices * rank // self.size for rank in range(self.size + 1)]
        return [range(*ends) for ends in pairwise(borders)]

    def exchange(self, rows: Tensor, owned: Sequence[range], needed: Sequence[range]) -> Tensor:
        """Rows that the ranks have become rows that they need.

        Args:
            rows: (len(owned[rank]), ...), those of this rank.
            owned: rows of each rank, one after the other.
            needed: rows that each rank needs.

        Returns:
            (len(needed[rank]), ...), of the same type, on the same device.
        """
        mine, wanted = owned[self.rank], needed[self.rank]
        received = rows.new_empty((len(wanted), *rows.shape[1:]))
        both = _common(mine, wanted)
        received[_within(both, wanted)] = rows[_within(both, mine)]
        return received

    @contextmanager
    def sampling(self, **call: Any) -> Iterator[None]:
        """Around the sampling of a volume; `call` is what the other ranks need to do the same."""
        yield


class SlabRanks(OneProcess):
    """The processes of a run that torchrun started, on one machine or several.

    Args:
        device: of this process's network; what is on a GPU is exchanged by NCCL, the rest by gloo.
        timeout: seconds for which a rank waits for another while a volume is sampled.

    Raises:
        CaseError: torchrun did not start this process, or there is no such device.
        ValueError: the timeout is no positive number.
        MachineError: the processes do not find each other.
    """

    def __init__(self, device: str | torch.device = "cpu", timeout: float = 600) -> None:
        if not isinstance(timeout, int | float) or isinstance(timeout, bool) or not 0 < timeout < 1e9:
            raise ValueError(f"timeout is {timeout}; use a positive number of seconds.")
        if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
            raise CaseError(
                "slab_parallel.json shares a volume among the processes that torchrun starts: type torchrun "
                "--nproc_per_node 2 -m monai.bundle run in the place of python -m monai.bundle run."
            )
        check_device(str(device))
        self.device = torch.device(device)
        try:
            self._meet(timedelta(seconds=timeout))
        except (RuntimeError, ValueError) as error:
            raise MachineError(
                f"The processes did not find each other in {timeout:g} s ({_first_line(error)}): check torchrun's "
                "options --nnodes, --nproc_per_node and --rdzv-endpoint, and the network between the machines."
            ) from error
        self._volumes = 0

    def _meet(self, timeout: timedelta) -> None:
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            torch.cuda.set_device(self.device)
        self._store, self.rank, self.size = next(dist.rendezvous("env://", timeout=timeout))
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            store=self._store,
            rank=self.rank,
            world_size=self.size,
            timeout=timeout,
        )
        if on_gpu:  # NCCL wants all ranks in its first exchange
            dist.all_reduce(torch.zeros(1, device=self.device))

    def exchange(self, rows: Tensor, owned: Sequence[range], needed: Sequence[range]) -> Tensor:
        """See `OneProcess.exchange`; to be called on all ranks alike."""
        received = super().exchange(rows, owned, needed)
        mine, wanted = owned[self.rank], needed[self.rank]
        operations = []
        for other in range(self.size):
            if other == self.rank:
                continue
            if outgoing := _common(mine, needed[other]):
                operations.append(dist.P2POp(dist.isend, rows[_within(outgoing, mine)].contiguous(), other))
            if incoming := _common(owned[other], wanted):
                operations.append(dist.P2POp(dist.irecv, received[_within(incoming, wanted)], other))
        with self._waiting():
            for work in dist.batch_isend_irecv(operations) if operations else []:
                work.wait()
        return received

    @contextmanager
    def sampling(self, **call: Any) -> Iterator[None]:
        """See `OneProcess.sampling`: rank 0 tells the others; what one cannot do ends it, and by that the others."""
        try:
            if self.rank == 0:
                self._tell(call)
            yield
        except MachineError:
            raise
        except Exception as error:
            raise MachineError(
                f"Process {self.rank} of {self.size} failed at its share of a volume, which ends them all: "
                f"{reason(error)}"
            ) from error

    def serve(self, inferer: Inferer, network: nn.Module) -> None:
        """Take part in the sampling of each volume of rank 0; with the last one, the process ends.

        On rank 0 nothing is done.

        Args:
            inferer: made of the same config as that of rank 0, with `changed(**arguments)`.
            network: with the same weights.
        """
        if self.rank == 0:
            return
        network.eval()
        while (call := self._told()) is not None:
            told = {name: _to(value, self.device) for name, value in call["conditions"].items()}
            inferer.changed(**call["arguments"])(call["inputs"].to(self.device), network, **told)
        dist.destroy_process_group()
        sys.exit(0)

    def finish(self) -> None:
        """On rank 0: there are no more volumes; the other processes end."""
        self._tell(None)
        dist.destroy_process_group()

    def _tell(self, call: Mapping[str, Any] | None) -> None:
        if call is not None:
            call = {**call, "inputs": call["inputs"].cpu()}
        self._volumes += 1
        with self._waiting():
            self._store.set(f"volume {self._volumes}", "is there")
            dist.broadcast_object_list([call], src=0, device=torch.device("cpu"))

    def _told(self) -> Mapping[str, Any] | None:
        """The next volume of rank 0, which may take its time to read one; None after the last."""
        self._volumes += 1
        box: list[Any] = [None]
        with self._waiting():
            while not self._is_there(f"volume {self._volumes}"):
                pass
            dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def _is_there(self, key: str) -> bool:
        try:
            self._store.wait([key], _PATIENCE)
        except dist.DistStoreError:
            return False
        return True

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise MachineError(
                f"Another of the {self.size} processes ended, or was not heard of in time, so process {self.rank} "
                "cannot go on: its own message says why; then type the command again."
            ) from error


def _common(one: range, other: range) -> range:
    return range(max(one.start, other.start), max(one.start, other.start, min(one.stop, other.stop)))


def _within(part: range, whole: range) -> slice:
    return slice(part.start - whole.start, part.stop - whole.start)


def _to(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]
