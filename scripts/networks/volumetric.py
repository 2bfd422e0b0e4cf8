"""Layers along z that make a network of single slices one of slabs, and are tuned in minutes.

Source: Make-A-Volume (Zhu et al., MICCAI 2023, section 2.2): behind the layers of a trained slice network stand 1D
convolutions over the slices of a volume. They are the identity at the start, so that tuning begins at the network of
slices. The paper's eq. 7 rearranges f and not f', which would leave the convolution without effect; f' is meant.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from monai.networks.blocks import Convolution
from monai.networks.nets.diffusion_model_unet import DiffusionUNetResnetBlock
from torch import Tensor, nn

from ..schedulers import NamedChoice
from .bridge_unet import BridgeUNet, for_each_slab
from .cpu_layers import UpsampleConv
from .scriptable import EXPORTED_CHANNELS, NOT_EXPORTED, ScriptableBridgeUNet

__all__ = ["VolumetricLayer", "VolumetricUNet", "use_volumetric_layers", "volumetric_bridge"]


class Kind(NamedChoice):
    """What a volumetric layer is, with f its features and all of them the identity at the start.

    dirac: conv(f), the weights a Dirac delta (the paper's). Weight decay pulls it to zero, not to the identity; in
    TF32, as convolutions on a GPU may run, it rounds.
    residual: f + conv(f), the weights zeros.
    depthwise: the same with a convolution of each channel by itself.
    """

    DIRAC = "dirac"
    RESIDUAL = "residual"
    DEPTHWISE = "depthwise"


class Placement(NamedChoice):
    """Behind what volumetric layers stand.

    block: each residual block.
    convolution: each convolution that sees neighbouring pixels: the first and the last of the network, two of each
    residual block, those that change the resolution.
    """

    BLOCK = "block"
    CONVOLUTION = "convolution"


class Tune(NamedChoice):
    """What is trained: the volumetric layers alone, the other weights frozen, or all."""

    VOLUMETRIC = "volumetric"
    ALL = "all"


class VolumetricLayer(nn.Module):
    """A convolution over the slices of each slab, pixel by pixel; the identity at the start.

    The key of its weights in a state dict is the kind, so that weights of one kind do not pass for those of another.

    Args:
        channels: C of the features.
        num_slices: slices of a slab, which follow one another in the batch. The weights do not depend on it.
        kernel_size: slices that it sees, odd; beyond the ends of a slab it sees zeros.
        kind: see `Kind`.

    Raises:
        ValueError: an even `kernel_size`, or a kind that there is not.
    """

    def __init__(self, channels: int, num_slices: int, kernel_size: int = 3, kind: str = Kind.RESIDUAL) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size is {kernel_size}; a volumetric layer sees an odd number of slices.")
        self.num_slices = num_slices
        self.kind = Kind(kind)
        groups = channels if self.kind == Kind.DEPTHWISE else 1
        conv = nn.Conv2d(channels, channels, (kernel_size, 1), padding=(kernel_size // 2, 0), groups=groups)
        nn.init.zeros_(conv.weight)
        nn.init.zeros_(conv.bias)
        if self.kind == Kind.DIRAC:
            nn.init.dirac_(conv.weight)
        self.add_module(self.kind, conv)

    def forward(self, x: Tensor) -> Tensor:
        """Features (n num_slices, C, h, w), slab after slab, to features of the same shape, type and layout."""
        layout = torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
        # an image of num_slices x (h w) pixels for each slab: with channels last, no copy
        slabs = x.reshape(-1, self.num_slices, x.shape[1], x.shape[2] * x.shape[3]).movedim(2, 1)
        mixed = self.get_submodule(self.kind)(slabs).movedim(1, 2).reshape(x.shape)
        mixed = mixed.to(x.dtype).contiguous(memory_format=layout)
        return mixed if self.kind == Kind.DIRAC else x + mixed

    def start(self) -> dict[str, Tensor]:
        """The state dict of the identity."""
        conv = self.get_submodule(self.kind)
        return VolumetricLayer(conv.out_channels, self.num_slices, conv.kernel_size[0], self.kind).state_dict()


class WithVolumetric(nn.Module):
    """A layer of the network of slices, `block`, with a `volumetric` layer behind it; called as the block is."""

    def __init__(self, block: nn.Module, volumetric: VolumetricLayer) -> None:
        super().__init__()
        self.block = block
        self.volumetric = volumetric

    def forward(self, *args: Tensor) -> Tensor:
        """Of slices (n num_slices, ...), slab after slab."""
        return self.volumetric(self.block(*args))


def use_volumetric_layers(
    module: nn.Module,
    num_slices: int,
    kind: str = Kind.RESIDUAL,
    placement: str = Placement.BLOCK,
    kernel_size: int = 3,
) -> nn.Module:
    """Put volumetric layers into a U-Net of slices, in place; the function it computes stays the same.

    Each layer that gets one is replaced by a `WithVolumetric` of the same name.

    Args:
        module: with `DiffusionUNetResnetBlock`s, with FiLM or without, inside.
        num_slices, kind, kernel_size: of `VolumetricLayer`.
        placement: see `Placement`.
    """
    placement = Placement(placement)
    for name, child in module.named_children():
        channels = _channels_behind(child, placement)
        if channels:
            layer = VolumetricLayer(channels, num_slices, kernel_size, kind)
            setattr(module, name, WithVolumetric(child, layer))
        else:
            use_volumetric_layers(child, num_slices, kind, placement, kernel_size)
    return module


def _channels_behind(module: nn.Module, placement: Placement) -> int:
    """Channels of a module that a volumetric layer belongs behind; 0 for any other."""
    if placement == Placement.BLOCK:
        return module.out_channels if isinstance(module, DiffusionUNetResnetBlock) else 0
    if isinstance(module, UpsampleConv):  # it reads the weights of the convolution inside
        module = module.postconv
    if isinstance(module, Convolution) and max(module.conv.kernel_size) > 1:
        return module.conv.out_channels
    return 0


class VolumetricUNet(nn.Module):
    """A network of slabs of K slices, made of one of single slices and layers along z.

    A slab (n, c K, h, w) becomes the slices ((n K), c, h, w), which go through the network side by side; the volumetric
    layers see which belong together. All slices of a slab share one timestep. Until the layers are tuned, the result is
    that of the network of slices, to the bit.

    A network of small slabs of S slices takes part as one of slices does: the K - S + 1 slabs that lie in the large one
    go through it side by side, and its predictions for one slice are averaged.

    The state dict has the network's keys behind `network.`; layers that a volumetric one follows are `block` there and
    the other `volumetric`. K is no part of it, so that the same weights serve slabs of any size.

    Args:
        network: of slices; it is changed in place.
        slab_size: slices of a slab K, odd.
        kind: of the layers, see `Kind`.
        placement: of the layers, see `Placement`.
        kernel_size: of the layers, in slices.
        tune: what is trained, see `Tune`.

    Raises:
        ValueError: a slab size that is even or less than the network's, or a choice that there is not.
    """

    def __init__(
        self,
        network: BridgeUNet,
        slab_size: int = 9,
        kind: str = Kind.RESIDUAL,
        placement: str = Placement.BLOCK,
        kernel_size: int = 3,
        tune: str = Tune.VOLUMETRIC,
    ) -> None:
        super().__init__()
        if slab_size % 2 == 0 or slab_size < network.slab_size:
            raise ValueError(
                f"slab_size is {slab_size}; the slabs of this network have an odd number of slices, at least "
                f"{network.slab_size}."
            )
        network.requires_grad_(Tune(tune) == Tune.ALL)
        self.num_inner = slab_size - network.slab_size + 1
        self.network = use_volumetric_layers(network, self.num_inner, kind, placement, kernel_size)
        self.slab_size = slab_size
        self.slice_channels = network.slice_channels
        self.size_multiple = network.size_multiple
        self.style_shape = network.style_shape

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor | None = None,
        context: Tensor | None = None,
        source: Tensor | None = None,
        missing: Tensor | None = None,
        presence: Tensor | None = None,
        target_contrast: Tensor | None = None,
        **conditions: Tensor,
    ) -> Tensor:
        """One evaluation for a batch of slabs.

        Args:
            x: noisy target slabs x_t, (n, c K, h, w), channel by channel; without `source`, all channels one after
                another, as `BridgeUNet` takes them.
            timesteps: (n,), or one for all; None is index 0.
            context: style keys, (n, 3, 128), or one for all; None is no style.
            source: source slabs, (n, C c K, h, w).
            missing, conditions: further slabs, (n, channels K, h, w).
            presence: which contrasts there are, (n, C).
            target_contrast: index of the one that is wanted, (n,), for a network that takes it.

        Returns:
            The prediction, (n, c K, h, w).

        Raises:
            ValueError: channels that are no slabs of K slices, or that the network cannot take.
        """
        timesteps, context = (self._repeated(t) for t in for_each_slab(x, timesteps, context, self.style_shape))
        slabs = {"source": source, "missing": missing, **conditions}
        slabs = {name: self._cut(slab) for name, slab in slabs.items() if slab is not None}
        of_slabs = {"presence": presence, "target_contrast": target_contrast}
        slabs |= {name: self._repeated(values) for name, values in of_slabs.items() if values is not None}
        return self._joined(self.network(self._cut(x), timesteps, context, **slabs))

    def _repeated(self, values: Tensor) -> Tensor:
        """What a slab has, (n, ...), for each inner one, ((n J), ...)."""
        each = values[:, None].expand(-1, self.num_inner, *values.shape[1:])
        return each.reshape(-1, *values.shape[1:])

    def _cut(self, slabs: Tensor) -> Tensor:
        """Slabs (n, c K, h, w) as the inner ones, ((n J), c S, h, w)."""
        if slabs.shape[1] % self.slab_size:
            raise ValueError(
                f"The network got {slabs.shape[1]} channels; it takes slabs of {self.slab_size} slices, channel by "
                "channel."
            )
        layout = torch.channels_last if slabs.is_contiguous(memory_format=torch.channels_last) else None
        # the ONNX exporter would take sizes for constants with `unflatten` or `len`
        slices = slabs.reshape(slabs.shape[0], -1, self.slab_size, *slabs.shape[2:])
        places = [slices[:, :, k : k + self.num_inner] for k in range(self.network.slab_size)]
        inner = torch.stack(places, dim=3).transpose(1, 2).flatten(2, 3).flatten(0, 1)  # of (n, c, J, S, h, w)
        return inner.contiguous(memory_format=layout or torch.contiguous_format)

    def _joined(self, inner: Tensor) -> Tensor:
        """Inner slabs ((n J), c S, h, w) as slabs (n, c K, h, w), averaged where they overlap."""
        size = self.network.slab_size
        channels, *plane = inner.shape[1:]
        slabs = inner.reshape(-1, self.num_inner, channels // size, size, *plane).transpose(1, 2)  # (n, c, J, S, h, w)
        slices = []
        for z in range(self.slab_size):
            held = [slabs[:, :, z - place, place] for place in range(size) if 0 <= z - place < self.num_inner]
            slices.append(torch.stack(held).mean(0))
        return torch.stack(slices, dim=2).flatten(1, 2)

    def widened(self, state_dict: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
        """Weights of the network of slices alone with layers at the identity, as tuning starts; others as they are.

        Args:
            state_dict: keys begin with `prefix`.
            prefix: of this network in a larger one.
        """
        made, own = dict(state_dict), f"{prefix}network."
        names = {f"{prefix}{plain}": f"{own}{name}" for plain, name in self._plain_names().items()}
        if names.keys() & made.keys() and not set(names.values()) & made.keys():
            made = {names.get(key, key): value for key, value in made.items()}
            for name, module in self.network.named_modules():
                if isinstance(module, VolumetricLayer):
                    made.update({f"{own}{name}.{key}": value for key, value in module.start().items()})
        return self.network.widened(made, own)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: object) -> None:
        """As PyTorch's, of `widened` weights: servers load them by `load_state_dict` alone."""
        made = self.widened(state_dict, prefix)
        state_dict.clear()
        state_dict.update(made)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _plain_names(self) -> dict[str, str]:
        """Key of each weight in the network of slices alone -> its key here."""
        wrapped = [name for name, module in self.network.named_modules() if isinstance(module, WithVolumetric)]
        layers = tuple(f"{name}.volumetric." for name in wrapped)
        names = {}
        for name in self.network.state_dict():
            block = next((f"{layer}.block." for layer in wrapped if name.startswith(f"{layer}.block.")), "")
            if not name.startswith(layers):
                names[block.removesuffix("block.") + name.removeprefix(block)] = name
        return names

    def __prepare_scriptable__(self) -> nn.Module:
        """What `torch.jit.script` compiles, as for `BridgeUNet`."""
        if self.slice_channels not in EXPORTED_CHANNELS:
            raise ValueError(NOT_EXPORTED)
        return ScriptableBridgeUNet(self)


def volumetric_bridge(
    slab_size: int = 9,
    network_slab_size: int = 1,
    kind: str = Kind.RESIDUAL,
    placement: str = Placement.BLOCK,
    kernel_size: int = 3,
    tune: str = Tune.VOLUMETRIC,
    **sizes: Any,
) -> VolumetricUNet:
    """A bridge with layers along z.

    Args:
        slab_size, kind, placement, kernel_size, tune: of the `VolumetricUNet`.
        network_slab_size: of the `BridgeUNet` inside; 3 takes weights of a bridge of slabs as the start.
        sizes: further arguments of the `BridgeUNet`.
    """
    network = BridgeUNet(slab_size=network_slab_size, **sizes)
    return VolumetricUNet(network, slab_size, kind, placement, kernel_size, tune)
