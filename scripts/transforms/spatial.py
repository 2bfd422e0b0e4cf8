"""What MONAI's spatial transforms leave to do: resampling without aliasing, background outside the brain."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.networks.utils import to_norm_affine
from monai.transforms import MapTransform, Spacingd, SpatialResample
from monai.utils import TraceKeys, convert_to_tensor
from scipy.ndimage import gaussian_filter1d
from torch.nn.functional import grid_sample

from ..volumes.separable import apply_along_axes, spline_matrix

__all__ = ["BackgroundOutsided", "SmoothForSpacingd", "VolumeSpacingd", "resampled"]

_VOXELS_AT_ONCE = 2**20  # in resampling, each of which takes 28 bytes for its place


class VolumeSpacingd(Spacingd):
    """MONAI's `Spacingd` for dictionaries that hold more than volumes, with an inverse that needs little memory.

    MONAI 1.6.0 and 1.6.1 call `.update` on every item whose key starts with `KEY_` once the volume came from NIfTI.
    MONAI Label puts the text `image_path` there, which has no such method; items that are no dictionaries are
    therefore kept out of its sight.

    MONAI's inverse computes the place of every voxel of the result at once, which takes six times the result's memory,
    and reads the volume by one thread. This one makes the voxels a block at a time, by all threads, and only where the
    volume is not 0. Volumes that were interpolated linearly come back by cubic splines, within the range of their
    values: lines between the large voxels of the network would take a quarter of the image's gradient energy.
    """

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> dict[Hashable, Any]:
        """Resample the volume at each key; everything else comes back as it was."""
        visible = {key: item for key, item in data.items() if key in self.keys or isinstance(item, dict)}
        return {**data, **super().__call__(visible, lazy)}

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Resample the volume at each key back onto the grid it came from."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = _resampled_back(self.spacing_transform.sp_resample, d[key])
        return d


def _resampled_back(resample: SpatialResample, volume: MetaTensor) -> MetaTensor:
    """`resample.inverse(volume)`, by less."""
    step = resample.get_most_recent_transform(volume)
    options, shape = step[TraceKeys.EXTRA_INFO], tuple(int(n) for n in step[TraceKeys.ORIG_SIZE])
    to_volume = np.linalg.solve(*(np.asarray(a, dtype=np.float64) for a in (volume.affine, options["src_affine"])))
    unchanged = shape == volume.shape[1:] and np.allclose(to_volume, np.eye(4), atol=1e-3)
    if unchanged or isinstance(options["mode"], int):
        return resample.inverse(volume)
    resample.pop_transform(volume)
    values = volume.as_tensor().to(getattr(torch, options["dtype"]))
    if options["mode"] == "bilinear":
        back = _splined(values, to_volume, shape)
    else:
        back = _sampled(values, to_volume, shape, options["mode"])
    xform = torch.as_tensor(to_volume, device=volume.device)
    return MetaTensor(back).copy_meta_from(resample.track_transform_meta(volume, affine=xform))


def resampled(volume: torch.Tensor, affine: np.ndarray, to: np.ndarray, shape: Sequence[int]) -> torch.Tensor:
    """A volume on another grid by the cubic spline through its voxels, clipped to the range of their values.

    Args:
        volume: (C, H, W, Z), floating.
        affine: (4, 4), its voxels -> mm.
        to: (4, 4), voxels of the other grid -> mm.
        shape: (H, W, Z) of the other grid.

    Returns:
        (C, H, W, Z) float32; near the volume's border what lies there, beyond what is not 0 in it 0.
    """
    return _splined(volume, np.linalg.solve(affine, to), tuple(shape))


def _splined(volume: torch.Tensor, to_volume: np.ndarray, shape: Sequence[int]) -> torch.Tensor:
    """As `_sampled`, by the cubic spline through the voxels, clipped to the range of their values."""
    scale = np.diag(to_volume)[:3]
    sheared = (np.abs(to_volume[:3, :3] - np.diag(scale)) @ np.array(shape)).max() > 1e-2
    if sheared:  # no product of three splines: linearly between the voxels of a finer spline, which is nearly it
        halves = [spline_matrix(n, np.arange(2 * n - 1) / 2) for n in volume.shape[1:]]
        finer = torch.stack([_along_axes(channel, halves) for channel in volume])
        return _sampled(finer, np.diag([2, 2, 2, 1]) @ to_volume, shape, "bilinear")
    where = tuple(_reached(volume, to_volume, shape))
    places = [a * np.arange(w.start, w.stop) + b for a, b, w in zip(scale, to_volume[:3, 3], where, strict=True)]
    matrices = [spline_matrix(n, at) for n, at in zip(volume.shape[1:], places, strict=True)]
    out = volume.new_zeros((len(volume), *shape), dtype=torch.float32)
    for made, channel in zip(out, volume, strict=True):
        made[where] = _along_axes(channel, matrices)
    return out


def _along_axes(volume: torch.Tensor, matrices: Sequence[np.ndarray]) -> torch.Tensor:
    """A matrix along each axis of (H, W, Z), float32, clipped to the range of the volume's values."""
    made = torch.from_numpy(apply_along_axes(volume.float().cpu().numpy(), matrices)).to(volume.device)
    return made.clamp_(float(volume.min()), float(volume.max()))


