"""Brownian-bridge diffusion between a target image x0 and a source image y.

Sources: CT2MRI (Choo et al., MICCAI 2024, section 2.1) and ReBrain (section 3.1), on the bridge of BBDM (Li et al.,
CVPR 2023).

Notation, used inside the formulas of this file:
    x0, y     target and source image, [-1, 1]
    m_t       `source_weights[t]`, the weight of y at timestep t: linspace(0.001, 0.999, T)
    delta_t   `variances[t]`, 2 s (m_t - m_t^2), with s = `max_variance`
    x_t       (1 - m_t) x0 + m_t y + sqrt(delta_t) eps, eps standard normal
    t, u      the timestep now, and the one stepped to (u < t)
    lam_t     0.5 ln((1 - m_t) / (2 s m_t)), the half log signal-to-noise ratio
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .affine import AffineScheduler, NamedChoice, StepCoefficients

# Keeps the unit direction finite where source and target are equal. Only such slices feel it.
_TINY = 1e-8


class BridgePredictionType(NamedChoice):
    """What the network predicts.

    gradient: x_t - x0 (CT2MRI, section 2.1).
    unit_gradient: m_t u + sqrt(delta_t) eps, where u is y - x0 over its L2 norm in each slice (ReBrain, section 3.1).
    sample: x0.
    """

    GRADIENT = "gradient"
    UNIT_GRADIENT = "unit_gradient"
    SAMPLE = "sample"


class BrownianBridgeScheduler(AffineScheduler):
    """Forward process, training targets and sampling steps of the Brownian bridge from a source to a target image.

    An `AffineScheduler` with b = 1 - m, a = m and c^2 = delta. Timestep 0 is next to the target (m = 0.001), the last
    next to the source (m = 0.999). The linear grid is that of CT2MRI's public code. What has a closed form here
    overrides the general formula: the same to 3e-14, and exact where terms cancel.

    Args:
        num_train_timesteps: number of timesteps T, at least 2.
        max_variance: s, half the variance factor: the variance peaks at s / 2 in the middle of the bridge.
        prediction_type: what the network predicts, see `BridgePredictionType`.
        literal_sampling: with "unit_gradient", take x_t minus the prediction for x0_hat, as ReBrain's equations 3 and
            14 say word by word, instead of solving for x0. An exact prediction still arrives, but through states beside
            the bridge, by up to (r - 1) / e along u for images r apart, which no training has shown.

    Raises:
        ValueError: when an argument is out of range, the prediction type is unknown, or literal sampling is asked for
            with another one.
    """

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        max_variance: float = 1.0,
        prediction_type: str = BridgePredictionType.GRADIENT,
        literal_sampling: bool = False,
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
        if literal_sampling and self.prediction_type != BridgePredictionType.UNIT_GRADIENT:
            raise ValueError(f"literal_sampling is for unit_gradient, and prediction_type is {self.prediction_type}.")
        self.literal_sampling = literal_sampling
        m = torch.linspace(0.001, 0.999, num_train_timesteps, dtype=torch.float64)
        self._set_weights(1 - m, m, 2 * max_variance * (m - m**2))

    def _linear_grid(self, num_steps: int) -> Tensor:
        last = self.num_train_timesteps - 1
        if num_steps <= 2:
            return torch.tensor([last, 0][:num_steps])
        nodes = torch.arange(last, 1, -last / (num_steps - 2), dtype=torch.float32).long()
        return torch.cat([nodes, torch.tensor([1, 0])])

    def _lambda_grid(self, num_steps: int) -> Tensor:
        m, s = self.source_weights.cpu(), self.max_variance
        ends = [self.half_log_snr(len(m) - 1), self.half_log_snr(0)]
        lam = torch.linspace(*ends, num_steps, dtype=torch.float64)
        nodes = 1 / (1 + 2 * s * torch.exp(2 * lam))
        return torch.round((nodes - m[0]) / (m[-1] - m[0]) * (len(m) - 1)).long()

    def target(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor, source: Tensor) -> Tensor:
        """What the network should predict from `add_noise` of the same arguments, according to `prediction_type`.

        Returns:
            the training target, shape of original_samples.
        """
        if self.prediction_type == BridgePredictionType.SAMPLE:
            return original_samples
        _, m, std = self._per_sample(timesteps, original_samples)
        direction = source - original_samples
        if self.prediction_type == BridgePredictionType.UNIT_GRADIENT:
            direction = direction / (_slice_norm(direction) + _TINY)
        return m * direction + std * noise

    def predict_original_sample(self, model_output: Tensor, timestep: int, sample: Tensor, source: Tensor) -> Tensor:
        """x0_hat, the target image that a prediction of the network at x_t stands for.

        From "unit_gradient" the result is ill-conditioned near the source: an error of 1e-3 in the prediction is 2e-3
        at m = 0.5 and 0.14 at m = 0.999.

        Args:
            model_output: the network's prediction, (B, ..., H, W).
            timestep: t.
            sample: x_t, same shape.
            source: y, same shape.

        Returns:
            x0_hat, same shape, not clipped.
        """
        if self.prediction_type == BridgePredictionType.SAMPLE:
            return model_output
        if self.prediction_type == BridgePredictionType.GRADIENT or self.literal_sampling:
            return sample - model_output
        m = float(self.source_weights[timestep])
        z = source - (sample - model_output)
        norm = _slice_norm(z)
        return source - z * ((norm - m).clamp(min=0) / ((1 - m) * norm.clamp(min=1e-12)))

    def initial_sample(self, endpoint: Tensor, noise: Tensor | None = None) -> Tensor:
        """The state at the first of `timesteps`: the endpoint y, or y + sqrt(delta) z with noise."""
        if noise is None:
            return endpoint
        return endpoint + float(self.variances[self.timesteps[0]]) ** 0.5 * noise

    def score_from_original_sample(
        self, original_sample: Tensor, timestep: int, sample: Tensor, source: Tensor
    ) -> Tensor:
        """The score of `score` from x0_hat itself: -(x_t - (1 - m_t) x0_hat - m_t y) / delta_t."""
        m, delta = float(self.source_weights[timestep]), float(self.variances[timestep])
        # As in eq. 6, in differences of images: they stay accurate where x_t, x0_hat and y agree.
        return (m * (sample - source) + (1 - m) * (sample - original_sample)).div_(-delta)

    def half_log_snr(self, timestep: int) -> float:
        """lam_t, in double precision."""
        m = float(self.source_weights[timestep])
        return 0.5 * math.log((1 - m) / (2 * self.max_variance * m))

    def fresh_variance(self, timestep: int, previous_timestep: int, eta: float = 1.0) -> float:
        """2 s eta^2 m_u (1 - m_u / m_t): variance of the noise that a step from t to u draws anew."""
        m_t, m_u = (float(self.source_weights[i]) for i in (timestep, previous_timestep))
        return eta**2 * 2 * self.max_variance * m_u * (1 - m_u / m_t)

    def posterior(self, timestep: int, previous_timestep: int) -> StepCoefficients:
        """Mean and variance of q(x_u | x_t, x0); y cancels (BBDM, eq. 7)."""
        ratio = float(self.source_weights[previous_timestep]) / float(self.source_weights[timestep])
        noise = math.sqrt(self.fresh_variance(timestep, previous_timestep))
        return StepCoefficients(sample=ratio, original=1 - ratio, noise=noise)


def _slice_norm(images: Tensor) -> Tensor:
    """L2 norm of each slice (the last two axes), kept as axes of length 1."""
    return torch.linalg.vector_norm(images, dim=(-2, -1), keepdim=True)
