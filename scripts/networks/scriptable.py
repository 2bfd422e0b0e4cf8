"""The bridge U-Net for `torch.jit.script`: traced, behind a forward of its own that is scripted."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

__all__ = ["EXPORTED_CHANNELS", "NOT_EXPORTED", "ScriptableBridgeUNet"]

EXPORTED_CHANNELS = ((1, 1, 0), (1, 1, 1))
"""`slice_channels` of networks that other runtimes can have: one contrast, and `missing` or no condition."""
NOT_EXPORTED = "Only a network of one contrast, with no condition but missing, can be exported."


class ScriptableBridgeUNet(nn.Module):
    """What `torch.jit.script` gets in the place of a `BridgeUNet`, so that `ckpt_export` needs no option.

    MONAI's attention and this network's layers cannot be scripted; they can be traced, for any number of slabs and any
    height and width. What a trace would lose is scripted here: the arguments that may be left out.

    The result belongs to the kind of device (CPU, CUDA) that the network is on.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.num_style_tokens, self.style_token_size = network.style_shape
        self.has_missing = network.slice_channels[2] == 1
        device = next(network.parameters()).device
        channels = sum(network.slice_channels) * network.slab_size
        slabs = torch.zeros(2, channels, 4 * network.size_multiple, 6 * network.size_multiple, device=device)
        timesteps, context = slabs.new_zeros(2, dtype=torch.long), slabs.new_zeros(2, *network.style_shape)
        was_training = network.training
        with torch.no_grad(), warnings.catch_warnings():
            # the network's checks of shapes are no part of the graph
            warnings.simplefilter("ignore", torch.jit.TracerWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            self.network = torch.jit.trace(network.eval(), (slabs, timesteps, context), check_trace=False)
        network.train(was_training)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor | None = None,
        context: Tensor | None = None,
        source: Tensor | None = None,
        missing: Tensor | None = None,
    ) -> Tensor:
        """One evaluation; shapes, ranges and defaults are those of `BridgeUNet.forward`."""
        if source is not None:
            slabs = [x, source]
            if missing is not None:
                slabs.append(missing)
            elif self.has_missing:
                slabs.append(torch.zeros_like(source))
            x = torch.cat(slabs, dim=1)
        if timesteps is None:
            timesteps = torch.zeros(1, dtype=torch.long, device=x.device)
        if context is None:
            context = x.new_zeros(1)
        batch = x.shape[0]
        context = context.expand(batch, self.num_style_tokens, self.style_token_size)
        return self.network(x, timesteps.expand(batch), context)
