"""A lesion mask that a user gives beside the contrasts of a head."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import EnsureChannelFirst, ResampleToMatch, Transform

from ..errors import CaseError
from ..volumes.find import IMAGE_SUFFIXES
from ..volumes.load import LoadVolume
from ..volumes.parts import sha256_of_volume

__all__ = ["LesionMaskd", "require_lesion_masks"]

logger = logging.getLogger(__name__)

ENDINGS = ("", "_lesion", "_seg", "-seg")
_NEAR = 0.1  # mm by which the corners of two grids may differ


class LesionMaskd(Transform):
    """Adds the lesion mask of a case from a folder, as `CASE.nii.gz`, `CASE_lesion`, `CASE_seg` or `CASE-seg`.

    It lies on the grid of the reference as it was given; labels above 0, such as those of BraTS, are lesion. A case
    without one has none, and a warning says so. The meta of the source tells of it as `lesion_mask`: `file`, `sha256`
    and `ml`.

    Args:
        folder: of the masks; None leaves the data as they are.
        structure: of the network; without one it takes no lesion.
        reference: key of the volume on the network's grid, on which the mask is laid by the nearest voxel.
        source_key: key of the reference as loaded, (1, H, W, Z).
        output_key: receives the mask, (1, H, W, Z), 0 or 1.

    Raises:
        CaseError: a folder that is not there, or is given without a structure; in a call, a mask on another grid, or
            one whose values are no labels.
    """

    def __init__(
        self,
        folder: Any = None,
        structure: str | None = None,
        reference: str = "image",
        source_key: str = "source",
        output_key: str = "lesion",
    ) -> None:
        self.folder = None if folder is None else Path(str(folder)).expanduser()
        self.reference, self.source_key, self.output_key = reference, source_key, output_key
        if self.folder is not None and structure is None:
            raise CaseError("lesion_masks_dir is for weights that take a mask; give their structure, e.g. fractions.")
        if self.folder is not None and not self.folder.is_dir():
            raise CaseError(f"There is no folder {self.folder} of lesion_masks_dir; check the path.")
        self._resample = ResampleToMatch(mode="nearest", padding_mode="zeros")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add the mask of a case, if there is one."""
        case = str(data.get("case", ""))
        path = self.path_of(case)
        if path is None:
            if self.folder is not None:
                logger.warning(f"{case}: it has no lesion mask in lesion_masks_dir; it is made without one.")
            return dict(data)
        source = data[self.source_key]
        mask = _mask(path, source)
        voxel = abs(float(np.linalg.det(np.asarray(source.affine, dtype=np.float64)[:3, :3])))
        told = {"file": path.name, "sha256": sha256_of_volume(path), "ml": round(float(mask.sum()) * voxel / 1000, 2)}
        meta = {**source.meta, "lesion_mask": told}
        return {
            **data,
            self.source_key: MetaTensor(source.as_tensor(), meta=meta, applied_operations=source.applied_operations),
            self.output_key: self._resample(mask, img_dst=data[self.reference]),
        }

    def path_of(self, case: str) -> Path | None:
        """The mask of a case; None where it has none."""
        if self.folder is None:
            return None
        named = (self.folder / f"{case}{ending}{suffix}" for ending in ENDINGS for suffix in IMAGE_SUFFIXES)
        return next((path for path in named if path.is_file()), None)


def require_lesion_masks(cases: Sequence[Mapping[str, Any]], masks: LesionMaskd) -> None:
    """See that a run with a folder of lesion masks has one of them at least.

    Args:
        cases: items of the run, `{"case": CASE, ...}`; without any there is nothing to see.
        masks: of the run.

    Raises:
        CaseError: no case has a mask.
    """
    if masks.folder is None or not cases or any(masks.path_of(item["case"]) for item in cases):
        return
    raise CaseError(
        f"None of the cases has a lesion mask in lesion_masks_dir; name the masks by their cases, such as "
        f"{cases[0]['case']}_lesion.nii.gz, or leave the option out."
    )


def _mask(path: Path, source: MetaTensor) -> MetaTensor:
    """The mask in a file, (1, H, W, Z), 0 or 1; its voxels are the source's, in whatever order they are stored."""
    mask = EnsureChannelFirst()(LoadVolume(image_only=True)(path))
    apart = np.linalg.norm(_corners(mask)[:, None] - _corners(source)[None], axis=2).min(axis=1).max()
    contrast = source.meta.get("contrast", "first contrast")
    if mask.meta.get("unplaced", False) and not source.meta.get("unplaced", False):  # by a guess it may fit mirrored
        raise CaseError(
            f"The lesion mask {path.name} does not say how its axes lie; save it with the header of the {contrast}."
        )
    if sorted(mask.shape) != sorted(source.shape) or apart > _NEAR:
        raise CaseError(f"The lesion mask {path.name} is not on the grid of the {contrast}; save it on that grid.")
    values = mask.numpy()
    if not np.isfinite(values).all() or (values < 0).any() or (values != values.round()).any():
        raise CaseError(f"The lesion mask {path.name} has values that are no labels; give 0, and 1 in the lesion.")
    return MetaTensor(torch.from_numpy((values > 0).astype(np.float32)), affine=mask.affine)


def _corners(volume: MetaTensor) -> np.ndarray:
    """(8, 3) mm."""
    voxels = list(product(*([0, n - 1] for n in volume.shape[1:])))
    return nib.affines.apply_affine(np.asarray(volume.affine, dtype=np.float64), voxels)
