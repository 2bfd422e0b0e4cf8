"""Other heads from the ones there are: smooth random deformations of a volume and all that belongs to it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Randomizable
from monai.utils import convert_to_tensor
from scipy import ndimage
from scipy.interpolate import BSpline
from torch.nn import functional

from ..volumes.separable import apply_along_axes
from .tissue import voxel_size

__all__ = ["RandDeformd", "linear_map", "spline_displacement", "warped"]


def spline_displacement(
    rng: np.random.RandomState, shape: Sequence[int], spacing_mm: Sequence[float], grid_mm: float, size_mm: float
) -> np.ndarray:
    """(3, H, W, Z) float32 displacement in mm: cubic B-splines on a grid of ``grid_mm`` with normal coefficients.

    Scaled so that the longest displacement is ``size_mm``. It cannot fold while ``size_mm`` is well below ``grid_mm``:
    a displacement changes by at most about three times its size over a grid distance.
    """
    bases = [_spline_basis(n, grid_mm / s) for n, s in zip(shape, spacing_mm, strict=True)]
    coefficients = rng.standard_normal((3, *(b.shape[1] for b in bases))).astype(np.float32)
    field = np.stack([apply_along_axes(c, bases) for c in coefficients])
    return field * np.float32(size_mm / max(float(np.sqrt((field**2).sum(0)).max()), 1e-6))


def _spline_basis(size: int, step: float) -> np.ndarray:
    """(size, coefficients) float32: uniform cubic B-splines with knots every ``step`` voxels at the voxels' places."""
    intervals = max(1, int(np.ceil((size - 1) / step)))
    knots = np.arange(-3, intervals + 4, dtype=float)
    places = np.arange(size) / step
    return BSpline.design_matrix(places, knots, 3, extrapolate=True).toarray().astype(np.float32)


def linear_map(degrees: Sequence[float], scale: Sequence[float], shear: Sequence[float]) -> np.ndarray:
    """(3, 3) rotation about x, then y, then z, after scaling along the axes, after shear of x by y, x by z, y by z."""
    matrix = np.diag(np.asarray(scale, float))
    upper = np.eye(3)
    upper[0, 1], upper[0, 2], upper[1, 2] = shear
    for axis, angle in enumerate(np.deg2rad(degrees)):
        turn = np.eye(3)
        i, j = [k for k in range(3) if k != axis]
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix @ upper


