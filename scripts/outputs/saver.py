"""What a translated case leaves on disk: the volume, what it was made from, and a picture."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import SaveImaged
from PIL import Image

from ..contrasts import CONTRASTS, contrast_ending, contrast_named, contrasts_in
from ..errors import CaseError
from ..files import is_old, is_temporary, longest_name, move, remove, temporary_name, writing_into
from ..transforms.checks import value_range
from ..transforms.sparse import AcquiredSlices, nearest_slices
from ..volumes.load import file_name
from .measures import case_warnings
from .nifti import nifti_like, nifti_on_grid, write_nifti
from .picture import UNCERTAINTY_WINDOW, three_planes
from .record import SourceRecorder, case_record

__all__ = ["SaveSyntheticd", "remove_old_working_folders"]

logger = logging.getLogger(__name__)

UNCERTAINTY_ENDING = "_uncertainty.nii.gz"
WATCH_ENDING = "_watch.nii.gz"
DENSE_ENDING = "_dense.nii.gz"
ALIGNED = 2
"""NIfTI's code of a space that is only known to be another image's."""
BESIDE_ENDINGS = (UNCERTAINTY_ENDING, WATCH_ENDING, DENSE_ENDING)


@dataclass(frozen=True, eq=False)
class _CaseOutputs:
    """What is written of a case.

    Attributes:
        stem: what the names of its files begin with.
        source: the volume it was made from, as loaded.
        image: the synthetic volume.
        picture: both side by side.
        record: of the JSON.
        beside: further volumes by the ending of their files: the standard deviation of the synthetic one, where there
            is one, the marks of the lesion watch, where there are any, and the dense volume of a sparse scan.
    """

    stem: str
    source: MetaTensor
    image: nib.Nifti1Image
    picture: Image.Image
    record: dict[str, Any]
    beside: Mapping[str, nib.Nifti1Image]


class SaveSyntheticd(SaveImaged):
    """Writes `CASE_t1.nii.gz`, `CASE_t1.png` and `CASE_t1.json` into one folder, the JSON last; `_t1` is the contrast.

    Each is written under a temporary name in that folder and renamed, so that a file under its own name is whole, and
    a JSON there means that all three are. CASE is the item `case` of the dictionary, else the source's file name.
    The item `batch_size_used`, where there is one, goes into the JSON.

    The volume is float32 on the source's own grid: a NIfTI source gives its sform, qform and both codes, any other its
    affine with the code "scanner". No text of the source's header is copied.

    A second channel of the volume is its uncertainty and becomes `CASE_t1_uncertainty.nii.gz`, on the same grid, and a
    further column of the picture.

    Where the lesion watch found something (items `watch` and `lesion_watch` of `LesionWatchd`), its marks are written
    as `CASE_t1_watch.nii.gz`, uint8, and outlined in the picture, which then shows the largest finding. The findings
    go into the JSON.

    Where a sparse scan was translated to a dense grid (item `dense` of `DenseVolumed`), that volume is written as
    `CASE_t1_dense.nii.gz`; it is shown in the picture and becomes the DICOM series, and the JSON has it as `sparse`.

    Of a case made from several contrasts (`RegisterContrastsd`) the source is their reference, and the JSON names all
    of them (`contrasts_used`, `sources`, `registered`, `seen`); made from others or other files, it is made anew, and
    so it is with another lesion mask (`lesion_mask`), or with one where there was none, or the reverse.

    With `dicom`, a folder `CASE_t1_dicom` is written beside them, whole or not at all, with whatever patient's names
    the source's headers hold; the JSON counts its files.

    Args:
        keys: key of the synthetic volume, (1, H, W, Z), [0, 1], on the source's grid; with a second channel, its
            uncertainty, in the same unit.
        source_key: key of the source volume as loaded, (1, H, W, Z), shown beside it; its file is what the JSON names.
        input_key: key of what the network was given, if it is there; its meta tells whether other people's slices were
            used (`RetrieveReferencesd`).
        mask_key: key of the brain mask, if there is one; the JSON says where it came from (`skull_strip` and
            `mask_sha256` of its meta).
        output_dir: the folder, made where it is not there.
        source_window: lowest and highest value of the source in the picture, in its unit (HU); None for MRI.
        source_contrast: what the source is, over its picture; the `contrast` of the source's meta comes before it.
        target_contrast: what is made, in any spelling of `contrast_named`: over its picture, in the names of its
            files (`_t1`, `_flair`) and in the record.
        record: what every volume of this run was made with; goes into the JSON with `target_contrast`, and decides what
            counts as done.
        sampling: settings of the inferer (`UncertaintyInferer.settings`); part of the record. `uncertainty` there means
            that the volumes have a second channel.
        notes: what else the JSON tells of this run; it does not decide what counts as done.
        source_root: folder below which the JSON names the source file; without it, by the file's name alone.
        keep_names: name the folder and the patient of a DICOM source in the JSON, which has its UIDs without it.
        measures: such as `CaseMeasures`: given the dictionary, returns what goes into the JSON as `measured`; the log
            tells what is odd about it.
        dicom: such as `scripts.dicom.output.DicomSeriesWriter`: given the written NIfTI, the source volume, the record
            and a folder to make, writes DICOM files there; what it returns goes into the JSON as `dicom`.
        lesion_mask_of: such as `LesionMaskd.path_of`: given CASE, returns the file of its lesion mask, or None.
        brain_mask_of: such as `MaskFiles`: given the path or paths of a case and CASE, returns the file of its brain
            mask, or None; made with another one, it is made anew.
        allow_missing_keys: no error where a key is missing.

    Raises:
        CaseError: a contrast of that name does not exist; in a call, the synthetic volume is not finite.
    """

    def __init__(
        self,
        keys: KeysCollection = "pred",
        source_key: str = "source",
        input_key: str = "image",
        mask_key: str = "mask",
        output_dir: Any = "./output",
        source_window: tuple[float, float] | None = (0.0, 80.0),
        source_contrast: str = "CT",
        target_contrast: str = "T1",
        record: Mapping[str, Any] | None = None,
        sampling: Mapping[str, Any] | None = None,
        notes: Mapping[str, Any] | None = None,
        source_root: Any = None,
        keep_names: bool = False,
        measures: Callable[[Mapping[Hashable, Any]], dict[str, float]] | None = None,
        dicom: Callable[[nib.Nifti1Image, Any, Mapping[str, Any], Path], dict[str, Any]] | None = None,
        lesion_mask_of: Callable[[str], Path | None] | None = None,
        brain_mask_of: Callable[[Any, str], Path | None] | None = None,
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
        self.input_key = input_key
        self.mask_key = mask_key
        self.output_dir = Path(str(output_dir)).expanduser()
        self.source_window = source_window
        self.source_contrast = source_contrast
        self.target_contrast = contrast_named(target_contrast)
        self.suffix = contrast_ending(self.target_contrast)
        self.record = {**(record or {}), **(sampling or {}), "target_contrast": self.target_contrast}
        self.notes = dict(notes or {})
        root = None if source_root is None else Path(str(source_root)).expanduser()
        self.source_recorder = SourceRecorder(root, keep_names)
        self.measures = measures
        self.dicom = dicom
        self.lesion_mask_of = lesion_mask_of
        self.brain_mask_of = brain_mask_of

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Save the volume at each key; the dictionary comes back unchanged."""
        d = dict(data)
        for key in self.key_iterator(d):
            self._save(self._build(d, d[key]))
        return d

    def _build(self, data: Mapping[Hashable, Any], synthetic: MetaTensor) -> _CaseOutputs:
        """What is to be written of a case, as far as it is made in memory."""
        source = data[self.source_key]
        if not np.isfinite(value_range(synthetic)).all():
            raise CaseError(
                f"The synthetic image of {file_name(source)} has voxels that are NaN or infinite and was not saved; "
                "use dtype float32 or bfloat16, and check the weights."
            )
        source_file = Path(source.meta["filename_or_obj"])
        affine = np.asarray(source.meta["original_affine"], dtype=np.float64)
        code = ALIGNED if source.meta.get("unplaced") else 1  # which claims no more than the source says
        image, *others = (nifti_like(channel, source_file, affine, code=code) for channel in synthetic)
        measured = {**data, "synthetic": synthetic[:1], **({"uncertainty": synthetic[1:]} if others else {})}
        beside = {}
        for other in others:
            other.header["cal_max"] = UNCERTAINTY_WINDOW[1]
            beside[UNCERTAINTY_ENDING] = other
        if "watch" in data:
            beside[WATCH_ENDING] = nifti_like(data["watch"][0], source_file, affine, np.uint8, 2, code)
        if "dense" in data:
            beside[DENSE_ENDING] = self._dense_image(data["dense"], source, image)
        return _CaseOutputs(
            stem=(data.get("case") or source_file.name.split(".")[0]) + self.suffix,
            source=source,
            image=image,
            picture=self._picture(source, synthetic, data),
            record=case_record(
                {**self._settings(source.meta.get("contrast")), **self.notes},
                self.source_recorder.record(source.meta.get("dicom_files") or source_file),
                image,
                meta=source.meta,
                mask=data.get(self.mask_key),
                measured=None if self.measures is None else self.measures(measured),
                batch_size_used=data.get("batch_size_used"),
                lesion_watch=data.get("lesion_watch"),
                sparse=_sparse_record(source, data.get("dense")),
                references=_references_record(data.get(self.input_key)),
                contrasts=self._contrasts_record(source.meta),
            ),
            beside=beside,
        )

    def _settings(self, contrast: str | None) -> dict[str, Any]:
        """What a case is made with, whose source is of this contrast where cases differ in it."""
        return {**self.record, "source_contrast": contrast} if contrast else self.record

    def _contrasts_record(self, meta: Mapping[str, Any]) -> dict[str, Any] | None:
        """What the JSON says of several contrasts, from the meta of the reference (`RegisterContrastsd`)."""
        if "contrasts" not in meta:
            return None
        contrasts = meta["contrasts"]
        moved = {name: round(float(told["moved_mm"]), 2) for name, told in contrasts.items()}
        lesion = {"lesion_mask": dict(meta["lesion_mask"])} if "lesion_mask" in meta else {}
        return {
            **lesion,
            "contrasts_used": [name for name, told in contrasts.items() if told.get("used", True)],
            "seen": {name: round(float(told["seen"]), 4) for name, told in contrasts.items() if "seen" in told},
            "sources": {name: self.source_recorder.record(files) for name, files in meta["contrast_files"].items()},
            "registered": {name: {"to": meta["contrast"], "moved_mm": way} for name, way in moved.items() if way >= 0},
        }

    def _dense_image(self, dense: MetaTensor, source: MetaTensor, image: nib.Nifti1Image) -> nib.Nifti1Image:
        """The dense volume of a sparse scan, which claims no more of its place than the image beside it does."""
        code = int(image.header["sform_code"]) or int(image.header["qform_code"]) or ALIGNED
        made = nifti_on_grid(dense[0], dense.affine, code)
        gap = round(AcquiredSlices.of(source).gap_mm, 1)
        said = f"sparse {self.source_contrast}, gaps of {gap:g} mm: slices between are inferred"
        made.header["descrip"] = said.encode()
        return made

    def _picture(self, source: MetaTensor, synthetic: MetaTensor, data: Mapping[Hashable, Any]) -> Image.Image:
        """Source, synthetic image and, where there is one, its uncertainty; marks are outlined in each."""
        marks, dense = data.get("watch"), data.get("dense")
        contrast = source.meta.get("contrast", self.source_contrast)
        window = self.source_window if contrast in ("CT", self.source_contrast) else None
        titles = (f"source {contrast}", f"synthetic {self.target_contrast}")
        affine = source.affine
        if dense is not None:
            gap = round(AcquiredSlices.of(source).gap_mm, 1)
            others = (_references_record(data.get(self.input_key)) or {}).get("found")
            how = "others' slices" if others else "inferred between"
            titles = (f"{titles[0]}, gaps of {gap:g} mm", f"{titles[1]}, {how}")
            marks = None if marks is None else nearest_slices(marks, dense)
            source, synthetic, affine = nearest_slices(source, dense), dense, dense.affine
        more = {}
        if len(synthetic) > 1:
            low, high = UNCERTAINTY_WINDOW
            titles, more = (*titles, f"uncertainty, {low:g} to {high:g}"), {"uncertainty": synthetic[1]}
        shown = None if marks is None else marks[0]
        return three_planes(source[0], synthetic[0], affine, titles, window, marks=shown, **more)

    def _save(self, outputs: _CaseOutputs) -> None:
        """Write the files of a case, all of them or none."""
        # its name tells which process it is of: others may be at work in this folder
        working = temporary_name(self.output_dir / "case")
        shutil.rmtree(working, ignore_errors=True)
        with writing_into(self.output_dir):
            working.mkdir(parents=True)
            try:
                self._stage(outputs, working)
                self._commit(outputs.stem, working)
            finally:
                shutil.rmtree(working, ignore_errors=True)

    def _stage(self, outputs: _CaseOutputs, working: Path) -> None:
        """Write the files into a folder of their own."""
        start, record = working / outputs.stem, dict(outputs.record)
        write_nifti(outputs.image, Path(f"{start}.nii.gz"))
        for ending, volume in outputs.beside.items():
            write_nifti(volume, Path(f"{start}{ending}"))
        outputs.picture.save(f"{start}.png")
        if self.dicom is not None:
            dense = outputs.beside.get(DENSE_ENDING)
            settings = {
                **self.record,
                **{key: record[key] for key in ("references", "source_contrast") if key in record},
            }
            if dense is not None:
                settings["sparse"] = record["sparse"]
            record["dicom"] = self.dicom(dense or outputs.image, outputs.source, settings, Path(f"{start}_dicom"))
        for warning in case_warnings(record):
            logger.warning(f"{file_name(outputs.source)}: {warning}")
        Path(f"{start}.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    def _commit(self, stem: str, working: Path) -> None:
        """Move staged files to their own names.

        An older JSON must not vouch for newer files, nor an older series stay beside them: killed at any moment, what
        is there is the case as it was, or no case with a JSON, or the new one. What a killed run left has no JSON that
        would tell of its series, which is known by its files; another folder of that name is somebody else's.
        """
        series = self.output_dir / f"{stem}_dicom"
        replaced = self.dicom is not None or "dicom" in self._made(stem) or _is_series(series)
        (self.output_dir / f"{stem}.json").unlink(missing_ok=True)
        for ending in BESIDE_ENDINGS:
            (self.output_dir / f"{stem}{ending}").unlink(missing_ok=True)
        for ending in (".nii.gz", ".png", *BESIDE_ENDINGS):
            if (working / f"{stem}{ending}").is_file():
                move(working / f"{stem}{ending}", self.output_dir / f"{stem}{ending}")
        if replaced:
            with contextlib.suppress(FileNotFoundError):
                move(series, working / "replaced")
        if self.dicom is not None:
            move(working / f"{stem}_dicom", series)
        move(working / f"{stem}.json", self.output_dir / f"{stem}.json")

    def name_problem(self, case: str) -> str | None:
        """Why the files of a case cannot have their names, told before it is translated; None where they can."""
        longest = len(os.fsencode(f"{case}{self.suffix}{UNCERTAINTY_ENDING}"))
        allowed = longest_name(self.output_dir)
        if longest <= allowed:
            return None
        return (
            f"The names of its files would have {longest} bytes, and the disk of output_dir allows {allowed}, because "
            "CASE joins the names of the folders and of the file; shorten these names, or give a folder further down "
            "as dataset_dir."
        )

    def is_done(self, item: Mapping[str, Any]) -> bool:
        """Whether the files of a case (`image`: its path or paths, `case`: CASE) are there, made alike of the same."""
        stem = item["case"] + self.suffix
        # records from before the target was a setting do not name it; it was T1
        made = {"target_contrast": "T1", **self._made(stem)}
        several = contrasts_in(item)
        first = next((name for name, image in several.items() if image == item["image"]), None)
        wanted = {"uncertainty": None, **json.loads(json.dumps(self._settings(first)))}
        alike = all(made.get(key) == value for key, value in wanted.items())
        beside = {
            UNCERTAINTY_ENDING: wanted["uncertainty"],
            WATCH_ENDING: made.get("lesion_watch"),
            DENSE_ENDING: (made.get("sparse") or {}).get("voxels"),
        }
        # a dense volume belongs to a run that makes one
        alike = alike and ("output_spacing_mm" in wanted or not beside[DENSE_ENDING])
        endings = (".nii.gz", ".png", *(ending for ending, is_made in beside.items() if is_made))
        whole = all((self.output_dir / f"{stem}{ending}").is_file() for ending in endings)
        if self.dicom is not None:
            written = sum(1 for _ in (self.output_dir / f"{stem}_dicom").glob("*.dcm"))
            whole = whole and written > 0 and made.get("dicom", {}).get("files") == written
        try:
            sources = {name: self.source_recorder.record(image) for name, image in several.items()}
            alike = alike and (made.get("sources") or {}) == sources
            alike = alike and made.get("mask_sha256") == self._brain_mask_sha256(item)
            alike = alike and (made.get("lesion_mask") or {}).get("sha256") == self._lesion_mask_sha256(item["case"])
            return alike and whole and made.get("source") == self.source_recorder.record(item["image"])
        except CaseError:  # the reason is given when the case is loaded
            return False

    def has_record(self, item: Mapping[str, Any]) -> bool:
        """Whether a case has a JSON, of whatever it was made."""
        return bool(self._made(item["case"] + self.suffix))

    def _brain_mask_sha256(self, item: Mapping[str, Any]) -> str | None:
        path = None if self.brain_mask_of is None else self.brain_mask_of(item["image"], item["case"])
        return None if path is None else self.source_recorder.record(path)["sha256"]

    def _lesion_mask_sha256(self, case: str) -> str | None:
        path = None if self.lesion_mask_of is None else self.lesion_mask_of(case)
        return None if path is None else self.source_recorder.record(path)["sha256"]

    def _made(self, stem: str) -> dict[str, Any]:
        """The record in the JSON of a case; empty where there is none."""
        try:
            made = json.loads((self.output_dir / f"{stem}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return made if isinstance(made, dict) else {}

    def source_name(self, source: str | os.PathLike | list[str]) -> str:
        """How records name a source file or series; see `SourceRecorder`."""
        return self.source_recorder.name(source)


def _is_series(folder: Path) -> bool:
    """Whether a folder holds the files of a series as they are written, `0001.dcm` and so on, and nothing else."""
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return bool(names) and names == [f"{number:04d}.dcm" for number in range(1, len(names) + 1)]


def remove_old_working_folders(output_dir: Path) -> None:
    """Remove what killed runs of older versions left in an output folder, `.CASE_t1.partial`, a day after.

    Their names do not say whose they are, as those that `remove_remains` removes do; such a run may be at work.
    """
    for contrast in CONTRASTS:
        for path in output_dir.glob(f".*{contrast_ending(contrast)}.partial"):
            if path.is_dir() and not is_temporary(path.name) and is_old(path):
                remove(path)


def _sparse_record(source: MetaTensor, dense: MetaTensor | None) -> dict[str, Any] | None:
    """What the JSON says of a sparse scan: its gaps, and where there is a dense volume, the grid of that."""
    acquired = AcquiredSlices.of(source)
    if not acquired.is_sparse():
        return None
    record: dict[str, Any] = {"gap_mm": round(acquired.gap_mm, 3)}
    if dense is not None:
        edge = np.linalg.norm(np.asarray(dense.affine, dtype=np.float64)[:3, acquired.axis])
        record |= {"spacing_mm": round(float(edge), 6), "voxels": list(dense.shape[1:])}
    return record


def _references_record(image: Any) -> dict[str, Any] | None:
    """At how many missing slices other people's were used, out of how many, and how similar they had to be."""
    told = image.meta.get("references") if isinstance(image, MetaTensor) else None
    if told is None:
        return None
    return {
        "missing": int(told["missing"]),
        "found": int(told["found"]),
        "threshold": round(float(told["threshold"]), 4),
    }
