"""What may leave a site: the network's weights, and a style key where it is of people enough."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import torch
from torch import Tensor

from ..conditioning.style_key import average_style_key
from ..errors import CaseError

LEAST_PEOPLE = 6
"""People whose style keys a site averages at least, before the average leaves it: more than 5."""
STYLE_KEY = "average_style_key"
"""Name under which a style key travels among the weights."""


def people_and_keys(keys: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """One style key of each person: renderings and further scans of one do not make it several.

    Args:
        keys: `training_keys` of a training, PERSON or PERSON#... -> (3, B).
    """
    people: dict[str, np.ndarray] = {}
    for name, key in keys.items():
        people.setdefault(name.split("#")[0], key)
    return people


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

    Raises:
        CaseError: a weight is NaN or infinite, which would make the mean of all sites so.
    """
    check_finite(weights, "The training at this site made")
    sent = {name: value.detach().cpu() for name, value in weights.items()}
    key = shared_style_key(keys)
    return sent if key is None else {**sent, STYLE_KEY: torch.from_numpy(key)}


def check_finite(weights: Mapping[str, Tensor], who: str) -> None:
    """Refuse weights that are NaN or infinite.

    Args:
        weights: by name; a style key among them may be NaN, for none yet.
        who: begins the sentence.

    Raises:
        CaseError: one is.
    """
    for name, value in weights.items():
        if name != STYLE_KEY and not torch.isfinite(value).all():
            raise CaseError(
                f"{who} weights that are NaN or infinite ({name}), and the training ends; lower learning_rate, and"
                " start again from the last good weights."
            )
