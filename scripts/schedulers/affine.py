"""What all processes x_t = b_t x0 + a_t y + c_t eps share: a noisy sample, sampling steps, the score.

x0 is the target, y the source, eps standard normal. A bridge has a_t > 0; in diffusion to noise a_t is 0 and y is not
looked at.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from monai.networks.schedulers import Scheduler
from monai.utils import StrEnum, unsqueeze_right
from torch import Tensor

from .samplers import Node, StepCoefficients, sampler_named

__all__ = ["AffineScheduler", "NamedChoice"]


class NamedChoice(StrEnum):
    """Choices by name; an unknown name is an error that lists those there are."""

    @classmethod
    def _missing_(cls, value: object) -> None:
        raise ValueError(f"{value!r} is not a valid {cls.__name__}; use one of {', '.join(cls)}.")


class AffineScheduler(Scheduler):
    """Forward process, training targets and sampling steps from the weights of target, source and noise.

    A subclass gives the weights to `_set_weights`, and says what the network predicts (`target`,
    `predict_original_sample`) and which timesteps sampling visits (`set_timesteps`). It keeps no samples. Timesteps are
    indices 0..num_train_timesteps - 1; index 0 is next to the target. The last two axes of every tensor are one slice.

    Attributes:
        target_weights: b_t, (T,) float64.
        source_weights: a_t, (T,) float64.
        variances: c_t^2, (T,) float64.
        transition_variances: c_t^2 - c_{t-1}^2 b_t^2 / b_{t-1}^2, what one step of the forward process adds, (T,)
            float64; at index 0 there is nothing before it, and it is c_0^2.
        starts_from_noise: whether sampling starts from noise rather than from the source.
    """

    starts_from_noise = False

    def _set_weights(self, target_weights: Tensor, source_weights: Tensor, variances: Tensor) -> None:
        b, delta = target_weights, variances
        # not in the state dict: it follows from the others, and older ones have none
        self.register_buffer("target_weights", b, persistent=False)
        self.register_buffer("source_weights", source_weights)
        self.register_buffer("variances", delta)
        added = delta[1:] - delta[:-1] * b[1:] ** 2 / b[:-1] ** 2
        self.register_buffer("transition_variances", torch.cat([delta[:1], added]))

    @abstractmethod
    def set_timesteps(self, num_inference_steps: int, spacing: str = "linear") -> None:
        """Set `timesteps`, the descending indices at which a sampler evaluates the network."""

    @abstractmethod
    def target(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor, source: Tensor) -> Tensor:
        """What the network should predict from `add_noise` of the same arguments; same shape."""

    @abstractmethod
    def predict_original_sample(self, model_output: Tensor, timestep: int, sample: Tensor, source: Tensor) -> Tensor:
        """x0_hat, the target that a prediction of the network at x_t stands for; same shape, not clipped."""

    @abstractmethod
    def initial_sample(self, endpoint: Tensor, noise: Tensor | None = None) -> Tensor:
        """Where sampling starts, at the first of `timesteps`; same shape.

        Args:
            endpoint: the source, or what of it the process ends in.
            noise: standard normal, same shape.
        """

    def _check_steps(self, num_inference_steps: int) -> None:
        if not 1 <= num_inference_steps <= self.num_train_timesteps:
            raise ValueError(
                f"num_inference_steps is {num_inference_steps}; it must be from 1 to {self.num_train_timesteps}."
            )

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor, source: Tensor) -> Tensor:
        """Draw x_t: b_t x0 + a_t y + c_t eps.

        Args:
            original_samples: x0, (B, ..., H, W), [-1, 1].
            noise: standard normal, same shape.
            timesteps: (B,) integer timesteps.
            source: y, same shape, [-1, 1].

        Returns:
            x_t, same shape.
        """
        b, a, std = self._per_sample(timesteps, original_samples)
        return b * original_samples + a * source + std * noise

    def _per_sample(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """b_t, a_t and c_t of (B,) timesteps, shaped to broadcast over `like`."""
        weights = (self.target_weights, self.source_weights, self.variances.sqrt())
        picked = (w.to(like.device)[timesteps.to(like.device)].to(like.dtype) for w in weights)
        b, a, std = (unsqueeze_right(w, like.ndim) for w in picked)
        return b, a, std

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
            sampler: name in `SAMPLERS`.
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
        before = None if before_timestep is None else self.node(before_timestep)
        made = sampler_named(sampler).coefficients(self.node(timestep), self.node(previous_timestep), before, eta)
        # where y cancels, rounding leaves a trace of it
        return made._replace(source=0.0) if abs(made.source) < 1e-12 else made

    def node(self, timestep: int) -> Node:
        """The weights and the variance at a timestep."""
        weights = (self.target_weights, self.source_weights, self.variances)
        return Node(*(float(w[timestep]) for w in weights))

    def score(self, model_output: Tensor, timestep: int, sample: Tensor, source: Tensor) -> Tensor:
        """Score of the marginal at x_t, the gradient of log p(x_t | y) (CT2MRI, eq. 6); same shape.

        Exact for the expectation of x0, which a network trained with a squared loss predicts.
        """
        original = self.predict_original_sample(model_output, timestep, sample, source)
        return self.score_from_original_sample(original, timestep, sample, source)

    def score_from_original_sample(
        self, original_sample: Tensor, timestep: int, sample: Tensor, source: Tensor
    ) -> Tensor:
        """The score of `score` from x0_hat itself: -(x_t - b_t x0_hat - a_t y) / c_t^2."""
        b, a, delta = self.node(timestep)
        return (sample - b * original_sample - a * source).div_(-delta)