class RandDeformd(Randomizable, MapTransform):
    """Turn, scale, shear and bend volumes of one grid together; zeros outside.

    A few dozen people become many more heads. Tissue fractions are deformed rather than computed again, so that the
    CT simulated from them belongs to the deformed T1.

    Args:
        keys: of the volumes (C, H, W, Z) on one grid; those absent from the data are passed over.
        binary_keys: of them, those cut at one half afterwards (masks).
        image_keys: of them, images in [0, 1] whose fine structure counts: interpolated by cubic splines, where the
            linear interpolation of the others blurs.
        reference_key: key of a ``MetaTensor`` whose affine gives the voxel size, unless ``spacing_mm`` does.
        spacing_mm: voxel size.
        margin_mm: zeros added on all sides first, so that nothing is turned out of the volume.
        max_degrees: largest rotation about each axis (right, front, up).
        scale: smallest and largest scale along each axis, around a common one of the same range.
        max_shear: largest shear.
        grid_mm: smallest and largest distance of the bending's control points.
        max_size_mm: largest bending.
        prob: how often anything happens.
    """

    def __init__(
        self,
        keys: KeysCollection = ("target", "tissue", "mask"),
        binary_keys: Sequence[str] = ("mask",),
        image_keys: Sequence[str] = ("target",),
        reference_key: str = "target",
        spacing_mm: Sequence[float] | None = None,
        margin_mm: float = 9.0,
        max_degrees: Sequence[float] = (12.0, 6.0, 6.0),
        scale: Sequence[float] = (0.93, 1.07),
        max_shear: float = 0.05,
        grid_mm: Sequence[float] = (30.0, 60.0),
        max_size_mm: float = 4.0,
        prob: float = 0.9,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys=True)
        self.binary_keys, self.image_keys = tuple(binary_keys), tuple(image_keys)
        self.reference_key, self.spacing_mm = reference_key, spacing_mm
        self.margin_mm, self.max_degrees, self.scale, self.max_shear = margin_mm, tuple(max_degrees), scale, max_shear
        self.grid_mm, self.max_size_mm, self.prob = tuple(grid_mm), max_size_mm, prob

    def randomize(self, shape: Sequence[int], spacing_mm: Sequence[float]) -> np.ndarray:
        """(3, H, W, Z) displacement in voxels, from each voxel to where its value comes from."""
        if self.R.rand() >= self.prob:
            return np.zeros((3, 1, 1, 1), np.float32)
        scale = self.R.uniform(*self.scale) * np.sqrt(self.R.uniform(*self.scale, 3))
        degrees, shear = self.R.uniform(-1, 1, 3) * self.max_degrees, self.R.uniform(-1, 1, 3) * self.max_shear
        grid_mm, size_mm = self.R.uniform(*self.grid_mm), self.R.uniform(0, self.max_size_mm)
        axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing_mm, strict=True)]
        centred = np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)
        inverse = np.linalg.inv(linear_map(degrees, scale, shear)).astype(np.float32)
        moved = np.tensordot(inverse, centred, 1) - centred
        moved += spline_displacement(self.R, shape, spacing_mm, grid_mm, size_mm)
        return moved / np.reshape(np.asarray(spacing_mm, np.float32), (3, 1, 1, 1))

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        spacing = voxel_size(data.get(self.reference_key), self.spacing_mm)
        margin = [round(self.margin_mm / s) for s in spacing]
        present = list(self.key_iterator(data))
        shape = [n + 2 * m for n, m in zip(data[present[0]].shape[1:], margin, strict=True)]
        places = np.indices(shape, dtype=np.float32) + self.randomize(shape, spacing)
        return {**data, **{key: self._deformed(data[key], key, places, margin) for key in present}}

    def _deformed(self, volume: torch.Tensor, key: str, places: np.ndarray, margin: Sequence[int]) -> torch.Tensor:
        """One volume on the grid with margins; a ``MetaTensor`` stays one, with that grid's affine."""
        padded = functional.pad(
            convert_to_tensor(volume, track_meta=False).float(), [m for n in reversed(margin) for m in (n, n)]
        )
        moved = warped(padded, places)
        if key in self.image_keys:
            moved = _cubic(padded, places, moved > 0)
        if key in self.binary_keys:
            moved = moved > 0.5
        moved = moved.to(volume.dtype)
        if not isinstance(volume, MetaTensor):
            return moved
        affine = volume.affine.clone()
        affine[:3, 3] -= affine[:3, :3] @ torch.tensor(margin, dtype=affine.dtype)
        return MetaTensor(moved, affine=affine)


def warped(volume: torch.Tensor, places: np.ndarray) -> torch.Tensor:
    """(C, H, W, Z) at places (3, H, W, Z) in voxels, linearly interpolated, zeros outside."""
    size = np.reshape(np.array(volume.shape[1:], np.float32), (3, 1, 1, 1))
    grid = torch.from_numpy(np.moveaxis(2 * places / (size - 1) - 1, 0, -1)[..., ::-1].copy())
    return functional.grid_sample(volume[None], grid[None], padding_mode="zeros", align_corners=True)[0]


def _cubic(volume: torch.Tensor, places: np.ndarray, where: torch.Tensor) -> torch.Tensor:
    """The same by cubic splines in [0, 1], at the voxels ``where`` (C, H, W, Z) alone; zeros elsewhere."""
    result = np.zeros(where.shape, np.float32)
    for channel, values, inside in zip(volume.numpy(), result, where.numpy(), strict=True):
        values[inside] = ndimage.map_coordinates(channel, places[:, inside], order=3).clip(0, 1)
    return torch.from_numpy(result)
