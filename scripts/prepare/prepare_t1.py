"""Raw T1 volumes to the training set of `pairs=simulated`: skull-stripped, bias-corrected, RAS, with a datalist."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from ..errors import CaseError
from ..transforms.bias_field import correct_bias
from ..transforms.mri_brain_mask import hd_bet_mask
from .brain import crop_to, fill_slices, largest_component, mask_from_background

Extractor = Callable[[nib.Nifti1Image], np.ndarray]


def load_ras(path: Path, axes: str = "LIA") -> nib.Nifti1Image:
    """Load a volume that nibabel reads, or the array `vol` of an .npz file, with its axes in RAS order.

    Args:
        path: the file.
        axes: orientation of an .npz array, which carries none (1 mm voxels are assumed; "LIA" is FreeSurfer's).

    Returns:
        The image with axes R, A, S and float32 data.
    """
    if path.suffix == ".npz":
        volume = np.load(path)["vol"].astype(np.float32)
        to_ras = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt(axes), [[0, 1], [1, 1], [2, 1]])
        return nib.Nifti1Image(np.ascontiguousarray(nib.apply_orientation(volume, to_ras)), np.eye(4))
    image = nib.as_closest_canonical(nib.load(path))
    return nib.Nifti1Image(np.asarray(image.dataobj, dtype=np.float32), image.affine)


def prepare_subject(
    subject: str,
    t1: Path,
    output: Path,
    stripped: bool,
    labels: Path | None = None,
    extractor: Extractor = hd_bet_mask,
    fine_mm: float = 1.6,
) -> dict[str, str | float]:
    """Write SUBJECT_t1, SUBJECT_mask and, where given, SUBJECT_labels (NIfTI, RAS, native spacing, cropped).

    The brain mask is that of the labels (they cover the fluid inside the skull), else what is not background of a
    stripped volume, else the extractor's. Intensities keep their unit: scaling belongs to the training config.

    Args:
        subject: name, which the files start with.
        t1: volume that `load_ras` reads.
        output: folder to write to.
        stripped: whether the volume is skull-stripped.
        labels: segmentation on the volume's grid, 0 outside the brain.
        extractor: image -> brain mask, for a volume with its skull.
        fine_mm: a subject whose largest voxel edge is below this is drawn twice as often in training.

    Returns:
        The datalist's entry, with paths relative to `output`.

    Raises:
        CaseError: labels on another grid, or no brain found.
    """
    image = load_ras(t1)
    label_image = None if labels is None else nib.as_closest_canonical(nib.load(labels))
    mask = _brain_mask(image, t1.name, stripped, label_image, extractor)
    spacing = image.header.get_zooms()[:3]
    volumes = {
        "target": ("t1", correct_bias(np.asarray(image.dataobj), mask, spacing) * mask),
        "mask": ("mask", mask.astype(np.uint8)),
    }
    if label_image is not None:
        volumes["labels"] = ("labels", np.asarray(label_image.dataobj).astype(np.int16))
    box = crop_to(mask, margin=4)
    affine = image.affine @ nib.affines.from_matvec(np.eye(3), [s.start for s in box])
    # volumes scanned finer than the training's spacing teach sharpness
    entry = {"subject": subject, "weight": 2.0 if max(spacing) < fine_mm else 1.0}
    for key, (suffix, volume) in volumes.items():
        entry[key] = f"{subject}_{suffix}.nii.gz"
        nib.save(nib.Nifti1Image(volume[box], affine), output / entry[key])
    return entry


def _brain_mask(
    image: nib.Nifti1Image,
    name: str,
    stripped: bool,
    labels: nib.spatialimages.SpatialImage | None,
    extractor: Extractor,
) -> np.ndarray:
    """(H, W, Z) bool, from the best source there is; see `prepare_subject`."""
    if labels is not None:
        if labels.shape != image.shape or not np.allclose(labels.affine, image.affine, atol=1e-2):
            raise CaseError(f"The labels of {name} lie on another grid; resample them to its grid, or leave them out.")
        mask = fill_slices(largest_component(np.asarray(labels.dataobj) > 0))
    else:
        mask = mask_from_background(image) if stripped else fill_slices(extractor(image))
    if not mask.any():
        raise CaseError(f"No brain was found in {name}; look at the volume, or leave the subject out.")
    return mask


def prepare_listed(
    subjects: str, output: str, validation: Sequence[str] = (), test: Sequence[str] = (), leave_out: Sequence[str] = ()
) -> Path:
    """Prepare the T1 volumes of a JSON list for training on simulated CT; split by person, never by scan.

    Writes each subject's bias-corrected, cropped T1, its brain mask and labels, and OUTPUT/datalist.json.

    Args:
        subjects: JSON file: a list of {"id", "person", "T1", "skull_stripped", "T1_labels" where there are some}, with
            paths relative to the file's folder.
        output: folder to write to; a subject that is done there is not made again.
        validation: persons held out to watch the training, separated by commas.
        test: persons held out for the figures, separated by commas.
        leave_out: ids of subjects that are not used, separated by commas.

    Returns:
        The path of the datalist.

    Raises:
        CaseError: no such list, a name that nobody has, or a person on two sides.
    """
    if not Path(subjects).is_file():
        raise CaseError(f"{subjects} is not there; give the JSON list of the subjects.")
    listed = json.loads(Path(subjects).read_text())
    leave_out = _names(leave_out, "leave_out", {entry["id"] for entry in listed})
    used = [entry for entry in listed if entry["id"] not in leave_out]
    persons = {entry["person"] for entry in used}
    held_out = {"validation": _names(validation, "validation", persons), "test": _names(test, "test", persons)}
    if twice := sorted(held_out["validation"] & held_out["test"]):
        raise CaseError(f"{twice[0]} is both in validation and in test; a person belongs to one of them.")
    out = Path(str(output))
    out.mkdir(parents=True, exist_ok=True)
    splits: dict[str, list] = {"training": [], "validation": [], "test": []}
    for entry in used:
        split = next((name for name, who in held_out.items() if entry["person"] in who), "training")
        splits[split].append(_prepared(entry, Path(subjects).parent, out))
        print(f"{entry['id']}: {split}", flush=True)
    datalist = out / "datalist.json"
    datalist.write_text(json.dumps(splits, indent=1) + "\n")
    return datalist


def _names(given: Sequence[str] | str, option: str, known: set[str]) -> set[str]:
    """The names of an option; the command line gives one name alone as it is, and one of digits as a number."""
    names = {str(name) for name in (given if isinstance(given, list | tuple) else [given])}
    if unknown := sorted(names - known):
        raise CaseError(f"{option} names {unknown[0]}, which no subject that is used has; correct the name.")
    return names


def _prepared(entry: Mapping, folder: Path, out: Path) -> dict[str, str | float]:
    """The datalist's entry of one listed subject, made unless it is there."""
    done = out / f"{entry['id']}.json"
    if not done.exists():
        labels = folder / entry["T1_labels"] if "T1_labels" in entry else None
        made = prepare_subject(entry["id"], folder / entry["T1"], out, entry["skull_stripped"], labels)
        done.write_text(json.dumps(made))
    return json.loads(done.read_text())
