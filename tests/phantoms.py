"""Head phantoms for tests: small, analytic, and different on the left and on the right."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

TINY_NETWORK = {
    "slab_size": 3,
    "channels": [16, 16],
    "num_res_blocks": 1,
    "norm_num_groups": 8,
    "num_head_channels": 8,
    "space_to_depth": 2,
}
"""Arguments of a `BridgeUNet` that takes no time."""
TINY_TRAINING = {
    "network_def#channels": [8, 8],
    "network_def#norm_num_groups": 4,
    "network_def#num_head_channels": 8,
    "spacing": [4.0, 4.0, 4.0],
    "batch_size": 2,
    "num_workers": 0,
    "device": "$torch.device('cpu')",
    "dtype": "float32",
}
"""Settings of train.json for one that takes no time."""


def head_ct(affine: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """HU of `head_hu` sampled on a grid; (H, W, Z) float32."""
    voxels = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1)
    return head_hu(nib.affines.apply_affine(affine, voxels))


def head_hu(points: np.ndarray) -> np.ndarray:
    """HU at points (..., 3) in RAS mm of a head centred on the origin; float32.

    Air, scalp and skull of an ellipsoid, brain at 34 HU with ventricles at 8 HU, a bleed of 70 HU on the left (x < 0).
    """
    x, y, z = np.moveaxis(points, -1, 0)
    radius = np.sqrt((x / 80) ** 2 + (y / 95) ** 2 + (z / 75) ** 2)
    hu = np.full(radius.shape, -1000.0, dtype=np.float32)
    hu[radius < 1.0] = 15
    hu[radius < 0.94] = 1000
    hu[radius < 0.86] = 34
    hu[((np.abs(x) - 12) / 9) ** 2 + (y / 35) ** 2 + (z / 14) ** 2 < 1] = 8
    hu[((x + 40) / 16) ** 2 + (y / 16) ** 2 + (z / 16) ** 2 < 1] = 70
    return hu


def centred_affine(axes: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Affine with the given (3, 3) axes in mm whose grid is centred on the origin."""
    affine = np.eye(4)
    affine[:3, :3] = axes
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def write_head_ct(path: Path, axes: np.ndarray | None = None, shape: tuple[int, int, int] = (34, 40, 32)) -> Path:
    """A head CT of about 6 mm voxels as NIfTI, int16; RAS axes where none are given."""
    affine = centred_affine(np.diag([6.0, 6.0, 6.0]) if axes is None else axes, shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.round(head_ct(affine, shape)).astype(np.int16), affine), path)
    return path


def write_training_set(
    folder: Path, training: int, shape: tuple[int, int, int] = (22, 26, 24), edge: float = 6.0
) -> None:
    """A prepared set of round heads, each with a texture of its own, and one more, the last, for validation.

    Args:
        folder: where `datalist.json` and the volumes go; the subjects are p0, p1, ...
        training: number of people in the training.
    """
    shape, edge = (22, 26, 24), 6.0
    grid = np.stack(np.meshgrid(*(np.linspace(-1.05, 1.05, n) for n in shape), indexing="ij"))
    mask = (grid**2).sum(0) < 1
    entries = []
    for number in range(training + 1):
        noise = np.random.default_rng(number).random(shape)
        volumes = {"source": np.where(mask, 25 + 20 * noise, -1000), "target": 400 * (1 + noise) * mask, "mask": mask}
        entries.append({"subject": f"p{number}", **{name: f"p{number}_{name}.nii.gz" for name in volumes}})
        for name, volume in volumes.items():
            nib.save(nib.Nifti1Image(volume.astype(np.float32), np.diag([edge] * 3 + [1])), folder / entries[-1][name])
    lists = {"training": entries[:training], "validation": entries[training:], "test": []}
    (folder / "datalist.json").write_text(json.dumps(lists))


def ball_brain() -> tuple[np.ndarray, np.ndarray]:
    """A ball of white matter with a rim of grey matter, 0 outside, and its mask, (40, 48, 44); for voxels of 3 mm."""
    shape = (40, 48, 44)
    grid = np.stack(np.meshgrid(*[np.arange(n) - (n - 1) / 2 for n in shape], indexing="ij"))
    radius = np.sqrt((grid**2).sum(axis=0))
    noise = np.random.default_rng(0).normal(0, 8, shape)
    volume = np.where(radius < 12, 900.0, 600.0) + noise
    mask = radius < 17
    return (volume * mask).astype(np.float32), mask


class EchoNetwork(torch.nn.Module):
    """Predicts the source itself: what comes out of a run is what its geometry and windows made of the CT."""

    def __init__(self, slab_size: int = 3) -> None:
        super().__init__()
        self.slab_size = slab_size

    def forward(self, x, timesteps=None, context=None, source=None, **conditions):
        """Any slab of the state and the source's slab -> the source's slab."""
        return source


class MissingNetwork(EchoNetwork):
    """Predicts the condition `missing`: what comes out of a run is what its network was told of the scan."""

    def forward(self, x, timesteps=None, context=None, source=None, missing=None, **conditions):
        """Any slab -> the slab of the condition, as an image."""
        return 2 * missing - 1
