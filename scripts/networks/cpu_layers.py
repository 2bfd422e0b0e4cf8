"""Layers that are fast on a CPU, above all in their backward pass: the functions and parameters of those they replace.

With channels last, PyTorch's group normalisation goes through the few channels of a group one by one, and spends more
time in its backward pass than the convolution beside it. Its batch normalisation goes through all channels of a pixel
at once, and gives every sum that group normalisation needs when it is called for one image at a time.
"""

from __future__ import annotations

import torch
from monai.networks.nets.diffusion_model_unet import WrappedUpsample
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional

__all__ = ["GroupNorm", "UpsampleConv", "use_cpu_layers"]


_SMALLEST_PLANE = 256
"""Pixels below which a call for each image costs what it saves."""


def _planes_on_cpu(x: Tensor) -> bool:
    """Whether features are planes with channels last on a CPU; exports get the layers as they were."""
    return (
        x.device.type == "cpu"
        and x.ndim == 4
        and x.is_contiguous(memory_format=torch.channels_last)
        and not torch.jit.is_tracing()
        and not torch.compiler.is_compiling()
    )


class GroupNorm(nn.GroupNorm):
    """`torch.nn.GroupNorm` that can scale and shift its result by factors of each image (FiLM) at no further cost."""

    @classmethod
    def like(cls, norm: nn.GroupNorm) -> GroupNorm:
        """The same norm, with the very parameters of `norm`."""
        made = cls(norm.num_groups, norm.num_channels, norm.eps)
        made.weight, made.bias = norm.weight, norm.bias
        return made

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """Normalise, and with `scale` and `shift` give `norm(x) * (1 + scale) + shift`.

        Args:
            x: features, (B, C, ...).
            scale, shift: (B, C), both or neither.

        Returns:
            Features, shape and type of x.
        """
        # without a gradient PyTorch's own costs next to nothing more
        if not (torch.is_grad_enabled() and _planes_on_cpu(x)) or x[0, 0].numel() < _SMALLEST_PLANE:
            h = super().forward(x)
            if scale is None:
                return h
            scale, shift = (f.reshape(*f.shape, *(1,) * (x.ndim - 2)) for f in (scale, shift))
            return torch.addcmul(shift, h, 1 + scale)
        dtype = torch.promote_types(x.dtype, torch.float32)
        weight, bias = (p.to(dtype).expand(len(x), -1) for p in (self.weight, self.bias))
        if scale is not None:
            factor = 1 + scale.to(dtype)
            weight, bias = weight * factor, bias * factor + shift.to(dtype)
        return _GroupNormOfPlanes.apply(x, weight, bias, self.num_groups, self.eps)


class _GroupNormOfPlanes(torch.autograd.Function):
    """Group normalisation of (B, C, H, W) with channels last, and a weight and a bias for each image, (B, C).

    With g the gradient of the result, x^ the normalised features, w the weight, s the standard deviation and E the mean
    over a group, the gradient of the features is (w g - E[w g] - x^ E[w g x^]) / s. The sums of g and g x^ over a
    plane, which E is made of, are also the gradients of the bias and the weight.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor, num_groups: int, eps: float) -> Tensor:
        mean, variance = _moments(x, weight.dtype)
        group_mean = _over_groups(mean, num_groups)
        variance = _over_groups(variance + (mean - group_mean).square(), num_groups)
        ctx.save_for_backward(x, weight, group_mean, variance)
        ctx.num_groups, ctx.eps = num_groups, eps
        return _affine(x, weight, bias, group_mean, variance, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, variance = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        inverse = (variance + ctx.eps).rsqrt()
        grad_weight, grad_bias = _plane_sums(grad, x, mean, inverse)
        pixels = x.shape[2] * x.shape[3]
        along, constant = (
            -inverse * _over_groups(weight * sums, ctx.num_groups) / pixels for sums in (grad_weight, grad_bias)
        )
        corrections = _affine(x, along, constant, mean, variance, ctx.eps)
        factor = (weight * inverse).to(x.dtype)[:, :, None, None]
        return corrections.addcmul_(grad, factor), grad_weight, grad_bias, None, None


def _over_groups(values: Tensor, num_groups: int) -> Tensor:
    """(B, C) values, each replaced by the mean over its group."""
    means = values.unflatten(1, (num_groups, -1)).mean(dim=2)
    return means.repeat_interleave(values.shape[1] // num_groups, dim=1)


def _moments(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Mean and variance of each plane, (B, C)."""
    unused = x.new_zeros((2, x.shape[1]), dtype=dtype)  # running averages; their type is that of the results
    moments = [torch.batch_norm_update_stats(image, *unused, 0.0) for image in x.split(1)]
    return tuple(torch.stack(column) for column in zip(*moments, strict=True))


