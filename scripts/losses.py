"""Losses of the bridge's training; what weights them are constructor arguments."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = [
    "AutoencoderLoss",
    "BridgeL1Loss",
    "BridgeL2Loss",
    "GradientL1Loss",
    "LatentL2Loss",
    "SliceContrastiveLoss",
    "elbo_weights",
    "kl_timestep_weights",
]


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


def kl_timestep_weights(target_weights: Tensor, kl_weight: float = 1.0, prediction_type: str = "epsilon") -> Tensor:
    """Weight of each training timestep of diffusion in a mean squared error of the noise with a KL term added.

    With a fixed variance, D_KL(q(x_{t-1} | x_t, x0) || p(x_{t-1} | x_t)) is w_t times the squared error of the noise,
    `w_t = beta^2 / (2 beta~ alpha (1 - abar)) = beta / (2 alpha (1 - abar_{t-1}))` (DDPM, eq. 12). CoLa-Diff's eq. 5
    adds the sum of these terms (eq. 6), of a size 10 to 600 times that of the error itself; here their mean is
    `kl_weight`: `1 + kl_weight w_t / mean(w)`. There is no such term at the first timestep, which has none before it.

    Args:
        target_weights: sqrt(abar_t), (T,), of a `GaussianDiffusionScheduler`.
        kl_weight: of the terms; 0 is the error alone.
        prediction_type: of the network; the terms are those of the noise.

    Returns:
        (T,), for a network that predicts the noise, with `BridgeL2Loss`.

    Raises:
        ValueError: a network that predicts something else.
    """
    if prediction_type != "epsilon":
        raise ValueError(
            f"KL weights are for a network that predicts the noise, and this one predicts {prediction_type!s}: give "
            "scheduler#prediction_type epsilon, or kl_weight 0."
        )
    signal = target_weights.double().square()
    alpha = signal[1:] / signal[:-1]
    terms = (1 - alpha) / (2 * alpha * (1 - signal[:-1]))
    return 1 + kl_weight * torch.cat([terms.new_zeros(1), terms / terms.mean()])


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
    """Mean squared error; with `elbo_weights`, the loss of CT2MRI's eq. 2; with `kl_timestep_weights`, CoLa-Diff's.

    Args:
        timestep_weights: weight of each training timestep, (T,); None weights all alike.
    """

    def error(self, difference: Tensor) -> Tensor:
        """d^2."""
        return difference.square()


class LatentL2Loss(_BridgeLoss):
    """Mean squared error of states, each channel weighted by how much the codec's decoder makes of it.

    An autoencoder with a KL term leaves some channels of its latent unused. Scaled to a standard deviation of 1 they
    are amplified noise, and would have the same part in the loss as those that carry the image.

    Args:
        channel_weights: of the c channels of one slice's state, (c,), such as `decoder_sensitivity` gives.
        timestep_weights: weight of each training timestep, (T,); None weights all alike.
    """

    channel_weights: Tensor

    def __init__(self, channel_weights: Tensor, timestep_weights: Tensor | None = None) -> None:
        super().__init__(timestep_weights)
        self.register_buffer("channel_weights", channel_weights, persistent=False)

    def error(self, difference: Tensor) -> Tensor:
        """w d^2; a slab has the slices of its first channel, then those of the next."""
        slices = difference.shape[1] // len(self.channel_weights)
        return difference.square() * self.channel_weights.to(difference).repeat_interleave(slices)[:, None, None]


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


class AutoencoderLoss(nn.Module):
    """Loss of a codec: mean absolute error, the spectrum's error, and a slight pull of the latent to N(0, 1).

    `mean |d| + spectral_weight mean (|F r| - |F x|)^2 + kl_weight KL`, with F the orthonormal Fourier transform of the
    reconstruction r and the image x (Dhariwal et al., 2020, section 3.3), and the KL divergence summed over an image's
    latent and averaged over the images. Source: latent diffusion (Rombach et al., 2022), which compares features of
    natural images where this compares the spectrum.

    MONAI's `JukeboxLoss` is the same, but its gradient is NaN where an amplitude is 0, as of a constant image.

    Args:
        kl_weight: of the KL divergence.
        spectral_weight: of the spectrum's error; 0 leaves it out.
    """

    def __init__(self, kl_weight: float = 1e-6, spectral_weight: float = 0.1) -> None:
        super().__init__()
        self.kl_weight = kl_weight
        self.spectral_weight = spectral_weight

    def forward(self, prediction: tuple[Tensor, Tensor, Tensor], images: Tensor) -> Tensor:
        """Loss of a batch.

        Args:
            prediction: reconstruction, (n, 1, H, W), [-1, 1], and mean and standard deviation of the latent.
            images: (n, 1, H, W), [0, 1].

        Returns:
            a scalar.
        """
        reconstruction, mean, std = prediction
        wanted = 2 * images - 1
        loss = (reconstruction - wanted).abs().mean()
        if self.spectral_weight:
            loss = loss + self.spectral_weight * _spectral_error(reconstruction, wanted)
        divergence = 0.5 * (mean.square() + std.square() - 2 * std.log() - 1).flatten(1).sum(dim=1).mean()
        return loss + self.kl_weight * divergence


def _spectral_error(images: Tensor, wanted: Tensor) -> Tensor:
    amplitudes = (torch.fft.fft2(x, norm="ortho").abs() for x in (images, wanted))
    return functional.mse_loss(*amplitudes)


class SliceContrastiveLoss(nn.Module):
    """Neighbouring slices of a scan together, slices elsewhere apart (ReBrain, eq. 7 to 11).

    Of each slice p, the positives are p+1..p+offsets of the same scan (one direction, as in the paper). The term is
    `-log(P / (P + N))` with P and N the sums of exp(cos / temperature) over positives and negatives. The second term is
    the same with exp(-|a - b|^2 / percept_temperature), of features of the encoder's blocks. On unit vectors it equals
    the first one at half its temperature (|a - b|^2 = 2 - 2 cos), so that on the same vectors, as the paper writes it,
    it adds nothing but a second temperature.

    Args:
        temperature: alpha; the paper's is 1, which leaves the loss little range.
        percept_weight: lambda, of the second term.
        percept_temperature: beta.
        percept_layers: blocks whose features the second term is the mean over; None takes the embeddings (literal).
        negatives: of the slices that are not within `offsets` of p in its own scan, "all" (paper), or by "position"
            those of anybody that lie further than `tolerance` from p, because another person's slice at the same place
            is what a search has to find.
        offsets: K.
        tolerance: in the unit of the positions.

    Raises:
        ValueError: a temperature that is not positive, or unknown negatives.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        percept_weight: float = 0.5,
        percept_temperature: float = 1.0,
        percept_layers: Sequence[int] | None = (1, 2),
        negatives: str = "position",
        offsets: int = 3,
        tolerance: float = 0.05,
    ) -> None:
        super().__init__()
        if temperature <= 0 or percept_temperature <= 0:
            raise ValueError(f"temperatures are {temperature} and {percept_temperature}; they have to be positive.")
        if negatives not in ("position", "all"):
            raise ValueError(f"negatives is {negatives}; use position or all.")
        self.temperature = temperature
        self.percept_weight = percept_weight
        self.percept_temperature = percept_temperature
        self.percept_layers = percept_layers
        self.negatives = negatives
        self.offsets = offsets
        self.tolerance = tolerance

    def forward(self, vectors: tuple[Tensor, Sequence[Tensor]], places: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Loss of a batch.

        Args:
            vectors: embeddings (n, D) and the features of each block (n, D'), unit vectors: what `SliceEncoder.embed`
                gives.
            places: of each slice, (n,) each: the number of its scan, its index there, and its position.

        Returns:
            a scalar: the mean over the slices that have a positive in the batch; 0 where none has.
        """
        embeddings, features = vectors
        positive, negative = self._pairs(*places)
        contrast = _contrast(embeddings @ embeddings.T / self.temperature, positive, negative)
        layers = [embeddings] if self.percept_layers is None else [features[layer] for layer in self.percept_layers]
        percept = [
            _contrast(-(2 - 2 * layer @ layer.T) / self.percept_temperature, positive, negative) for layer in layers
        ]
        return contrast + self.percept_weight * sum(percept) / len(percept)

    def _pairs(self, scan: Tensor, index: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Which pairs (n, n) are positive and which negative."""
        same = scan[:, None] == scan
        ahead = index - index[:, None]
        near = same & (ahead.abs() <= self.offsets)
        apart = (position - position[:, None]).abs() > self.tolerance
        return near & (ahead > 0), ~near if self.negatives == "all" else apart & ~near


def _contrast(logits: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """Mean of -log(P / (P + N)) over the rows that have a positive; (n, n) each."""
    above = logits.masked_fill(~positive, -torch.inf)
    both = logits.masked_fill(~(positive | negative), -torch.inf)
    rows = positive.any(dim=1)
    if not rows.any():
        return logits.sum() * 0
    return (both[rows].logsumexp(dim=1) - above[rows].logsumexp(dim=1)).mean()
