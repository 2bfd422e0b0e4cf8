"""What trainings need to know of a latent: its scale, and what each of its channels is worth."""

from __future__ import annotations

import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import Dataset

from .batches import AutoencoderPrepareBatch


@torch.no_grad()
def decoder_sensitivity(codec: nn.Module, dataset: Dataset, items: int = 32) -> Tensor:
    """How much the decoded image changes with each channel of the state: weights for a loss of states.

    A quarter of the way to the next item's state is taken in one channel. The mean squared change of the image over
    that of the state is what an error of that channel costs in the image, in the directions in which images differ.

    Args:
        codec: with c channels, trained.
        dataset: of two or more slabs; the middle slice of each target is looked at.
        items: how many slabs.

    Returns:
        (c,), mean 1.
    """
    slabs = [dataset[index]["target"] for index in range(min(items, len(dataset)))]
    middle = slabs[0].shape[0] // 2
    images = torch.stack([slab[middle] for slab in slabs])[:, None]
    device = next((tensor.device for tensor in codec.state_dict().values()), images.device)
    states = codec.encode(images.to(device))
    steps = (states.roll(1, dims=0) - states) / 4
    weights = torch.stack([_cost(codec, states, steps, channel) for channel in range(codec.channels)])
    return weights / weights.mean()


def _cost(codec: nn.Module, states: Tensor, steps: Tensor, channel: int) -> Tensor:
    """Mean squared change of the decoded images over that of one channel of their states."""
    moved = states.clone()
    moved[:, channel] += steps[:, channel]
    return (codec.decode(moved) - codec.decode(states)).square().mean() / steps[:, channel].square().mean()


class MeasureLatents:
    """Handler that measures the latent's mean and deviation, with the averaged weights of each epoch's last iteration.

    What happens at the end of the epoch (validation, saving) then finds them measured. Attach it after the handler that
    averages.

    Args:
        network: the trained `LatentCodec`.
        averaged: its `averaged_model`.
        dataset: of slabs; the first items of the epoch are measured.
        items: how many.
    """

    def __init__(self, network: nn.Module, averaged: AveragedModel, dataset: Dataset, items: int = 64) -> None:
        self.network = getattr(network, "module", network)
        self.averaged = averaged
        self.dataset = dataset
        self.items = items

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Measure; the trained network gets the same values, so that the average keeps them."""
        if engine.state.iteration % engine.state.epoch_length:
            return
        codec = self.averaged.module
        codec.measure(self._images().to(codec.latent_mean.device))
        self.network.latent_mean.copy_(codec.latent_mean)
        self.network.latent_std.copy_(codec.latent_std)

    def _images(self) -> Tensor:
        """Images of the sources and targets, (n, 1, H, W), [0, 1]."""
        items = [self.dataset[index] for index in range(min(self.items, len(self.dataset)))]
        return AutoencoderPrepareBatch()(torch.utils.data.default_collate(items))[0]
