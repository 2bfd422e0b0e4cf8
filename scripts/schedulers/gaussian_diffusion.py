"""Gaussian diffusion from noise to a target image; the source only conditions the network.

Sources: DDPM (Ho et al., NeurIPS 2020); v prediction of Salimans and Ho (ICLR 2022); the quadratic grid of FastDPM
(Kong and Ping, 2021). MONAI's own `DDIMScheduler` and `DDPMScheduler` are not used for sampling: in 1.6.1 their steps leave
the grid that `set_timesteps` makes (tests/schedulers/test_gaussian_diffusion.py shows by how much).

Notation: x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) eps, with abar_t the product of 1 - beta up to t.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .affine import AffineScheduler, NamedChoice

__all__ = ["DiffusionPredictionType", "DiffusionSpacing", "GaussianDiffusionScheduler"]


class DiffusionPredictionType(NamedChoice):
    """What the network predicts: the noise eps, x0, or v = sqrt(abar_t) eps - sqrt(1 - abar_t) x0."""

    EPSILON = "epsilon"
    SAMPLE = "sample"
    V_PREDICTION = "v_prediction"


class DiffusionSpacing(NamedChoice):
    """How sampling timesteps are spread: evenly in the index, evenly in lam, or evenly in its square root (FastDPM)."""

    LINEAR = "linear"
    LAMBDA = "lambda"
    QUADRATIC = "quadratic"


class GaussianDiffusionScheduler(AffineScheduler):
    """Forward process, training targets and sampling steps of diffusion to noise.

    The arguments named `source` are for the call they share with a bridge, and not looked at.

    Args:
        num_train_timesteps: number of timesteps T, at least 2.
        schedule: one of MONAI's `NoiseSchedules`.
        prediction_type: what the network predicts, see `DiffusionPredictionType`.
        beta_start, beta_end: of the schedule.

    Raises:
        ValueError: when an argument is out of range or the prediction type is unknown.
    """

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
        product = torch.cumprod(1 - self.betas.double(), dim=0)
        # MONAI keeps these in single precision and off the module's buffers; what is used is derived from the betas
        del self.alphas, self.alphas_cumprod
        self._set_weights(product.sqrt(), torch.zeros_like(product), 1 - product)

    def set_timesteps(self, num_inference_steps: int, spacing: str = DiffusionSpacing.LINEAR) -> None:
        """Set `timesteps`, the descending indices at which a sampler evaluates the network.

        Args:
            num_inference_steps: number S of evaluations, 1..num_train_timesteps. Duplicates are dropped, so that
                there may be fewer.
            spacing: "linear" is floor(i (T - 1) / (S - 1)); "lambda" has equal intervals in lam, each node at the
                nearest index; "quadratic" is int(linspace(0, sqrt(0.8 T), S)^2), which starts at 0.8 T and not at T.

        Raises:
            ValueError: when num_inference_steps is out of range or the spacing is unknown.
        """
        self._check_steps(num_inference_steps)
        grids = {"linear": self._linear_grid, "lambda": self._lambda_grid, "quadratic": self._quadratic_grid}
        nodes = grids[DiffusionSpacing(spacing)](num_inference_steps)
        self.num_inference_steps = num_inference_steps
        self.timesteps = torch.unique(nodes).flip(0)

    def _linear_grid(self, num_steps: int) -> Tensor:
        last = self.num_train_timesteps - 1
        if num_steps == 1:
            return torch.tensor([last])
        return torch.arange(num_steps) * last // (num_steps - 1)

    def _lambda_grid(self, num_steps: int) -> Tensor:
        lam = 0.5 * (self.target_weights**2 / self.variances).log().cpu()
        wanted = torch.linspace(float(lam[-1]), float(lam[0]), num_steps, dtype=torch.float64)
        return (lam[None] - wanted[:, None]).abs().argmin(dim=1)

    def _quadratic_grid(self, num_steps: int) -> Tensor:
        last = (0.8 * self.num_train_timesteps) ** 0.5
        if num_steps == 1:
            return torch.tensor([int(last**2)])
        return (torch.linspace(0, last, num_steps, dtype=torch.float64) ** 2).round(decimals=9).long()

    def target(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor, source: Tensor) -> Tensor:
        """What the network should predict from `add_noise` of the same arguments, shape of original_samples."""
        if self.prediction_type == DiffusionPredictionType.SAMPLE:
            return original_samples
        if self.prediction_type == DiffusionPredictionType.EPSILON:
            return noise
        b, _, std = self._per_sample(timesteps, original_samples)
        return b * noise - std * original_samples

    def predict_original_sample(self, model_output: Tensor, timestep: int, sample: Tensor, source: Tensor) -> Tensor:
        """x0_hat, the target image that a prediction of the network at x_t stands for; same shape, not clipped."""
        if self.prediction_type == DiffusionPredictionType.SAMPLE:
            return model_output
        b, _, variance = self.node(timestep)
        if self.prediction_type == DiffusionPredictionType.EPSILON:
            return (sample - variance**0.5 * model_output) / b
        return b * sample - variance**0.5 * model_output

    def initial_sample(self, endpoint: Tensor, noise: Tensor | None = None) -> Tensor:
        """Standard normal noise, whatever the endpoint.

        Raises:
            ValueError: without noise.
        """
        if noise is None:
            raise ValueError("Diffusion starts from noise; give it.")
        return noise
