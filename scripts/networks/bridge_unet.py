"""The bridge U-Net: MONAI's DiffusionModelUNet with FiLM residual blocks, source concatenation and style tokens.

The parts (`FiLMResnetBlock`, `use_film`, `space_to_depth_stem`, `StyleEmbedding`) are modules and functions of their
own, because MONAI's `ControlNet` has the same encoder, under the same names, and can take the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet, DiffusionUNetResnetBlock
from torch import nn

from .cpu_layers import GroupNorm, use_cpu_layers
from .scriptable import EXPORTED_CHANNELS, NOT_EXPORTED, ScriptableBridgeUNet

__all__ = ["BridgeUNet", "FiLMResnetBlock", "StyleEmbedding", "for_each_slab", "space_to_depth_stem", "use_film"]


class FiLMResnetBlock(DiffusionUNetResnetBlock):
    """Residual block whose embedding scales and shifts the normalised features instead of being added to them.

    `h = norm2(conv1(...)) * (1 + scale) + shift` with `scale, shift = time_emb_proj(silu(emb)).chunk(2)`: the
    "scale-shift" time embedding of Dhariwal and Nichol (2021), which CT2MRI has. Arguments are those of MONAI's
    `DiffusionUNetResnetBlock`; only `time_emb_proj` has another shape, (2 out_channels, temb_channels).
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        temb_channels: int,
        out_channels: int | None = None,
        up: bool = False,
        down: bool = False,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__(
            spatial_dims, in_channels, temb_channels, out_channels, up, down, norm_num_groups, norm_eps=norm_eps
        )
        self.norm2 = GroupNorm.like(self.norm2)
        self.time_emb_proj = nn.Linear(temb_channels, 2 * self.out_channels)

    @classmethod
    def like(cls, block: DiffusionUNetResnetBlock) -> FiLMResnetBlock:
        """A freshly initialised FiLM block of the same sizes as `block`."""
        return cls(
            spatial_dims=block.spatial_dims,
            in_channels=block.channels,
            temb_channels=block.emb_channels,
            out_channels=block.out_channels,
            up=block.up,
            down=block.down,
            norm_num_groups=block.norm1.num_groups,
            norm_eps=block.norm1.eps,
        )

    def forward(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        """Features (B, in_channels, H, W) and embedding (B, temb_channels) -> (B, out_channels, H', W')."""
        h = self.nonlinearity(self.norm1(x))
        resample = self.upsample if self.upsample is not None else self.downsample
        if resample is not None:
            x, h = resample(x), resample(h)
        scale, shift = self.time_emb_proj(self.nonlinearity(emb)).chunk(2, dim=1)
        h = self.norm2(self.conv1(h), scale, shift)
        return self.skip_connection(x) + self.conv2(self.nonlinearity(h))


def use_film(module: nn.Module) -> nn.Module:
    """Replace every `DiffusionUNetResnetBlock` inside `module` (a U-Net or a ControlNet) by its FiLM form, in place."""
    for name, child in module.named_children():
        if isinstance(child, DiffusionUNetResnetBlock):
            setattr(module, name, FiLMResnetBlock.like(child))
        else:
            use_film(child)
    return module


def space_to_depth_stem(first: nn.Module, factor: int) -> nn.Module:
    """Put a space-to-depth step before a network's first layer: (B, C, H, W) -> `first` on (B, C f^2, H/f, W/f).

    `first` has to take C f^2 channels. For a ControlNet, wrap `conv_in` and the hint's `controlnet_cond_embedding`.
    With a factor of 1 the layer comes back as it is, so that the keys of the state dict stay MONAI's.
    """
    return nn.Sequential(nn.PixelUnshuffle(factor), first) if factor > 1 else first


class StyleEmbedding(nn.Sequential):
    """Style key (B, tokens, token_size) -> (B, embedding_size), to be added to the time embedding.

    It takes the place of MONAI's `class_embedding`: the key is then given as `class_labels`.
    """

    def __init__(self, tokens: int, token_size: int, embedding_size: int) -> None:
        super().__init__(
            nn.Flatten(),
            nn.Linear(tokens * token_size, embedding_size),
            nn.SiLU(),
            nn.Linear(embedding_size, embedding_size),
        )


def for_each_slab(
    x: torch.Tensor, timesteps: torch.Tensor | None, context: torch.Tensor | None, style_shape: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Timesteps (B,) and style tokens (B, 3, 128) of slabs (B, ...), where one is given for all, or none.

    Raises:
        ValueError: style tokens that the network cannot take.
    """
    if timesteps is None:
        timesteps = torch.zeros(1, dtype=torch.long, device=x.device)
    context = x.new_zeros(style_shape) if context is None else context.to(x)
    if context.shape[-2:] != style_shape:
        raise ValueError(f"Style tokens of shape {tuple(context.shape)} were given; the network takes {style_shape}.")
    return timesteps.to(x.device).expand(x.shape[0]), context.expand(x.shape[0], *style_shape)


class BridgeUNet(DiffusionModelUNet):
    """Predicts, from a noisy slab of the target and the slab of the source, what the bridge's scheduler asks for.

    CT2MRI (section 2.1) with MONAI's topology: time by FiLM, the source concatenated to the input, the style key as
    three tokens that the transformer in the middle block attends to. With `channels=(128, 512, 1024)` and the other
    defaults it is the paper's network, 254,149,507 parameters.

    Args:
        slab_size: slices of a slab, 2N+1.
        channels: feature channels of each resolution level; each level but the last halves height and width.
        num_res_blocks: residual blocks a level, one number or one for each level.
        norm_num_groups: groups of the group normalisation; divides each of `channels`.
        num_head_channels: channels of an attention head; divides `channels[-1]`.
        cross_attention_dim: length of a style token, the number of bins of the style key.
        num_style_tokens: rows of the style key.
        space_to_depth: factor f by which the input trades height and width for channels (and back at the output).
        style_embedding: also add an MLP of the flattened style key to the time embedding.
        resblock_updown: residual blocks that resample, as in the paper, instead of pooling and a convolution.
        use_flash_attention: PyTorch's fused attention; the same function with less memory.
        target_channels, source_channels, condition_channels: channels of one slice of the state, of the source and of
            all conditions together. With one condition channel it is `missing`, which says of each slice how far it is
            from an acquired one, and a network that is not given it takes all slices as acquired.
        attention_levels: whether each level has attention; None is no level.

    Raises:
        ValueError: `channels` that the groups or the heads do not divide.
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
        target_channels: int = 1,
        source_channels: int = 1,
        condition_channels: int = 0,
        attention_levels: Sequence[bool] | None = None,
    ) -> None:
        if channels[-1] % num_head_channels:
            raise ValueError(f"num_head_channels ({num_head_channels}) must divide the last of channels {channels}.")
        super().__init__(
            spatial_dims=2,
            in_channels=(target_channels + source_channels + condition_channels) * slab_size * space_to_depth**2,
            out_channels=target_channels * slab_size * space_to_depth**2,
            num_res_blocks=num_res_blocks,
            channels=channels,
            attention_levels=attention_levels or (False,) * len(channels),
            norm_num_groups=norm_num_groups,
            norm_eps=1e-5,
            resblock_updown=resblock_updown,
            num_head_channels=num_head_channels,
            with_conditioning=True,
            cross_attention_dim=cross_attention_dim,
            use_flash_attention=use_flash_attention,
        )
        self.slab_size = slab_size
        self.slice_channels = (target_channels, source_channels, condition_channels)
        self.style_shape = (num_style_tokens, cross_attention_dim)
        self.size_multiple = space_to_depth * 2 ** (len(channels) - 1)
        """Height and width of a slab must be multiples of this number of pixels."""

        use_film(self)
        self.middle_block.attention.norm.eps = 1e-6  # the one norm of the authors' network with another eps
        self.conv_in = space_to_depth_stem(self.conv_in, space_to_depth)
        if space_to_depth > 1:
            self.out.append(nn.PixelShuffle(space_to_depth))
        if style_embedding:
            self.num_class_embeds = num_style_tokens * cross_attention_dim
            self.class_embedding = StyleEmbedding(num_style_tokens, cross_attention_dim, 4 * channels[0])
        use_cpu_layers(self)

    def forward(
        self,
        x: torch.Tensor,
        timesteps: torch.Tensor | None = None,
        context: torch.Tensor | None = None,
        source: torch.Tensor | None = None,
        missing: torch.Tensor | None = None,
        down_block_additional_residuals: Sequence[torch.Tensor] | None = None,
        mid_block_additional_residual: torch.Tensor | None = None,
        presence: torch.Tensor | None = None,
        class_labels: object = None,
        **conditions: torch.Tensor,
    ) -> torch.Tensor:
        """One evaluation for a batch of slabs.

        Args:
            x: noisy target slabs x_t, (B, 2N+1, H, W), [-1, 1] and noise; without `source`, all channels one after
                another: x_t, the source, the conditions.
            timesteps: indices of the training schedule, (B,), or one for all; None is index 0, the bridge's clean end.
            context: style keys, (B, 3, 128), or one for all; None is no style, tokens of zeros.
            source: source slabs, (B, 2N+1, H, W), [-1, 1].
            missing: 0 where a slice was acquired, up to 1 far from all that were (`missing_share`), (B, 2N+1, H, W);
                the first of the conditions. None is zeros where it is the network's only one.
            down_block_additional_residuals: what a ControlNet adds to the skip connections.
            mid_block_additional_residual: what a ControlNet adds to the middle block.
            presence: which contrasts there are, (B, contrasts); not used: an absent one is background.
            class_labels: what `class_embedding` takes; None is the style keys.
            conditions: further slabs, concatenated after the source and `missing` in their order.

        Returns:
            The prediction, (B, 2N+1, H, W), of the scheduler's `prediction_type`.

        Raises:
            ValueError: channels, style tokens or sizes that the network cannot take.
        """
        x = self._joined(x, source, missing, conditions)
        self._check_input(x)
        timesteps, context = for_each_slab(x, timesteps, context, self.style_shape)
        return super().forward(
            x,
            timesteps,
            context=context,
            class_labels=context if class_labels is None else class_labels,
            down_block_additional_residuals=down_block_additional_residuals,
            mid_block_additional_residual=mid_block_additional_residual,
        )

    def _joined(
        self,
        x: torch.Tensor,
        source: torch.Tensor | None,
        missing: torch.Tensor | None,
        conditions: Mapping[str, torch.Tensor],
    ) -> torch.Tensor:
        """All channels, one after another; without a source, x has them already."""
        if source is None:
            return x
        if missing is None and self.slice_channels[2] == 1 and not conditions:
            missing = x.new_zeros(len(x), self.slab_size, *x.shape[2:])
        return torch.cat([x, source, *([] if missing is None else [missing]), *conditions.values()], dim=1)

    def __prepare_scriptable__(self) -> nn.Module:
        """What `torch.jit.script` compiles, and with it MONAI's `ckpt_export`."""
        if self.slice_channels not in EXPORTED_CHANNELS:
            raise ValueError(NOT_EXPORTED)
        return ScriptableBridgeUNet(self)

    def widened(self, state_dict: Mapping[str, torch.Tensor], prefix: str = "") -> dict[str, torch.Tensor]:
        """Weights of the same network without conditions with zeros for them; any others as they are.

        The conditions are the last channels of the first layer, so that the prediction is the narrow network's until
        their weights are trained.

        Args:
            state_dict: keys begin with `prefix`.
            prefix: of this network in a larger one.
        """
        made = dict(state_dict)
        name, wanted = next((n, p) for n, p in self.conv_in.named_parameters() if p.ndim == 4)
        given = made.get(key := f"{prefix}conv_in.{name}")
        more = wanted.shape[1] * self.slice_channels[2] // sum(self.slice_channels)
        if given is not None and given.shape == (len(wanted), wanted.shape[1] - more, *wanted.shape[2:]):
            made[key] = nn.functional.pad(given, (0, 0, 0, 0, 0, more))
        return made

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: object) -> None:
        """As PyTorch's, of `widened` weights: servers load them by `load_state_dict` alone."""
        state_dict.update(self.widened(state_dict, prefix))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _check_input(self, x: torch.Tensor) -> None:
        target, source, condition = (channels * self.slab_size for channels in self.slice_channels)
        if x.shape[1] != target + source + condition:
            more = f", then {condition} of the conditions" if condition else ""
            raise ValueError(
                f"The network got {x.shape[1]} channels; it takes {target + source + condition}: {target} slices of "
                f"the target, then {'as many' if source == target else source} of the source{more}."
            )
        height, width = x.shape[-2:]
        if height % self.size_multiple or width % self.size_multiple:
            raise ValueError(
                f"The slab is {height} x {width}, but this network needs multiples of {self.size_multiple}: pad it."
            )
