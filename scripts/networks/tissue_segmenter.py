"""A small network that divides slabs of a T1 into cerebrospinal fluid, grey and white matter."""

from __future__ import annotations

from collections.abc import Sequence

from monai.networks.nets import BasicUNet
from torch import Tensor, nn

__all__ = ["TissueSegmenter"]


class TissueSegmenter(nn.Module):
    """MONAI's `BasicUNet` between a space-to-depth step and its inverse; it classifies all slices of a slab at once.

    Batch normalisation has fixed statistics in evaluation, so that a slab's result does not depend on its batch.

    Args:
        slab_size: slices of a slab, 2N+1.
        features: of `BasicUNet`: five levels from fine to coarse, then the last layer's.
        space_to_depth: factor f by which the input trades height and width for channels.
    """

    classes = ("background", "csf", "gm", "wm")
    """Channels of the output; grey matter has the deep nuclei in it, white matter the brainstem."""

    def __init__(
        self, slab_size: int = 3, features: Sequence[int] = (24, 24, 48, 64, 64, 24), space_to_depth: int = 2
    ) -> None:
        super().__init__()
        self.slab_size = slab_size
        self.size_multiple = space_to_depth * 2**4
        """What volumes are padded to; slabs of any multiple of f work, from this size on."""
        pixels = slab_size * space_to_depth**2
        body = BasicUNet(
            spatial_dims=2,
            in_channels=pixels,
            out_channels=len(self.classes) * pixels,
            features=features,
            act="relu",
            norm="batch",
            upsample="nontrainable",
        )
        self.layers = nn.Sequential(nn.PixelUnshuffle(space_to_depth), body, nn.PixelShuffle(space_to_depth))

    def forward(self, images: Tensor) -> Tensor:
        """Slabs of a skull-stripped T1, (B, 2N+1, H, W) in [0, 1], to logits of `classes`, (B, 4, 2N+1, H, W)."""
        return self.layers(images).unflatten(1, (len(self.classes), self.slab_size))
