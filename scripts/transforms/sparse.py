"""Scans whose slices lie far apart: which places were acquired, masks by shape between, a dense grid for the result.

A clinical head CT has a slice every 3 to 8 mm. On the network's grid what lies between is interpolated, and the network
is told where (condition `missing`, see `missing_share`). Everything here comes from the scan's own grid.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from scipy import ndimage

from ..slabs import missing_share
from ..volumes.size import check_size
from .spatial import resampled

__all__ = [
    "SMALLEST_GAP_MM",
    "AcquiredSlices",
    "DenseVolumed",
    "MaskByShaped",
    "MissingSlicesd",
    "mask_by_shape",
    "nearest_slices",
]

SMALLEST_GAP_MM = 2.5
"""From one slice to the next; above it a scan is sparse."""
_ANISOTROPIC = 1.1
"""How much farther apart than voxels within them slices are; voxels that are as large in all directions are no gaps."""
_FAR_MM = 30.0  # from the outline of a mask: farther does not matter


@dataclass(frozen=True, eq=False)
class AcquiredSlices:
    """Where the slices of a scan lie.

    Attributes:
        affine: (4, 4), voxels of the scan -> RAS mm.
        shape: (H, W, Z) of the scan.
        axis: along which the slices follow each other, that of the largest edge.
        places: (K,) of the slices along it, in voxels, ascending.
    """

    affine: np.ndarray
    shape: tuple[int, int, int]
    axis: int
    places: np.ndarray

    @classmethod
    def of(cls, volume: MetaTensor) -> AcquiredSlices:
        """The slices of a volume (1, H, W, Z) as loaded; where it was resampled, `acquired_places` of its meta."""
        affine = np.asarray(volume.affine, dtype=np.float64)
        shape = tuple(int(n) for n in volume.shape[1:])
        places = volume.meta.get("acquired_places")
        if places is not None:
            return cls(affine, shape, 2, np.asarray(places, dtype=np.float64))
        axis = int(np.linalg.norm(affine[:3, :3], axis=0).argmax())
        return cls(affine, shape, axis, np.arange(shape[axis], dtype=np.float64))

    @property
    def edge_mm(self) -> float:
        """Edge of the volume's voxels along the axis."""
        return float(np.linalg.norm(self.affine[:3, self.axis]))

    @property
    def gap_mm(self) -> float:
        """The largest distance of neighbouring slices; 0 of a single one."""
        return float(np.diff(self.places).max() * self.edge_mm) if len(self.places) > 1 else 0.0

    def is_sparse(self, smallest_gap: float = SMALLEST_GAP_MM) -> bool:
        """Whether slices are farther apart than that, mm, and than the voxels within them."""
        within = max(np.delete(np.linalg.norm(self.affine[:3, :3], axis=0), self.axis))
        return self.gap_mm > max(smallest_gap + 1e-3, _ANISOTROPIC * within)

    def across(self, affine: np.ndarray) -> bool:
        """Whether the slices are more along the third axis of a grid than along the others."""
        way = self.affine[:3, self.axis] @ np.asarray(affine, dtype=np.float64)[:3, :3]
        return int(np.abs(way / np.linalg.norm(affine[:3, :3], axis=0)).argmax()) == 2

    def distance_mm(self, affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """(H, W, Z) float32: of each voxel of a grid to the plane of the nearest slice."""
        row = np.linalg.solve(self.affine, np.asarray(affine, dtype=np.float64))[self.axis]
        steps = np.ogrid[tuple(slice(n) for n in shape)]
        index = row[3] + sum(step * place for step, place in zip(row[:3], steps, strict=True))
        middles = (self.places[1:] + self.places[:-1]) / 2
        nearest = self.places[np.searchsorted(middles, index)]
        return (np.abs(index - nearest) * self.edge_mm).astype(np.float32)


class MissingSlicesd(MapTransform):
    """Appends the condition `missing` to a volume on the network's grid: where the scan's slices lie too far apart.

    It is 0 everywhere in a dense scan, and in one whose slices do not follow each other along the network's z.

    Args:
        keys: keys of the volumes, MetaTensors (C, H, W, Z), whose third axis is z; they become (C + 1, H, W, Z).
        source_key: key of the scan as it was loaded, on its own grid.
        smallest_gap: mm, see `SMALLEST_GAP_MM`.
        enabled: whether to append it; a network without that condition takes the volume as it is.
        allow_missing_keys: no error where a key is missing.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        source_key: str = "source",
        smallest_gap: float = SMALLEST_GAP_MM,
        enabled: bool = True,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.source_key = source_key
        self.smallest_gap = smallest_gap
        self.enabled = enabled

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Append the channel to the volume at each key."""
        d = dict(data)
        if not self.enabled:
            return d
        acquired = AcquiredSlices.of(d[self.source_key])
        for key in self.key_iterator(d):
            volume = d[key]
            affine = np.asarray(volume.affine, dtype=np.float64)
            missing = torch.zeros_like(volume.as_tensor()[:1])
            if acquired.is_sparse(self.smallest_gap) and acquired.across(affine):
                slices = acquired.distance_mm(affine, volume.shape[1:]) / np.linalg.norm(affine[:3, 2])
                missing[0] = torch.from_numpy(missing_share(slices))
            d[key] = MetaTensor(torch.cat([volume.as_tensor(), missing])).copy_meta_from(volume)
        return d


class MaskByShaped(MapTransform):
    """Makes masks of sparse scans anew, by the shape of their outlines between the slices; see `mask_by_shape`.

    The nearest voxel makes steps as high as the gaps. Masks of dense scans stay as they are.

    Args:
        keys: keys of the masks on the network's grid, (1, H, W, Z).
        mask_key: key of the mask on the scan's own grid, (1, H, W, Z).
        smallest_gap: mm, see `SMALLEST_GAP_MM`.
        allow_missing_keys: no error where a key is missing.
    """

    def __init__(
        self,
        keys: KeysCollection = "grid_mask",
        mask_key: str = "mask",
        smallest_gap: float = SMALLEST_GAP_MM,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.mask_key = mask_key
        self.smallest_gap = smallest_gap

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Make the mask at each key anew."""
        d = dict(data)
        acquired = AcquiredSlices.of(d[self.mask_key])
        for key in self.key_iterator(d):
            if acquired.is_sparse(self.smallest_gap):
                made = mask_by_shape(d[self.mask_key], d[key].affine, d[key].shape[1:])
                d[key] = MetaTensor(torch.from_numpy(made)[None].to(d[key].dtype)).copy_meta_from(d[key])
        return d


def mask_by_shape(mask: MetaTensor, affine: Any, shape: tuple[int, ...]) -> np.ndarray:
    """A mask on another grid, (H, W, Z) bool, whose outline moves evenly from each slice to the next.

    In each slice the distance to the outline is measured, negative outside, and interpolated linearly (Raya and Udupa,
    IEEE Trans Med Imaging 9, 1990).

    Args:
        mask: (1, H, W, Z), inside is greater than 0.5.
        affine: (4, 4) of the other grid.
        shape: (H, W, Z) of the other grid.
    """
    acquired = AcquiredSlices.of(mask)
    inside = np.asarray(mask.as_tensor()[0].cpu()) > 0.5
    box = ndimage.find_objects(inside.astype(np.uint8))
    if not box:
        return np.zeros(shape, dtype=bool)
    first = [max(part.start - 1, 0) for part in box[0]]
    box = tuple(slice(a, part.stop + 1) for a, part in zip(first, box[0], strict=True))
    edges = np.linalg.norm(acquired.affine[:3, :3], axis=0)
    signed = _signed_distance(inside[box], acquired.axis, edges)
    matrix = np.linalg.solve(acquired.affine, np.asarray(affine, dtype=np.float64))
    offset = matrix[:3, 3] - first
    return ndimage.affine_transform(signed, matrix[:3, :3], offset, shape, order=1, mode="nearest") > 0


def _signed_distance(inside: np.ndarray, axis: int, edges: np.ndarray) -> np.ndarray:
    """mm to the outline in each slice, positive inside; beyond the last slices the outline falls by 45 degrees."""
    slices = np.moveaxis(inside, axis, 0)
    within = np.delete(edges, axis)
    signed = np.full(slices.shape, -edges[axis], dtype=np.float32)
    for made, one in zip(signed, slices, strict=True):
        if one.any():
            outer = ndimage.distance_transform_edt(~one, within)
            inner = ndimage.distance_transform_edt(np.pad(one, 1), within)[1:-1, 1:-1]
            made[:] = np.clip(inner - outer, -_FAR_MM, _FAR_MM)
    return np.moveaxis(signed, 0, axis)


class DenseVolumed(MapTransform):
    """The result of a sparse scan on a dense grid: that of the scan, but with slices close together.

    The grid goes from the scan's first slice to its last. Volumes are interpolated by cubic splines, and are 0 outside
    the brain mask, which is continued between the slices by its shape. Nothing is made of a dense scan.

    Args:
        keys: keys of the results on the network's grid, (C, H, W, Z).
        spacing: from one slice of the dense grid to the next, mm.
        source_key: key of the scan as it was loaded.
        mask_key: key of the brain mask on the scan's own grid.
        output_key: receives the dense volume, (C, H, W, Z').
        smallest_gap: mm, see `SMALLEST_GAP_MM`.
        allow_missing_keys: no error where a key is missing.

    Raises:
        ValueError: a spacing that is not positive.
    """

    def __init__(
        self,
        keys: KeysCollection = "pred",
        spacing: float = 1.0,
        source_key: str = "source",
        mask_key: str = "mask",
        output_key: str = "dense",
        smallest_gap: float = SMALLEST_GAP_MM,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if isinstance(spacing, bool) or not isinstance(spacing, int | float) or not 0.1 <= spacing <= 10:
            raise ValueError(f"output_spacing is {spacing!r}; give the mm between slices, 0.1 to 10.")
        self.spacing = float(spacing)
        self.source_key = source_key
        self.mask_key = mask_key
        self.output_key = output_key
        self.smallest_gap = smallest_gap

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Make the dense volume of the result at each key, where the scan is sparse."""
        d = dict(data)
        acquired = AcquiredSlices.of(d[self.source_key])
        for key in self.key_iterator(d):
            if acquired.is_sparse(self.smallest_gap) and acquired.gap_mm > self.spacing:
                affine, shape = self._grid(acquired)
                check_size(shape, f"The dense volume with output_spacing {self.spacing:g}")
                inside = torch.from_numpy(mask_by_shape(d[self.mask_key], affine, shape))
                dense = resampled(d[key].as_tensor().float(), np.asarray(d[key].affine, np.float64), affine, shape)
                dense = MetaTensor(dense.masked_fill(~inside, 0.0), affine=torch.from_numpy(affine))
                d[self.output_key] = dense
        return d

    def _grid(self, acquired: AcquiredSlices) -> tuple[np.ndarray, tuple[int, ...]]:
        """Affine and shape of the scan's grid with slices that far apart."""
        factor = self.spacing / acquired.edge_mm
        affine, shape = acquired.affine.copy(), list(acquired.shape)
        affine[:3, acquired.axis] *= factor
        shape[acquired.axis] = int(np.floor((shape[acquired.axis] - 1) / factor + 1e-6)) + 1
        return affine, tuple(shape)


def nearest_slices(volume: MetaTensor, dense: MetaTensor) -> torch.Tensor:
    """The slices of a scan's volume (C, H, W, Z) on the grid of `DenseVolumed`, the nearest one for each."""
    acquired = AcquiredSlices.of(volume)
    edge = np.linalg.norm(np.asarray(dense.affine, dtype=np.float64)[:3, acquired.axis])
    index = np.rint(np.arange(dense.shape[acquired.axis + 1]) * edge / acquired.edge_mm).astype(int)
    return volume.as_tensor().index_select(acquired.axis + 1, torch.from_numpy(index))
