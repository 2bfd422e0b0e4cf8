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

import math
from typing import NamedTuple

import torch
from monai.networks.schedulers import Scheduler
from monai.utils import StrEnum, unsqueeze_right
from torch import Tensor

# Keeps the unit direction finite where source and target are equal. Only such slices feel it.
_TINY = 1e-8


class NamedChoice(StrEnum):
    """Choices by name; an unknown name is an error that lists those there are."""

    @classmethod
    def _missing_(cls, value: object) -> None:
        raise ValueError(f"{value!r} is not a valid {cls.__name__}; use one of {', '.join(cls)}.")


class BridgePredictionType(NamedChoice):
    """What the network predicts.

    gradient: x_t - x0 (CT2MRI, section 2.1).
    unit_gradient: m_t u + sqrt(delta_t) eps, where u is y - x0 over its L2 norm in each slice (ReBrain, section 3.1).
    sample: x0.
    """

    GRADIENT = "gradient"
    UNIT_GRADIENT = "unit_gradient"
    SAMPLE = "sample"


class BridgeSampler(NamedChoice):
    """How a step goes from t to u, given x0_hat, the prediction of x0.

    ancestral: drawn from q(x_u | x_t, x0_hat) (BBDM). Needs noise.
    implicit: keeps the marginals for any noise level eta in [0, 1]; eta = 1 is `ancestral`, eta = 0 needs no noise
        (diffusion bridge implicit models, DBIM).
    mean_path: `ancestral` without its noise (what CT2MRI runs).
    implicit_2, mean_path_2: second order in the step of lam, or of ln m; for the lambda grid only.
    """

    ANCESTRAL = "ancestral"
    IMPLICIT = "implicit"
    MEAN_PATH = "mean_path"
    IMPLICIT_2 = "implicit_2"
    MEAN_PATH_2 = "mean_path_2"

    @property
    def second_order(self) -> bool:
        """Whether a step uses the x0_hat of the step before it."""
        return self in (BridgeSampler.IMPLICIT_2, BridgeSampler.MEAN_PATH_2)


class BridgeSpacing(NamedChoice):
    """How sampling timesteps are spread: evenly in the index (CT2MRI's public code) or in lam."""

    LINEAR = "linear"
    LAMBDA = "lambda"


