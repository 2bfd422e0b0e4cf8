"""The training call of a bridge network, and the one place where images become the network's range."""

from __future__ import annotations

from collections.abc import Callable

import torch
from monai.inferers import Inferer
from torch import Tensor

from ..schedulers import BrownianBridgeScheduler


def to_network_range(images: Tensor) -> Tensor:
    """Images in [0, 1] to the network's [-1, 1]."""
    return images * 2 - 1


def to_image_range(samples: Tensor) -> Tensor:
    """The network's [-1, 1] back to images in [0, 1]; nothing is clipped."""
    return (samples + 1) / 2


def call_network(
    network: Callable[..., Tensor],
    sample: Tensor,
    timesteps: Tensor | int,
    source: Tensor,
    context: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Evaluate a network of slabs in a floating type of its own.

    Args:
        network: called as `network(x_t, timesteps, context=context, source=y)`.
        sample: x_t, (n, 2N+1, H, W), [-1, 1].
        timesteps: (n,) timesteps, or one for all.
        source: y, same shape, [-1, 1].
        context: style keys, (n or 1, 3, number of bins), or None for no style.
        dtype: type of the slabs handed over, None for that of sample; torch.bfloat16 and torch.float16 mean autocast on
            float32 slabs, channels last.

    Returns:
        the prediction, shape and type of sample.
    """
    half = dtype in (torch.bfloat16, torch.float16)
    slab_type = torch.float32 if half else dtype or sample.dtype
    layout = torch.channels_last if half else torch.contiguous_format
    x, y = (slab.to(dtype=slab_type).contiguous(memory_format=layout) for slab in (sample, source))
    times = torch.as_tensor(timesteps, device=sample.device).expand(len(sample))
    keys = None if context is None else context.to(slab_type).expand(len(sample), -1, -1)
    with torch.autocast(sample.device.type, dtype=dtype if half else None, enabled=half):
        prediction = network(x, times, context=keys, source=y)
    return prediction.to(sample.dtype)


class BridgeInferer(Inferer):
    """One forward pass of a bridge network for a training iteration, in the manner of MONAI's `DiffusionInferer`.

    Args:
        scheduler: gives x_t, and the target of the loss.
        dtype: floating type of the network's call, None for that of the inputs; see `call_network`.
    """

    def __init__(self, scheduler: BrownianBridgeScheduler, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.scheduler = scheduler
        self.dtype = dtype

    def __call__(
        self,
        inputs: Tensor,
        network: Callable[..., Tensor],
        noise: Tensor,
        timesteps: Tensor,
        source: Tensor,
        context: Tensor | None = None,
    ) -> Tensor:
        """Predict from a noisy slab between target and source.

        Args:
            inputs: target slabs x0, (B, 2N+1, H, W), [0, 1].
            network: called as `network(x_t, timesteps, context=context, source=y)`.
            noise: standard normal, shape of inputs.
            timesteps: (B,) integer timesteps.
            source: source slabs y, shape of inputs, [0, 1].
            context: style keys, (B, 3, number of bins), or None for no style.

        Returns:
            the network's prediction, shape and type of inputs; compare it with `target` of the same arguments.
        """
        y = to_network_range(source)
        noisy = self.scheduler.add_noise(to_network_range(inputs), noise, timesteps, y)
        return call_network(network, noisy, timesteps, y, context, self.dtype)

    def target(self, inputs: Tensor, noise: Tensor, timesteps: Tensor, source: Tensor) -> Tensor:
        """What the network should have predicted in a call with the same arguments, shape of inputs."""
        return self.scheduler.target(to_network_range(inputs), noise, timesteps, to_network_range(source))
