"""Schedulers whose states are affine in target, source and noise: x_t = b_t x0 + a_t y + c_t eps.

The Brownian bridge and Gaussian diffusion are two of them; the samplers are written once, for all.

Notation, used inside the formulas of this file:
    x0, y     target and source (the endpoint of the bridge), in the network's range
    b_t, a_t  `target_weights[t]`, `source_weights[t]`
    c_t       the square root of `variances[t]`
    t, u, p   the timestep now, the one stepped to (u < t), and the one before now (p > t)
    lam_t     ln(b_t / c_t), the half log signal-to-noise ratio

Sources: DBIM (Zheng et al., 2024) for the implicit samplers of a bridge, DDIM (Song et al., 2021) for those of
diffusion, DPM-Solver++ (Lu et al., 2022) for the step of second order.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from monai.networks.schedulers import Scheduler
from monai.utils import StrEnum, unsqueeze_right
from torch import Tensor


class NamedChoice(StrEnum):
    """Choices by name; an unknown name is an error that lists those there are."""

    @classmethod
    def _missing_(cls, value: object) -> None:
        raise ValueError(f"{value!r} is not a valid {cls.__name__}; use one of {', '.join(cls)}.")


class TimestepSpacing(NamedChoice):
    """How sampling timesteps are spread.

    linear: evenly in the index. lambda: evenly in lam. quadratic: evenly in the root of the index. variance: as a
    schedule of so many steps spreads its noise. The last two are of FastDPM (Kong and Ping, 2021). A scheduler takes
    those of its `spacings`.
    """

    LINEAR = "linear"
    LAMBDA = "lambda"
    QUADRATIC = "quadratic"
    VARIANCE = "variance"


class StepCoefficients(NamedTuple):
    """A step as x_u = sample x_t + original x0_t + source y + change (x0_t - x0_p) + noise z."""

    sample: float
    original: float
    source: float = 0.0
    change: float = 0.0
    noise: float = 0.0


class AffineScheduler(Scheduler, ABC):
    """Marginals, sampling steps and score of x_t = b_t x0 + a_t y + c_t eps.

    The scheduler keeps no samples. Timesteps are indices 0..num_train_timesteps - 1; index 0 is next to the target. The
    last two axes of every tensor are one slice (H, W). A subclass sets the weights by `_set_weights`, and says what
    the network predicts.
    """

    spacings: tuple[str, ...] = (TimestepSpacing.LINEAR, TimestepSpacing.LAMBDA)
    """Timestep spacings that `set_timesteps` takes."""
    starts_from_noise = False
    """Whether `initial_sample` always needs noise."""

    target_weights: Tensor
    source_weights: Tensor
    variances: Tensor
    transition_variances: Tensor

    def _set_weights(self, target_weights: Tensor, source_weights: Tensor, variances: Tensor) -> None:
        """Keep b, a and c^2, (T,) float64 each, and the variance delta_{t|t-1} that one training step adds."""
        self.register_buffer("target_weights", target_weights, persistent=False)
        self.register_buffer("source_weights", source_weights)
        self.register_buffer("variances", variances)
        # at index 0 there is nothing before it
        added = variances[1:] - variances[:-1] * target_weights[1:] ** 2 / target_weights[:-1] ** 2
        self.register_buffer("transition_variances", torch.cat([variances[:1], added]))

    @property
    def signature(self) -> str:
        """What a network learns with it, as a name: the class, the prediction type, and a checksum of b, a and c^2."""
        weights = torch.stack([self.target_weights, self.source_weights, self.variances]).flatten().tolist()
        # rounded, since the last digits differ between processors
        digest = hashlib.sha256(" ".join(f"{value:.6e}" for value in weights).encode()).hexdigest()
        return f"{type(self).__name__}_{self.prediction_type}_{digest[:8]}"

    def set_timesteps(self, num_inference_steps: int, timestep_spacing: str = TimestepSpacing.LINEAR) -> None:
        """Set `timesteps`, the descending indices at which a sampler evaluates the network.

        Args:
            num_inference_steps: number S of evaluations, 1..num_train_timesteps. Duplicates are dropped, so that
                there may be fewer.
            timestep_spacing: one of `spacings`; S nodes, each at the nearest index.

        Raises:
            ValueError: when num_inference_steps is out of range or the spacing is unknown.
        """
        if not 1 <= num_inference_steps <= self.num_train_timesteps:
            raise ValueError(
                f"num_inference_steps is {num_inference_steps}; it must be from 1 to {self.num_train_timesteps}."
            )
        if timestep_spacing not in self.spacings:
            raise ValueError(
                f"{str(timestep_spacing)!r} is not a valid timestep_spacing; use one of {', '.join(self.spacings)}."
            )
        grid = getattr(self, f"_{TimestepSpacing(timestep_spacing)}_grid")
        self.num_inference_steps = num_inference_steps
        self.timesteps = torch.unique(grid(num_inference_steps)).flip(0)

    @abstractmethod
    def predict_original_sample(self, model_output: Tensor, timestep: int, sample: Tensor, source: Tensor) -> Tensor:
        """x0_hat, the target that a prediction of the network at x_t stands for; same shape, not clipped."""

    @abstractmethod
    def initial_sample(self, endpoint: Tensor, noise: Tensor | None = None) -> Tensor:
        """The state at the first of `timesteps`, shape of endpoint."""

    def add_noise(
        self, original_samples: Tensor, noise: Tensor, timesteps: Tensor, source: Tensor | None = None
    ) -> Tensor:
        """Draw x_t = b_t x0 + a_t y + c_t eps.

        Args:
            original_samples: x0, (B, ..., H, W).
            noise: standard normal, same shape.
            timesteps: (B,) integer timesteps.
            source: y, same shape; not needed where a is 0.

        Returns:
            x_t, same shape.
        """
        b, a, c = self._per_sample(timesteps, original_samples)
        if source is None:
            return b * original_samples + c * noise
        return b * original_samples + a * source + c * noise

    def step(
        self,
        model_output: Tensor,
        timestep: int,
        previous_timestep: int | None,
        sample: Tensor,
        source: Tensor,
        sampler: str = "mean_path",
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
            sampler: a name in `SAMPLERS`.
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
        sampler: str = "mean_path",
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
        sampler: str = "mean_path",
        eta: float = 0.0,
        before_timestep: int | None = None,
    ) -> StepCoefficients:
        """Coefficients, in double precision, of the step from t to u, with p = before_timestep for second order."""
        if not previous_timestep < timestep:
            raise ValueError(f"A step goes down: from timestep {timestep} it cannot go to {previous_timestep}.")
        if not 0 <= eta <= 1:
            raise ValueError(f"eta is {eta}; it must be from 0 (no noise) to 1 (ancestral).")
        return sampler_named(sampler).coefficients(self, timestep, previous_timestep, eta, before_timestep)

    def score(self, model_output: Tensor, timestep: int, sample: Tensor, source: Tensor) -> Tensor:
        """Score of the marginal at x_t, the gradient of log p(x_t | y) (CT2MRI, eq. 6); same shape.

        Exact for the expectation of x0, which a network trained with a squared loss predicts.
        """
        original = self.predict_original_sample(model_output, timestep, sample, source)
        return self.score_from_original_sample(original, timestep, sample, source)

    @abstractmethod
    def target(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor, source: Tensor) -> Tensor:
        """What the network should predict from `add_noise` of the same arguments, shape of original_samples."""

    def score_from_original_sample(
        self, original_sample: Tensor, timestep: int, sample: Tensor, source: Tensor
    ) -> Tensor:
        """The score of `score` from x0_hat itself: -(x_t - b_t x0_hat - a_t y) / c_t^2."""
        b, a = float(self.target_weights[timestep]), float(self.source_weights[timestep])
        return (sample - b * original_sample - a * source).div_(-float(self.variances[timestep]))

    def half_log_snr(self, timestep: int) -> float:
        """lam_t, in double precision."""
        return 0.5 * math.log(float(self.target_weights[timestep]) ** 2 / float(self.variances[timestep]))

    def fresh_variance(self, timestep: int, previous_timestep: int, eta: float = 1.0) -> float:
        """eta^2 c_u^2 (1 - SNR_t / SNR_u): variance of the noise that a step from t to u draws anew."""
        ratio = math.exp(2 * (self.half_log_snr(timestep) - self.half_log_snr(previous_timestep)))
        return eta**2 * float(self.variances[previous_timestep]) * (1 - ratio)

    def posterior(self, timestep: int, previous_timestep: int) -> StepCoefficients:
        """Mean and variance of q(x_u | x_t, x0, y)."""
        return self.implicit_step(timestep, previous_timestep, eta=1.0)

    def implicit_step(self, timestep: int, previous_timestep: int, eta: float = 0.0) -> StepCoefficients:
        """b_u x0 + a_u y + k (x_t - b_t x0 - a_t y) + sqrt(v) z, with k so that the variance is c_u^2."""
        v = self.fresh_variance(timestep, previous_timestep, eta)
        (b_t, a_t, d_t), (b_u, a_u, d_u) = (
            (float(self.target_weights[i]), float(self.source_weights[i]), float(self.variances[i]))
            for i in (timestep, previous_timestep)
        )
        k = math.sqrt((d_u - v) / d_t)
        return StepCoefficients(sample=k, original=b_u - k * b_t, source=a_u - k * a_t, noise=math.sqrt(v))

    def _per_sample(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """b_t, a_t and c_t of (B,) timesteps, shaped to broadcast over `like`."""
        taken = (
            weights.to(like.device)[timesteps.to(like.device)]
            for weights in (self.target_weights, self.source_weights, self.variances)
        )
        b, a, d = taken
        return tuple(unsqueeze_right(weights.to(like.dtype), like.ndim) for weights in (b, a, d.sqrt()))


Coefficients = Callable[[AffineScheduler, int, int, float, int | None], StepCoefficients]


class Sampler(NamedTuple):
    """An entry of `SAMPLERS`.

    Attributes:
        coefficients: (scheduler, t, u, eta, p or None) -> coefficients of the step from t to u; p is given to samplers
            of second order alone, and is None in their first step.
        second_order: whether a step uses the x0_hat of the step before it.
        paper_name: short name in tables, such as F2; empty where there is none.
        evaluations: evaluations of the network in a step. `ISTAInferer` makes one and refuses others; `_sample` there
            is the place where a second would be made.
    """

    coefficients: Coefficients
    second_order: bool = False
    paper_name: str = ""
    evaluations: int = 1


def _ancestral(scheduler: AffineScheduler, t: int, u: int, eta: float, p: int | None) -> StepCoefficients:
    """Drawn from q(x_u | x_t, x0_hat) (BBDM; for diffusion, DDPM). Needs noise."""
    return scheduler.posterior(t, u)


def _implicit(scheduler: AffineScheduler, t: int, u: int, eta: float, p: int | None) -> StepCoefficients:
    """Keeps the marginals for any noise level eta in [0, 1]: 1 is `ancestral`, 0 needs no noise (DBIM; DDIM)."""
    return scheduler.implicit_step(t, u, eta)


def _mean_path(scheduler: AffineScheduler, t: int, u: int, eta: float, p: int | None) -> StepCoefficients:
    """`ancestral` without its noise (what CT2MRI runs)."""
    return scheduler.posterior(t, u)._replace(noise=0.0)


def _implicit_2(scheduler: AffineScheduler, t: int, u: int, eta: float, p: int | None) -> StepCoefficients:
    """`implicit` at eta = 0 with x0 linear in lam; exponential integrator with one step of memory."""
    first = scheduler.implicit_step(t, u)
    if p is None:
        return first
    lam_t, lam_u, lam_p = map(scheduler.half_log_snr, (t, u, p))
    weight = float(scheduler.target_weights[u])
    return first._replace(change=weight * _second_order(lam_u - lam_t) / (lam_t - lam_p))


def _mean_path_2(scheduler: AffineScheduler, t: int, u: int, eta: float, p: int | None) -> StepCoefficients:
    """`mean_path` with x0 linear in ln a; for bridges."""
    a_t, a_u = (float(scheduler.source_weights[i]) for i in (t, u))
    if not a_u > 0:
        raise ValueError("The sampler mean_path_2 steps in the weight of the source, so that it needs a bridge.")
    first = _mean_path(scheduler, t, u, eta, None)
    if p is None:
        return first
    return first._replace(
        change=_second_order(math.log(a_t / a_u)) / math.log(float(scheduler.source_weights[p]) / a_t)
    )


def _second_order(h: float) -> float:
    """h - 1 + e^-h, without cancellation for small h."""
    return h + math.expm1(-h)


SAMPLERS: dict[str, Sampler] = {
    "ancestral": Sampler(_ancestral, paper_name="F1"),
    "implicit": Sampler(_implicit, paper_name="F2"),
    "mean_path": Sampler(_mean_path, paper_name="F3"),
    "implicit_2": Sampler(_implicit_2, second_order=True, paper_name="F4"),
    "mean_path_2": Sampler(_mean_path_2, second_order=True, paper_name="F5"),
}
"""How a step goes from t to u, given x0_hat: a new sampler is one function and one entry here, under the name by which
`--sampler`, inferers, requests and studies then know it. Those of second order are for the lambda grid only."""


def sampler_named(name: str) -> Sampler:
    """The entry of `SAMPLERS`; a ValueError that lists those there are for an unknown name."""
    if name not in SAMPLERS:
        raise ValueError(f"{name!r} is not a valid sampler; use one of {', '.join(SAMPLERS)}.")
    return SAMPLERS[name]
