"""Simulated lesions on both sides of a training pair: in the T1, and as changes that the simulated CT applies."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.transforms import MapTransform, Randomizable
from monai.utils import convert_to_numpy

from .lesion_kinds import KINDS, NOMINAL_HU, Part
from .lesion_shapes import Brain
from .tissue import voxel_size

ON_CT, ON_T1 = 1, 2


@dataclass
class LesionedBrain:
    """A T1 volume and the changes of its CT, to which lesions are added one after the other.

    Attributes:
        t1: (H, W, Z) float32, [0, 1].
        t1_replaced: (H, W, Z) float32, the share of the T1's signal that lesions have replaced.
        ct: (2, H, W, Z) float32, see `RandLesionsd`.
        levels: T1 signal of fluid and of white matter.
    """

    t1: np.ndarray
    t1_replaced: np.ndarray
    ct: np.ndarray
    levels: tuple[float, float]

    @classmethod
    def healthy(cls, brain: Brain) -> LesionedBrain:
        """No lesions yet."""
        fluid, _, white = brain.levels
        shape = brain.t1.shape
        unchanged, ct = np.zeros(shape, np.float32), np.zeros((2, *shape), np.float32)
        return cls(brain.t1.copy(), unchanged, ct, (fluid, max(white, fluid)))

    def add(self, part: Part) -> None:
        """One part of a lesion over what is there: tissue, fluid or an earlier lesion."""
        box, weight, look = part
        fluid, white = self.levels
        share, added = self.ct[0][box], self.ct[1][box]
        replaced = weight * look.ct_fluid
        # (s, d) then (f, a): hu + s (csf - hu) + d becomes (1 - f) of that + f csf + a
        added[...] = (1 - replaced) * added + weight * look.ct_hu
        share[...] = share + replaced * (1 - share)
        t1, t1_replaced, replaced = self.t1[box], self.t1_replaced[box], weight * look.t1_share
        t1[...] = t1 + replaced * (fluid + look.t1_level * (white - fluid) - t1)
        t1_replaced[...] = t1_replaced + replaced * (1 - t1_replaced)

    def add_noise(self, rng: np.random.Generator, deviation: float) -> None:
        """Noise of the T1 where lesions have smoothed it."""
        self.t1 += deviation * self.t1_replaced * rng.standard_normal(self.t1.shape, dtype=np.float32)


def visible(before: Brain, after: LesionedBrain, min_hu: float = 3.0, min_t1: float = 0.1) -> np.ndarray:
    """(H, W, Z) uint8: 1 where a CT of usual HU changes by ``min_hu``, plus 2 where the T1 does.

    Args:
        before, after: without and with lesions.
        min_hu: HU.
        min_t1: relative to the difference of white matter and fluid.
    """
    hu = np.tensordot(np.asarray(NOMINAL_HU, np.float32), before.tissue, 1)
    on_ct = np.abs(after.ct[0] * (NOMINAL_HU[0] - hu) + after.ct[1]) >= min_hu
    fluid, white = after.levels
    on_t1 = np.abs(after.t1 - before.t1) >= max(min_t1 * (white - fluid), 1e-3)
    return ((ON_CT * on_ct + ON_T1 * on_t1) * before.mask).astype(np.uint8)


def add_lesions(
    t1: np.ndarray,
    tissue: np.ndarray,
    mask: np.ndarray,
    spacing_mm: Sequence[float],
    kinds: Sequence[str],
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Add lesions of the named kinds, each as often as it is named.

    Args:
        t1: (H, W, Z) float32, [0, 1], 0 outside the brain, RAS.
        tissue: (4, H, W, Z) fractions of CSF, cortical grey, white, deep grey matter.
        mask: (H, W, Z).
        spacing_mm: voxel size.
        kinds: of `KINDS`.
        rng: random numbers.

    Returns:
        t1 with lesions, "ct_lesions" and "lesion_mask" (without their channel axis) as in `RandLesionsd`.

    Raises:
        ValueError: the mask is empty.
    """
    brain = Brain(t1, tissue, mask, spacing_mm)
    lesioned = LesionedBrain.healthy(brain)
    for kind in kinds:
        for part in KINDS[kind].draw(brain, rng):
            lesioned.add(part)
    seen = visible(brain, lesioned)
    lesioned.add_noise(rng, brain.noise)
    np.clip(lesioned.t1, 0, max(1.0, float(t1.max())), out=lesioned.t1)
    lesioned.t1 *= brain.mask
    return lesioned.t1, lesioned.ct, seen


