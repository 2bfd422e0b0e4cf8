"""What stops a case before anything is computed, each reason in one sentence."""

from __future__ import annotations

import logging
import math
import os
import re
import tempfile
import warnings
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import itk
import numpy as np
import torch
from monai.config import DtypeLike, KeysCollection
from monai.data import ITKReader, MetaTensor, NibabelReader
from monai.transforms import LoadImage, LoadImaged, MapTransform
from monai.utils import convert_to_tensor

from ..dicom.convert import convert_series, only_volume
from ..files import CaseError

__all__ = ["CaseError", "CheckVolumed", "LoadVolume", "LoadVolumed", "file_name", "value_range"]

logger = logging.getLogger(__name__)

# MONAI's LoadImage looks for a GPU's decoder of DICOM, which nothing here reads with, and misses it twice
warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader")
logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)

NIBABEL_SUFFIXES = (".nii", ".nii.gz", ".mgz")


def file_name(volume: Any) -> str:
    """How sentences call what a MetaTensor was loaded from.

    The file's name without folders, "the DICOM series UID" for one, "the volume" where it came from no file.
    """
    if isinstance(volume, MetaTensor) and volume.meta.get("series_uid"):
        return f"the DICOM series {volume.meta['series_uid']}"
    path = volume.meta.get("filename_or_obj") if isinstance(volume, MetaTensor) else None
    return Path(path).name if path else "the volume"


class LoadVolume(LoadImage):
    """MONAI's `LoadImage` with one reader for each format, and every failure as a `CaseError`.

    nibabel reads NIfTI and MGZ, ITK everything else: of MONAI's readers that take an NRRD file only ITK's heeds all
    values of the header's `space`. A list is the files of one DICOM series, and a folder has to hold one; the
    MetaTensor's meta then has the files as `dicom_files` and its UID as `series_uid`, `filename_or_obj` is the first of
    them, and `corrected` tells in words what of their places was.
    """

    def __call__(self, filename: Any, reader: Any = None) -> Any:
        """Path, or paths of a series -> float32 MetaTensor (H, W, Z) or (H, W, Z, C), affine in RAS+ mm.

        `reader` is as in MONAI, and heeded for a path alone.

        Raises:
            CaseError: no such file, not a format that is read, truncated or damaged, colours or vectors; of a series,
                what `convert_series` raises.
        """
        if isinstance(filename, list | tuple):
            return self._read_dicom([os.fspath(name) for name in filename])
        if not os.fspath(filename):  # a path of nothing would be the working directory
            raise CaseError("There is no image of that name; check it.")
        path = Path(os.fspath(filename)).expanduser()
        if reader is None and path.is_dir():
            return self._read_dicom([str(file) for file in only_volume(path).files])
        if not path.exists():
            raise CaseError(f"{path.name} is not there; check the path.")
        try:
            if reader is None and path.is_file():
                reader = NibabelReader() if path.name.lower().endswith(NIBABEL_SUFFIXES) else _itk_reader(path)
            return super().__call__(str(path), reader)
        except CaseError:
            raise
        except Exception as error:
            raise CaseError(_unreadable(path, error)) from error

    def _read_dicom(self, files: list[str]) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "volume.nii"
            try:
                series, corrected = convert_series(files, path)
            except CaseError:
                raise
            except Exception as error:  # its message may hold a folder's name
                raise CaseError(f"A DICOM series cannot be read ({type(error).__name__}); export it again.") from None
            loaded = super().__call__(str(path), NibabelReader())
        volume = loaded if self.image_only else loaded[0]
        volume.meta |= {"filename_or_obj": files[0], "dicom_files": files, "series_uid": series.uid}
        if series.doubt is not None:
            logger.warning(f"{file_name(volume)}: {series.doubt}")
        if corrected is not None:
            volume.meta["corrected"] = corrected
            logger.info(f"{file_name(volume)}: corrected {corrected}")
        return loaded


def _itk_reader(path: Path) -> ITKReader:
    """A reader of float32, whatever scalar the file holds; asked for another type, ITK would turn colours grey."""
    file = itk.ImageIOFactory.CreateImageIO(str(path), itk.CommonEnums.IOFileMode_ReadMode)
    if file is not None:
        file.SetFileName(str(path))
        file.ReadImageInformation()
        if file.GetNumberOfComponents() > 1:
            raise CaseError(_coloured(path.name))
    return ITKReader(pixel_type=itk.F)


def _coloured(name: str) -> str:
    return f"{name} holds colours or vectors, not one value a voxel; give the scan itself, not a rendering of it."


def _unreadable(path: Path, error: Exception) -> str:
    """The readers' many ways to fail, as a sentence without folders, whose names may be a patient's."""
    if "('R', " in str(error):  # the voxel type of a NIfTI with colours
        return _coloured(path.name)
    # ITK begins with a line of its own source and the reader's address in memory
    said = re.sub(r"^.*ITK ERROR: (\w+\(0x\w+\): )?", "", " ".join(str(error).split()))
    what = said.replace(str(path), path.name)[:120] or type(error).__name__
    return f"{path.name} cannot be read and is damaged, truncated or no image ({what}); copy or export it again."


