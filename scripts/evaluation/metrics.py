"""How close a synthetic volume is to the real one: NRMSE, PSNR, SSIM and inter-slice SSIM.

Images are (H, W, Z), or that with axes of length one before it, in [0, 1]; the data range is 1. Each metric is over
the whole volume, as the papers do, or inside a mask, which is the honest figure: the background inflates SSIM and PSNR.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from monai.handlers import IgniteMetricHandler
from monai.metrics import CumulativeIterationMetric
from monai.metrics.regression import compute_ssim_and_cs
from torch import Tensor

__all__ = ["VolumeMetric", "inter_slice_ssim", "metric_handler", "nrmse", "psnr", "slice_psnr", "slice_ssim", "ssim"]

SSIM_WINDOW = 7
"""Voxels of SSIM's uniform window in each direction; the papers', and scikit-image's default."""


def nrmse(image: Tensor, reference: Tensor, mask: Tensor | None = None) -> Tensor:
    """Root mean squared error over the reference's range (its maximum minus its minimum, of the same voxels)."""
    values = _inside(reference, mask)
    return _mean_squared_error(image, reference, mask).sqrt() / (values.max() - values.min())


def psnr(image: Tensor, reference: Tensor, mask: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio in dB, for a peak of 1."""
    return -10 * torch.log10(_mean_squared_error(image, reference, mask))


def ssim(image: Tensor, reference: Tensor, mask: Tensor | None = None) -> Tensor:
    """Structural similarity (Wang et al. 2004) with a uniform 3D window of 7 voxels, averaged.

    The average is over the windows that lie in the volume; with a mask, over those whose centre lies in the mask.
    """
    return _mean_inside(_ssim_map(_volume(image)[None, None], _volume(reference)[None, None]), mask)


def slice_psnr(image: Tensor, reference: Tensor) -> Tensor:
    """PSNR in dB of each axial slice, (Z,), for a peak of 1; infinite where a slice is the reference's."""
    return -10 * torch.log10(((_volume(image) - _volume(reference)) ** 2).mean(dim=(0, 1)))


def slice_ssim(image: Tensor, reference: Tensor) -> Tensor:
    """SSIM in 2D of each axial slice, (Z,): the average over its windows."""
    slices = [_volume(volume).permute(2, 0, 1)[:, None] for volume in (image, reference)]
    return _ssim_map(*slices).mean(dim=(1, 2, 3))


def inter_slice_ssim(image: Tensor, reference: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    """I-SSIM (ReBrain): mean SSIM, in 2D, of adjacent axial slices of `image`; the reference plays no part.

    With a mask the average is over the windows whose centre lies in the mask in both slices.
    """
    slices = _volume(image).permute(2, 0, 1)[:, None]
    values = _ssim_map(slices[:-1], slices[1:])[:, 0]
    if mask is None:
        return values.mean()
    inside = _volume(mask).permute(2, 0, 1) > 0
    return values[_windows(inside[:-1] & inside[1:], 2)].mean()


class VolumeMetric(CumulativeIterationMetric):
    """A function (image, reference, mask or None) -> number as a MONAI metric.

    It is called with predictions (B, 1, H, W, Z) and labels (B, 2, H, W, Z): the target and its mask; images are
    clipped to [0, 1] first. The buffer holds (N, 1) values, the aggregate is their mean.

    Args:
        function: such as `psnr`.
        masked: whether the mask is handed on.
    """

    def __init__(self, function: Callable[[Tensor, Tensor, Tensor | None], Tensor], masked: bool = True) -> None:
        super().__init__()
        self.function = function
        self.masked = masked

    def _compute_tensor(self, y_pred: Tensor, y: Tensor) -> Tensor:
        values = [
            self.function(pred[0].clamp(0, 1).float(), label[0].clamp(0, 1).float(), label[1] if self.masked else None)
            for pred, label in zip(y_pred, y, strict=True)
        ]
        return torch.stack(values)[:, None]

    def aggregate(self) -> Tensor:
        """Mean over the volumes."""
        return self.get_buffer().mean()


def metric_handler(
    function: Callable[[Tensor, Tensor, Tensor | None], Tensor], masked: bool = True
) -> IgniteMetricHandler:
    """A `VolumeMetric` for an evaluator whose output is decollated and has "pred" and "label"."""
    return IgniteMetricHandler(
        VolumeMetric(function, masked),
        output_transform=lambda output: [[o[k] for o in output] for k in ("pred", "label")],
    )


def _volume(image: Tensor) -> Tensor:
    """(H, W, Z) without the leading axes of length one."""
    return torch.as_tensor(image).reshape(image.shape[-3:])


def _inside(values: Tensor, mask: Tensor | None) -> Tensor:
    """The values to average: those inside the mask.

    Raises:
        ValueError: when the mask is empty.
    """
    if mask is None:
        return values
    inside = mask.reshape(values.shape) > 0
    if not inside.any():
        raise ValueError("The mask is empty; there is nothing to compare inside it.")
    return values[inside]


def _mean_squared_error(image: Tensor, reference: Tensor, mask: Tensor | None) -> Tensor:
    return _inside((image - reference) ** 2, mask).mean()


def _ssim_map(image: Tensor, reference: Tensor) -> Tensor:
    """SSIM of each whole window, (B, 1, ...) -> (B, 1, ... - 6)."""
    dims = image.ndim - 2
    return compute_ssim_and_cs(
        image, reference, dims, kernel_size=(SSIM_WINDOW,) * dims, kernel_sigma=(1.0,) * dims, kernel_type="uniform"
    )[0]


def _windows(mask: Tensor, dims: int) -> Tensor:
    """The mask at the centres of whole windows over its last `dims` axes."""
    reach = SSIM_WINDOW // 2
    return mask[(..., *(slice(reach, -reach),) * dims)]


def _mean_inside(values: Tensor, mask: Tensor | None) -> Tensor:
    return values.mean() if mask is None else _inside(values[0, 0], _windows(_volume(mask), 3)).mean()
