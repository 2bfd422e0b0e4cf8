"""Encoders of slices for retrieval: similar slices get vectors of high cosine."""

from __future__ import annotations

from collections.abc import Sequence

from monai.networks.nets import ViT
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["PixelEncoder", "SliceEncoder"]


class PixelEncoder(nn.Module):
    """The slice's own pixels as its vector, so that similarity is the cosine of pixels; nothing to train.

    Args:
        factor: blocks of factor x factor pixels are averaged, which hardly changes the order of cosines.
    """

    def __init__(self, factor: int = 4) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, slices: Tensor) -> Tensor:
        """Slices (n, 1, H, W), [0, 1], to unit vectors (n, H W / factor^2); a slice of zeros to zeros."""
        return functional.normalize(functional.avg_pool2d(slices, self.factor).flatten(1), dim=1)


class SliceEncoder(ViT):
    """A vision transformer whose mean token is the slice's vector (ReBrain, section 3.2).

    The defaults are a compact one: 564,608 parameters for 104 x 128 pixels. `patch_size=16, hidden_size=768,
    mlp_dim=3072, num_layers=12, num_heads=12` is the paper's ViT-B/16.

    Args:
        img_size: H and W of the slices, multiples of patch_size; positions are learnt for this size alone.
        patch_size: height and width of a token, in pixels.
        hidden_size: length of a token and of the vector.
        mlp_dim: width of the layer between two of a block.
        num_layers, num_heads: blocks, and heads of their attention.
    """

    def __init__(
        self,
        img_size: Sequence[int] = (104, 128),
        patch_size: int = 8,
        hidden_size: int = 128,
        mlp_dim: int = 256,
        num_layers: int = 4,
        num_heads: int = 4,
    ) -> None:
        super().__init__(
            in_channels=1,
            img_size=tuple(img_size),
            patch_size=patch_size,
            hidden_size=hidden_size,
            mlp_dim=mlp_dim,
            num_layers=num_layers,
            num_heads=num_heads,
            spatial_dims=2,
        )
        self.slab_size = 1
        self.size_multiple = patch_size
        """Height and width of a slice are multiples of this number of pixels."""

    def forward(self, x: Tensor) -> Tensor:
        """Slices (n, 1, H, W), [0, 1], to unit vectors (n, hidden_size)."""
        return self.embed(x)[0]

    def features(self, x: Tensor) -> list[Tensor]:
        """Unit vectors (n, hidden_size) of each block, the mean of its tokens."""
        return self.embed(x)[1]

    def embed(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """What `forward` and `features` give, in one pass."""
        tokens, blocks = super().forward(x)
        return _mean_token(tokens), [_mean_token(block) for block in blocks]


def _mean_token(tokens: Tensor) -> Tensor:
    return functional.normalize(tokens.mean(dim=1), dim=1)
