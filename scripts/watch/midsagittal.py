"""The mirror of a head: the plane between the hemispheres, and a volume reflected in it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage, optimize

__all__ = ["MirrorPlane", "find_mirror_plane"]


@dataclass(frozen=True)
class MirrorPlane:
    """The plane normal . x = offset, in mm from the first voxel along the axes of the volume.

    Attributes:
        normal: (3,) unit vector, near the first axis (left to right).
        offset: mm.
        spacing_mm: edges of the voxels of the volumes that are reflected.
    """

    normal: np.ndarray
    offset: float
    spacing_mm: np.ndarray

    def reflected(self, volume: np.ndarray) -> np.ndarray:
        """A volume (H, W, Z), each voxel replaced by its mirror image (linear); 0 where that lies outside."""
        spacing = np.asarray(self.spacing_mm, dtype=np.float64)
        # x -> x - 2 (n . x - offset) n, written for voxel indices
        mirror = np.eye(3) - 2 * np.outer(self.normal, self.normal)
        matrix = mirror * spacing / spacing[:, None]
        shift = 2 * self.offset * self.normal / spacing
        return ndimage.affine_transform(np.asarray(volume, np.float32), matrix, shift, order=1)

    def distance(self, shape: tuple[int, ...]) -> np.ndarray:
        """Distance of each voxel of a grid (H, W, Z) from the plane, mm, positive where the normal points."""
        axes = [n * s * np.arange(k) for n, s, k in zip(self.normal, self.spacing_mm, shape, strict=True)]
        return np.add.outer(np.add.outer(axes[0], axes[1]), axes[2]) - self.offset


def find_mirror_plane(volume: np.ndarray, spacing_mm: np.ndarray, largest_tilt_deg: float = 20.0) -> MirrorPlane:
    """The plane in which a brain is most like its mirror image.

    The correlation of the volume with its reflection is maximised over offset, yaw and roll (Powell's method), from the
    volume's centre of mass and no tilt.

    Args:
        volume: (H, W, Z) in RAS order, 0 outside the brain; 6 mm are fine enough.
        spacing_mm: edges of its voxels.
        largest_tilt_deg: of the head in its field of view.
    """
    volume = np.asarray(volume, np.float32)
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    centre = np.array(ndimage.center_of_mass(volume)) * spacing

    def plane(parameters: np.ndarray) -> MirrorPlane:
        yaw, roll = np.radians(parameters[1:])
        normal = np.array([1.0, np.tan(yaw), np.tan(roll)])
        normal /= np.linalg.norm(normal)
        return MirrorPlane(normal, float(normal @ centre + parameters[0]), spacing)

    def unlike(parameters: np.ndarray) -> float:
        mirrored = plane(parameters).reflected(volume)
        return -float((volume * mirrored).sum() / max(np.sqrt((volume**2).sum() * (mirrored**2).sum()), 1e-9))

    tilts = (-largest_tilt_deg, largest_tilt_deg)
    found = optimize.minimize(
        unlike, np.zeros(3), method="Powell", bounds=[(-15, 15), tilts, tilts], options={"xtol": 0.05, "ftol": 1e-6}
    )
    return plane(found.x)