class LoadVolumed(LoadImaged):
    """Dictionary form of `LoadVolume`; a `LoadImaged`, because servers look for that class.

    Args:
        keys: keys of the paths, replaced by the volumes.
        dtype: type of the volumes.
        image_only: as in MONAI: without it, the header goes to `KEY_meta_dict` as well.
        allow_missing_keys: no error where a key is missing.
    """

    def __init__(
        self,
        keys: KeysCollection,
        dtype: DtypeLike = np.float32,
        image_only: bool = True,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, dtype=dtype, image_only=image_only, allow_missing_keys=allow_missing_keys)
        self._loader = LoadVolume(dtype=dtype, image_only=image_only)


class CheckVolumed(MapTransform):
    """Lets through volumes of one channel, finite and not constant, on a grid that can be resampled.

    Takes channel-first MetaTensors (C, H, W, Z); one without shape errors comes out as (1, H, W, Z), unchanged.

    Args:
        keys: keys of the volumes.
        max_shear: how far, in degrees, two axes may be from a right angle (a CT with gantry tilt is not).
        spacing_limits: smallest and largest voxel edge, mm.
        extent_limits: smallest and largest edge of the field of view, mm; metres or micrometres in the header fall out.
        allow_missing_keys: no error where a key is missing.

    Raises:
        CaseError: any of it is not so; the sentence tells which.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        max_shear: float = 0.5,
        spacing_limits: tuple[float, float] = (0.05, 20.0),
        extent_limits: tuple[float, float] = (10.0, 2000.0),
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.max_shear = max_shear
        self.spacing_limits = spacing_limits
        self.extent_limits = extent_limits

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Check the volume at each key."""
        d = dict(data)
        for key in self.key_iterator(d):
            name = file_name(d[key])
            d[key] = one_volume(d[key], name)
            self._check_grid(d[key], name)
            _check_values(d[key], name)
        return d

    def _check_grid(self, volume: MetaTensor, name: str) -> None:
        axes = np.asarray(volume.affine, dtype=np.float64)[:3, :3]
        spacing = np.linalg.norm(axes, axis=0)
        if not np.isfinite(axes).all() or not (spacing > 0).all() or abs(np.linalg.det(axes / spacing)) < 1e-3:
            raise CaseError(
                f"{name} has a singular affine, so its axes span no space; repair the header (sform, qform)."
            )
        low, high = self.spacing_limits
        extent = spacing * np.array(volume.shape[1:])
        if (spacing < low).any() or (spacing > high).any():
            raise CaseError(f"{name} has voxels of {_by(spacing)} mm, which no head scan has; repair the header.")
        if (extent < self.extent_limits[0]).any() or (extent > self.extent_limits[1]).any():
            raise CaseError(f"{name} spans {_by(extent)} mm, which is no head; repair the voxel size in its header.")
        directions = axes / spacing
        cosines = np.abs(np.triu(directions.T @ directions, k=1)).max()
        shear = np.degrees(np.arcsin(min(cosines, 1.0)))
        if shear > self.max_shear:
            raise CaseError(
                f"{name} has axes that are {shear:.1f} degrees off a right angle (gantry tilt?); resample it to an "
                "orthogonal grid first, or give the DICOM files themselves."
            )


def one_volume(volume: MetaTensor, name: str) -> MetaTensor:
    """(C, H, W, Z[, 1]) -> (1, H, W, Z), or a `CaseError` that tells what the volume is instead."""
    while volume.ndim > 4 and volume.shape[-1] == 1:
        volume = volume.squeeze(-1)
    shape = tuple(volume.shape)
    if volume.ndim == 3 or (volume.ndim == 4 and min(shape[1:]) == 1):
        raise CaseError(f"{name} is a single slice ({_by(shape[1:])} voxels); a 3D volume is needed.")
    if volume.ndim != 4 or shape[0] != 1:
        raise CaseError(
            f"{name} is not one 3D volume but several or colours ({shape[0]} of {_by(shape[1:])} voxels); "
            "give one volume of one value a voxel."
        )
    if min(shape[1:]) < 3:
        raise CaseError(f"{name} has only {min(shape[1:])} slices ({_by(shape[1:])} voxels); at least 3 are needed.")
    return volume


def value_range(volume: torch.Tensor) -> tuple[float, float]:
    """Smallest and largest value, both finite only if all are; needs no memory, which `isfinite` does."""
    low, high = torch.aminmax(convert_to_tensor(volume, track_meta=False))
    return float(low), float(high)


def _check_values(volume: torch.Tensor, name: str) -> None:
    low, high = value_range(volume)
    if not (math.isfinite(low) and math.isfinite(high)):
        count = int((~torch.isfinite(volume)).sum())
        raise CaseError(f"{name} has {count} voxels that are NaN or infinite; replace them (air is -1000 HU).")
    if low == high:
        raise CaseError(f"{name} is empty: every voxel is {low:g}; export it again.")


def _by(numbers: Any) -> str:
    return " x ".join(f"{number:g}" for number in np.round(np.asarray(numbers, dtype=float), 4))
