"""A network of slabs whose source is any of several contrasts, with tissue fractions beside them.

Source: CoLa-Diff (Jiang et al., MICCAI 2023), in the latent of a codec or on pixels. The paper trains one network for
each target and always has all sources; here presence says which are there, and a key or an embedding which is wanted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..schedulers import NamedChoice
from .bridge_unet import BridgeUNet, for_each_slab
from .cooperative_filtering import CooperativeFilter, use_cooperative_filtering
from .cpu_layers import use_cpu_layers
from .fusion import Activation, AutoWeight, use_bottleneck_residuals, use_wide_downsampling, without_absent
from .scriptable import NOT_EXPORTED

__all__ = ["MultiContrastUNet"]


class Downsampling(NamedChoice):
    """How the resolution halves: a 3 x 3 convolution, or a `WideDownsample`, depthwise or full (paper)."""

    CONVOLUTION = "convolution"
    WIDE = "wide"
    WIDE_FULL = "wide_full"


class TargetEmbedding(nn.Module):
    """Style key and target contrast as one embedding, to be added to that of time; nothing for the contrast at first.

    It takes the place of MONAI's `class_embedding`, whose labels are then the pair of both.

    Args:
        num_contrasts: that can be the target.
        embedding_size: of time.
        style: embedding of the style key, or None.
    """

    def __init__(self, num_contrasts: int, embedding_size: int, style: nn.Module | None = None) -> None:
        super().__init__()
        self.style = style
        self.target = nn.Embedding(num_contrasts, embedding_size)
        nn.init.zeros_(self.target.weight)

    def forward(self, labels: tuple[Tensor, Tensor | None]) -> Tensor:
        """Style keys (n, tokens, token size), and indices (n,) or None for none, to (n, embedding_size)."""
        context, target = labels
        embedding = context.new_zeros(len(context), self.target.embedding_dim)
        if self.style is not None:
            embedding = self.style(context)
        return embedding if target is None else embedding + self.target(target)


class MultiContrastUNet(BridgeUNet):
    """A `BridgeUNet` that weighs its source contrasts and conditions, and filters its features (CoLa-Diff).

    The source has `source_channels / contrast_channels` contrasts. What an absent contrast holds has no part in the
    result. Every part of the paper's network is a switch; without all of them, and with all contrasts there, this is a
    `BridgeUNet` with attention at its two lower levels. Auto-weights and filters are the identity at the start.

    Args:
        slab_size: slices of a slab.
        target_channels: c, channels of one slice of a contrast, as the codec makes them.
        source_channels: of one slice of C contrasts.
        contrast_channels: of one of these contrasts, as the codec makes them; None is c.
        condition_channels: such as the number of tissue fractions.
        channels: feature channels of each resolution level.
        num_res_blocks, resblock_updown: as of `BridgeUNet`.
        attention_levels: whether each level has attention; None is the two lowest.
        auto_weight: activation of an `AutoWeight` of source and conditions, "tanh" or "sigmoid" (paper); None is none.
        cooperative_filtering: whether a `CooperativeFilter` is on every skip connection.
        filter_options: of `CooperativeFilter`.
        downsampling: "convolution", "wide" (depthwise) or "wide_full" (paper).
        bottleneck_residuals: whether the encoder's residual blocks are `BottleneckResidual`s (paper).
        num_contrasts: that can be the target. Then `forward` takes which it is; None leaves it to the style key.
        target_contrast: index of the target where `forward` is given none; None is no index.
        contrasts: names of the source's contrasts in their order, and
        structure: what the tissue conditions are; both are only kept in the weights, as keys
            `trained_with.contrasts_T1_T2` and `trained_with.structure_fractions`, so that weights of another order or
            structure do not fit. None is no such key.
        sizes: further arguments of `BridgeUNet`.

    Raises:
        ValueError: a source that is no whole number of contrasts or of another number than there are names, or a choice
            that there is not.
    """

    def __init__(
        self,
        slab_size: int = 1,
        target_channels: int = 8,
        source_channels: int = 24,
        condition_channels: int = 4,
        contrast_channels: int | None = None,
        channels: Sequence[int] = (64, 128, 192),
        num_res_blocks: Sequence[int] | int = 1,
        resblock_updown: bool = False,
        attention_levels: Sequence[bool] | None = None,
        auto_weight: str | None = Activation.TANH,
        cooperative_filtering: bool = True,
        filter_options: Mapping[str, Any] | None = None,
        downsampling: str = Downsampling.WIDE,
        bottleneck_residuals: bool = False,
        num_contrasts: int | None = None,
        target_contrast: int | None = None,
        contrasts: Sequence[str] | None = None,
        structure: str | None = None,
        **sizes: Any,
    ) -> None:
        size = contrast_channels or target_channels
        if source_channels % size:
            raise ValueError(
                f"source_channels is {source_channels}; it must be a multiple of the channels of a contrast, {size}."
            )
        if target_contrast is not None and not 0 <= target_contrast < (num_contrasts or 0):
            raise ValueError(
                f"target_contrast is {target_contrast}; it must be below num_contrasts, which is {num_contrasts}."
            )
        if contrasts is not None and len(contrasts) != source_channels // size:
            raise ValueError(f"{len(contrasts)} contrasts are named, but the source has {source_channels // size}.")
        levels = len(channels)
        super().__init__(
            slab_size=slab_size,
            target_channels=target_channels,
            source_channels=source_channels,
            condition_channels=condition_channels,
            channels=channels,
            num_res_blocks=num_res_blocks,
            resblock_updown=resblock_updown,
            attention_levels=attention_levels or [level >= levels - 2 for level in range(levels)],
            **sizes,
        )
        self.groups = (size,) * (source_channels // size)
        self._keep_names(contrasts, structure)
        self.auto_weight = None
        if auto_weight is not None:
            self.auto_weight = AutoWeight(source_channels + condition_channels, self.groups, activation=auto_weight)
        self._use_parts(Downsampling(downsampling), bottleneck_residuals, cooperative_filtering, filter_options or {})
        self.takes_target = num_contrasts is not None
        self.target_contrast = target_contrast
        if num_contrasts is not None:
            style = self.class_embedding if self.num_class_embeds is not None else None
            self.num_class_embeds = num_contrasts
            self.class_embedding = TargetEmbedding(num_contrasts, 4 * channels[0], style)

    def _keep_names(self, contrasts: Sequence[str] | None, structure: str | None) -> None:
        """Put what the channels mean into the weights, as `LatentUNet` does with its scheduler."""
        self.trained_with = nn.Module()
        if contrasts is not None:
            self.trained_with.register_buffer(f"contrasts_{'_'.join(contrasts)}", torch.zeros(1))
        if structure is not None:
            self.trained_with.register_buffer(f"structure_{structure}", torch.zeros(1))

    def _use_parts(self, downsampling: str, bottleneck: bool, filtering: bool, options: Mapping[str, Any]) -> None:
        if bottleneck:
            use_bottleneck_residuals(self)
        if downsampling != Downsampling.CONVOLUTION:
            use_wide_downsampling(self, depthwise=downsampling == Downsampling.WIDE)
        if filtering:
            use_cooperative_filtering(self, **options)
        use_cpu_layers(self)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor | None = None,
        context: Tensor | None = None,
        source: Tensor | None = None,
        missing: Tensor | None = None,
        down_block_additional_residuals: Sequence[Tensor] | None = None,
        mid_block_additional_residual: Tensor | None = None,
        presence: Tensor | None = None,
        target_contrast: Tensor | None = None,
        **conditions: Tensor,
    ) -> Tensor:
        """One evaluation for a batch of slabs.

        Args:
            x: noisy target slabs, (n, c K, h, w); without `source`, all channels one after another.
            timesteps: (n,), or one for all; None is index 0.
            context: style keys, (n, 3, 128), or one for all; None is no style.
            source: slabs of all contrasts, (n, source_channels K, h, w), contrast by contrast; an absent one may hold
                anything.
            missing, conditions: further slabs, (n, channels K, h, w), in the order of training.
            down_block_additional_residuals, mid_block_additional_residual: as of `BridgeUNet`.
            presence: (n, C), above 0 where a contrast is there; None is all.
            target_contrast: index of the contrast that is wanted, (n,) or one for all, of any type; None is the
                constructor's.

        Returns:
            The prediction, (n, c K, h, w).

        Raises:
            ValueError: channels, presence or a target that the network cannot take.
        """
        x = self._joined(x, source, missing, conditions)
        self._check_input(x)
        timesteps, context = for_each_slab(x, timesteps, context, self.style_shape)
        return super().forward(
            self._weighed(x, presence),
            timesteps,
            context,
            down_block_additional_residuals=down_block_additional_residuals,
            mid_block_additional_residual=mid_block_additional_residual,
            class_labels=self._labels(context, target_contrast),
        )

    def _weighed(self, x: Tensor, presence: Tensor | None) -> Tensor:
        """All channels (n, channels K, h, w) with source and conditions weighed, the slices of a slab together."""
        state, y = x.split(
            [size * self.slab_size for size in (self.slice_channels[0], sum(self.slice_channels[1:]))], 1
        )
        planes = y.reshape(len(y), -1, self.slab_size * y.shape[2], y.shape[3])
        if self.auto_weight is None:
            planes = without_absent(planes, presence, self.groups)
        else:
            planes = self.auto_weight(planes, presence)
        layout = torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
        return torch.cat([state, planes.reshape(y.shape)], dim=1).contiguous(memory_format=layout)

    def _labels(self, context: Tensor, target: Tensor | None) -> Any:
        """What `class_embedding` takes."""
        if not self.takes_target:
            if target is not None:
                raise ValueError("This network takes no target_contrast: build it with num_contrasts.")
            return context
        target = self.target_contrast if target is None else target
        if target is not None:
            target = torch.as_tensor(target, device=context.device).reshape(-1).long().expand(len(context))
        return context, target

    def widened(self, state_dict: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
        """Weights of the same network without filters with these as they start; otherwise as of `BridgeUNet`.

        So a network that was trained without them, in about half the time, can be tuned with them.
        """
        made = super().widened(state_dict, prefix)
        filters = {name: module for name, module in self.named_modules() if isinstance(module, CooperativeFilter)}
        names = {f"{prefix}{name.replace('.block.', '.', 1)}": f"{prefix}{name}" for name in self._of_up_blocks()}
        if not filters or not names.keys() <= made.keys():
            return made
        made = {names.get(key, key): value for key, value in made.items()}
        for name, module in filters.items():
            made |= {f"{prefix}{name}.{key}": value for key, value in module.start().items()}
        return made

    def started_from(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of a `BridgeUNet` of one source, as a start for this network: every contrast is read as that source.

        Where one contrast is there, the prediction is that network's until this one is trained, whatever the target;
        conditions of that network that this one has not are left out, which is what a dense scan gives.

        Args:
            state_dict: of a network with the same slabs and feature channels; weights of this network stay as they are.
                It need not tell its contrasts and structure; where it does, they must be this network's.

        Returns:
            Weights of this network, as far as the given ones fit.
        """
        made = dict(state_dict)
        name, wanted = next((f"conv_in.{n}", p) for n, p in self.conv_in.named_parameters() if p.ndim == 4)
        if name in made and made[name].shape[1] < wanted.shape[1]:
            made[name] = self._read_alike(made[name], wanted.shape[1] // sum(self.slice_channels))
        if isinstance(self.class_embedding, TargetEmbedding) and "class_embedding.target.weight" not in made:
            made = {key.replace("class_embedding.", "class_embedding.style."): value for key, value in made.items()}
        start = ("auto_weight.", "class_embedding.target.", ".attentions.", "trained_with.")
        fresh = {key: value for key, value in self.state_dict().items() if any(part in key for part in start)}
        return self.widened(fresh | made)

    def _read_alike(self, kernel: Tensor, size: int) -> Tensor:
        """A first layer's kernel for state and one source, then perhaps conditions, as this network's.

        Args:
            kernel: (features, channels, height, width).
            size: channels that it has for one channel of a slice.
        """
        state, source, *_ = kernel.split(size * self.slice_channels[0], dim=1)
        conditions = kernel.new_zeros(len(kernel), size * self.slice_channels[2], *kernel.shape[2:])
        return torch.cat([state, *[source] * len(self.groups), conditions], dim=1)

    def _of_up_blocks(self) -> list[str]:
        """Keys of the weights of up blocks inside filtered ones."""
        return [name for name in self.state_dict() if name.startswith("up_blocks.") and name.split(".")[2] == "block"]

    def __prepare_scriptable__(self) -> nn.Module:
        """What `torch.jit.script` would compile."""
        raise ValueError(NOT_EXPORTED)
