"""Small data sets on disk, in the layouts of `scripts.prepare.layouts`, and DICOM series with known geometry."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

Writer = Callable[[Path, str, str], None]  # path, subject, contrast


def write_cube(path: Path, subject: str = "", contrast: str = "") -> None:
    """A volume of 4 x 4 x 4 voxels: enough where nothing reads it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), dtype=np.int16), np.eye(4)), path)


def synthrad2023_tree(
    root: Path, subjects: Sequence[str] = ("1BA001", "1BB014", "1BC032"), write: Writer = write_cube
) -> Path:
    """`root`/Task1/{brain,pelvis}/..., with the folder `overview` of the real set; returns `root`."""
    brain = root / "Task1" / "brain"
    for subject in subjects:
        for stem, contrast in (("ct", "CT"), ("mr", "T1"), ("mask", "outline")):
            write(brain / subject / f"{stem}.nii.gz", subject, contrast)
    for name in ("1_brain_train.xlsx", *(f"{subject}_train.png" for subject in subjects)):
        (brain / "overview").mkdir(parents=True, exist_ok=True)
        (brain / "overview" / name).write_bytes(b"picture")
    for stem in ("ct", "mr", "mask"):
        write_cube(root / "Task1" / "pelvis" / "1PA001" / f"{stem}.nii.gz")
    return root


def brats2023_tree(
    root: Path,
    subjects: Sequence[str] = ("BraTS-GLI-00000-000", "BraTS-GLI-00000-001", "BraTS-GLI-00002-000"),
    write: Writer = write_cube,
) -> Path:
    """`root`/ID/ID-{t1n,t1c,t2w,t2f,seg}.nii.gz; returns `root`."""
    for subject in subjects:
        for ending, contrast in (("t1n", "T1"), ("t1c", "T1ce"), ("t2w", "T2"), ("t2f", "FLAIR"), ("seg", "labels")):
            write(root / subject / f"{subject}-{ending}.nii.gz", subject, contrast)
    return root


def brats2018_tree(
    root: Path,
    subjects: Sequence[str] = ("Brats18_2013_10_1", "Brats18_CBICA_AAB_1", "Brats18_TCIA01_147_1"),
    write: Writer = write_cube,
) -> Path:
    """`root`/{HGG,LGG}/ID/ID_{t1,t1ce,t2,flair,seg}.nii.gz, the last subject in LGG; returns `root`."""
    for subject in subjects:
        folder = root / ("LGG" if subject == subjects[-1] else "HGG") / subject
        for ending, contrast in (("t1", "T1"), ("t1ce", "T1ce"), ("t2", "T2"), ("flair", "FLAIR"), ("seg", "labels")):
            write(folder / f"{subject}_{ending}.nii.gz", subject, contrast)
    return root


def ixi_tree(
    root: Path,
    subjects: Sequence[str] = ("IXI002-Guys-0828", "IXI012-HH-1211", "IXI035-IOP-0873"),
    write: Writer = write_cube,
    one_folder: bool = False,
) -> Path:
    """`root`/IXI-T1/IXI012-HH-1211-T1.nii.gz and so on, or all in `root`; returns `root`."""
    for subject in subjects:
        for contrast in ("T1", "T2", "PD"):
            folder = root if one_folder else root / f"IXI-{contrast}"
            write(folder / f"{subject}-{contrast}.nii.gz", subject, contrast)
    return root


def bids_tree(
    root: Path,
    subjects: Sequence[str] = ("sub-01", "sub-02"),
    suffixes: Sequence[str] = ("T1w", "FLAIR", "CT"),
    sessions: Sequence[str] = (),
    write: Writer = write_cube,
) -> Path:
    """`root`/sub-X[/ses-Y]/anat/..., the CT in a folder ct, with what else a BIDS set holds; returns `root`."""
    contrasts = {"T1w": "T1", "T2w": "T2", "FLAIR": "FLAIR", "CT": "CT", "PDw": "PD"}
    for subject in subjects:
        for session in sessions or [None]:
            folder = root / subject / session if session else root / subject
            name = f"{subject}_{session}" if session else subject
            for suffix in suffixes:
                place = folder / ("ct" if suffix == "CT" else "anat")
                write(place / f"{name}_{suffix}.nii.gz", name, contrasts[suffix])
                (place / f"{name}_{suffix}.json").write_text("{}")
        write_cube(root / "derivatives" / "tool" / subject / "anat" / f"{subject}_desc-brain_T1w.nii.gz")
        write_cube(root / "sourcedata" / subject / "anat" / f"{subject}_T1w.nii.gz")
    (root / "dataset_description.json").write_text('{"Name": "test", "BIDSVersion": "1.10.0"}')
    (root / "participants.tsv").write_text("participant_id\tage\n" + "".join(f"{s}\tn/a\n" for s in subjects))
    return root


def csv_tree(root: Path, subjects: Sequence[str] = ("anna", "bert"), write: Writer = write_cube) -> Path:
    """`root`/pairs.csv with a CT and a T1 of each subject in folders of their own; returns the table."""
    lines = ["subject,source,target"]
    for subject in subjects:
        write(root / "ct" / f"{subject}.nii.gz", subject, "CT")
        write(root / "t1" / f"{subject}.nii.gz", subject, "T1")
        lines.append(f"{subject},ct/{subject}.nii.gz,t1/{subject}.nii.gz")
    table = root / "pairs.csv"
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return table


