"""Parts that weigh and join channels: automatic weights of conditions, attentional fusion, wide downsampling.

Sources: CoLa-Diff (Jiang et al., MICCAI 2023, sections 2.1 and 2.3); its weights, eq. 7 to 10, are gated channel
transformation (Yang et al., 2020); AFF is attentional feature fusion (Dai et al., 2020).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from monai.networks.blocks import Convolution
from monai.networks.nets.diffusion_model_unet import DiffusionUnetDownsample, DiffusionUNetResnetBlock
from torch import Tensor, nn

from ..schedulers import NamedChoice
from .bridge_unet import FiLMResnetBlock

__all__ = ["AttentionalFeatureFusion", "AutoWeight", "BottleneckResidual", "WideDownsample", "parameter_groups"]
__all__ += ["use_bottleneck_residuals", "use_wide_downsampling", "without_absent"]


class Activation(NamedChoice):
    """Gain of a channel: 1 + tanh, from 0 to 2 and 1 at the start, or 1 + sigmoid, from 1 to 2 and 1.5 (paper)."""

    TANH = "tanh"
    SIGMOID = "sigmoid"


def present_channels(presence: Tensor, groups: Sequence[int], channels: int) -> Tensor:
    """Whether each channel is there, (n, channels) bool.

    Args:
        presence: (n, number of groups), above 0 where a group is there.
        groups: channels of each group, one group after another. Channels behind them are always there.
        channels: of all.

    Raises:
        ValueError: presence of another number of groups.
    """
    if presence.ndim != 2 or presence.shape[1] != len(groups):
        raise ValueError(f"presence has shape {tuple(presence.shape)}; it must be (n, {len(groups)}).")
    repeats = torch.tensor(groups, device=presence.device)
    grouped = (presence > 0).repeat_interleave(repeats, dim=1, output_size=sum(groups))
    return nn.functional.pad(grouped, (0, channels - sum(groups)), value=True)


def without_absent(y: Tensor, presence: Tensor | None, groups: Sequence[int]) -> Tensor:
    """y (n, C, H, W) with zeros for what is absent, whatever it holds; arguments as of `present_channels`."""
    if presence is None:
        return y
    return y.masked_fill(~present_channels(presence, groups, y.shape[1])[:, :, None, None], 0)


class AutoWeight(nn.Module):
    """Weighs channels by their energies (CoLa-Diff, eq. 7 to 10); a channel that is absent takes no part.

    `y~_c = y_c (1 + s(nu_c G^_c + o_c))`, with `G_c = mu_c sqrt(sum y_c^2 + epsilon)` over the pixels, `G^_c = sqrt(S)
    G_c / sqrt(sum G_c^2 + epsilon)` over the S channels that are there, and s the activation. The paper's S is that of
    all channels; of an absent one, 0 in y would still change the others. Here they are, to the bit, what they would be
    had it never existed.

    The gains depend neither on a scale of y nor on its resolution, up to epsilon. Optimizers leave mu, nu and o without
    weight decay by `parameter_groups`.

    Args:
        channels: C.
        groups: channels of each group that may be absent, such as a contrast's; the channels behind them, such as
            tissue fractions, are always there.
        epsilon: keeps gradients finite at 0.
        activation: see `Activation`.

    Raises:
        ValueError: groups of more channels than there are, or an activation that there is not.
    """

    def __init__(
        self,
        channels: int,
        groups: Sequence[int] | None = None,
        epsilon: float = 1e-5,
        activation: str = Activation.TANH,
    ) -> None:
        super().__init__()
        self.groups = tuple(groups or ())
        if sum(self.groups) > channels:
            raise ValueError(f"groups are {list(self.groups)}, more than the {channels} channels that there are.")
        self.channels = channels
        self.epsilon = epsilon
        self.activation = Activation(activation)
        self.embedding_weight = nn.Parameter(torch.ones(channels))  # mu
        self.gate_weight = nn.Parameter(torch.zeros(channels))  # nu
        self.gate_bias = nn.Parameter(torch.zeros(channels))  # o

    def forward(self, y: Tensor, presence: Tensor | None = None) -> Tensor:
        """Weigh conditions.

        Args:
            y: (n, C, H, W).
            presence: (n, number of groups), above 0 where a group is there; None is all.

        Returns:
            y~, shape and type of y; 0 where it is absent.
        """
        y = without_absent(y, presence, self.groups)
        return y * self.gains(y, presence)[:, :, None, None].to(y.dtype)

    def gains(self, y: Tensor, presence: Tensor | None = None) -> Tensor:
        """Gain of each channel, (n, C), of y with zeros for what is absent."""
        hat = self.normalised(y, presence)
        gate = self.gate_weight * hat + self.gate_bias
        return 1 + (gate.tanh() if self.activation == Activation.TANH else gate.sigmoid())

    def normalised(self, y: Tensor, presence: Tensor | None = None) -> Tensor:
        """G^, (n, C), whose squares have the mean 1 over the channels that are there; 0 for the others."""
        wide = y.to(torch.promote_types(y.dtype, torch.float32))
        g = self.embedding_weight * (wide.square().sum(dim=(2, 3)) + self.epsilon).sqrt()
        count = self.channels
        if presence is not None:
            present = present_channels(presence, self.groups, self.channels)
            g, count = g * present, present.sum(dim=1, keepdim=True).to(g)
        rest = self.channels - sum(self.groups)
        # group by group, so that one of zeros does not change the order of the sum
        total = sum(group.sum(dim=1, keepdim=True) for group in g.square().split([*self.groups, rest], dim=1))
        return count**0.5 * g / (total + self.epsilon).sqrt()


def parameter_groups(module: nn.Module, weight_decay: float = 0.01) -> list[dict[str, object]]:
    """Parameters for an optimizer: those of every `AutoWeight` without weight decay, the others with it.

    Args:
        module: a network, with or without such parts.
        weight_decay: of the others; the default is that of `torch.optim.AdamW`.
    """
    weights = [p for part in module.modules() if isinstance(part, AutoWeight) for p in part.parameters()]
    chosen = {id(parameter) for parameter in weights}
    others = [parameter for parameter in module.parameters() if id(parameter) not in chosen]
    groups = [{"params": others, "weight_decay": weight_decay}, {"params": weights, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


class AttentionalFeatureFusion(nn.Module):
    """w x + (1 - w) y with `w = sigmoid(local(x + y) + global(x + y))` of each channel and pixel; a mean at the start.

    As by Dai et al., with group normalisation in place of that over the batch. The last normalisation of each branch
    starts with weights of zero, so that w starts at 1/2.

    Args:
        channels: C.
        reduction: by which the branches narrow.
    """

    def __init__(self, channels: int, reduction: int = 4) -> None:
        super().__init__()
        narrow = max(2, channels // reduction)  # one channel, pooled and normalised, would always be 0
        self.local_attention = self._branch(channels, narrow)
        self.global_attention = nn.Sequential(nn.AdaptiveAvgPool2d(1), *self._branch(channels, narrow))

    @staticmethod
    def _branch(channels: int, narrow: int) -> nn.Sequential:
        last = nn.GroupNorm(1, channels)
        nn.init.zeros_(last.weight)
        return nn.Sequential(
            *(nn.Conv2d(channels, narrow, 1, bias=False), nn.GroupNorm(1, narrow), nn.ReLU()),
            *(nn.Conv2d(narrow, channels, 1, bias=False), last),
        )

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Two features (B, C, H, W) to one of the same shape and type, everywhere between the two."""
        both = x + y
        weight = (self.local_attention(both) + self.global_attention(both)).sigmoid()
        return torch.lerp(y, x, weight.to(x.dtype))


