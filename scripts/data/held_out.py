"""One contrast of a held-out subject as the target, all its others as the source."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.transforms import Transform

from ..contrasts import contrast_named
from ..errors import CaseError


class HoldOutContrastd(Transform):
    """Takes the target of a validation out of the contrasts that a subject has.

    "target" (1, H, W, Z) is the first of `targets` that the subject has, its channel of "source" becomes 0, and
    "target_contrast", a float tensor (), is its index.

    Args:
        contrasts: names of the channels of "source", in their order.
        targets: contrasts that may be the target, those wanted most first.

    Raises:
        CaseError: a target that is no channel, or a subject that has none of the targets, or nothing else.
    """

    def __init__(self, contrasts: Sequence[str], targets: Sequence[str]) -> None:
        self.contrasts = [contrast_named(name) for name in contrasts]
        self.targets = target_indices(self.contrasts, targets)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Split the contrasts of one subject; "source" is (C, H, W, Z), in [0, 1], an absent one 0."""
        source = data["source"]
        present = torch.as_tensor(source).flatten(1).any(dim=1)
        found = next((index for index in self.targets if present[index]), None)
        if found is None or present.sum() < 2:
            wanted = " or ".join(self.contrasts[index] for index in self.targets)
            raise CaseError(
                f"Subject {data.get('subject', '')} has no {wanted} beside another contrast to validate with; take it "
                "out of the list, or give another validation_target."
            )
        rest = source.clone()
        rest[found] = 0
        wanted = {"target": source[found : found + 1].clone(), "target_contrast": torch.tensor(float(found))}
        return {**data, "source": rest, **wanted}


def target_indices(contrasts: Sequence[str], targets: Sequence[str]) -> list[int]:
    """Where the contrasts that may be a target lie among all, in the order of the targets.

    Raises:
        CaseError: a target that is none of the contrasts.
    """
    known, indices = [contrast_named(name) for name in contrasts], []
    for name in map(contrast_named, targets):
        if name not in known:
            raise CaseError(f"The target contrast {name} is none of the contrasts {', '.join(known)}; add it there.")
        indices.append(known.index(name))
    return indices
