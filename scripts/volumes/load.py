"""Reading a volume: one reader for each format, and every failure in one sentence."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import itk
import nibabel as nib
import numpy as np
from monai.config import DtypeLike, KeysCollection
from monai.data import ITKReader, MetaTensor, NibabelReader
from monai.transforms import EnsureChannelFirst, LoadImage, LoadImaged, Orientation
from monai.utils import ensure_tuple

from ..dicom.convert import convert, only_volume
from ..dicom.series import stack_of_files
from ..dicom.stack import Stack
from ..errors import CaseError, machine_reason, place_of
from ..files import temporary_folder
from .content import check_content, close_whole, unpacked
from .placement import Placement, nifti_placement
from .size import check_size

__all__ = ["LoadVolume", "LoadVolumed", "file_name", "open_image", "read_volume", "stored_placement", "tell_doubt"]

logger = logging.getLogger(__name__)

# MONAI's LoadImage looks for a GPU's decoder of DICOM, which nothing here reads with, and misses it twice
warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader")
logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)


PAIR_SUFFIXES = (".hdr", ".img")
NIBABEL_SUFFIXES = (".nii", ".nii.gz", ".mgz", *PAIR_SUFFIXES)
# the spaces of NRRD in which left and right are the patient's, in small letters
_PATIENTS_SPACE = rb"space:\s*((right|left)-anterior-superior|left-posterior-superior|ras|las|lps)\s*$"


def file_name(volume: Any) -> str:
    """How sentences call what a MetaTensor was loaded from.

    The file's name without folders, "the DICOM series UID" for one, "the volume" where it came from no file.
    """
    if isinstance(volume, MetaTensor) and volume.meta.get("series_uid"):
        return f"the DICOM series {volume.meta['series_uid']}"
    path = volume.meta.get("filename_or_obj") if isinstance(volume, MetaTensor) else None
    return Path(path).name if path else "the volume"


def open_image(path: str | os.PathLike) -> nib.spatialimages.SpatialImage:
    """nibabel's image of a NIfTI, Analyze or MGZ file, its voxels not read yet, by what the file holds, not its name.

    Raises:
        CaseError: the file holds something else, and what can be told.
        Exception: whatever nibabel raises where it is none.
    """
    path = Path(path)
    kind = None if path.name.lower().endswith(PAIR_SUFFIXES) else check_content(path)
    if kind is None:
        return nib.load(path)
    return kind.from_file_map(kind.make_file_map({"image": unpacked(path)}))


def stored_placement(image: nib.spatialimages.SpatialImage, name: str) -> Placement:
    """Where the voxels of nibabel's image lie; see `nifti_placement`.

    Raises:
        CaseError: the header of a NIfTI contradicts itself.
    """
    if isinstance(image.header, nib.Nifti1Header):
        if int(image.header["sform_code"]) <= 0:
            _check_voxel_sizes(image, name)
        return nifti_placement(image.header, name)
    known = isinstance(image, nib.MGHImage) and _is_placed_mgh(image)  # Analyze has no place for an orientation
    return Placement(np.asarray(image.affine, dtype=np.float64), int(known))


def _check_offset(image: nib.spatialimages.SpatialImage, name: str) -> None:
    """Refuse voxels that would be read from the header, which nibabel does where the offset is 0."""
    if isinstance(image, nib.Nifti1Image) and image.dataobj.offset < image.header.single_vox_offset:
        raise CaseError(
            f"{name} says that its voxels begin at byte {image.dataobj.offset} (vox_offset), within its header; "
            "convert it again."
        )


def _check_voxel_sizes(image: nib.Nifti1Pair, name: str) -> None:
    """Refuse voxel sizes of 0, which nibabel takes for 1 mm in silence."""
    with image.file_map.get("header", image.file_map["image"]).get_prepare_fileobj("rb") as file:
        stored = type(image.header)(file.read(image.header.sizeof_hdr), check=False)
    sizes = stored["pixdim"][1:4]
    if (sizes == 0).any():
        by = " x ".join(f"{size:g}" for size in sizes)
        raise CaseError(f"{name} has voxel sizes (pixdim) of {by} mm; correct them, or convert it again.")


def _is_placed_mgh(image: nib.MGHImage) -> bool:
    """Whether an MGH file says how its axes lie (goodRASFlag), which nibabel sets where it does not."""
    with image.file_map["image"].get_prepare_fileobj("rb") as file:
        file.seek(28)
        return file.read(2) != bytes(2)


class _PlacedReader(NibabelReader):
    """MONAI's reader by nibabel, without its repair of headers: where voxels lie is `stored_placement`'s to decide."""

    def read(self, data: Any, **kwargs: Any) -> nib.spatialimages.SpatialImage:
        """A path -> nibabel's image."""
        self.filenames = ensure_tuple(data)
        name = Path(self.filenames[0]).name
        image = open_image(self.filenames[0])
        check_size(image.shape, name)
        _check_offset(image, name)
        self.placement = stored_placement(image, name)
        return image

    def _get_affine(self, img: nib.spatialimages.SpatialImage) -> np.ndarray:
        return self.placement.affine.copy()

    def _get_array_data(self, img: nib.spatialimages.SpatialImage, filename: str) -> np.ndarray:
        if img.get_data_dtype().names:
            raise CaseError(_coloured(Path(filename).name))
        if img.get_data_dtype().kind == "c":
            return _real_part(img, Path(filename).name)
        values = np.asarray(img.dataobj, dtype=np.float32)  # scaled values would be float64
        if (file := img.file_map["image"].fileobj) is not None:
            close_whole(file)
        return values


