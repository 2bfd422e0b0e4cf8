"""Gaussian diffusion between a target image and noise, on MONAI's noise schedules.

Source: DDPM (Ho et al., 2020); "v_prediction" is that of Salimans and Ho (2022). MONAI 1.6.1's own samplers are not
used: its DDIM steps to t - T // S while its timesteps are spread from T - 1 to 0, so that it leaves its own grid, and
its DDPM always steps from t to t - 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .affine import AffineScheduler, NamedChoice, TimestepSpacing


class DiffusionPredictionType(NamedChoice):
    """What the network predicts: the noise eps, x0, or v = b_t eps - c_t x0."""

    EPSILON = "epsilon"
    SAMPLE = "sample"
    V_PREDICTION = "v_prediction"


class GaussianDiffusionScheduler(AffineScheduler):
    """x_t = b_t x0 + c_t eps with b_t^2 + c_t^2 = 1: an `AffineScheduler` in which the source has no weight.

    Args:
        num_train_timesteps: number of timesteps T, at least 2.
        schedule: name in MONAI's `NoiseSchedules`: "linear_beta", "scaled_linear_beta", "sigmoid_beta".
        prediction_type: what the network predicts, see `DiffusionPredictionType`.
        beta_start, beta_end: of the schedule.

    Raises:
        ValueError: when the number of timesteps is too small or the prediction type is unknown.
    """

    spacings = (*AffineScheduler.spacings, TimestepSpacing.QUADRATIC, TimestepSpacing.VARIANCE)
    starts_from_noise = True

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        schedule: str = "linear_beta",
        prediction_type: str = DiffusionPredictionType.EPSILON,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
    ) -> None:
        if num_train_timesteps < 2:
            raise ValueError(f"num_train_timesteps is {num_train_timesteps}; diffusion needs at least 2.")
        super().__init__(num_train_timesteps, schedule, beta_start=beta_start, beta_end=beta_end)
        self.prediction_type = DiffusionPredictionType(prediction_type)
        signal = torch.cumprod(1 - self.betas.double(), dim=0)
        self._set_weights(signal.sqrt(), torch.zeros_like(signal), 1 - signal)

    def _linear_grid(self, num_steps: int) -> Tensor:
        """floor(i (T - 1) / (S - 1)), as in FastDPM."""
        last = self.num_train_timesteps - 1
        return torch.arange(num_steps) * last // (num_steps - 1) if num_steps > 1 else torch.tensor([last])

    def _quadratic_grid(self, num_steps: int) -> Tensor:
        """FastDPM's int(linspace(0, sqrt(0.8 T), S)^2), which starts at 0.8 T and not at the last timestep."""
        start = (0.8 * self.num_train_timesteps) ** 0.5
        nodes = torch.linspace(start, 0, num_steps, dtype=torch.float64) ** 2
        return nodes.round(decimals=9).long()

    def _variance_grid(self, num_steps: int) -> Tensor:
        """FastDPM's VAR: where the signal is that of S betas of its own, linear from the first beta, nearest index.

        The last of these betas is the one that leaves as much signal as the schedule's T do.
        """
        log_signal = 2 * self.target_weights.log().cpu()
        first, low, high = float(self.betas[0]), 0.0, 1.0
        if num_steps == 1:
            return torch.tensor([self.num_train_timesteps - 1])

        def logs(last: float) -> Tensor:
            return torch.log1p(-torch.linspace(first, last, num_steps, dtype=torch.float64)).cumsum(0)

        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if logs(middle)[-1] > log_signal[-1] else (low, middle)
        # between two indices, ln abar is nearly straight
        above = torch.searchsorted(-log_signal, -logs(low)).clamp(1, self.num_train_timesteps - 1)
        left, right = log_signal[above - 1], log_signal[above]
        return (above - 1 + (left - logs(low)) / (left - right)).round().long()

    def _lambda_grid(self, num_steps: int) -> Tensor:
        lam = 0.5 * torch.log(self.target_weights**2 / self.variances).cpu()
        nodes = torch.linspace(float(lam[-1]), float(lam[0]), num_steps, dtype=torch.float64)
        return (lam - nodes[:, None]).abs().argmin(dim=1)

    def target(
        self, original_samples: Tensor, noise: Tensor, timesteps: Tensor, source: Tensor | None = None
    ) -> Tensor:
        """What the network should predict from `add_noise` of the same arguments, according to `prediction_type`."""
        if self.prediction_type == DiffusionPredictionType.SAMPLE:
            return original_samples
        if self.prediction_type == DiffusionPredictionType.EPSILON:
            return noise
        b, _, c = self._per_sample(timesteps, original_samples)
        return b * noise - c * original_samples

    def predict_original_sample(
        self, model_output: Tensor, timestep: int, sample: Tensor, source: Tensor | None = None
    ) -> Tensor:
        """x0_hat, the target that a prediction of the network at x_t stands for; same shape, not clipped."""
        if self.prediction_type == DiffusionPredictionType.SAMPLE:
            return model_output
        b, c = float(self.target_weights[timestep]), float(self.variances[timestep]) ** 0.5
        if self.prediction_type == DiffusionPredictionType.EPSILON:
            return (sample - c * model_output) / b
        return b * sample - c * model_output

    def initial_sample(self, endpoint: Tensor, noise: Tensor | None = None) -> Tensor:
        """The noise; the endpoint, of the same shape, has no say.

        Raises:
            ValueError: no noise.
        """
        if noise is None:
            raise ValueError("Gaussian diffusion starts from noise; give it noise.")
        return noise
