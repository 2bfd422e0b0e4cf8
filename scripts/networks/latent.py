"""A network of slabs in the latent of a codec that it carries with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..schedulers import AffineScheduler
from .scriptable import NOT_EXPORTED

__all__ = ["LatentUNet"]


class LatentUNet(nn.Module):
    """A network of slabs of states, with the frozen codec whose states they are.

    One weights file holds both, under the keys `codec.` and `network.`, so that a network is never given the states of
    another codec. The codec takes no part in `forward`: inferers are given it as theirs.

    It also holds what it was trained with, as a key `trained_with.SIGNATURE` of the weights, so that weights of another
    scheduler or prediction type do not fit.

    Args:
        codec: such as `LatentCodec`; it stays in evaluation mode and takes no gradients.
        network: called as `network(x_t, timesteps, context=..., source=..., **conditions)`, such as `BridgeUNet` with
            the codec's channels.
        scheduler: the `AffineScheduler` of training and sampling.

    Raises:
        ValueError: a network of other channels than the codec's.
    """

    def __init__(self, codec: nn.Module, network: nn.Module, scheduler: AffineScheduler) -> None:
        super().__init__()
        target, source, _ = network.slice_channels
        if target != codec.channels or source % codec.source_channels:
            raise ValueError(
                f"The network has {target} channels of the target and {source} of the source, but the codec gives "
                f"{codec.channels} of the target and {codec.source_channels} of each contrast of the source."
            )
        self.codec = codec.requires_grad_(False).eval()
        self.network = network
        self.trained_with = nn.Module()
        self.trained_with.register_buffer(scheduler.signature, torch.zeros(1))
        self.slab_size = network.slab_size
        self.slice_channels = network.slice_channels
        self.style_shape = network.style_shape
        self.size_multiple = network.size_multiple * codec.factor
        """Height and width of an image must be multiples of this number of pixels."""

    def train(self, mode: bool = True) -> LatentUNet:
        """Training mode of the network alone."""
        super().train(mode)
        self.codec.eval()
        return self

    def forward(self, x: Tensor, *args: Any, missing: Tensor | None = None, **kwargs: Any) -> Tensor:
        """One evaluation of the network for a batch of slabs of states.

        `missing`, which slices were not acquired, is for the inferer alone where the network has no such condition.
        """
        told = {} if missing is None or not self.slice_channels[2] else {"missing": missing}
        return self.network(x, *args, **told, **kwargs)

    def widened(self, state_dict: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
        """Weights of a smaller network as this one's, where the network says how."""
        widen = getattr(self.network, "widened", None)
        return dict(state_dict) if widen is None else widen(state_dict, f"{prefix}network.")

    def started_from(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights that a training starts from, where the network says how: of a simpler one, or of another prediction.

        Args:
            state_dict: of a `LatentUNet`; its codec is taken along.

        Returns:
            Weights of this one, as far as the given ones fit.
        """
        start = getattr(self.network, "started_from", None)
        if start is None:
            return self.widened(state_dict)
        own = {key.removeprefix("network."): value for key, value in state_dict.items() if key.startswith("network.")}
        trained_with = {f"trained_with.{key}": value for key, value in self.trained_with.state_dict().items()}
        codec = {key: value for key, value in state_dict.items() if not key.startswith(("network.", "trained_with."))}
        return {**{f"network.{key}": value for key, value in start(own).items()}, **codec, **trained_with}

    def __prepare_scriptable__(self) -> nn.Module:
        """What `torch.jit.script` would compile."""
        raise ValueError(NOT_EXPORTED)
