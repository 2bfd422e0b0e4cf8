"""The skull's inside: the fluid between brain and bone, the bone, and the mask that a skull strip would give."""

import numpy as np

from .ct_anatomy import Anatomy, edge_depth, smooth_field
from .ct_parameters import SimulatedCTParameters

_SHELL, _BONE, _MASK = range(3)


class Skull:
    """The bone's inner surface around a brain.

    Args:
        anatomy: of the brain.
        p: of the CT.

    Attributes:
        beyond_mm: (H, W, Z) float32, distance beyond that surface, negative inside.
    """

    def __init__(self, anatomy: Anatomy, p: SimulatedCTParameters) -> None:
        self.anatomy, self.p = anatomy, p
        # the bone's inside is smoother than the brain
        self.beyond_mm = -edge_depth(anatomy.envelope, anatomy.spacing_mm, 5.0) - self._shell_mm()

    def _field(self, stream: int, scale_mm: float) -> np.ndarray:
        rng = np.random.default_rng((self.p.seed, 100 + stream))
        return smooth_field(rng, self.anatomy.mask.shape, self.anatomy.spacing_mm, scale_mm)

    def _shell_mm(self) -> np.ndarray:
        """Thickness of the outer fluid, wider over the front of the vertex where the brain has shrunk."""
        _, v, w = self.anatomy.coordinates
        at_vertex = np.clip((w + 0.4) / 0.3, 0, 1) * np.clip((v + 0.25) / 0.4, 0, 1)
        shell = self.p.shell_mm + self.p.shell_vertex_mm * at_vertex
        if self.p.shell_raggedness_mm:
            shell = shell + self.p.shell_raggedness_mm * self._field(_SHELL, 25.0)
        return np.maximum(shell, 0.3)

    def add_bone(self, hu: np.ndarray) -> np.ndarray:
        """HU with bone beyond the surface, thinner in places."""
        strength = np.clip(1 + 0.4 * self._field(_BONE, 15.0), 0.2, 2)
        share = np.clip(self.beyond_mm / min(self.anatomy.spacing_mm) + 0.5, 0, 1) * (1 - self.anatomy.envelope)
        return hu + share * (self.p.bone_hu * strength - hu)

    def ct_mask(self) -> np.ndarray:
        """(H, W, Z) bool mask that a skull strip of this CT would give.

        It is the brain's own, or the skull's cavity if ``mask_of_cavity``, grown or shrunk unevenly.
        """
        p, envelope = self.p, self.anatomy.envelope
        growth = np.full(envelope.shape, p.mask_growth_mm, np.float32)
        if p.mask_raggedness_mm:
            growth += p.mask_raggedness_mm * self._field(_MASK, 10.0)
        if p.mask_of_cavity:
            inside = self.beyond_mm < growth
            return np.where(growth > 0, envelope | inside, inside)
        if not growth.any():
            return envelope
        # growing and shrinking never rounds off what the T1's mask has: only the smooth surface's neighbourhood changes
        outside = self.anatomy.depth > -growth
        return np.where(growth > 0, envelope | outside, envelope & outside)
