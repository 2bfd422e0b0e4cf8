"""What MONAI's `trt_compile` needs of the network that it compiles."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def contiguous_inputs(network: nn.Module) -> nn.Module:
    """Have a network's tensors made contiguous before each call, in place; returns it.

    MONAI's `TRTEngine` tells TensorRT where each input lies. One that is not contiguous, as are the timesteps and the
    style keys that are one for all slabs, it copies first, and frees the copy before the engine has read it. Here the
    copies live until the call has ended.
    """

    def contiguous(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict]:
        return tuple(map(_contiguous, args)), {name: _contiguous(value) for name, value in kwargs.items()}

    network.register_forward_pre_hook(contiguous, with_kwargs=True)
    return network


def _contiguous(value: Any) -> Any:
    return value.contiguous() if isinstance(value, Tensor) else value
