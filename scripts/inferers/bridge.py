"""The training call of a bridge network, and the one place where images become the network's range."""

from __future__ import annotations

from collections.abc import Callable

import torch
from monai.inferers import Inferer
from torch import Tensor

from scripts.schedulers import BrownianBridgeScheduler


def to_network_range(images: Tensor) -> Tensor:
    """Images in [0, 1] to the network's [-1, 1]."""
    return images * 2 - 1


def to_image_range(samples: Tensor) -> Tensor:
    """The network's [-1, 1] back to images in [0, 1]; nothing is clipped."""
    return (samples + 1) / 2


def network_autocast(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    """Context in which the network runs in `dtype` where that is a half precision, and as it is otherwise."""
    half = dtype in (torch.bfloat16, torch.float16)
    return torch.autocast(device.type, dtype=dtype if half else None, enabled=half)


class BridgeInferer(Inferer):
    """One forward pass of a bridge network for a training iteration, in the manner of MONAI's `DiffusionInferer`.

    Args:
        scheduler: gives x_t, and the target of the loss.
        dtype: torch.bfloat16 or torch.float16 runs the network under autocast; None runs it as it is.
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
        with network_autocast(inputs.device, self.dtype):
            prediction = network(noisy, timesteps, context=context, source=y)
        return prediction.to(inputs.dtype)

    def target(self, inputs: Tensor, noise: Tensor, timesteps: Tensor, source: Tensor) -> Tensor:
        """What the network should have predicted in a call with the same arguments, shape of inputs."""
        return self.scheduler.target(to_network_range(inputs), noise, timesteps, to_network_range(source))
