"""Inter-slice trajectory alignment (ISTA): a slice-consistent volume from a network of slabs.

Source: CT2MRI (Choo et al., MICCAI 2024), section 2.3. The state is the volume's slices and N virtual slices at each
end: background, or the end slice again where the brain is cut there. At each timestep the network sees every slab of
2N+1 slices; its predictions for one slice are averaged (co-prediction), the state makes one step of the sampler, and M
corrections along the score follow.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from monai.inferers import Inferer
from monai.utils import convert_to_dst_type, convert_to_tensor
from torch import Tensor
from tqdm import tqdm

from ..codec import PixelCodec
from ..schedulers import AffineScheduler, NamedChoice, TimestepSpacing, sampler_named
from ..slab_ranks import OneProcess
from ..slabs import slices_to_volume
from .slab_predictor import SlabPredictor, autocast
from .states import Endpoint, check_channels, decode_slices, given_channels, slab_inputs

SETTINGS = (
    "sampler",
    "timestep_spacing",
    "num_inference_steps",
    "detail",
    "num_corrections",
    "step_size",
    "correction_norm",
    "slab_stride",
    "final_stride",
    "mirrored",
)
"""Arguments of `ISTAInferer` that say how it samples: they are recorded, and a request may change them."""

MEAN_FROM = 0.25
"""Value of the condition `missing` from which on the result is the mean of the images that fit: two slices away from
the nearest that was acquired."""


class CorrectionNorm(NamedChoice):
    """Length of a correction, lambda delta_{u|u-1} f S / |S|^2 for a slice of d pixels.

    paper: f = d (CT2MRI, eq. 5).
    reference_code: f = sqrt(d), as in its authors' public code; 160 times shorter at 160 x 160.
    """

    PAPER = "paper"
    REFERENCE_CODE = "reference_code"


class ISTAInferer(Inferer):
    """Sample target volumes from source volumes with a network of slabs. Deterministic.

    The network is evaluated S + M (S - 1) times on each slab, less often with a `detail` below 1. Memory is a few
    arrays of the volume's size and one batch of slabs; where a batch finds too little of it, it is halved. The state
    keeps the inputs' floating type; corrections are ill-conditioned in float32.

    Args:
        scheduler: steps, score and prediction type.
        style_key: (3, number of bins) array or tensor; None gives the network no style.
        num_inference_steps: number of sampling steps S. With 100 and no corrections: the paper's co-prediction only.
        num_corrections: corrections M after each step but the last. The paper's ISTA: 50 steps, M = 1.
        step_size: lambda of the correction; 0.5 in the authors' script, 2.0 in their config.
        correction_norm: see `CorrectionNorm`.
        sampler: a name in `SAMPLERS`.
        timestep_spacing: one of the scheduler's `spacings`; second-order samplers need "lambda".
        slab_size: 2N+1 slices, odd.
        slab_stride: slices from one slab's centre to the next, at most slab_size: with k the network sees a k-th of the
            slabs. They move on by one slice from evaluation to evaluation, so that each overlap has its turn. 1 is the
            paper's.
        final_stride: the same for the last evaluation, which is the result: with 1 it has all slabs.
        batch_size: slabs in one call of the network, or "auto": as many as the memory has room for, see
            `batch_that_fits`. It does not change the result beyond rounding.
        dtype: floating type of the calls of network and codec, None for that of the inputs; torch.bfloat16 and
            torch.float16 run them under autocast, the network channels last.
        co_prediction: whether a slice is averaged over all slabs that hold it. False takes it from its own slab only,
            which is the paper's ablation; with a slab_stride, from the slab centred nearest, and the slabs stay where
            they are: with slab_size as the stride, the volume is cut into chunks that know nothing of each other.
        eta: noise level of the "implicit" sampler, 0 to 1.
        start_noise: whether to start from y + sqrt(delta) z instead of y; for the samplers that keep the marginals.
        seed: of all noise. Every volume of a batch gets the same noise, so that it does not depend on its company.
        progress: whether to show a bar over sampling steps.
        codec: makes images the network's states, and states images.
        channels: name -> channels of the inputs, in their order; "source" among them, the others are conditions.
        encoded: names that go through the codec; the others are mean-pooled by its factor.
        endpoint: what of a source of several contrasts the bridge starts from, see `Endpoint`.
        noise_correlation: rho of the noise of neighbouring slices, 0 to 1, rho^|i-j| of slices i and j.
        detail: how far along the bridge the result is taken, 0 to 1. The prediction x0_hat of each evaluation is an
            image, E[x0 | x_t, y] for a network that was trained with a squared loss (the median with L1): the first is
            the mean of all images that fit the source, and the later ones keep to what the state has settled on. 0 is
            the first, 1 the last of the S, and in between is a straight line from each to the next; later evaluations
            are not made. Where the target is Gaussian, all of them lie on the line from the posterior mean to the
            sample, which is the best trade of error for spread there is (Freirich et al., 2021). Where the condition
            `missing` is above 0, the result turns to the first prediction, and is it from `MEAN_FROM` on: what a sparse
            scan does not show is not made up.
        mirrored: whether each prediction is averaged with that of the slab mirrored left to right, which halves what
            the network does by chance. Doubles the evaluations.

    Raises:
        ValueError: when an argument is out of range, or a second-order sampler is given the linear grid.
    """

    def __init__(
        self,
        scheduler: AffineScheduler,
        style_key: np.ndarray | Tensor | None = None,
        num_inference_steps: int = 100,
        num_corrections: int = 0,
        step_size: float = 0.5,
        correction_norm: str = CorrectionNorm.PAPER,
        sampler: str = "mean_path",
        timestep_spacing: str = TimestepSpacing.LINEAR,
        slab_size: int = 3,
        slab_stride: int = 1,
        batch_size: int | str = 8,
        dtype: torch.dtype | None = None,
        co_prediction: bool = True,
        eta: float = 0.0,
        start_noise: bool = False,
        seed: int = 0,
        progress: bool = False,
        codec: PixelCodec | None = None,
        channels: Mapping[str, int] | None = None,
        encoded: Sequence[str] = ("source",),
        endpoint: str = Endpoint.FIRST,
        noise_correlation: float = 0.0,
        detail: float = 1.0,
        mirrored: bool = False,
        final_stride: int = 1,
        ranks: OneProcess | None = None,
    ) -> None:
        super().__init__()
        self.scheduler = scheduler
        self.style_key = style_key
        self.num_inference_steps = num_inference_steps
        self.num_corrections = num_corrections
        self.step_size = step_size
        self.correction_norm = CorrectionNorm(correction_norm)
        self.sampler = sampler
        self.timestep_spacing = timestep_spacing
        self.slab_size = slab_size
        self.slab_stride = slab_stride
        self.batch_size = batch_size
        self.dtype = dtype
        self.co_prediction = co_prediction
        self.eta = eta
        self.start_noise = start_noise
        self.seed = seed
        self.progress = progress
        self.codec = codec or PixelCodec()
        self.channels = dict(channels or {"source": 1})
        self.encoded = tuple(encoded)
        self.endpoint = Endpoint(endpoint)
        self.noise_correlation = noise_correlation
        self.detail = detail
        self.mirrored = mirrored
        self.final_stride = final_stride
        self.ranks = ranks or OneProcess()
        self.batch_size_used: int | None = None
        """Slabs a call at the end of the latest volume; None before the first."""
        self._check()

    def _check(self) -> None:
        whole_numbers = ["num_inference_steps", "num_corrections", "slab_size", "slab_stride", "final_stride"]
        for name in whole_numbers + ["batch_size"] * (self.batch_size != "auto"):
            if not isinstance(getattr(self, name), int) or isinstance(getattr(self, name), bool):
                alternative = " or auto" if name == "batch_size" else ""
                raise ValueError(f"{name} is {getattr(self, name)!r}; it has to be a whole number{alternative}.")
        if self.slab_size < 1 or self.slab_size % 2 == 0:
            raise ValueError(f"slab_size is {self.slab_size}; a slab has an odd number of slices.")
        for name in ("slab_stride", "final_stride"):
            stride = getattr(self, name)
            if not 1 <= stride <= self.slab_size:
                raise ValueError(f"{name} is {stride}; it must be from 1 to slab_size, {self.slab_size}.")
        if self.batch_size != "auto" and self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; it must be at least 1.")
        a_number = isinstance(self.step_size, int | float) and 0 < self.step_size < float("inf")
        if self.num_corrections < 0 or not a_number:
            raise ValueError(
                f"num_corrections is {self.num_corrections} and step_size {self.step_size}; "
                "the first must be 0 or more, the second a positive number."
            )
        if not 0 <= self.noise_correlation <= 1:
            raise ValueError(f"noise_correlation is {self.noise_correlation}; it must be from 0 to 1.")
        a_number = isinstance(self.detail, int | float) and not isinstance(self.detail, bool)
        if not a_number or not 0 <= self.detail <= 1:
            raise ValueError(f"detail is {self.detail!r}; it must be a number from 0 (the mean) to 1 (the sharpest).")
        if not isinstance(self.mirrored, bool):
            raise ValueError(f"mirrored is {self.mirrored!r}; it must be True or False.")
        if self.mirrored and self.codec.factor > 1:
            raise ValueError("mirrored is for pixels: a mirrored latent is not the latent of the mirrored image.")
        check_channels(self.channels, self.encoded)
        self._check_sampler()

    def _check_sampler(self) -> None:
        sampler = sampler_named(self.sampler)
        if sampler.second_order and self.timestep_spacing != TimestepSpacing.LAMBDA:
            raise ValueError(
                f"The sampler {self.sampler} keeps its order on the lambda grid only; use timestep_spacing lambda."
            )
        if sampler.evaluations != 1:
            raise ValueError(
                f"The sampler {self.sampler} evaluates the network {sampler.evaluations} times a step; use one "
                "that does so once."
            )
        # What the scheduler refuses (number of steps, eta), it refuses here and not at the first volume.
        self._timesteps()
        self._draws(1, 0)

    def settings(self) -> dict[str, Any]:
        """The arguments that say how it samples, by the names of `SETTINGS`; JSON values."""
        values = {name: getattr(self, name) for name in SETTINGS}
        return {name: str(value) if isinstance(value, str) else value for name, value in values.items()}

    @property
    def evaluations(self) -> int:
        """Evaluations of the network on each slab, S + M (S - 1) at full `detail`; twice as many if mirrored."""
        steps = math.ceil(self._position(self.num_inference_steps))
        return (1 + steps * (1 + self.num_corrections)) * (1 + self.mirrored)

    def changed(self, **arguments: Any) -> ISTAInferer:
        """The same inferer with other arguments of the constructor; the two share no state, scheduler included."""
        return ISTAInferer(**{**self._arguments(), "scheduler": copy.deepcopy(self.scheduler), **arguments})

    def _arguments(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in inspect.signature(ISTAInferer).parameters}

    @torch.no_grad()
    def __call__(
        self,
        inputs: Tensor,
        network: Callable[..., Tensor],
        style_key: np.ndarray | Tensor | None = None,
        **conditions: Tensor,
    ) -> Tensor:
        """Translate source volumes.

        Args:
            inputs: source volumes, (B, C, H, W, Z), [0, 1], floating; C is the sum of `channels`, of which the last may
                be left out: then the network is not given these conditions. A contrast of the source that is absent is
                all zeros.
            network: called as `network(x_t, timesteps, context=style keys, source=y, **conditions)` with slabs
                (n, c K, h, w), (n,) timesteps, (n, 3, number of bins) or no context, (n, C c K, h, w), and slabs of the
                conditions; with several contrasts also `presence`, (n, C). Returns (n, c K, h, w).
            style_key: used instead of the constructor's.
            conditions: handed to the network with every slab, one for all volumes: `target_contrast`, (1,).

        Returns:
            target volumes, (B, 1, H, W, Z), type of inputs, clipped to [0, 1].

        Raises:
            ValueError: when the inputs are not floating volumes of these channels, or the style key is not
                (3, number of bins).
        """
        images = convert_to_tensor(inputs, track_meta=False)
        channels = given_channels(images, self.channels)
        context = self._context(self.style_key if style_key is None else style_key, images)
        told = {"style_key": style_key, **conditions}
        num_slices = images.shape[-1]
        shares = self.ranks.shares(num_slices)
        with self.ranks.sampling(arguments=self._plain_arguments(), inputs=images, conditions=told):
            output = self._translate(images, network, channels, context, conditions)
            whole = [range(num_slices), *shares[1:]]
            output = self.ranks.exchange(output.movedim(-1, 0), shares, whole).movedim(0, -1)
        return convert_to_dst_type(output.contiguous(), inputs)[0]

    def _plain_arguments(self) -> dict[str, Any]:
        """What another process, with the same parts, needs to do as this one does."""
        parts = {"scheduler", "codec", "ranks"}
        return {**{name: v for name, v in self._arguments().items() if name not in parts}, "progress": False}

    def _translate(
        self,
        images: Tensor,
        network: Callable[..., Tensor],
        channels: Mapping[str, int],
        context: Tensor | None,
        conditions: Mapping[str, Tensor],
    ) -> Tensor:
        """This process's share of the target volumes, (B, 1, H, W, its slices), clipped to [0, 1]."""
        share = self.ranks.shares(images.shape[-1])[self.ranks.rank]
        made = (self.slab_size, self.codec, channels, self.encoded, self.endpoint, context, share)
        with autocast(images.device, self.dtype):
            slices = slab_inputs(images, *made)
        if conditions:
            network = partial(network, **conditions)
        predictor = SlabPredictor(
            *(network, self.scheduler, slices, self.slab_size, self.slab_stride, self.batch_size, self.dtype),
            co_prediction=self.co_prediction,
            mirrored=self.mirrored,
            final_stride=self.final_stride,
            ranks=self.ranks,
            num_slices=images.shape[-1],
        )
        margin = self.slab_size // 2
        original = self._sample(slices.endpoint, predictor)
        self.batch_size_used = predictor.batch_size_used
        with autocast(images.device, self.dtype):
            own = original[:, margin : original.shape[1] - margin]
            return slices_to_volume(decode_slices(own, self.codec)).clamp_(0, 1)

    @staticmethod
    def _context(style_key: np.ndarray | Tensor | None, like: Tensor) -> Tensor | None:
        """The style key as one (1, 3, number of bins) context of the type and device of `like`."""
        if style_key is None:
            return None
        key = torch.as_tensor(style_key, dtype=like.dtype, device=like.device)
        if key.ndim != 2 or key.shape[0] != 3:
            raise ValueError(f"The style key has shape {tuple(key.shape)}; give one as (3, number of bins).")
        return key[None]

    def _sample(self, source: Tensor, predict: SlabPredictor) -> Tensor:
        """Run the sampler from the endpoint to the x0_hat of `detail`; slices of states (B, Z + 2N, c, h, w)."""
        generator = torch.Generator().manual_seed(self.seed)
        timesteps = self._timesteps()
        position = self._position(len(timesteps))
        timesteps = timesteps[: math.ceil(position) + 1]
        mean = None
        between = position % 1  # the result lies this far from the last but one x0_hat to the last
        starts_from_noise = self.start_noise or self.scheduler.starts_from_noise
        noise = self._noise(source, generator, predict) if starts_from_noise else None
        sample, history = self.scheduler.initial_sample(source, noise), None
        with tqdm(total=len(timesteps), desc="sampling", leave=False, disable=not self.progress) as bar:
            for timestep, previous in pairwise(timesteps):
                original = predict(sample, timestep, final=between > 0 and previous == timesteps[-1])
                mean = original if mean is None else mean
                noise = self._noise(source, generator, predict) if self._draws(timestep, previous) else None
                sample = self.scheduler.step_from_original_sample(
                    original, timestep, previous, sample, source, self.sampler, self.eta, noise, history
                )
                history = (timestep, original) if sampler_named(self.sampler).second_order else None
                for _ in range(self.num_corrections):
                    self._correct(sample, previous, source, predict)
                bar.update()
            last = predict(sample, timesteps[-1], final=True)
            bar.update()
        result = torch.lerp(original, last, between) if between else last
        missing = predict.inputs.conditions.get("missing")
        if missing is None or mean is None:
            return result
        return torch.lerp(result, mean, (missing / MEAN_FROM).clamp(max=1).expand_as(result))

    def _position(self, num_steps: int) -> float:
        """Where `detail` lies among the predictions 0..num_steps - 1, rounded so that 0.7 of 10 is 7."""
        return round(self.detail * (num_steps - 1), 9)

    def _timesteps(self) -> list[int]:
        self.scheduler.set_timesteps(self.num_inference_steps, self.timestep_spacing)
        return self.scheduler.timesteps.tolist()

    def _draws(self, timestep: int, previous_timestep: int) -> bool:
        return self.scheduler.step_coefficients(timestep, previous_timestep, self.sampler, self.eta).noise > 0

    def _noise(self, like: Tensor, generator: torch.Generator, predict: SlabPredictor) -> Tensor:
        """Standard normal, the same on every device, in every floating type and for every volume of the batch.

        It is drawn for all slices, of which `like` may be a share.
        """
        noise = torch.randn((predict.num_slices + self.slab_size - 1, *like.shape[2:]), generator=generator)
        rho = self.noise_correlation
        if rho > 0:
            for z in range(1, len(noise)):
                noise[z] = rho * noise[z - 1] + (1 - rho**2) ** 0.5 * noise[z]
        return noise[predict.window].to(like).expand_as(like)

    def _correct(self, sample: Tensor, timestep: int, source: Tensor, predict: SlabPredictor) -> None:
        """One correction along the score (eq. 5), in place; the length is set slice by slice."""
        score = self.scheduler.score_from_original_sample(predict(sample, timestep), timestep, sample, source)
        norm = torch.linalg.vector_norm(score, dim=(-3, -2, -1), keepdim=True)
        d = score.shape[-3:].numel()
        factor = d if self.correction_norm == CorrectionNorm.PAPER else d**0.5
        length = self.step_size * float(self.scheduler.transition_variances[timestep]) * factor / norm**2
        # The shorter the score, the longer the step. A score that is only rounding of the state has no direction to go.
        rounding = 16 * torch.finfo(score.dtype).eps * d**0.5 / float(self.scheduler.variances[timestep])
        sample.addcmul_(score, torch.where(norm > rounding, length, 0))
