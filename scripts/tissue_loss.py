"""A loss that looks at tissues: cerebrospinal fluid, grey and white matter where the target has them."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from .codec import PixelCodec

__all__ = ["TissueConsistencyLoss"]


class TissueConsistencyLoss(nn.Module):
    """Difference of the tissue probabilities that a frozen segmenter gives the prediction and the target.

    It is added to a loss of the image itself (`configs/loss_tissue.json`): alone it would let brightness drift.

    Args:
        segmenter: slabs (B, K, H, W) in [0, 1] to logits (B, classes, K, H, W), background first; its weights are
            frozen, and it stays in evaluation mode.
        weight: of the loss.
        error: "l1", the mean absolute difference of the probabilities over the target's foreground, or "dice", one
            minus the soft Dice of each tissue in the batch, averaged over the tissues.

    Raises:
        ValueError: an error of another name.
    """

    def __init__(self, segmenter: nn.Module, weight: float = 0.1, error: Literal["l1", "dice"] = "l1") -> None:
        super().__init__()
        if error not in ("l1", "dice"):
            raise ValueError(f"error is {error!r}; it is l1 or dice")
        self.segmenter = segmenter.requires_grad_(False).eval()
        self.weight = weight
        self.error = error

    def train(self, mode: bool = True) -> TissueConsistencyLoss:
        """The segmenter stays in evaluation mode."""
        return super().train(False)

    def forward(self, prediction: Tensor, target: Tensor | tuple[Tensor, Tensor]) -> Tensor:
        """Loss of a batch.

        Args:
            prediction: the network's image, (B, K, H, W), [-1, 1]; values beyond are not clipped.
            target: the real image, same shape; or the pair (target, timesteps), whose timesteps have no say.

        Returns:
            a scalar.
        """
        target = target if isinstance(target, Tensor) else target[0]
        with torch.no_grad():
            wanted = self._probabilities(target)
        given = self._probabilities(prediction)
        return self.weight * (_foreground_l1 if self.error == "l1" else _soft_dice)(given, wanted)

    def _probabilities(self, states: Tensor) -> Tensor:
        return self.segmenter(PixelCodec().decode(states)).softmax(dim=1)


def _foreground_l1(given: Tensor, wanted: Tensor) -> Tensor:
    foreground = 1 - wanted[:, :1]
    return (foreground * (given - wanted).abs()).sum() / (given.shape[1] * foreground.sum()).clamp(min=1)


def _soft_dice(given: Tensor, wanted: Tensor, smooth: float = 1e-4) -> Tensor:
    """One minus 2 mean(p q) / (mean(p^2) + mean(q^2)), which is 0 for equal probabilities however soft they are.

    `smooth` keeps a tissue that neither has at 0.
    """
    p, q = (t[:, 1:].transpose(0, 1).flatten(1) for t in (given, wanted))
    overlap, size = 2 * (p * q).mean(dim=1), (p * p + q * q).mean(dim=1)
    return (1 - (overlap + smooth) / (size + smooth)).mean()
