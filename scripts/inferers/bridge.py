"""The training call of a network of slabs."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from monai.inferers import Inferer
from torch import Tensor

from ..codec import PixelCodec
from ..schedulers import AffineScheduler
from .slab_predictor import autocast, call_network
from .states import Endpoint, encode_slabs, endpoint_of, pooled


class BridgeInferer(Inferer):
    """One forward pass of a bridge network for a training iteration, in the manner of MONAI's `DiffusionInferer`.

    Args:
        scheduler: gives x_t, and the target of the loss.
        dtype: floating type of the calls of network and codec, None for that of the inputs; see `call_network`.
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
        """Predict from a noisy slab between target and source, all of them states (`encode`).

        Args:
            inputs: target slabs x0, (B, c K, H/f, W/f).
            network: called as in `call_network`.
            noise: standard normal, shape of inputs.
            timesteps: (B,) integer timesteps.
            source: source slabs (`encode_source`), (B, C s K, H/f, W/f), contrast by contrast.
            context: style keys, (B, 3, number of bins), or None for no style.
            presence: (B, C), 1 where a volume has the contrast; handed on to the network.
            conditions: further slabs by name, (B, channels K, H, W), mean-pooled by the codec's factor; what is no
                slab, such as `target_contrast` (B,), is handed on as it is.

        Returns:
            the network's prediction, shape and type of inputs; compare it with `target` of the same arguments.
        """
        noisy = self.scheduler.add_noise(inputs, noise, timesteps, self.endpoint_in(source, presence))
        factor = self.codec.factor
        conditions = {name: pooled(one, factor) if one.ndim == 4 else one for name, one in conditions.items()}
        if presence is not None:
            conditions["presence"] = presence
        return call_network(network, noisy, timesteps, source, context, self.dtype, **conditions)

    def target(
        self, inputs: Tensor, noise: Tensor, timesteps: Tensor, source: Tensor, presence: Tensor | None = None
    ) -> Tensor:
        """What the network should have predicted in a call with the same arguments, shape of inputs."""
        return self.scheduler.target(inputs, noise, timesteps, self.endpoint_in(source, presence))

    @torch.no_grad()
    def encode(self, slabs: Tensor) -> Tensor:
        """Slabs of images, (B, K, H, W), [0, 1], as states, (B, c K, H/f, W/f)."""
        with autocast(slabs.device, self.dtype):
            return encode_slabs(slabs, 1, self.codec.encode)

    @torch.no_grad()
    def encode_source(self, slabs: Tensor) -> Tensor:
        """Source slabs, (B, C K, H, W), [0, 1], as the network sees them, (B, C s K, H/f, W/f), by contrasts."""
        with autocast(slabs.device, self.dtype):
            return encode_slabs(slabs, self.channels["source"], self.codec.encode_source)

    def endpoint_in(self, source: Tensor, presence: Tensor | None = None) -> Tensor:
        """Where the bridge starts, of source slabs as the network sees them: (B, C s K, h, w) to (B, c K, h, w)."""
        return endpoint_of(source, self.channels["source"], self.codec, self.endpoint, presence)
