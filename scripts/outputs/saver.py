"""What a translated case leaves on disk: the volume, what it was made from, and a picture."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import SaveImaged

from ..dicom.series import patient_of, series_folder, series_name, series_record
from ..errors import CaseError
from ..files import sha256_of_file
from ..transforms.checks import value_range
from ..volumes.load import file_name
from .measures import UNKNOWN_ORIENTATION, case_warnings
from .picture import three_planes

__all__ = ["SaveSyntheticd", "nifti_like"]

logger = logging.getLogger(__name__)

# the fields of a NIfTI header that say where a voxel lies; nothing else is copied, since text fields may hold names
GEOMETRY_FIELDS = (
    *("qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("sform_code", "srow_x", "srow_y", "srow_z", "xyzt_units"),
)


class SaveSyntheticd(SaveImaged):
    """Writes `CASE_t1.nii.gz`, `CASE_t1.png` and `CASE_t1.json` into one folder, the JSON last.

    Each is written under a temporary name in that folder and renamed, so that a file under its own name is whole, and
    a JSON there means that all three are. CASE is the item `case` of the dictionary, else the source's file name.
    The item `batch_size_used`, where there is one, goes into the JSON.

    The volume is float32 on the source's own grid: a NIfTI source gives its sform, qform and both codes, any other its
    affine with the code "scanner". No text of the source's header is copied.

    With `dicom`, a folder `CASE_t1_dicom` is written beside them, whole or not at all, with whatever patient's names
    the source's headers hold; the JSON counts its files.

    Args:
        keys: key of the synthetic volume, (1, H, W, Z), [0, 1], on the source's grid.
        source_key: key of the source volume as loaded, (1, H, W, Z), shown beside it; its file is what the JSON names.
        mask_key: key of the brain mask, if there is one; the JSON says where it came from (`skull_strip` of its meta).
        output_dir: the folder, made where it is not there.
        suffix: what follows CASE in the names.
        source_window: lowest and highest value of the source in the picture, in its unit (HU); None for MRI.
        source_contrast: what the source is, over its picture.
        record: what every volume of this run was made with; goes into the JSON, and decides what counts as done.
        notes: what else the JSON tells of this run; it does not decide what counts as done.
        source_root: folder below which the JSON names the source file; without it, by the file's name alone.
        keep_names: name the folder and the patient of a DICOM source in the JSON, which has its UIDs without it.
        measures: such as `CaseMeasures`: given the dictionary, returns what goes into the JSON as `measured`; the log
            tells what is odd about it.
        dicom: such as `scripts.dicom.output.DicomSeriesWriter`: given the written NIfTI, the source volume, the record
            and a folder to make, writes DICOM files there; what it returns goes into the JSON as `dicom`.
        allow_missing_keys: no error where a key is missing.

    Raises:
        CaseError: the synthetic volume is not finite.
    """

    def __init__(
        self,
        keys: KeysCollection = "pred",
        source_key: str = "source",
        mask_key: str = "mask",
        output_dir: Any = "./output",
        suffix: str = "_t1",
        source_window: tuple[float, float] | None = (0.0, 80.0),
        source_contrast: str = "CT",
        record: Mapping[str, Any] | None = None,
        notes: Mapping[str, Any] | None = None,
        source_root: Any = None,
        keep_names: bool = False,
        measures: Callable[[Mapping[Hashable, Any]], dict[str, float]] | None = None,
        dicom: Callable[[nib.Nifti1Image, Any, Mapping[str, Any], Path], dict[str, Any]] | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(
            keys,
            output_dir=str(output_dir),
            separate_folder=False,
            print_log=False,
            allow_missing_keys=allow_missing_keys,
        )
        self.source_key = source_key
        self.mask_key = mask_key
        self.output_dir = Path(str(output_dir)).expanduser()
        self.suffix = suffix
        self.source_window = source_window
        self.source_contrast = source_contrast
        self.record = dict(record or {})
        self.notes = dict(notes or {})
        self.source_root = None if source_root is None else Path(str(source_root)).expanduser()
        self.keep_names = keep_names
        self.measures = measures
        self.dicom = dicom

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Save the volume at each key; the dictionary comes back unchanged."""
        d = dict(data)
        for key in self.key_iterator(d):
            measured = None if self.measures is None else self.measures({**d, "synthetic": d[key]})
            self._save(
                d[key], d[self.source_key], d.get("case"), d.get(self.mask_key), measured, d.get("batch_size_used")
            )
        return d

    def _save(
        self,
        synthetic: MetaTensor,
        source: MetaTensor,
        case: str | None,
        mask: Any,
        measured: dict | None,
        batch_size_used: int | None,
    ) -> None:
        source_file = Path(source.meta["filename_or_obj"])
        source_files = source.meta.get("dicom_files") or source_file
        if not np.isfinite(value_range(synthetic)).all():
            raise CaseError(
                f"The synthetic image of {file_name(source)} has voxels that are NaN or infinite and was not saved; "
                "use dtype float32 or bfloat16, and check the weights."
            )
        stem = (case or source_file.name.split(".")[0]) + self.suffix
        image = nifti_like(synthetic[0], source_file, np.asarray(source.meta["original_affine"], dtype=np.float64))
        working = self.output_dir / f".{stem}.partial"
        shutil.rmtree(working, ignore_errors=True)
        working.mkdir(parents=True)
        try:
            write_nifti(image, working / f"{stem}.nii.gz")
            titles = (f"source {self.source_contrast}", "synthetic T1")
            picture = three_planes(source[0], synthetic[0], source.affine, self.source_window, titles)
            picture.save(working / f"{stem}.png")
            record = {
                **self.record,
                **self.notes,
                "source": self._source_record(source_files),
                "grid": _grid_record(image),
            }
            if source.meta.get("corrected"):
                record["grid"]["corrected"] = source.meta["corrected"]
            if isinstance(mask, MetaTensor):
                record["mask_from"] = mask.meta.get("skull_strip")
            if measured is not None:
                record["measured"] = measured
            if batch_size_used is not None:  # no setting: it does not decide what counts as done
                record["batch_size_used"] = batch_size_used
            if self.dicom is not None:
                record["dicom"] = self.dicom(image, source, self.record, working / f"{stem}_dicom")
            for warning in case_warnings(record):
                logger.warning(f"{file_name(source)}: {warning}")
            (working / f"{stem}.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
            # an older JSON must not vouch for newer files, nor an older series stay beside them
            replaced = self.dicom is not None or "dicom" in self._made(stem)
            (self.output_dir / f"{stem}.json").unlink(missing_ok=True)
            for suffix in (".nii.gz", ".png"):
                os.replace(working / f"{stem}{suffix}", self.output_dir / f"{stem}{suffix}")
            if replaced:
                with contextlib.suppress(FileNotFoundError):
                    os.replace(self.output_dir / f"{stem}_dicom", working / "replaced")
            if self.dicom is not None:
                os.replace(working / f"{stem}_dicom", self.output_dir / f"{stem}_dicom")
            os.replace(working / f"{stem}.json", self.output_dir / f"{stem}.json")
        finally:
            shutil.rmtree(working, ignore_errors=True)

    def is_done(self, item: Mapping[str, Any]) -> bool:
        """Whether the files of a case (`image`: its path or paths, `case`: CASE) are there, made alike of the same."""
        stem = item["case"] + self.suffix
        made = self._made(stem)
        alike = all(made.get(key) == value for key, value in json.loads(json.dumps(self.record)).items())
        whole = all((self.output_dir / f"{stem}{suffix}").is_file() for suffix in (".nii.gz", ".png"))
        if self.dicom is not None:
            written = sum(1 for _ in (self.output_dir / f"{stem}_dicom").glob("*.dcm"))
            whole = whole and written > 0 and made.get("dicom", {}).get("files") == written
        try:
            return alike and whole and made.get("source") == self._source_record(item["image"])
        except CaseError:  # told when the case is loaded
            return False

    def _made(self, stem: str) -> dict[str, Any]:
        """What the JSON of a case says; empty where there is none."""
        try:
            made = json.loads((self.output_dir / f"{stem}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return made if isinstance(made, dict) else {}

    def remove_partial(self) -> None:
        """Remove what a killed run left under temporary names."""
        for folder in self.output_dir.glob(f".*{self.suffix}.partial"):
            shutil.rmtree(folder, ignore_errors=True)

    def source_name(self, source: str | os.PathLike | list[str]) -> str:
        """How records name a source file: its path below `source_root`, or its bare name; a DICOM series by its UID.

        With `keep_names` a series is named by its folder, as a file is.
        """
        if isinstance(source, list):
            return series_folder(source, self.source_root) if self.keep_names else series_name(source)
        source_file = Path(source)
        if self.source_root is not None and self.source_root in source_file.parents:
            return source_file.relative_to(self.source_root).as_posix()
        return source_file.name

    def _source_record(self, source: str | os.PathLike | list[str]) -> dict[str, Any]:
        if not isinstance(source, list):
            return {"file": self.source_name(source), "sha256": sha256_of_file(source)}
        record = series_record(source)
        if self.keep_names:
            record = {"file": self.source_name(source), **record, **patient_of(source[0])}
        return record


class _RunLengthGzip(io.RawIOBase):
    """A gzip file, written only, that is the same for the same bytes.

    Of its matches zlib looks for runs alone: interpolated brains hold no others, and the background is one run. That
    takes half the time of gzip's quickest level, and the file is 2 % smaller.
    """

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file
        self._deflate = zlib.compressobj(1, zlib.DEFLATED, 16 + zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_RLE)
        self._written = 0

    def write(self, data: bytes) -> int:
        self._file.write(self._deflate.compress(data))
        self._written += len(data)
        return len(data)

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        """Forwards only, over zeros."""
        self.write(bytes(position - self._written))
        return position

    def tell(self) -> int:
        return self._written

    def close(self) -> None:
        if not self.closed:
            self._file.write(self._deflate.flush())
        super().close()


def write_nifti(image: nib.Nifti1Image, path: Path) -> None:
    """Write an image as .nii.gz."""
    with open(path, "wb") as file, _RunLengthGzip(file) as packed:
        image.to_stream(packed)


def nifti_like(volume: torch.Tensor, source_file: Path, affine: np.ndarray) -> nib.Nifti1Image:
    """A float32 NIfTI of (H, W, Z) voxels that lies exactly where the source lies.

    Args:
        volume: the voxels, in the order of the source's.
        source_file: where a NIfTI source's sform, qform and codes are taken from.
        affine: voxel to RAS+ mm, for a source of another format; written as sform and qform with code 1.
    """
    array = np.asarray(torch.as_tensor(volume).detach().cpu(), dtype=np.float32)
    image = nib.Nifti1Image(array, affine)
    if source_file.name.lower().endswith((".nii", ".nii.gz")):
        header = nib.load(source_file).header
        image = nib.Nifti1Image(array, None)
        for field in GEOMETRY_FIELDS:
            image.header[field] = header[field]
        image.header["pixdim"][:4] = header["pixdim"][:4]
    else:
        image.set_sform(affine, code=1)
        image.set_qform(affine, code=1)
        image.header.set_xyzt_units("mm")
    image.header["cal_max"] = 1.0
    return image


def _grid_record(image: nib.Nifti1Image) -> dict[str, Any]:
    """Voxels and edges (mm) of the written grid, and whether its file says which side is left."""
    known = int(image.header["qform_code"]) > 0 or int(image.header["sform_code"]) > 0
    return {
        "voxels": list(image.shape),
        "spacing_mm": [round(float(edge), 6) for edge in image.header.get_zooms()],
        "orientation": "as in the source's header" if known else UNKNOWN_ORIENTATION,
    }
