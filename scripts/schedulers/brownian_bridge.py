"""Brownian-bridge diffusion between a target image x0 and a source image y.

Sources: CT2MRI (Choo et al., MICCAI 2024, section 2.1) and ReBrain (section 3.1), on the bridge of BBDM (Li et al.,
CVPR 2023).

Notation, used inside the formulas of this file:
    x0, y     target and source image, [-1, 1]
    m_t       `source_weights[t]`, the weight of y at timestep t: linspace(0.001, 0.999, T)
    delta_t   `variances[t]`, 2 s (m_t - m_t^2), with s = `max_variance`
    x_t       (1 - m_t) x0 + m_t y + sqrt(delta_t) eps, eps standard normal
    t, u, p   the timestep now, the one stepped to (u < t), and the one before now (p > t)
    lam_t     0.5 ln((1 - m_t) / (2 s m_t)), the half log signal-to-noise ratio
"""

from __future__ import annotations

import torch
from monai.networks.schedulers import Scheduler
from monai.utils import StrEnum, unsqueeze_right
from torch import Tensor

# Keeps the unit direction finite where source and target are equal. Only such slices feel it.
_TINY = 1e-8


class BridgePredictionType(StrEnum):
    """What the network predicts.

    gradient: x_t - x0 (CT2MRI, section 2.1).
    unit_gradient: m_t u + sqrt(delta_t) eps, where u is y - x0 over its L2 norm in each slice (ReBrain, section 3.1).
    sample: x0.
    """

    GRADIENT = "gradient"
    UNIT_GRADIENT = "unit_gradient"
    SAMPLE = "sample"


class BrownianBridgeScheduler(Scheduler):
    """Forward process, training targets and sampling steps of the Brownian bridge from a source to a target image.

    The scheduler keeps no samples. Timesteps are indices 0..num_train_timesteps - 1; index 0 is next to the target
    (m = 0.001), the last next to the source (m = 0.999). The last two axes of every tensor are one slice (H, W).

    Args:
        num_train_timesteps: number of timesteps T, at least 2.
        max_variance: s, half the variance factor: the variance peaks at s / 2 in the middle of the bridge.
        prediction_type: what the network predicts, see `BridgePredictionType`.

    Raises:
        ValueError: when an argument is out of range or the prediction type is unknown.
    """

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        max_variance: float = 1.0,
        prediction_type: str = BridgePredictionType.GRADIENT,
    ) -> None:
        if num_train_timesteps < 2:
            raise ValueError(f"num_train_timesteps is {num_train_timesteps}; a bridge needs at least 2.")
        if max_variance <= 0:
            raise ValueError(f"max_variance is {max_variance}; it must be positive.")
        super().__init__(num_train_timesteps=num_train_timesteps)
        # The base class describes diffusion to noise; a bridge has no betas.
        del self.betas, self.alphas, self.alphas_cumprod
        self.max_variance = max_variance
        self.prediction_type = BridgePredictionType(prediction_type)
        m = torch.linspace(0.001, 0.999, num_train_timesteps, dtype=torch.float64)
        self.register_buffer("source_weights", m)
        self.register_buffer("variances", 2 * max_variance * (m - m**2))

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor, source: Tensor) -> Tensor:
        """Draw x_t of the bridge: (1 - m_t) x0 + m_t y + sqrt(delta_t) eps (CT2MRI, eq. 1).

        Args:
            original_samples: x0, (B, ..., H, W), [-1, 1].
            noise: standard normal, same shape.
            timesteps: (B,) integer timesteps.
            source: y, same shape, [-1, 1].

        Returns:
            x_t, same shape.
        """
        m, std = self._per_sample(timesteps, original_samples)
        return (1 - m) * original_samples + m * source + std * noise

    def target(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor, source: Tensor) -> Tensor:
        """What the network should predict from `add_noise` of the same arguments, according to `prediction_type`.

        Returns:
            the training target, shape of original_samples.
        """
        if self.prediction_type == BridgePredictionType.SAMPLE:
            return original_samples
        m, std = self._per_sample(timesteps, original_samples)
        direction = source - original_samples
        if self.prediction_type == BridgePredictionType.UNIT_GRADIENT:
            direction = direction / (_slice_norm(direction) + _TINY)
        return m * direction + std * noise

    def _per_sample(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """m_t and sqrt(delta_t) of (B,) timesteps, shaped to broadcast over `like`."""
        m = self.source_weights.to(like.device)[timesteps.to(like.device)]
        std = self.variances.to(like.device)[timesteps.to(like.device)].sqrt()
        return unsqueeze_right(m.to(like.dtype), like.ndim), unsqueeze_right(std.to(like.dtype), like.ndim)


def _slice_norm(images: Tensor) -> Tensor:
    """L2 norm of each slice (the last two axes), kept as axes of length 1."""
    return torch.linalg.vector_norm(images, dim=(-2, -1), keepdim=True)
