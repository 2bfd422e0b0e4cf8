"""A network's predictions for slabs become one prediction for every slice, in as many calls as the memory needs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ..devices import batch_that_fits, is_out_of_memory
from ..schedulers import AffineScheduler
from ..slab_ranks import OneProcess
from ..slabs import add_slabs, extract_slabs, slab_centres, slab_weights

logger = logging.getLogger(__name__)


def is_half(dtype: torch.dtype | None) -> bool:
    """Whether a floating type means autocast."""
    return dtype in (torch.bfloat16, torch.float16)


def autocast(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    """Autocast to a half type; for others, none."""
    return torch.autocast(device.type, dtype=dtype if is_half(dtype) else None, enabled=is_half(dtype))


def call_network(
    network: Callable[..., Tensor],
    sample: Tensor,
    timesteps: Tensor | int,
    source: Tensor,
    context: Tensor | None = None,
    dtype: torch.dtype | None = None,
    **conditions: Tensor,
) -> Tensor:
    """Evaluate a network of slabs in a floating type of its own.

    Args:
        network: called as `network(x_t, timesteps, context=context, source=y, **conditions)`.
        sample: x_t, (n, c (2N+1), H, W), in the codec's range.
        timesteps: (n,) timesteps, or one for all.
        source: source slabs, (n, C c (2N+1), H, W), in the codec's range.
        context: style keys, (n or 1, 3, number of bins), or None for no style.
        dtype: type of the slabs handed over, None for that of sample; torch.bfloat16 and torch.float16 mean autocast on
            float32 slabs, channels last.
        conditions: further tensors of n slabs, by name.

    Returns:
        the prediction, shape and type of sample.
    """
    half = is_half(dtype)
    slab_type = torch.float32 if half else dtype or sample.dtype
    layout = torch.channels_last if half else torch.contiguous_format
    x, y = (slab.to(dtype=slab_type).contiguous(memory_format=layout) for slab in (sample, source))
    times = torch.as_tensor(timesteps, device=sample.device).expand(len(sample))
    more = {name: value.to(slab_type) for name, value in conditions.items()}
    keys = None if context is None else context.to(slab_type).expand(len(sample), -1, -1)
    with autocast(sample.device, dtype):
        prediction = network(x, times, context=keys, source=y, **more)
    return prediction.to(sample.dtype)


class SlabInputs(NamedTuple):
    """What a network is given beside the state, for volumes of Z + 2N slices.

    Attributes:
        source: (B, Z + 2N, C c, h, w), in the codec's range.
        endpoint: where the bridge starts, (B, Z + 2N, c, h, w).
        context: style key, (1, 3, number of bins), or None.
        conditions: name -> (B, Z + 2N, channels, h, w), cut into slabs as the source is.
        presence: (B, C), 1 where a volume has the contrast, or (B, Z + 2N, C), where its slices have it, which a slab
            has as the slice in its middle; or None for a source of one.
    """

    source: Tensor
    endpoint: Tensor
    context: Tensor | None = None
    conditions: Mapping[str, Tensor] = {}
    presence: Tensor | None = None

    def slabs(self, volume: int, centres: Tensor, slab_size: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Slabs of a volume: of the source, of the endpoint, and of the conditions by name."""
        cut = partial(extract_slabs, centres=centres, slab_size=slab_size)
        conditions = {name: cut(slices[volume]) for name, slices in self.conditions.items()}
        if self.presence is not None:
            there = self.presence[volume]
            middle = centres + slab_size // 2
            conditions["presence"] = there.expand(len(centres), -1) if there.ndim == 1 else there[middle]
        source = cut(self.source[volume])
        return source, source if self.endpoint is self.source else cut(self.endpoint[volume]), conditions


