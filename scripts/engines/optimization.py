"""How the optimizer goes: its learning rate, the size of its steps, the arithmetic it can take."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from ignite.engine import Engine
from monai.engines.utils import IterationEvents
from torch import nn

from ..errors import CaseError


class GradientClipper:
    """Handler that scales the gradients to an L2 norm of at most `max_norm`.

    Raises:
        RuntimeError: when a gradient is NaN or infinite: the last checkpoint is still good.
    """

    def __init__(self, network: nn.Module, max_norm: float = 1.0) -> None:
        self.network = network
        self.max_norm = max_norm

    def attach(self, engine: Engine) -> None:
        """Clip between the backward pass and the optimizer's step."""
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self) -> None:
        """Clip the gradients in place."""
        gradients = [parameter.grad for parameter in self.network.parameters() if parameter.grad is not None]
        norm = nn.utils.get_total_norm(gradients, error_if_nonfinite=True)
        if norm > self.max_norm:  # the sum above has waited for the GPU already; most steps need no second pass
            nn.utils.clip_grads_with_norm_(self.network.parameters(), self.max_norm, norm)


def cosine_decay(total: int, warmup: int = 0) -> Callable[[int], float]:
    """Factor of the learning rate at an iteration: linear rise over `warmup`, then half a cosine to 0 at `total`.

    Being a function, it is not stored by `LambdaLR`: a resumed training follows the `total` of its own config.
    """

    def factor(iteration: int) -> float:
        if iteration < warmup:
            return (iteration + 1) / warmup
        progress = (iteration - warmup) / max(1, total - warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    return factor


def warmup(iterations: int) -> Callable[[int], float]:
    """Factor of the learning rate at an iteration: linear rise over `iterations`, then 1."""
    return lambda iteration: min(1.0, (iteration + 1) / max(1, iterations))


def check_training_dtype(dtype: torch.dtype) -> None:
    """Refuse arithmetic that training cannot take.

    Raises:
        CaseError: float16, in which small gradients become 0 and nothing here scales them.
    """
    if dtype == torch.float16:
        raise CaseError("Training in float16 would lose small gradients; use --dtype bfloat16 or float32.")
