"""A ControlNet beside a frozen bridge: reference slices guide it where the scan has none.

Source: ReBrain (section 3.3, eq. 12), on MONAI's `ControlNet`, which has the encoder of the bridge's own U-Net.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.nets import ControlNet
from torch import Tensor, nn

from .bridge_unet import BridgeUNet, StyleEmbedding, for_each_slab, space_to_depth_stem, use_film
from .cpu_layers import use_cpu_layers

__all__ = ["BridgeControlNet", "ControlledBridgeUNet", "controlled_bridge"]


class BridgeControlNet(ControlNet):
    """What is to be added to the features of a bridge, from the state, the source and a hint; zero at the start.

    Args:
        slab_size, channels, ...: as of the `BridgeUNet` beside it.
        hint_channels: channels of one slice of the hint, such as a reference's CT and MRI. One more says which slices
            are missing.
    """

    def __init__(
        self,
        slab_size: int = 3,
        channels: Sequence[int] = (128, 512, 1024),
        num_res_blocks: Sequence[int] | int = 2,
        norm_num_groups: int = 32,
        num_head_channels: int = 64,
        cross_attention_dim: int = 128,
        num_style_tokens: int = 3,
        space_to_depth: int = 1,
        style_embedding: bool = False,
        resblock_updown: bool = True,
        use_flash_attention: bool = True,
        hint_channels: int = 2,
    ) -> None:
        pixels = slab_size * space_to_depth**2
        super().__init__(
            spatial_dims=2,
            in_channels=2 * pixels,
            num_res_blocks=num_res_blocks,
            channels=channels,
            attention_levels=(False,) * len(channels),
            norm_num_groups=norm_num_groups,
            norm_eps=1e-5,
            resblock_updown=resblock_updown,
            num_head_channels=num_head_channels,
            with_conditioning=True,
            cross_attention_dim=cross_attention_dim,
            conditioning_embedding_in_channels=(hint_channels + 1) * pixels,
            conditioning_embedding_num_channels=(16,),  # one number: the hint keeps its height and width
            use_flash_attention=use_flash_attention,
        )
        self.hint_channels = hint_channels
        self.style_shape = (num_style_tokens, cross_attention_dim)
        use_film(self)
        self.middle_block.attention.norm.eps = 1e-6
        self.conv_in = space_to_depth_stem(self.conv_in, space_to_depth)
        self.controlnet_cond_embedding = space_to_depth_stem(self.controlnet_cond_embedding, space_to_depth)
        if style_embedding:
            self.num_class_embeds = num_style_tokens * cross_attention_dim
            self.class_embedding = StyleEmbedding(num_style_tokens, cross_attention_dim, 4 * channels[0])
        use_cpu_layers(self)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor | None,
        hint: Tensor,
        context: Tensor | None = None,
        source: Tensor | None = None,
        scale: float = 1.0,
    ) -> tuple[list[Tensor], Tensor]:
        """One evaluation for a batch of slabs.

        Args:
            x: noisy target slabs x_t, (B, 2N+1, H, W); without `source`, (B, 2(2N+1), H, W), then the source.
            timesteps, context, source: as of `BridgeUNet`.
            hint: (B, (hint_channels + 1)(2N+1), H, W): slabs of the reference, [0, 1], then 1 where a slice is missing
                and 0 where it was acquired.
            scale: of the result.

        Returns:
            residuals of the bridge's skip connections, and of its middle block.
        """
        x = x if source is None else torch.cat([x, source], dim=1)
        timesteps, context = for_each_slab(x, timesteps, context, self.style_shape)
        return super().forward(x, timesteps, hint, scale, context=context, class_labels=context)

    def copy_from(self, bridge: BridgeUNet) -> None:
        """Start from the bridge's encoder, of which it has a copy; the bridge's conditions are left out.

        Raises:
            ValueError: a bridge of other sizes.
        """
        weights = {name: value for name, value in bridge.state_dict().items() if not name.startswith(("up_", "out."))}
        own = self.state_dict()
        for name, value in weights.items():
            if name.startswith("conv_in.") and value.ndim == 4:  # target and source come first
                weights[name] = value[:, : own[name].shape[1]]
        try:
            missing, unexpected = self.load_state_dict(weights, strict=False)
        except RuntimeError as error:
            raise ValueError("The ControlNet has other sizes than the bridge; give both the same.") from error
        if unexpected or any(not name.startswith("controlnet_") for name in missing):
            raise ValueError("The ControlNet has other layers than the bridge; give both the same.")


class ControlledBridgeUNet(nn.Module):
    """A frozen bridge with a ControlNet, called as the bridge is, with a hint and what is missing.

    Only the ControlNet is trained: the bridge stays in evaluation mode and takes no gradients. The state dict has the
    keys `bridge.` and `control.`.

    Args:
        bridge: with or without the condition `missing`; it is handed on to a bridge that has it.
        control: of the same sizes.
    """

    def __init__(self, bridge: BridgeUNet, control: BridgeControlNet) -> None:
        super().__init__()
        self.bridge = bridge.requires_grad_(False).eval()
        self.control = control
        self.slab_size = bridge.slab_size
        self.size_multiple = bridge.size_multiple
        self.style_shape = bridge.style_shape
        target, source, condition = bridge.slice_channels
        self.slice_channels = (target, source, condition + control.hint_channels)

    def train(self, mode: bool = True) -> ControlledBridgeUNet:
        """Training mode of the ControlNet alone."""
        super().train(mode)
        self.bridge.eval()
        return self

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor | None = None,
        context: Tensor | None = None,
        source: Tensor | None = None,
        hint: Tensor | None = None,
        missing: Tensor | None = None,
    ) -> Tensor:
        """One evaluation for a batch of slabs.

        Slabs of which no slice is missing, and all without a hint or without `missing`, are exactly the bridge's.

        Args:
            x, timesteps, context, source: as of `BridgeUNet`.
            hint: slabs of the reference, (B, hint_channels (2N+1), H, W), [0, 1]; zeros where there is none.
            missing: above 0 where a slice is missing, (B, 2N+1, H, W), see `missing_share`.

        Returns:
            The prediction, (B, 2N+1, H, W).
        """
        timesteps, context = for_each_slab(x, timesteps, context, self.style_shape)
        context = context.contiguous()  # one for all slabs, PyTorch would multiply by frozen weights in another way
        conditions = {} if missing is None or not self.bridge.slice_channels[2] else {"missing": missing}
        residuals = {}
        if hint is not None and missing is not None and (missing > 0).any():
            residuals = self._residuals(x, timesteps, context, source, hint, (missing > 0).to(x))
        return self.bridge(x, timesteps, context, source, **conditions, **residuals)

    def _residuals(
        self,
        x: Tensor,
        timesteps: Tensor | None,
        context: Tensor | None,
        source: Tensor | None,
        hint: Tensor,
        missing: Tensor,
    ) -> dict[str, Sequence[Tensor] | Tensor]:
        """The ControlNet's part of the bridge's call; zeros for slabs of which no slice is missing."""
        down, middle = self.control(x, timesteps, torch.cat([hint, missing], dim=1), context, source)
        # a slab's result does not depend on its company in the batch
        used = missing.amax(dim=(1, 2, 3), keepdim=True)
        return {
            "down_block_additional_residuals": [residual * used for residual in down],
            "mid_block_additional_residual": middle * used,
        }

    def __prepare_scriptable__(self) -> nn.Module:
        """Refused: whether the ControlNet runs depends on the input."""
        raise ValueError("A bridge with a ControlNet cannot be exported; export the bridge.")


def controlled_bridge(hint_channels: int = 2, condition_channels: int = 0, **sizes: Any) -> ControlledBridgeUNet:
    """A bridge with a ControlNet of the same sizes.

    Args:
        hint_channels: of the `BridgeControlNet`.
        condition_channels: of the `BridgeUNet`, 1 for a bridge of sparse scans.
        sizes: arguments that both have.
    """
    bridge = BridgeUNet(condition_channels=condition_channels, **sizes)
    return ControlledBridgeUNet(bridge, BridgeControlNet(hint_channels=hint_channels, **sizes))
