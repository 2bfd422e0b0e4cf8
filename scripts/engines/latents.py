"""What the training of a codec needs beside that of a network: the scale of its latent."""

from __future__ import annotations

import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import Dataset

from .batches import AutoencoderPrepareBatch


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