class WideDownsample(nn.Module):
    """Half the height and width by convolutions of several sizes, fused by attention; a place for a 3 x 3 of stride 2.

    Args:
        channels: C.
        kernels: odd heights and widths of the two convolutions.
        depthwise: each channel by itself, 27 thousand parameters at 128 channels; else 1.2 million.
    """

    def __init__(self, channels: int, kernels: Sequence[int] = (5, 7), depthwise: bool = True) -> None:
        super().__init__()
        options = {"strides": 2, "groups": channels if depthwise else 1, "conv_only": True}
        self.convolutions = nn.ModuleList(
            Convolution(2, channels, channels, kernel_size=kernel, padding=kernel // 2, **options) for kernel in kernels
        )
        self.fusion = AttentionalFeatureFusion(channels)

    def forward(self, x: Tensor, emb: Tensor | None = None) -> Tensor:
        """Features (B, C, H, W) to (B, C, ceil(H/2), ceil(W/2)); the embedding is not used."""
        return self.fusion(*(convolution(x) for convolution in self.convolutions))


def use_wide_downsampling(unet: nn.Module, kernels: Sequence[int] = (5, 7), depthwise: bool = True) -> nn.Module:
    """Put a `WideDownsample` in the place of each convolution of stride 2 of a U-Net, in place.

    Args:
        unet: MONAI's `DiffusionModelUNet`, such as `BridgeUNet`, with `resblock_updown=False`.
        kernels, depthwise: of `WideDownsample`.

    Raises:
        ValueError: a network that downsamples in residual blocks.
    """
    for block in unet.down_blocks:
        if isinstance(block.downsampler, DiffusionUNetResnetBlock):
            raise ValueError("The network downsamples in residual blocks; give it resblock_updown=False.")
        if isinstance(block.downsampler, DiffusionUnetDownsample):
            block.downsampler = WideDownsample(block.downsampler.num_channels, kernels, depthwise)
    return unet


class BottleneckResidual(FiLMResnetBlock):
    """Residual block of three convolutions, 1 x 1, 3 x 3 and 1 x 1, the middle one on a quarter of the channels.

    The embedding scales and shifts behind the first. Arguments and calls are those of `FiLMResnetBlock`.
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
        reduction: int = 4,
    ) -> None:
        super().__init__(
            spatial_dims, in_channels, temb_channels, out_channels, up, down, norm_num_groups, norm_eps=norm_eps
        )
        narrow = max(1, self.out_channels // reduction)
        groups = math.gcd(max(1, norm_num_groups // reduction), narrow)  # of as many channels as elsewhere
        self.conv1 = Convolution(spatial_dims, in_channels, narrow, kernel_size=1, conv_only=True)
        self.norm2 = type(self.norm2)(groups, narrow, norm_eps)
        self.time_emb_proj = nn.Linear(temb_channels, 2 * narrow)
        last = Convolution(spatial_dims, narrow, self.out_channels, kernel_size=1, conv_only=True)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        self.conv2 = nn.Sequential(
            Convolution(spatial_dims, narrow, narrow, kernel_size=3, padding=1, conv_only=True),
            *(nn.GroupNorm(groups, narrow, norm_eps), nn.SiLU(), last),
        )


def use_bottleneck_residuals(unet: nn.Module) -> nn.Module:
    """Put a `BottleneckResidual` in the place of each residual block of a U-Net's `down_blocks`, in place."""
    for block in unet.down_blocks:
        for i, resnet in enumerate(block.resnets):
            block.resnets[i] = BottleneckResidual.like(resnet)
    return unet