def contrasts_tree(
    root: Path, subjects: Mapping[str, Sequence[str]], write: Writer = write_cube, **columns: Sequence[str]
) -> Path:
    """`root`/contrasts.csv with a column for each contrast, empty where a subject lacks it; returns the table.

    Args:
        root: folder, made where it is not there.
        subjects: name -> contrasts that it has.
        write: writes a volume.
        columns: further columns, a cell for each subject.
    """
    names = list(dict.fromkeys(name for contrasts in subjects.values() for name in contrasts))
    lines = [",".join(["subject", *names, *columns])]
    for number, (subject, contrasts) in enumerate(subjects.items()):
        for name in contrasts:
            write(root / f"{subject}_{name}.nii.gz", subject, name)
        cells = [f"{subject}_{name}.nii.gz" if name in contrasts else "" for name in names]
        lines.append(",".join([subject, *cells, *(cells[number] for cells in columns.values())]))
    table = root / "contrasts.csv"
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return table


def t1_tree(root: Path, subjects: Sequence[str] = ("anna", "bert"), write: Writer = write_cube) -> Path:
    """`root`/subjects.json with a stripped T1 of each subject and no source; returns the list."""
    entries = []
    for subject in subjects:
        write(root / "t1" / f"{subject}.nii.gz", subject, "T1")
        entries.append({"id": subject, "person": subject, "T1": f"t1/{subject}.nii.gz", "skull_stripped": True})
    listing = root / "subjects.json"
    listing.write_text(json.dumps(entries), encoding="utf-8")
    return listing


TREES = {
    "synthrad2023": synthrad2023_tree,
    "brats2023": brats2023_tree,
    "brats2018": brats2018_tree,
    "ixi": ixi_tree,
    "bids": bids_tree,
    "csv": csv_tree,
    "t1": t1_tree,
}

# Two dense balls in a head of water, LPS mm: (centre, radius).
BALLS = (((30.0, -20.0, 60.0), 15.0), ((-20.0, 5.0, 25.0), 12.0))


def ball_head(points: np.ndarray) -> np.ndarray:
    """HU at points (..., 3) in LPS mm: air, a ball of 40 HU, and `BALLS` of 1500 HU."""
    hu = np.full(points.shape[:-1], -1000, dtype=np.int16)
    hu[np.linalg.norm(points - [0, 0, 40], axis=-1) < 65] = 40
    for centre, radius in BALLS:
        hu[np.linalg.norm(points - centre, axis=-1) < radius] = 1500
    return hu


def write_dicom_series(
    folder: Path,
    heights: Sequence[float],
    orientation: Sequence[float] = (1, 0, 0, 0, 1, 0),
    way: Sequence[float] = (0, 0, 1),
    number: int = 1,
    modality: str = "CT",
    voxels: int = 96,
    spacing: float = 2.5,
    patient: str = "Doe^Jane",
    suffix: str = "",
    hu_of: Callable[[np.ndarray], np.ndarray] = ball_head,
    study: str | None = None,
    change: Callable[[Any, int], None] | None = None,
) -> Path:
    """One series of DICOM slices; needs pydicom.

    Args:
        folder: to write to; a second series of another `number` may join the first.
        heights: of the slices along `way`, mm.
        orientation: ImageOrientationPatient.
        way: direction in which one slice follows the other, LPS.
        number: of the series; part of the file names.
        modality: CT (HU by an intercept of -1024) or MR (the HU plus 1000).
        voxels: rows and columns.
        spacing: of the pixels, mm.
        patient: name in the header.
        suffix: of the files.
        hu_of: points in LPS mm -> HU.
        study: StudyInstanceUID; a new one where none is given.
        change: what else is to be done to a slice and its number, from 1, before it is written.
    """
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    folder.mkdir(parents=True, exist_ok=True)
    study, series = study or generate_uid(), generate_uid()
    row, column = np.array(orientation, dtype=float).reshape(2, 3)
    rows, columns = np.mgrid[:voxels, :voxels]
    for index, height in enumerate(heights, start=1):
        corner = -(row + column) * spacing * (voxels - 1) / 2 * [1, 1, 0] + height * np.array(way, dtype=float)
        points = corner + spacing * (columns[..., None] * row + rows[..., None] * column)
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = f"1.2.840.10008.5.1.4.1.1.{2 if modality == 'CT' else 4}"
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        slice_ = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        slice_.SOPClassUID, slice_.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        # letters that no UID and no digest has, so that a test can tell it from them
        slice_.PatientName, slice_.PatientID, slice_.PatientPosition = patient, "PX4711", "HFS"
        slice_.Modality, slice_.SeriesDescription = modality, f"head of {patient}"
        slice_.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        slice_.StudyDate, slice_.AcquisitionTime = "20200131", "120001"
        slice_.StudyInstanceUID, slice_.SeriesInstanceUID, slice_.FrameOfReferenceUID = study, series, "1.2.3"
        slice_.SeriesNumber, slice_.InstanceNumber, slice_.SliceThickness = number, index, 4
        slice_.ImagePositionPatient, slice_.ImageOrientationPatient = corner.tolist(), list(orientation)
        slice_.PixelSpacing, slice_.Rows, slice_.Columns = [spacing, spacing], voxels, voxels
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit, slice_.PixelRepresentation = 16, 16, 15, 1
        slice_.RescaleIntercept, slice_.RescaleSlope = -1024 if modality == "CT" else 0, 1
        stored = hu_of(points) + (1024 if modality == "CT" else 1000)
        slice_.PixelData = stored.astype("<i2").tobytes()
        if change is not None:
            change(slice_, index)
        slice_.save_as(folder / f"{number}_{index:03d}{suffix}", enforce_file_format=True)
    return folder


def tilted(degrees: float) -> tuple[float, ...]:
    """Orientation of slices under a gantry tilted about the left-right axis."""
    angle = np.radians(degrees)
    return (1.0, 0.0, 0.0, 0.0, float(np.cos(angle)), float(-np.sin(angle)))