class SlabPredictor:
    """x0_hat of every slice of the state: the average over the slabs that hold it (CT2MRI's co-prediction, eq. 4).

    Args:
        network: called as in `call_network`.
        scheduler: knows what the network's prediction stands for.
        inputs: what the network is given beside the state.
        slab_size: 2N+1.
        slab_stride, final_stride: see `ISTAInferer`; with co-prediction the slabs move on by one slice from call to
            call.
        batch_size: slabs in one call of the network, or "auto".
        dtype: floating type of the network's call.
        co_prediction: whether a slice is averaged over all slabs that hold it, or taken from the one centred nearest.
        mirrored: whether each prediction is averaged with that of the slab mirrored left to right.
        ranks: the processes that share the slabs; each has its share of the slices and N more at each end, in its
            state and in `inputs`.
        num_slices: Z of the whole volumes, None where there is one process.
    """

    def __init__(
        self,
        network: Callable[..., Tensor],
        scheduler: AffineScheduler,
        inputs: SlabInputs,
        slab_size: int,
        slab_stride: int = 1,
        batch_size: int | str = "auto",
        dtype: torch.dtype | None = None,
        co_prediction: bool = True,
        mirrored: bool = False,
        final_stride: int = 1,
        ranks: OneProcess | None = None,
        num_slices: int | None = None,
    ) -> None:
        self.network = network
        self.scheduler = scheduler
        self.ranks = ranks or OneProcess()
        self.num_slices = num_slices or inputs.source.shape[1] - slab_size + 1
        self.shares = self.ranks.shares(self.num_slices)
        share = self.shares[self.ranks.rank]
        self.window = slice(share.start, share.stop + slab_size - 1)
        """The slices of this process's state among the Z + 2N."""
        self.inputs = inputs
        self.slab_size = slab_size
        self.slab_stride = slab_stride
        self.batch_size = batch_size
        self.dtype = dtype
        self.co_prediction = co_prediction
        self.mirrored = mirrored
        self.final_stride = final_stride
        self.turn = 0
        self.batch_size_used: int | None = None
        """Slabs a call, after the first one."""

    def __call__(self, sample: Tensor, timestep: int, final: bool = False) -> Tensor:
        """x0_hat of every slice, (B, Z + 2N, c, h, w) as the state; `final` takes `final_stride` for co-prediction.

        Where a call finds too little memory, it is made again with half as many slabs.
        """
        # without co-prediction each slice keeps to its slab: none moves, and more would change nothing but the cost
        stride = self.final_stride if final and self.co_prediction else self.slab_stride
        centres = slab_centres(self.num_slices, stride, self.turn if self.co_prediction else 0)
        self.turn += 1
        weights = slab_weights(centres, self.num_slices, self.slab_size, self.co_prediction).to(sample)
        # the slabs of other processes reach beyond this one's slices
        beyond = self.slab_size - 1 if self.ranks.size > 1 else 0
        average = torch.empty_like(sample)
        for volume, slices in enumerate(average):
            total = slices.new_zeros((len(slices) + 2 * beyond, *slices.shape[1:]))
            predicted = self._predicted(sample[volume], volume, timestep, centres)
            if self.ranks.size > 1:
                predicted = self._exchanged(predicted, centres, sample[volume])
            for now, original in predicted:
                add_slabs(total, original, weights[now], centres[now] - self.window.start + beyond)
            slices.copy_(total[beyond : beyond + len(slices)])
        return average

    def _predicted(self, sample: Tensor, volume: int, timestep: int, centres: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """x0_hat of this process's slabs, call by call, with which of all slabs they are."""
        own = _between(centres, self.shares[self.ranks.rank])
        start = own.start
        while start < own.stop:
            stop = min(own.stop, start + self._batch_size(sample, volume, len(own)))
            original = self._original(sample, volume, timestep, centres[start:stop] - self.window.start)
            if original is not None:
                yield slice(start, stop), original
                start = stop

    def _exchanged(
        self, predicted: Iterator[tuple[slice, Tensor]], centres: Tensor, sample: Tensor
    ) -> Iterator[tuple[slice, Tensor]]:
        """The slabs of all processes that hold slices of this one, in the groups in which one process adds them."""
        none = sample.new_empty((0, sample.shape[1] * self.slab_size, *sample.shape[2:]))
        own = torch.cat([none, *(original for _, original in predicted)])
        reach = self.slab_size - 1
        owned = [_between(centres, share) for share in self.shares]
        needed = [_between(centres, range(share.start - reach, share.stop + reach)) for share in self.shares]
        slabs = self.ranks.exchange(own, owned, needed)
        here = needed[self.ranks.rank]
        size = self.batch_size_used or self.batch_size  # of a process without slabs of its own
        size = len(centres) if size == "auto" else size
        start = here.start
        while start < here.stop:
            stop = min(here.stop, (start // size + 1) * size)
            yield slice(start, stop), slabs[start - here.start : stop - here.start]
            start = stop

    def _original(self, sample: Tensor, volume: int, timestep: int, centres: Tensor) -> Tensor | None:
        """x0_hat of some slabs of a volume, or None where the memory ran out."""
        slabs = extract_slabs(sample, centres, self.slab_size)
        source, endpoint, conditions = self.inputs.slabs(volume, centres, self.slab_size)
        prediction = self._call_or_halve(slabs, timestep, source, conditions)
        if prediction is None:
            return None
        return self.scheduler.predict_original_sample(prediction, timestep, slabs, endpoint)

    def _batch_size(self, sample: Tensor, volume: int, most: int) -> int:
        """Slabs a call, chosen at the first one."""
        size = self.batch_size_used or self.batch_size
        if size == "auto":
            first = torch.zeros(1).long()
            slab = extract_slabs(sample, first, self.slab_size)
            source, _, conditions = self.inputs.slabs(volume, first, self.slab_size)
            call = partial(call_network, self.network, slab, 0, source, self.inputs.context, self.dtype, **conditions)
            size = batch_that_fits(call, sample.device, most)
        self.batch_size_used = size
        return size

    def _call_or_halve(
        self, slabs: Tensor, timestep: int, source: Tensor, conditions: Mapping[str, Tensor]
    ) -> Tensor | None:
        """The network's prediction, or None where the memory ran out: then the next call takes half as many slabs."""
        call = partial(call_network, self.network, timesteps=timestep, context=self.inputs.context, dtype=self.dtype)
        try:
            prediction = call(slabs, source=source, **conditions)
            if not self.mirrored:
                return prediction
            conditions = {name: c.flip(-2) if c.ndim == slabs.ndim else c for name, c in conditions.items()}
            return (prediction + call(slabs.flip(-2), source=source.flip(-2), **conditions).flip(-2)) / 2
        except Exception as error:  # other runtimes have classes of their own
            if len(slabs) == 1 or not is_out_of_memory(error):
                raise
        # after the except clause, so that what the failed call holds is free
        if slabs.device.type == "cuda":
            torch.cuda.empty_cache()
        self.batch_size_used = len(slabs) // 2
        logger.warning(f"The memory ran out with {len(slabs)} slabs a call; going on with {self.batch_size_used}.")
        return None


def _between(centres: Tensor, slices: range) -> range:
    """Which of the slabs are centred on some slices."""
    return range(int((centres < slices.start).sum()), int((centres < slices.stop).sum()))
