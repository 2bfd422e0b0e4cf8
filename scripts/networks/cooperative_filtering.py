"""Similar cooperative filtering of a U-Net's skip connections: wavelets, block matching and thresholds.

Source: CoLa-Diff (Jiang et al., MICCAI 2023, section 2.1, eq. 4). The sums over levels there need a transform without
decimation; the matching is read as that of BM3D (Dabov et al., 2008), whose idea the text names, and not as the
registration that it cites. The authors' code has no working version.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..schedulers import NamedChoice
from .wavelets import Bands, a_trous, haar, inverse_haar

__all__ = ["BlockMatching", "CooperativeFilter", "use_cooperative_filtering"]


class Wavelet(NamedChoice):
    """Transform of the filter: undecimated, of several levels, or Haar's, decimated, of one."""

    A_TROUS = "a_trous"
    HAAR = "haar"


class BlockMatching(nn.Module):
    """Each block of a feature map becomes the mean of the blocks most like it; overlapping blocks are averaged.

    The distance d of two blocks is their mean squared difference over channels and pixels; the nearest `top_k`, the
    block itself among them, count with softmax(-d / temperature). Differentiable, also in the weights.

    Args:
        patch: height and width of a block.
        stride: pixels from a block to the next, at most `patch`.
        top_k: blocks of a mean. 1 is the identity.
        temperature: in squared units of the features. The nearer to 0, the more is left to the block itself; the
            larger, the more alike the `top_k` count.
        max_blocks: that are compared with one another. A map of more is cut into windows, each matched by itself.

    Raises:
        ValueError: sizes or a temperature that are out of range.
    """

    def __init__(
        self, patch: int = 4, stride: int = 2, top_k: int = 8, temperature: float = 1.0, max_blocks: int = 1024
    ) -> None:
        super().__init__()
        if not 1 <= stride <= patch or top_k < 1 or max_blocks < 1:
            raise ValueError(
                f"patch is {patch}, stride {stride}, top_k {top_k} and max_blocks {max_blocks}; all must be at least "
                "1, and stride at most patch."
            )
        if temperature <= 0:
            raise ValueError(f"temperature is {temperature}; it must be positive.")
        self.patch = patch
        self.stride = stride
        self.top_k = top_k
        self.temperature = temperature
        self.max_blocks = max_blocks

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, C, H, W) to features of the same shape, at least in float32."""
        with torch.autocast(x.device.type, enabled=False):  # distances are differences of large numbers
            return self._filtered(x.to(torch.promote_types(x.dtype, torch.float32)))

    def _filtered(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        padded = functional.pad(x, (0, self._padding(width), 0, self._padding(height)), mode="replicate")
        size, options = padded.shape[-2:], {"kernel_size": self.patch, "stride": self.stride}
        rows, columns = ((edge - self.patch) // self.stride + 1 for edge in size)
        blocks = functional.unfold(padded, **options).unflatten(2, (rows, columns))  # (B, C patch^2, rows, columns)
        down, across = self._windows(rows, columns)
        strips = [
            torch.cat([self._matched(window) for window in strip.tensor_split(across, dim=3)], dim=3)
            for strip in blocks.tensor_split(down, dim=2)
        ]
        joined = functional.fold(torch.cat(strips, dim=2).flatten(2), size, **options)
        counts = functional.fold(blocks.new_ones(1, self.patch**2, rows * columns), size, **options)
        return (joined / counts)[..., :height, :width]

    def _padding(self, edge: int) -> int:
        """Pixels that an edge lacks for blocks to cover it."""
        return self.patch - edge if edge < self.patch else (self.patch - edge) % self.stride

    def _windows(self, rows: int, columns: int) -> tuple[int, int]:
        """Numbers of windows down and across, so that none has more than `max_blocks`."""
        down = across = 1
        while (high := -(-rows // down)) * (wide := -(-columns // across)) > self.max_blocks:
            down, across = (down + 1, across) if high >= wide else (down, across + 1)
        return down, across

    def _matched(self, blocks: Tensor) -> Tensor:
        """Blocks (B, D, rows, columns) as means of those like them, same shape."""
        vectors = blocks.flatten(2).mT  # (B, L, D)
        centred = vectors - vectors.mean(dim=1, keepdim=True)  # the same distances, with less rounding
        squares = centred.square().sum(dim=2)
        distances = squares[:, :, None] + squares[:, None] - 2 * centred @ centred.mT
        itself = torch.eye(vectors.shape[1], dtype=torch.bool, device=blocks.device)
        distances = (distances.clamp(min=0) / vectors.shape[2]).masked_fill(itself, 0)
        ranks = distances.detach().masked_fill(itself, -1)  # a block's copies do not come before itself
        nearest = ranks.topk(min(self.top_k, vectors.shape[1]), largest=False).indices
        counts = torch.zeros_like(ranks, dtype=torch.bool).scatter(2, nearest, True)
        weights = (-distances / self.temperature).masked_fill(~counts, -torch.inf).softmax(dim=2)
        return (weights @ vectors).mT.reshape(blocks.shape)


class CooperativeFilter(nn.Module):
    """f + g (F(f) - f) with F the filter of eq. 4 and a gain g of each channel; g is 0 at the start, so that f stays.

    F matches blocks in the approximation and in the diagonal details, and takes horizontal and vertical details nearer
    to 0 by a threshold of each channel and band (soft thresholding), which is learned.

    Args:
        channels: C of the features.
        levels: of the a trous transform; Haar's has one.
        wavelet: see `Wavelet`.
        threshold: at the start.
        options: of `BlockMatching`.

    Raises:
        ValueError: a wavelet that there is not.
    """

    def __init__(
        self, channels: int, levels: int = 2, wavelet: str = Wavelet.A_TROUS, threshold: float = 0.1, **options: Any
    ) -> None:
        super().__init__()
        self.levels = levels
        self.wavelet = Wavelet(wavelet)
        self.threshold = threshold
        self.matching = BlockMatching(**options)
        self.thresholds = nn.Parameter(torch.full((2, channels, 1, 1), threshold))  # channels_last wants four axes
        self.gain = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, C, H, W) to features of the same shape, type and layout."""
        with torch.autocast(x.device.type, enabled=False):
            filtered = self._filtered(x.to(torch.promote_types(x.dtype, torch.float32)))
            return x + self.gain.to(x.dtype) * (filtered.to(x.dtype) - x)

    def start(self) -> dict[str, Tensor]:
        """The state dict of the identity."""
        return {
            "thresholds": torch.full_like(self.thresholds, self.threshold, requires_grad=False),
            "gain": torch.zeros_like(self.gain, requires_grad=False),
        }

    def _filtered(self, x: Tensor) -> Tensor:
        if self.wavelet == Wavelet.A_TROUS:
            return sum(self._of_bands(a_trous(x, self.levels)))
        height, width = x.shape[-2:]
        even = functional.pad(x, (0, width % 2, 0, height % 2), mode="replicate")
        return inverse_haar(self._of_bands(haar(even)))[..., :height, :width]

    def _of_bands(self, bands: Bands) -> Bands:
        thresholds = self.thresholds.abs()
        horizontal, vertical = (
            band.sign() * (band.abs() - least).clamp(min=0)
            for band, least in zip((bands.horizontal, bands.vertical), thresholds, strict=True)
        )
        return Bands(self.matching(bands.approximation), horizontal, vertical, self.matching(bands.diagonal))