def _affine(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float) -> Tensor:
    """Each plane times weight / sqrt(variance + eps), with mean moved to bias: (B, C, H, W) and (B, C)s."""
    result = torch.empty_like(x)
    unused = mean.new_empty(0)
    rows = (t.unbind() for t in (weight, bias, mean, variance))
    for image, out, *row in zip(x.split(1), result.split(1), *rows, strict=True):
        torch.native_batch_norm(image, *row, False, 0.0, eps, out=(out, unused, unused))
    return result


def _plane_sums(grad: Tensor, x: Tensor, mean: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over each plane, (B, C): of grad times the normalised x, and of grad."""
    backward = torch.ops.aten.native_batch_norm_backward
    weight = torch.ones_like(mean[0])
    sums = [
        backward(g, image, weight, None, None, m, i, True, 0.0, [False, True, True])[1:]
        for g, image, m, i in zip(grad.split(1), x.split(1), mean.unbind(), inverse.unbind(), strict=True)
    ]
    return tuple(torch.stack(column) for column in zip(*sums, strict=True))


class UpsampleConv(nn.Module):
    """MONAI's nearest-neighbour upsampling by 2 with the 3 x 3 convolution behind it, in 4/9 of the multiplications.

    Each of the four pixels that come from one sees 2 x 2 different values, so that both steps together are a transposed
    convolution with a kernel of 4 x 4, the sums of the 3 x 3 kernel's shifts.

    Args:
        block: the block whose place it takes; its layers keep their names.
    """

    def __init__(self, block: WrappedUpsample) -> None:
        super().__init__()
        self.upsample_non_trainable = block.upsample_non_trainable
        self.postconv = block.postconv

    @staticmethod
    def replaces(module: nn.Module) -> bool:
        """Whether a module is such a block."""
        names = [name for name, _ in module.named_children()]
        return isinstance(module, WrappedUpsample) and names == ["upsample_non_trainable", "postconv"]

    def forward(self, x: Tensor, emb: Tensor | None = None) -> Tensor:
        """Features (B, C, H, W) -> (B, C', 2H, 2W); `emb` is not used."""
        if not _planes_on_cpu(x):
            return self.postconv(self.upsample_non_trainable(x))
        conv = self.postconv.conv
        # the gradient of a transposed convolution's own bias takes as long as its weights'
        inner, outer = (None, conv.bias) if torch.is_grad_enabled() else (conv.bias, None)
        upsampled = functional.conv_transpose2d(x, self.kernel(conv.weight), inner, stride=2, padding=1)
        return upsampled if outer is None else upsampled + outer.to(upsampled.dtype)[:, None, None]

    @staticmethod
    def kernel(weight: Tensor) -> Tensor:
        """Weights (C', C, 3, 3) of the convolution -> (C, C', 4, 4) of the transposed one."""
        with torch.autocast(weight.device.type, enabled=False):
            shifts = torch.eye(9, dtype=weight.dtype, device=weight.device).reshape(9, 1, 3, 3)
            shifts = functional.conv2d(shifts, weight.new_ones(1, 1, 2, 2), padding=1).flip(2, 3)
            kernel = weight.transpose(0, 1).reshape(-1, 9) @ shifts.flatten(1)
            return kernel.reshape(weight.shape[1], weight.shape[0], 4, 4)


def use_cpu_layers(module: nn.Module) -> nn.Module:
    """Replace the layers inside `module` that have a faster form here, in place; the state dict stays what it was."""
    for name, child in module.named_children():
        if type(child) is nn.GroupNorm:
            setattr(module, name, GroupNorm.like(child))
        elif UpsampleConv.replaces(child):
            setattr(module, name, UpsampleConv(child))
        else:
            use_cpu_layers(child)
    return module
