"""How far an image's intensities lie from those of a training set, by its style key, and from where on that is odd.

The limits come from the training keys alone: each person is measured against all others, and the worst of them, with a
margin, is the limit. Were a new person drawn as the n training people were, the chance to lie beyond the worst of them
is at most 1/(n + 1) without any margin (a rank among n + 1 that are alike): 4.8 % for n = 20. More cannot be promised
with so few people; the margin pays for small n.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

__all__ = ["NO_PEOPLE", "TrainingRange", "histogram_distance", "key_contrast", "keys_of_contrast", "person_of"]

# names in a file of style keys that stand for no person of their own: a mean, and a second name
NO_PEOPLE = ("average", "colin27")


def person_of(name: str) -> str:
    """Whose key it is: a person with several sources has keys `anna#0`, `anna#1`, ..."""
    return name.split("#")[0]


def keys_of_contrast(keys: Mapping[str, np.ndarray], contrast: str) -> dict[str, np.ndarray]:
    """Of keys named `anna#T1`, `anna#scan_2#T2` those of one contrast, without it in their names."""
    ending = f"#{contrast}"
    return {name.removesuffix(ending): key for name, key in keys.items() if name.endswith(ending)}


def histogram_distance(key: np.ndarray, other: np.ndarray) -> float:
    """Total variation between the histograms of two style keys (3, B): 0 is equal, 1 is without any overlap."""
    return float(np.abs(_shares(key) - _shares(other)).sum() / 2)


def key_contrast(key: np.ndarray) -> float:
    """Distance from the 10 to the 90 percentile of the foreground that a style key (3, B) describes, in [0, 1]."""
    cumulative = np.concatenate([[0.0], np.cumsum(_shares(key))])
    # empty bins make it flat: a tiny slope tells np.interp which end to take
    cumulative += 1e-9 * np.arange(len(cumulative))
    low, high = np.interp([0.1, 0.9], cumulative, np.linspace(0.001, 1, len(cumulative)))
    return float(high - low)


class TrainingRange:
    """The style keys of a training set, how far a new one lies from them, and from where on that is odd.

    Attributes:
        num_people: people the keys come from.
        distance_limit: distances above it are odd: the largest of any training person to all others, times 1 + margin.
        contrast_limit: contrasts below it are odd: the smallest of the training, times 1 - margin.

    Args:
        keys: name (`person_of` tells whose) -> style key (3, B); `average` and `colin27` are left out.
        margin: share by which the limits are widened.

    Raises:
        ValueError: keys of fewer than three people, against whom nothing can be called odd.
    """

    def __init__(self, keys: Mapping[str, np.ndarray], margin: float = 0.1) -> None:
        self.keys = {name: key for name, key in keys.items() if name not in NO_PEOPLE}
        self.num_people = len({person_of(name) for name in self.keys})
        if self.num_people < 3:
            raise ValueError(f"The training keys are of {self.num_people} people; at least 3 are needed for a range.")
        self._histograms = np.stack([_shares(key) for key in self.keys.values()])
        people = np.array([person_of(name) for name in self.keys])
        distances = np.abs(self._histograms[:, None] - self._histograms[None]).sum(axis=2) / 2
        distances[people[:, None] == people[None]] = np.inf
        self.distance_limit = float((1 + margin) * distances.min(axis=1).max())
        self.contrast_limit = (1 - margin) * min(key_contrast(key) for key in self.keys.values())

    def distance(self, key: np.ndarray) -> float:
        """`histogram_distance` of a key (3, B) to the nearest training key."""
        return float(np.abs(self._histograms - _shares(key)).sum(axis=1).min() / 2)


def _shares(key: np.ndarray) -> np.ndarray:
    """Share of the foreground in each bin."""
    h = np.asarray(key[0], dtype=np.float64)
    return h / h.sum()