class RandLesionsd(Randomizable, MapTransform):
    """Draw lesions and put them into the T1 and into what its simulated CT is made from.

    Two entries are added. ``ct_lesions`` (2, H, W, Z) float32 is relative to each CT's own fluid: its channels are a
    share s of tissue that is replaced by fluid, [0, 1], and HU d added after that, so that lesions change the HU of
    simulated tissue to ``hu + s * (csf_hu - hu) + d``. ``lesion_mask`` (1, H, W, Z) uint8 is 1 where CT alone shows a
    lesion, 2 where T1 alone does, 3 where both do.

    Args:
        keys: key of the T1 volume, (1, H, W, Z) in [0, 1], 0 outside the brain, in RAS; it is replaced.
        tissue_key: key of its tissue fractions (4, H, W, Z).
        mask_key: key of its brain mask (1, H, W, Z).
        output_key, output_mask_key: receive ``ct_lesions`` and ``lesion_mask``.
        spacing_mm: voxel size; None takes it from the volume's affine.
        healthy_share: share of draws without lesions, [0, 1].
        probabilities: of the kinds (see `KINDS`) in the other draws, by name; those not named do not occur. None takes
            the usual ones.

    Attributes:
        kinds: names of the kinds of the latest draw.
    """

    def __init__(
        self,
        keys="target",
        tissue_key: str = "tissue",
        mask_key: str = "mask",
        output_key: str = "ct_lesions",
        output_mask_key: str = "lesion_mask",
        spacing_mm: Sequence[float] | None = None,
        healthy_share: float = 0.25,
        probabilities: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(keys)
        usual = {name: kind.probability for name, kind in KINDS.items()}
        self.probabilities = usual if probabilities is None else dict(probabilities)
        if unknown := set(self.probabilities) - set(KINDS):
            raise ValueError(f"no kinds of lesions: {sorted(unknown)}; known: {sorted(KINDS)}")
        self.tissue_key, self.mask_key = tissue_key, mask_key
        self.output_key, self.output_mask_key = output_key, output_mask_key
        self.spacing_mm, self.healthy_share = spacing_mm, healthy_share
        self.kinds: list[str] = []
        self.seed = 0

    def randomize(self, data=None) -> None:
        """Draw the kinds and the seed of everything else."""
        drawn = {name: self.R.uniform() < self.probabilities.get(name, 0.0) for name in KINDS}
        healthy = self.R.uniform() < self.healthy_share
        self.kinds = [] if healthy else [name for name, found in drawn.items() if found]
        self.seed = int(self.R.randint(2**31 - 1))

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        self.randomize()
        volume = data[self.keys[0]]
        t1 = convert_to_numpy(volume)[0].astype(np.float32)
        if self.kinds:
            tissue, mask = (convert_to_numpy(data[key]) for key in (self.tissue_key, self.mask_key))
            spacing, rng = voxel_size(volume, self.spacing_mm), np.random.default_rng(self.seed)
            t1, ct, seen = add_lesions(t1, tissue, mask[0], spacing, self.kinds, rng)
        else:
            ct, seen = np.zeros((2, *t1.shape), np.float32), np.zeros(t1.shape, np.uint8)
        result = volume.clone()
        result[...] = torch.from_numpy(t1[None])
        changes = {self.output_key: torch.from_numpy(ct), self.output_mask_key: torch.from_numpy(seen[None])}
        return {**data, self.keys[0]: result, **changes}