def _real_part(image: nib.spatialimages.SpatialImage, name: str) -> np.ndarray:
    """The values of an image of complex numbers that have no imaginary part, float32."""
    values = np.asarray(image.dataobj)
    if values.imag.any():
        raise CaseError(f"{name} holds complex numbers, not one value a voxel; give their magnitude.")
    return values.real.astype(np.float32)


class LoadVolume(LoadImage):
    """MONAI's `LoadImage` with one reader for each format, and every failure as a `CaseError`.

    nibabel reads NIfTI, Analyze and MGZ, ITK everything else: of MONAI's readers that take an NRRD file only ITK's
    heeds all values of the header's `space`. A list is the files of one DICOM series, and a folder has to hold one; the
    MetaTensor's meta then has the files as `dicom_files` and its UID as `series_uid`, `filename_or_obj` is the first of
    them; where the places of its slices were corrected, `corrected` tells it in words, and `acquired_places` where they
    lie along the third axis, in voxels. Of a file, `doubt` tells in words what in its header contradicts where it was
    taken to lie, and `unplaced` is there where the header does not say it at all.
    """

    def __call__(self, filename: Any, reader: Any = None) -> Any:
        """Path, or paths of a series -> float32 MetaTensor (H, W, Z) or (H, W, Z, C), affine in RAS+ mm.

        `reader` is as in MONAI, and heeded for a path alone.

        Raises:
            CaseError: no such file, not a format that is read, truncated or damaged, colours or vectors; of a series,
                what `stack_of_files` and `convert` raise.
        """
        if isinstance(filename, list | tuple):
            return self._read_dicom([os.fspath(name) for name in filename])
        if not os.fspath(filename):  # a path of nothing would be the working directory
            raise CaseError("There is no image of that name; check it.")
        path = Path(os.fspath(filename)).expanduser()
        if reader is None and path.is_dir():
            return self._read_dicom([str(file) for file in only_volume(path).files])
        _check_there(path)
        try:
            if reader is None:
                reader = _reader_of(path)
            loaded = super().__call__(str(path), reader)
            _note_placement(loaded if self.image_only else loaded[0], reader, path)
            return loaded
        except CaseError:
            raise
        except Exception as error:
            raise CaseError(machine_reason(error, path.name) or _unreadable(path, error)) from error

    def _read_dicom(self, files: list[str]) -> Any:
        with temporary_folder() as folder:
            path = folder / "volume.nii"
            try:
                series = stack_of_files([Path(file) for file in files])
                if series.stack is not None:
                    check_size((*series.stack.shape, series.slices), "The DICOM series")
                corrected = convert(series, path)
            except CaseError:
                raise
            except Exception as error:  # its message may hold a folder's name
                refused, kind = machine_reason(error, "a DICOM series"), type(error).__name__
                logger.error(f"A DICOM series cannot be read: {kind} ({place_of(error)}).")
                raise CaseError(refused or f"A DICOM series cannot be read ({kind}); export it again.") from None
            loaded = super().__call__(str(path), _PlacedReader())
        volume = loaded if self.image_only else loaded[0]
        volume.meta |= {"filename_or_obj": files[0], "dicom_files": files, "series_uid": series.uid}
        if series.doubt is not None:
            logger.warning(f"{file_name(volume)}: {series.doubt}")
        if corrected is not None:
            volume.meta["corrected"] = corrected
            volume.meta["acquired_places"] = _places(series.stack, volume)
            logger.info(f"{file_name(volume)}: corrected {corrected}")
        return loaded


def _places(stack: Stack, volume: MetaTensor) -> list[float]:
    """Where the slices of a stack lie along the third axis of the even volume that was made of them, in voxels."""
    heights = stack.positions @ stack.normal
    return ((heights - heights[0]) / np.linalg.norm(np.asarray(volume.affine)[:3, 2])).tolist()


def _check_there(path: Path) -> None:
    """Refuse what is no file; a pipe would wait for somebody to write into it."""
    if path.is_symlink() and not path.exists():
        raise CaseError(
            f"{path.name} is a link to a file that is not there; mend it, or fetch the file (datalad get, git annex "
            "get)."
        )
    if not path.exists():
        raise CaseError(f"{path.name} is not there; check the path.")
    if not (path.is_file() or path.is_dir()):
        raise CaseError(f"{path.name} is no file but a pipe or a device; give the volume as a file.")