class FilteredUpBlock(nn.Module):
    """An up block of MONAI's `DiffusionModelUNet`, `block`, with a filter on each skip connection, in its order."""

    def __init__(self, block: nn.Module, filters: Sequence[nn.Module]) -> None:
        super().__init__()
        self.block = block
        self.filters = nn.ModuleList(filters)

    @property
    def resnets(self) -> nn.ModuleList:
        """Those of the block; the U-Net counts them."""
        return self.block.resnets

    def forward(
        self, hidden_states: Tensor, res_hidden_states_list: list[Tensor], temb: Tensor, context: Tensor | None = None
    ) -> Tensor:
        """As the block's; it takes skip connections from the end of the list."""
        skips = reversed(res_hidden_states_list)
        filtered = [layer(skip) for layer, skip in zip(self.filters, skips, strict=True)]
        return self.block(hidden_states, filtered[::-1], temb, context)


def use_cooperative_filtering(unet: nn.Module, **options: Any) -> nn.Module:
    """Put a filter on every skip connection of a U-Net, in place; the function it computes stays the same.

    Args:
        unet: MONAI's `DiffusionModelUNet`, such as `BridgeUNet`; its `up_blocks` are wrapped.
        options: of `CooperativeFilter`.
    """
    channels = unet.block_out_channels[-1]
    for i, block in enumerate(unet.up_blocks):
        skips = []
        for resnet in block.resnets:  # each takes the features so far, and a skip connection behind them
            skips.append(resnet.channels - channels)
            channels = resnet.out_channels
        unet.up_blocks[i] = FilteredUpBlock(block, [CooperativeFilter(skip, **options) for skip in skips])
    return unet