class StepCoefficients(NamedTuple):
    """A step as x_u = sample x_t + original x0_t + source y + change (x0_t - x0_p) + noise z."""

    sample: float
    original: float
    source: float = 0.0
    change: float = 0.0
    noise: float = 0.0


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
        delta = 2 * max_variance * (m - m**2)
        self.register_buffer("variances", delta)
        # delta_{t|t-1}, the variance that one training step adds; at index 0 there is nothing before it.
        added = delta[1:] - delta[:-1] * (1 - m[1:]) ** 2 / (1 - m[:-1]) ** 2
        self.register_buffer("transition_variances", torch.cat([delta[:1], added]))

    def set_timesteps(self, num_inference_steps: int, spacing: str = BridgeSpacing.LINEAR) -> None:
        """Set `timesteps`, the descending indices at which a sampler evaluates the network.

        Args:
            num_inference_steps: number S of evaluations, 1..num_train_timesteps. Duplicates are dropped, so that
                there may be fewer.
            spacing: "linear" is the grid of CT2MRI's public code; "lambda" has S - 1 equal intervals in lam, each node
                at the nearest index.

        Raises:
            ValueError: when num_inference_steps is out of range or the spacing is unknown.
        """
        if not 1 <= num_inference_steps <= self.num_train_timesteps:
            raise ValueError(
                f"num_inference_steps is {num_inference_steps}; it must be from 1 to {self.num_train_timesteps}."
            )
        grid = self._lambda_grid if BridgeSpacing(spacing) == BridgeSpacing.LAMBDA else self._linear_grid
        self.num_inference_steps = num_inference_steps
        self.timesteps = torch.unique(grid(num_inference_steps)).flip(0)

    def _linear_grid(self, num_steps: int) -> Tensor:
        last = self.num_train_timesteps - 1
        if num_steps <= 2:
            return torch.tensor([last, 0][:num_steps])
        nodes = torch.arange(last, 1, -last / (num_steps - 2), dtype=torch.float32).long()
        return torch.cat([nodes, torch.tensor([1, 0])])

    def _lambda_grid(self, num_steps: int) -> Tensor:
        m, s = self.source_weights.cpu(), self.max_variance
        ends = [_half_log_snr(float(m[-1]), s), _half_log_snr(float(m[0]), s)]
        lam = torch.linspace(*ends, num_steps, dtype=torch.float64)
        nodes = 1 / (1 + 2 * s * torch.exp(2 * lam))
        return torch.round((nodes - m[0]) / (m[-1] - m[0]) * (len(m) - 1)).long()

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
        if self.prediction_type == BridgePredictionType.GRADIENT:
            return sample - model_output
        m = float(self.source_weights[timestep])
        z = source - (sample - model_output)
        norm = _slice_norm(z)
        return source - z * ((norm - m).clamp(min=0) / ((1 - m) * norm.clamp(min=1e-12)))

    def step(
        self,
        model_output: Tensor,
        timestep: int,
        previous_timestep: int | None,
        sample: Tensor,
        source: Tensor,
        sampler: str = BridgeSampler.MEAN_PATH,
        eta: float = 0.0,
        noise: Tensor | None = None,
        history: tuple[int, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """One sampling step from x_t to x_u.

        Args:
            model_output: the network's prediction at x_t, (B, ..., H, W).
            timestep: t.
            previous_timestep: u < t, or None to finish with x0_hat as the sample.
            sample: x_t, same shape.
            source: y, same shape.
            sampler: see `BridgeSampler`.
            eta: noise level of the "implicit" sampler, 0 to 1.
            noise: standard normal, same shape; for steps that draw.
            history: (p, x0_hat at p) of the step before, p > t; second-order samplers make a first-order step without.

        Returns:
            (x_u, x0_hat), same shape.

        Raises:
            ValueError: when u is not below t, the sampler is unknown, or a step that draws is given no noise.
        """
        original = self.predict_original_sample(model_output, timestep, sample, source)
        if previous_timestep is None:
            return original, original
        stepped = self.step_from_original_sample(
            original, timestep, previous_timestep, sample, source, sampler, eta, noise, history
        )
        return stepped, original

    def step_from_original_sample(
        self,
        original_sample: Tensor,
        timestep: int,
        previous_timestep: int,
        sample: Tensor,
        source: Tensor,
        sampler: str = BridgeSampler.MEAN_PATH,
        eta: float = 0.0,
        noise: Tensor | None = None,
        history: tuple[int, Tensor] | None = None,
    ) -> Tensor:
        """The step of `step` from x0_hat itself, for callers that have averaged or changed it. Returns x_u."""
        before = None if history is None else history[0]
        c = self.step_coefficients(timestep, previous_timestep, sampler, eta, before)
        stepped = c.sample * sample + c.original * original_sample
        if c.source:
            stepped = stepped.add_(source, alpha=c.source)
        if c.change:
            stepped = stepped.add_(original_sample - history[1], alpha=c.change)
        if c.noise:
            if noise is None:
                raise ValueError(f"The {sampler} step from {timestep} to {previous_timestep} draws; give it noise.")
            stepped = stepped.add_(noise, alpha=c.noise)
        return stepped

    def step_coefficients(
        self,
        timestep: int,
        previous_timestep: int,
        sampler: str = BridgeSampler.MEAN_PATH,
        eta: float = 0.0,
        before_timestep: int | None = None,
    ) -> StepCoefficients:
        """Coefficients, in double precision, of the step from t to u, with p = before_timestep for second order."""
        if not previous_timestep < timestep:
            raise ValueError(f"A step goes down: from timestep {timestep} it cannot go to {previous_timestep}.")
        if not 0 <= eta <= 1:
            raise ValueError(f"eta is {eta}; it must be from 0 (no noise) to 1 (ancestral).")
        m_t, m_u = float(self.source_weights[timestep]), float(self.source_weights[previous_timestep])
        m_p = None if before_timestep is None else float(self.source_weights[before_timestep])
        return _SAMPLERS[BridgeSampler(sampler)](m_t, m_u, m_p, self.max_variance, eta)

    def score(self, model_output: Tensor, timestep: int, sample: Tensor, source: Tensor) -> Tensor:
        """Score of the bridge's marginal at x_t, the gradient of log p(x_t | y) (CT2MRI, eq. 6); same shape.

        Exact for the expectation of x0, which a network trained with a squared loss predicts.
        """
        original = self.predict_original_sample(model_output, timestep, sample, source)
        return self.score_from_original_sample(original, timestep, sample, source)

    def score_from_original_sample(
        self, original_sample: Tensor, timestep: int, sample: Tensor, source: Tensor
    ) -> Tensor:
        """The score of `score` from x0_hat itself: -(x_t - (1 - m_t) x0_hat - m_t y) / delta_t."""
        m, delta = float(self.source_weights[timestep]), float(self.variances[timestep])
        # As in eq. 6, in differences of images: they stay accurate where x_t, x0_hat and y agree.
        return (m * (sample - source) + (1 - m) * (sample - original_sample)).div_(-delta)

    def _per_sample(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """m_t and sqrt(delta_t) of (B,) timesteps, shaped to broadcast over `like`."""
        m = self.source_weights.to(like.device)[timesteps.to(like.device)]
        std = self.variances.to(like.device)[timesteps.to(like.device)].sqrt()
        return unsqueeze_right(m.to(like.dtype), like.ndim), unsqueeze_right(std.to(like.dtype), like.ndim)


def _slice_norm(images: Tensor) -> Tensor:
    """L2 norm of each slice (the last two axes), kept as axes of length 1."""
    return torch.linalg.vector_norm(images, dim=(-2, -1), keepdim=True)


def _half_log_snr(m: float, s: float) -> float:
    """lam of a source weight m."""
    return 0.5 * math.log((1 - m) / (2 * s * m))


def _ancestral(m_t: float, m_u: float, m_p: float | None, s: float, eta: float) -> StepCoefficients:
    """Mean and variance of q(x_u | x_t, x0); y cancels (BBDM, eq. 7)."""
    ratio = m_u / m_t
    return StepCoefficients(sample=ratio, original=1 - ratio, noise=math.sqrt(2 * s * m_u * (1 - ratio)))


def _implicit(m_t: float, m_u: float, m_p: float | None, s: float, eta: float) -> StepCoefficients:
    """(1 - m_u) x0 + m_u y + k (x_t - (1 - m_t) x0 - m_t y) + sqrt(v) z, with k so that the variance is delta_u."""
    v = eta**2 * 2 * s * m_u * (1 - m_u / m_t)
    delta_t, delta_u = (2 * s * (m - m**2) for m in (m_t, m_u))
    k = math.sqrt((delta_u - v) / delta_t)
    return StepCoefficients(sample=k, original=(1 - m_u) - k * (1 - m_t), source=m_u - k * m_t, noise=math.sqrt(v))


def _mean_path(m_t: float, m_u: float, m_p: float | None, s: float, eta: float) -> StepCoefficients:
    """x_t - (1 - m_u / m_t) (x_t - x0): the mean of `_ancestral`."""
    return _ancestral(m_t, m_u, m_p, s, eta)._replace(noise=0.0)


def _implicit_2(m_t: float, m_u: float, m_p: float | None, s: float, eta: float) -> StepCoefficients:
    """`_implicit` at eta = 0 with x0 linear in lam; exponential integrator with one step of memory."""
    first = _implicit(m_t, m_u, None, s, 0.0)
    if m_p is None:
        return first
    lam_t, lam_u, lam_p = (_half_log_snr(m, s) for m in (m_t, m_u, m_p))
    return first._replace(change=(1 - m_u) * _second_order(lam_u - lam_t) / (lam_t - lam_p))


def _mean_path_2(m_t: float, m_u: float, m_p: float | None, s: float, eta: float) -> StepCoefficients:
    """`_mean_path` with x0 linear in ln m."""
    first = _mean_path(m_t, m_u, None, s, 0.0)
    if m_p is None:
        return first
    return first._replace(change=_second_order(math.log(m_t / m_u)) / math.log(m_p / m_t))


def _second_order(h: float) -> float:
    """h - 1 + e^-h, without cancellation for small h."""
    return h + math.expm1(-h)


_SAMPLERS = {
    BridgeSampler.ANCESTRAL: _ancestral,
    BridgeSampler.IMPLICIT: _implicit,
    BridgeSampler.MEAN_PATH: _mean_path,
    BridgeSampler.IMPLICIT_2: _implicit_2,
    BridgeSampler.MEAN_PATH_2: _mean_path_2,
}