def _reader_of(path: Path) -> NibabelReader | ITKReader:
    """The reader of a file: by what it holds, and where that is neither NIfTI nor MGH by its suffix."""
    is_known = path.name.lower().endswith(NIBABEL_SUFFIXES) or check_content(path) is not None
    return _PlacedReader() if is_known else _itk_reader(path)


def _itk_reader(path: Path) -> ITKReader:
    """A reader of float32, whatever scalar the file holds; asked for another type, ITK would turn colours grey."""
    file = itk.ImageIOFactory.CreateImageIO(str(path), itk.CommonEnums.IOFileMode_ReadMode)
    if file is not None:
        file.SetFileName(str(path))
        file.ReadImageInformation()
        if file.GetNumberOfComponents() > 1:
            raise CaseError(_coloured(path.name))
        check_size([file.GetDimensions(axis) for axis in range(file.GetNumberOfDimensions())], path.name)
    return ITKReader(pixel_type=itk.F)


def _note_placement(volume: MetaTensor, reader: Any, path: Path) -> None:
    """What the meta of a volume tells of its place, as far as there is something to tell."""
    if isinstance(reader, _PlacedReader):
        if reader.placement.doubt is not None:
            volume.meta["doubt"] = reader.placement.doubt
        placed = reader.placement.code > 0
    else:
        placed = not isinstance(reader, ITKReader) or _itk_placed(path)
    if not placed:
        volume.meta["unplaced"] = True


def _itk_placed(path: Path) -> bool:
    """Whether the text header of an NRRD or MetaImage says how its axes lie in the patient.

    ITK takes L, P, S where it does not, and for NRRD's other spaces, `scanner-xyz` and `3D-left-handed` among them.
    """
    with path.open("rb") as file:
        header = file.read(65536).split(b"\n\n")[0].lower()
    is_nrrd = header.startswith(b"nrrd")
    names = (_PATIENTS_SPACE, rb"space directions:") if is_nrrd else (rb"transformmatrix", rb"orientation")
    found = [re.search(rb"^" + name, header, re.MULTILINE) is not None for name in names]
    return all(found) if is_nrrd else any(found)


def _coloured(name: str) -> str:
    return f"{name} holds colours or vectors, not one value a voxel; give the scan itself, not a rendering of it."


def _unreadable(path: Path, error: Exception) -> str:
    """The readers' many ways to fail, as a sentence without folders, whose names may be a patient's."""
    # ITK begins with a line of its own source and the reader's address in memory
    message = re.sub(r"^.*(ITK ERROR|itk::ERROR): (\w+\(0x\w+\): )?", "", " ".join(str(error).split()))
    for folder in (path.parent, path.parent.absolute(), path.parent.resolve()):  # of the file, and those read with it
        message = message.replace(f"{folder}{os.sep}", "")
    what = message[:120] or type(error).__name__
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


def tell_doubt(volume: MetaTensor) -> None:
    """Warn where the header of a volume's file contradicts itself, or does not say how its axes lie."""
    if doubt := volume.meta.get("doubt"):
        logger.warning(f"{file_name(volume)} contradicts itself: {doubt}.")
    if volume.meta.get("unplaced"):
        logger.warning(f"{file_name(volume)} does not say how its axes lie, so that left and right are a guess.")


def read_volume(path: Any, *steps: Callable[[dict], dict], name: str | os.PathLike | None = None) -> nib.Nifti1Image:
    """Read one volume for work outside MONAI's pipelines.

    Args:
        path: a file, a folder of DICOM or the files of one series, as `LoadVolume` takes them.
        steps: dictionary transforms with the key "image" that the volume, (1, H, W, Z), passes in turn: its checks,
            such as `CheckVolumed("image")`, and `WindowToHUd("image", window)`.
        name: what the sentences of errors call it, where that is not the file.

    Returns:
        (H, W, Z) float32 with axes nearest to R, A, S.

    Raises:
        CaseError: it cannot be read or is not one volume of one channel; what the steps raise.
    """
    data = {"image": EnsureChannelFirst()(LoadVolume()(path))}
    if name is not None:
        data["image"].meta["filename_or_obj"] = os.fspath(name)
    tell_doubt(data["image"])
    for step in steps:
        data = step(data)
    volume = data["image"]
    while volume.ndim > 4 and volume.shape[-1] == 1:
        volume = volume.squeeze(-1)
    if volume.ndim != 4 or volume.shape[0] != 1:
        raise CaseError(f"{file_name(volume)} is not one 3D volume (shape {tuple(volume.shape)}); give one volume.")
    image = Orientation(axcodes="RAS", labels=None)(volume)
    array = np.ascontiguousarray(image[0].numpy(), dtype=np.float32)
    return nib.Nifti1Image(array, np.asarray(image.affine, dtype=np.float64))
