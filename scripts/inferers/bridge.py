"""The training call of a network of slabs."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from monai.inferers import Inferer
from torch import Tensor

from ..codec import PixelCodec
from ..schedulers import AffineScheduler
from .slab_predictor import call_network
from .states import Endpoint, encode_slabs, endpoint_of


class BridgeInferer(Inferer):
    """One forward pass of a bridge network for a training iteration, in the manner of MONAI's `DiffusionInferer`.

    Args:
        scheduler: gives x_t, and the target of the loss.
        dtype: floating type of the network's call, None for that of the inputs; see `call_network`.
        codec: makes images the network's states.
        channels: name -> channels, "source" among them, as the inferer of whole volumes has them.
        endpoint: what of the source the bridge starts from, see `Endpoint`.
    """

    def __init__(
        self,
        scheduler: AffineScheduler,
        dtype: torch.dtype | None = None,
        codec: PixelCodec | None = None,
        channels: Mapping[str, int] | None = None,
        endpoint: str = Endpoint.FIRST,
    ) -> None:
        super().__init__()
        self.scheduler = scheduler
        self.dtype = dtype
        self.codec = codec or PixelCodec()
        self.channels = dict(channels or {"source": 1})
        self.endpoint = Endpoint(endpoint)

    def __call__(
        self,
        inputs: Tensor,
        network: Callable[..., Tensor],
        noise: Tensor,
        timesteps: Tensor,
        source: Tensor,
        context: Tensor | None = None,
        presence: Tensor | None = None,
        **conditions: Tensor,
    ) -> Tensor:
        """Predict from a noisy slab between target and source.

        Args:
            inputs: target slabs x0, (B, K, H, W), [0, 1].
            network: called as in `call_network`.
            noise: standard normal, shape of the encoded inputs.
            timesteps: (B,) integer timesteps.
            source: source slabs, (B, C K, H, W), contrast by contrast, [0, 1].
            context: style keys, (B, 3, number of bins), or None for no style.
        presence: (B, C), 1 where a volume has the contrast; handed on to the network.
        conditions: further slabs by name, handed on to the network.

        Returns:
            the network's prediction, shape of the noise and type of inputs; compare it with `target` of the same
                arguments.
        """
        states, endpoint = self._states(source, presence)
        noisy = self.scheduler.add_noise(self.encode(inputs), noise, timesteps, endpoint)
        if presence is not None:
            conditions["presence"] = presence
        return call_network(network, noisy, timesteps, states, context, self.dtype, **conditions)

    def target(
        self, inputs: Tensor, noise: Tensor, timesteps: Tensor, source: Tensor, presence: Tensor | None = None
    ) -> Tensor:
        """What the network should have predicted in a call with the same arguments, shape of noise."""
        return self.scheduler.target(self.encode(inputs), noise, timesteps, self._states(source, presence)[1])

    def encode(self, slabs: Tensor) -> Tensor:
        """Slabs of one contrast, (B, K, H, W), [0, 1], as states (B, c K, H/f, W/f)."""
        return encode_slabs(slabs, 1, self.codec)

    def _states(self, source: Tensor, presence: Tensor | None) -> tuple[Tensor, Tensor]:
        """Source slabs as states, and the endpoint among them."""
        contrasts = self.channels["source"]
        states = encode_slabs(source, contrasts, self.codec)
        size = states.shape[1] // contrasts
        return states, endpoint_of(states, size, self.endpoint, presence)
