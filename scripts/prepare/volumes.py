"""A volume of a training pair, and its resampling onto a grid, each by one interpolation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor

from ..dicom.convert import convert_dicom
from ..errors import CaseError
from ..transforms.checks import CheckNoLabelsd, CheckVolumed
from ..transforms.hounsfield import CheckHounsfieldd
from ..transforms.spatial import SmoothForSpacingd
from ..volumes.load import read_volume


@dataclass(frozen=True)
class Volume:
    """One volume of a pair.

    Attributes:
        image: (H, W, Z) float32 with axes nearest to R, A, S; HU for a CT.
        contrast: one of `scripts.contrasts.CONTRASTS`.
        path: the file or DICOM folder that it is of.
    """

    image: nib.Nifti1Image
    contrast: str
    path: Path

    @property
    def data(self) -> np.ndarray:
        """(H, W, Z) float32."""
        return np.asarray(self.image.dataobj)

    @property
    def spacing(self) -> tuple[float, ...]:
        """Edges of the voxels, mm."""
        return tuple(float(edge) for edge in nib.affines.voxel_sizes(self.image.affine))

    @property
    def is_ct(self) -> bool:
        return self.contrast == "CT"

    def tensor(self) -> MetaTensor:
        """(1, H, W, Z) with the affine and the name of the file, as transforms take it."""
        meta = {"filename_or_obj": str(self.path)}
        return MetaTensor(torch.from_numpy(self.data)[None], affine=torch.as_tensor(self.image.affine), meta=meta)

    def with_data(self, data: np.ndarray) -> Volume:
        """The volume with other values on the same grid."""
        return replace(self, image=nib.Nifti1Image(data.astype(np.float32), self.image.affine))


def load_volume(path: Path, contrast: str, working: Path) -> Volume:
    """Read and check a volume: one, finite, not constant, on a usable grid, in HU if it is a CT.

    Args:
        path: a volume's file, a folder of DICOM, or an .npz file (see `convert_npz`).
        contrast: one of `scripts.contrasts.CONTRASTS`.
        working: folder where a converted file may stay for the while.

    Raises:
        CaseError: any of it is not so.
    """
    file = path
    if path.is_dir():
        file = convert_dicom(path, working / f"{path.name}.nii.gz")
    elif path.suffix == ".npz":
        file = convert_npz(path, working / f"{path.stem}.nii")
    checks = CheckVolumed("image"), (CheckHounsfieldd if contrast == "CT" else CheckNoLabelsd)("image")
    return Volume(read_volume(file, *checks, name=path), contrast, path)


def convert_npz(path: Path, output: Path, axes: str = "LIA") -> Path:
    """Write the array `vol` of an .npz file as NIfTI in RAS order.

    Args:
        path: the file; it carries no geometry, so that voxels of 1 mm are assumed.
        output: file to write.
        axes: orientation of the array; "LIA" is FreeSurfer's.

    Returns:
        `output`.

    Raises:
        CaseError: no such array.
    """
    try:
        volume = np.load(path)["vol"].astype(np.float32)
    except (OSError, ValueError, KeyError) as error:
        raise CaseError(f"{path.name} holds no array vol that can be read; give a volume instead.") from error
    to_ras = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt(axes), [[0, 1], [1, 1], [2, 1]])
    nib.save(nib.Nifti1Image(np.ascontiguousarray(nib.apply_orientation(volume, to_ras)), np.eye(4)), output)
    return output


def smoothed_for(volume: Volume, spacing: float) -> Volume:
    """Smoothed along the axes whose voxels are finer than `spacing` mm, so that a coarser grid averages the noise."""
    return volume.with_data(SmoothForSpacingd("image", [spacing] * 3)({"image": volume.tensor()})["image"][0].numpy())
