"""Losses of the bridge's training; what weights them are constructor arguments."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

__all__ = ["BridgeL1Loss", "BridgeL2Loss", "GradientL1Loss", "elbo_weights"]


def elbo_weights(source_weights: Tensor) -> Tensor:
    """Weight c_eps,t of each training timestep in the evidence lower bound (CT2MRI, eq. 2; BBDM, eq. 10).

    With the bridge's variances, `c_eps,t = (1 - m_{t-1}) delta_{t|t-1} / delta_t` is `1 - m_{t-1} / m_t`: how much of
    the prediction one step of the full schedule takes away. Before the first timestep m is 0.

    Args:
        source_weights: m_t, (T,), rising, in (0, 1).

    Returns:
        (T,), in (0, 1]; the first is 1.
    """
    previous = torch.cat([source_weights.new_zeros(1), source_weights[:-1]])
    return 1 - previous / source_weights


class _BridgeLoss(nn.Module, ABC):
    """Mean over batch, slices and pixels of an error of the prediction, weighted by timestep if asked for."""

    timestep_weights: Tensor | None

    def __init__(self, timestep_weights: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("timestep_weights", timestep_weights, persistent=False)

    @abstractmethod
    def error(self, difference: Tensor) -> Tensor:
        """Error of each pixel from prediction minus target."""

    def forward(self, prediction: Tensor, target: Tensor | tuple[Tensor, Tensor]) -> Tensor:
        """Loss of a batch.

        Args:
            prediction: the network's, (B, 2N+1, H, W).
            target: what it should have predicted, same shape; with timestep weights the pair (target, timesteps), the
                timesteps (B,) integers. A pair, because a MONAI trainer hands a loss its prediction and one label.

        Returns:
            a scalar.

        Raises:
            TypeError: timestep weights without timesteps.
        """
        if self.timestep_weights is None:
            return self.error(prediction - target).mean()
        if isinstance(target, Tensor):
            raise TypeError("This loss weights by timestep: give the label as a pair (target, timesteps).")
        target, timesteps = target
        weights = self.timestep_weights.to(device=prediction.device, dtype=target.dtype)[timesteps]
        return (weights * self.error(prediction - target).flatten(1).mean(dim=1)).mean()


class BridgeL1Loss(_BridgeLoss):
    """Mean absolute error; without weights, the loss of CT2MRI's public code.

    Args:
        timestep_weights: weight of each training timestep, (T,); None weights all alike.
    """

    def error(self, difference: Tensor) -> Tensor:
        """|d|."""
        return difference.abs()


class BridgeL2Loss(_BridgeLoss):
    """Mean squared error; with `elbo_weights`, the loss of CT2MRI's eq. 2.

    Args:
        timestep_weights: weight of each training timestep, (T,); None weights all alike.
    """

    def error(self, difference: Tensor) -> Tensor:
        """d^2."""
        return difference.square()


class GradientL1Loss(nn.Module):
    """Mean absolute error of the image and of its gradients in the plane, for edges as sharp as the target's.

    `mean |d| + weight (mean |D_h d| + mean |D_w d|)` with d = prediction - target and D the difference of neighbouring
    pixels. Where the source leaves an edge's place open, the median of the gradient is 0 and the edge stays soft.

    Args:
        weight: of the gradients.
    """

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Loss of a batch.

        Args:
            prediction, target: (B, 2N+1, H, W).

        Returns:
            a scalar.
        """
        difference = prediction - target
        gradients = sum(difference.diff(dim=axis).abs().mean() for axis in (-2, -1))
        return difference.abs().mean() + self.weight * gradients
