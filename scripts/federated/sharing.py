"""What may leave a site: the network's weights, and a style key where it is of people enough."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import torch
from torch import Tensor

from ..conditioning.style_key import average_style_key

LEAST_PEOPLE = 6
"""People whose style keys a site averages at least, before the average leaves it: more than 5."""
STYLE_KEY = "average_style_key"
"""Name under which a style key travels among the weights."""


def shared_style_key(keys: Collection[np.ndarray]) -> np.ndarray | None:
    """The style key that leaves a site: the mean of its people's, or None where it would tell of too few.

    Args:
        keys: one of each person, (3, B).

    Returns:
        (3, B) float32; None for fewer than `LEAST_PEOPLE`.
    """
    return average_style_key(keys) if len(keys) >= LEAST_PEOPLE else None


def contribution(weights: Mapping[str, Tensor], keys: Collection[np.ndarray]) -> dict[str, Tensor]:
    """All that a site sends of a round, by name, as tensors: NVFlare drops what is none.

    Args:
        weights: of its network.
        keys: style keys of its people, (3, B) each.
    """
    sent = {name: value.detach().cpu() for name, value in weights.items()}
    key = shared_style_key(keys)
    return sent if key is None else {**sent, STYLE_KEY: torch.from_numpy(key)}
