"""How uncertain a synthetic image is at each voxel: the spread of samples whose noise, style and evidence differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from monai.inferers import Inferer
from monai.networks.layers import GaussianFilter
from monai.utils import convert_to_dst_type, convert_to_tensor
from torch import Tensor

from .evidence import Evidence, slice_thickness
from .ista import ISTAInferer

_SMOOTHING = 1.0  # standard deviation in voxels: the variance of a few samples is itself uncertain


class UncertaintyInferer(Inferer):
    """Adds to each image of an inferer the standard deviation of further samples, as a second channel.

    Each sample starts from noise of its own, aims at another style and sees the source as the scanner might have shown
    it another time (`Evidence`). The image stays that of the inferer. Memory does not grow with the number of samples.

    Args:
        inferer: of the image and, by `changed(**arguments)`, of the samples; such as `ISTAInferer`.
        samples: how many, at least 2; 0 leaves the image alone.
        style_keys: of which each sample takes one, (3, number of bins) each; empty where the style is known.
        calibration: standard deviation of the samples -> that of the error; None leaves it as it is. What it has as
            `settings()` is recorded.
        slab_stride: of the samples; their slabs may be far apart, which costs less and leaves the spread as it is.
        seed: of the samples; the same seed gives the same spread.

    Raises:
        ValueError: a number of samples that gives no spread.
    """

    def __init__(
        self,
        inferer: ISTAInferer,
        samples: int = 0,
        style_keys: Sequence[np.ndarray] = (),
        calibration: Callable[[Tensor], Tensor] | None = None,
        slab_stride: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not isinstance(samples, int) or isinstance(samples, bool) or samples < 0 or samples == 1:
            raise ValueError(
                f"uncertainty is {samples}; use a number of samples of at least 2, such as 8, or 0 for none."
            )
        self.inferer = inferer
        self.samples = samples
        self.style_keys = list(style_keys or ())
        self.calibration = calibration
        self.slab_stride = slab_stride
        self.seed = seed

    @property
    def batch_size_used(self) -> int | None:
        """Slabs a call at the end of the latest image."""
        return self.inferer.batch_size_used

    def settings(self) -> dict[str, Any]:
        """Those of the inferer, and how the samples were drawn; JSON values."""
        if not self.samples:
            return self.inferer.settings()
        own: dict[str, Any] = {
            "samples": self.samples,
            "seed": self.seed,
            "styles": "of the training" if self.style_keys else "as chosen",
            **getattr(self.calibration, "settings", dict)(),
        }
        return {**self.inferer.settings(), "uncertainty": own}

    @torch.no_grad()
    def __call__(
        self, inputs: Tensor, network: Callable[..., Tensor], style_key: np.ndarray | Tensor | None = None
    ) -> Tensor:
        """Translate source volumes.

        Args:
            inputs: (B, C, H, W, Z), [0, 1]; a MetaTensor tells how thick its slices were as scanned.
            network: as the inferer takes it.
            style_key: instead of the inferer's and of `style_keys`.

        Returns:
            (B, 1, H, W, Z), the image, [0, 1]; with samples (B, 2, H, W, Z), the second channel their calibrated
                standard deviation, in the image's unit.
        """
        image = self.inferer(inputs, network, style_key)
        if not self.samples:
            return image
        spread = self._spread(inputs, network, style_key)
        both = torch.cat([convert_to_tensor(image, track_meta=False), spread.to(image.device, image.dtype)], dim=1)
        return convert_to_dst_type(both, image)[0]

    def _spread(self, inputs: Tensor, network: Callable[..., Tensor], style_key: np.ndarray | Tensor | None) -> Tensor:
        """Calibrated standard deviation of the samples, (B, 1, H, W, Z)."""
        volumes, thickness = convert_to_tensor(inputs, track_meta=False), slice_thickness(inputs)
        contrasts = self.inferer.channels["source"]
        volumes, conditions = volumes[:, :contrasts], volumes[:, contrasts:]
        evidence = [[Evidence.of(image, thickness) for image in volume] for volume in volumes]
        running = _RunningVariance()
        for number in range(self.samples):
            seed = 1000 * self.seed + number + 1
            generator = torch.Generator().manual_seed(seed)
            drawn = torch.stack([torch.stack([one.drawn(generator) for one in volume]) for volume in evidence])
            sampler = self.inferer.changed(seed=seed, start_noise=True, slab_stride=self.slab_stride)
            drawn = torch.cat([drawn, conditions.to(drawn)], dim=1)
            running.add(sampler(drawn, network, self._style(number) if style_key is None else style_key))
        inside = torch.stack([torch.stack([one.inside for one in volume]).any(0, keepdim=True) for volume in evidence])
        spread = smoothed_inside(running.variance, inside).sqrt()
        return spread if self.calibration is None else self.calibration(spread)

    def _style(self, number: int) -> np.ndarray | None:
        """The style key of a sample: each one once before one comes again; None for that of the inferer."""
        if not self.style_keys:
            return None
        order = torch.randperm(len(self.style_keys), generator=torch.Generator().manual_seed(self.seed))
        return self.style_keys[int(order[number % len(order)])]


class _RunningVariance:
    """Variance of samples that are seen one after the other (Welford, Technometrics 4, 1962)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.squares = torch.zeros(())

    def add(self, sample: Tensor) -> None:
        """Count one more sample."""
        self.count += 1
        difference = sample - self.mean
        self.mean = self.mean + difference / self.count
        self.squares = self.squares + difference * (sample - self.mean)

    @property
    def variance(self) -> Tensor:
        """Unbiased, shape of a sample; two samples or more."""
        return self.squares / (self.count - 1)


def smoothed_inside(volumes: Tensor, inside: Tensor, sigma: float = _SMOOTHING) -> Tensor:
    """Gaussian average over the voxels inside, (B, 1, H, W, Z); outside it goes on as near the border."""
    smooth = GaussianFilter(3, sigma, truncated=3.0)
    weights = smooth(inside.to(volumes))
    return smooth(volumes * inside) / weights.clamp(min=1e-3)
