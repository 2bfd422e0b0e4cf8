"""What the JSON beside a synthetic volume says: how it was made, of what, and on which grid."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
from monai.data import MetaTensor

from ..dicom.series import patient_of, series_folder, series_name, series_record
from ..errors import CaseError, machine_reason
from ..volumes.parts import sha256_of_volume
from .measures import UNKNOWN_ORIENTATION

__all__ = ["SourceRecorder", "case_record"]


@dataclass(frozen=True)
class SourceRecorder:
    """How records name the files that volumes were made from.

    Attributes:
        root: folder below which files are named by their path; without it, by their bare name.
        keep_names: name the folder and the patient of a DICOM series, too, which has its UIDs without it.
    """

    root: Path | None = None
    keep_names: bool = False

    def name(self, source: str | os.PathLike | list[str]) -> str:
        """A source file's path below `root`, or its bare name; a DICOM series by its UID, or by its folder."""
        if isinstance(source, list):
            return series_folder(source, self.root) if self.keep_names else series_name(source)
        source_file = Path(source)
        if self.root is not None and self.root in source_file.parents:
            return source_file.relative_to(self.root).as_posix()
        return source_file.name

    def record(self, source: str | os.PathLike | list[str]) -> dict[str, Any]:
        """Name and digest of a source file, or of the files of a DICOM series.

        Raises:
            CaseError: a file cannot be read, or is not there any more.
        """
        if not isinstance(source, list):
            try:
                return {"file": self.name(source), "sha256": sha256_of_volume(source)}
            except OSError as error:
                name = Path(source).name
                raise CaseError(
                    machine_reason(error, name) or f"{name} cannot be read any more ({error.strerror}); give it again."
                ) from error
        record = series_record(source)
        if self.keep_names:
            record = {"file": self.name(source), **record, **patient_of(source[0])}
        return record


def case_record(
    settings: Mapping[str, Any],
    source: Mapping[str, Any],
    image: nib.Nifti1Image,
    meta: Mapping[str, Any] | None = None,
    mask: Any = None,
    measured: Mapping[str, float] | None = None,
    batch_size_used: int | None = None,
    lesion_watch: Sequence[Mapping[str, Any]] | None = None,
    sparse: Mapping[str, Any] | None = None,
    references: Mapping[str, Any] | None = None,
    contrasts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The record of one case.

    Args:
        settings: what every volume of the run was made with.
        source: see `SourceRecorder.record`.
        image: the synthetic volume as it is written.
        meta: of the source as `LoadVolume` loaded it: what of its place was corrected, is in doubt or is not known.
        mask: the brain mask; a MetaTensor says where it came from (`skull_strip` and, of a file, `mask_sha256` of its
            meta).
        measured: see `CaseMeasures`.
        batch_size_used: slabs the network was given at a time.
        lesion_watch: findings of `LesionWatchd`, where it looked.
        sparse: gaps of a sparse scan, and the grid of the dense volume beside its result, if there is one.
        references: missing slices, and at how many of them another person's slice was used.
        contrasts: of a case made from several: which, from what, and which were registered.
    """
    record = {**settings, "source": dict(source), **(contrasts or {}), "grid": _grid_record(image, meta or {})}
    if isinstance(mask, MetaTensor):
        record["mask_from"] = mask.meta.get("skull_strip")
        record |= {key: mask.meta[key] for key in ("mask_sha256",) if key in mask.meta}
    if measured is not None:
        record["measured"] = dict(measured)
    if batch_size_used is not None:  # no setting: it does not decide what counts as done
        record["batch_size_used"] = batch_size_used
    if lesion_watch is not None:
        record["lesion_watch"] = [dict(finding) for finding in lesion_watch]
    if sparse is not None:
        record["sparse"] = dict(sparse)
    if references is not None:
        record["references"] = dict(references)
    return record


def _grid_record(image: nib.Nifti1Image, meta: Mapping[str, Any]) -> dict[str, Any]:
    """Voxels and edges (mm) of the written grid, and whether the source says which side is left."""
    known = not meta.get("unplaced", False)
    return {
        **{key: meta[key] for key in ("corrected", "doubt") if key in meta},
        "voxels": list(image.shape),
        "spacing_mm": [round(float(edge), 6) for edge in image.header.get_zooms()],
        "orientation": "as in the source's header" if known else UNKNOWN_ORIENTATION,
    }