def _sampled(volume: torch.Tensor, to_volume: np.ndarray, shape: Sequence[int], mode: str) -> torch.Tensor:
    """A volume (C, H, W, Z) at the voxels of another grid, as by MONAI's `AffineTransform`, which is zero elsewhere.

    Args:
        volume: floating.
        to_volume: (4, 4), voxels of the result -> voxels of the volume.
        shape: (H, W, Z) of the result.
        mode: of `grid_sample`.
    """
    out = torch.zeros((len(volume), *shape), device=volume.device)
    matrix = torch.as_tensor(to_volume).to(volume)
    theta = to_norm_affine(matrix[None], volume.shape[1:], shape, align_corners=False)[0]
    # grid_sample names the last axis first
    theta = theta[:3].flip(0)[:, [2, 1, 0, 3]]
    rows, columns, depth = _reached(volume, to_volume, shape)
    places = [_normalised(n, volume) for n in shape]
    step = max(1, _VOXELS_AT_ONCE // max(1, (columns.stop - columns.start) * (depth.stop - depth.start)))
    for start in range(rows.start, rows.stop, step):
        block = slice(start, min(start + step, rows.stop))
        grid = torch.meshgrid(places[0][block], places[1][columns], places[2][depth], indexing="ij")
        grid = torch.stack([*grid[::-1], torch.ones_like(grid[0])], dim=-1)
        grid = (grid.view(-1, 4) @ theta.T).view(len(grid), 1, *grid.shape[1:3], 3)
        # on a CPU every thread takes some of a batch
        rows_as_batch = volume.expand(len(grid), -1, -1, -1, -1)
        made = grid_sample(rows_as_batch, grid, mode, padding_mode="border", align_corners=False)
        out[:, block, columns, depth] = made[:, :, 0].movedim(0, 1).float()
    return out


def _normalised(count: int, like: torch.Tensor) -> torch.Tensor:
    """Places of an axis' voxels as `grid_sample` counts them, -1 to 1; of the type and device of `like`."""
    if count == 1:
        return like.new_zeros(1)
    places = torch.linspace(-1, 1, count, dtype=like.dtype, device=like.device)
    return places * (count - 1) / count


def _reached(volume: torch.Tensor, to_volume: np.ndarray, shape: Sequence[int]) -> list[slice]:
    """The part of a grid outside of which interpolation reads nothing but zeros of the volume."""
    corners = np.array(list(product(*([0, n - 1] for n in shape)))) @ to_volume[:3, :3].T + to_volume[:3, 3]
    ends = []
    for axis in range(3):
        used = torch.nonzero((volume != 0).movedim(axis + 1, 0).flatten(1).any(1)).flatten().tolist()
        if not used:
            return [slice(0, 0)] * 3
        low, high, last = used[0] - 1, used[-1] + 1, volume.shape[axis + 1] - 1
        # beyond its border the volume goes on as at its border
        ends.append(
            (
                min(low, corners[:, axis].min()) if low < 0 else low,
                max(high, corners[:, axis].max()) if high > last else high,
            )
        )
    back = np.linalg.inv(to_volume)
    box = np.array(list(product(*ends))) @ back[:3, :3].T + back[:3, 3]
    first, last = np.floor(box.min(axis=0)).astype(int) - 1, np.ceil(box.max(axis=0)).astype(int) + 2
    return [slice(max(a, 0), min(max(b, 0), n)) for a, b, n in zip(first, last, shape, strict=True)]


class SmoothForSpacingd(MapTransform):
    """Gaussian smoothing along the axes that will be resampled to larger voxels, so that noise is averaged.

    Linear interpolation reads two voxels an axis however many a new voxel covers. The standard deviation is half of
    what the new edge exceeds the old one by, which is scikit-image's rule for `resize`.

    Args:
        keys: keys of the volumes, MetaTensors (C, H, W, Z).
        pixdim: edges of the new voxels, mm.
        allow_missing_keys: no error where a key is missing.
    """

    def __init__(self, keys: KeysCollection, pixdim: Any, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.pixdim = pixdim

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Smooth the volume at each key."""
        d = dict(data)
        for key in self.key_iterator(d):
            sigmas = (np.asarray(self.pixdim, dtype=float) / np.asarray(d[key].pixdim, dtype=float) - 1) / 2
            smooth = _smoothed(d[key].numpy(), sigmas)
            d[key] = MetaTensor(torch.as_tensor(smooth)).copy_meta_from(d[key])
        return d


def _smoothed(volume: np.ndarray, sigmas: Sequence[float]) -> np.ndarray:
    """A volume (C, H, W, Z) after Gaussians of each axis' standard deviation in voxels; itself where they are small."""
    smooth = volume
    for axis, sigma in enumerate(sigmas, start=1):
        if sigma > 0.05:
            # the given volume is left alone, an own one is overwritten
            out = np.empty_like(volume) if smooth is volume else smooth
            smooth = gaussian_filter1d(smooth, sigma, axis=axis, mode="nearest", output=out)
    return smooth


class BackgroundOutsided(MapTransform):
    """Sets voxels outside a mask on the same grid to a constant.

    Args:
        keys: keys of the volumes, (C, H, W, Z).
        mask_key: key of the mask, (1, H, W, Z); inside is greater than 0.5.
        background: the constant, in the volumes' unit.
        allow_missing_keys: no error where a key is missing.
    """

    def __init__(
        self, keys: KeysCollection, mask_key: str, background: float = 0.0, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.mask_key = mask_key
        self.background = background

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Mask the volume at each key."""
        d = dict(data)
        for key in self.key_iterator(d):
            outside = convert_to_tensor(d[self.mask_key], device=d[key].device) <= 0.5
            d[key] = d[key].masked_fill(outside, self.background)
        return d
