"""Raw scans of one subject to what the training reads: one geometry, one brain."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from PIL import Image

from ..errors import CaseError
from ..files import is_temporary, longest_name, move, remove, temporary_name, writing_into
from ..registration.rigid import Registration, check_registration, register_rigid
from ..transforms.bias_field import correct_bias
from ..volumes.grids import IDENTITY, Grid, field_of_view, grid_about, on_grid
from ..volumes.load import read_volume
from ..volumes.scaling import scaled_by_percentile
from .brain import Brain, crop_to, find_brain, find_target_brain
from .pairs import Pair
from .quality import quality_picture
from .volumes import Volume, load_volume, smoothed_for

WORKING_MARGIN = 12.0  # mm about the brain that the work is done on
TARGET_MARGIN = 4  # voxels about the brain of a target without a source
FINE_SPACING = 1.6  # mm; a target whose largest voxel edge is below it is drawn twice as often in training


@dataclass(frozen=True)
class Recipe:
    """How a pair is prepared; the same recipe and input give the same volumes.

    Attributes:
        registration: whether the source is registered rigidly to the target.
        skull_strip: see `find_brain`.
        spacing: edge of the voxels, mm.
        hu_window: HU that become 0 and 1 in the picture of a CT, and in a CT to translate to; most of the brain has to
            lie between.
        bias_correction: whether the bias field of an MRI is divided out.
        margin: background about the brain, mm.
    """

    registration: bool = True
    skull_strip: str = "auto"
    spacing: float = 1.0
    hu_window: tuple[float, float] = (0.0, 80.0)
    bias_correction: bool = True
    margin: float = 4.0


def output_files(pair: Pair) -> dict[str, str]:
    """Names of a pair's files in the output folder: "target", "mask", "picture", and "source" and "labels" if any."""
    there = {"source": pair.source, "target": pair.target, "mask": True, "labels": pair.labels}
    names = {key: f"{pair.subject}_{key}.nii.gz" for key, volume in there.items() if volume is not None}
    return {**names, "picture": f"quality/{pair.subject}.png"}


def remove_files(pair: Pair, output: Path) -> None:
    """Remove a pair's files; no error where there are none."""
    for name in output_files(pair).values():
        remove(output / name)


def name_problem(pair: Pair, output: Path) -> str | None:
    """Why a pair's files cannot have their names, told before it is prepared; None where they can."""
    names = [Path(name).name for name in output_files(pair).values()]
    longest, allowed = max(map(len, names)), longest_name(output)
    if longest <= allowed:
        return None
    return f"The names of its files would have {longest} characters, and the disk allows {allowed}; shorten its name."


def remove_old_working_folders(output: Path) -> None:
    """Remove what killed runs of older versions left; their names do not say whose they are (see `remove_remains`)."""
    for path in output.glob(".*.partial"):
        if not is_temporary(path.name):
            remove(path)


@contextmanager
def _appearing_together(pair: Pair, output: Path) -> Iterator[Path]:
    """Gives a folder to write a pair's files to, from where they move to the output folder when all are written."""
    working = temporary_name(output / "subject")  # a process makes one at a time
    remove(working)
    try:
        with writing_into(output):
            (working / "quality").mkdir(parents=True)
            yield working
            (output / "quality").mkdir(exist_ok=True)
            for name in output_files(pair).values():
                move(working / name, output / name)
    finally:
        remove(working)


def prepare_pair(pair: Pair, recipe: Recipe, output: Path) -> dict[str, Any]:
    """Make a pair's files, see `output_files`; they appear together, under temporary names before.

    All lie on one isotropic grid along the target's axes in RAS order, each volume interpolated once, 0 outside the
    brain. An MRI is float32 in [0, 1]. A CT to translate from is float32 in HU, not clipped: training and the main job
    take the slow HU trend out before they clip to the window, and so need what lies beyond it. A CT to translate to is
    in [0, 1] over the window. The mask is uint8, labels are int16.

    Args:
        pair: what is prepared.
        recipe: how.
        output: folder to write to.

    Returns:
        The subject's record: what was loaded, registration, brain, grid and time.

    Raises:
        CaseError: the pair cannot be prepared.
    """
    began = time.monotonic()
    with _appearing_together(pair, output) as folder:
        # load
        source = load_volume(pair.source, pair.source_contrast, folder)
        target = load_volume(pair.target, pair.target_contrast, folder)
        # register
        registration = _registration(source, target, pair.subject) if recipe.registration else None
        to_source = IDENTITY if registration is None else registration.matrix
        # brain
        brain = find_brain(source, target, recipe.skull_strip, pair.mask, pair.labels)
        to_mask = to_source if brain.of_source else IDENTITY
        # grid
        grid = grid_about(brain.mask, target.image.affine, recipe.spacing, recipe.margin, np.linalg.inv(to_mask))
        views = field_of_view(target.image, grid) & field_of_view(source.image, grid, to_source)
        mask, seen = _seen_brain(brain, grid, to_mask, views, pair.subject)
        # images
        source_image = _image(source, brain, to_mask @ np.linalg.inv(to_source), grid, to_source, recipe)
        target_image = _image(target, brain, to_mask, grid, IDENTITY, recipe)
        shown = {
            "source": _scaled(source, source_image, mask, recipe),
            "target": _scaled(target, target_image, mask, recipe),
        }
        # write
        stored = {**shown, "mask": mask.astype(np.uint8)}
        if source.is_ct:
            stored["source"] = (source_image * mask).astype(np.float32)
        if pair.labels is not None:
            stored["labels"] = (on_grid(read_volume(pair.labels), grid, order=0) * mask).astype(np.int16)
        picture = quality_picture(shown["source"], shown["target"], mask, (source.contrast, target.contrast))
        _write(stored, grid.affine, picture, pair, folder)
    # record
    return {
        "source": _volume_record(source),
        "target": _volume_record(target),
        "registration": None if registration is None else _registration_record(registration),
        **_brain_record(brain, mask, grid.affine, seen),
        "seconds": round(time.monotonic() - began, 1),
    }


def prepare_target(pair: Pair, recipe: Recipe, output: Path) -> dict[str, Any]:
    """Make the files of a target alone, whose sources the training simulates.

    The target stays on its own grid, in RAS order and its own unit, its bias field divided out, cropped to the brain
    and 0 outside it: training resamples and scales it. The mask is uint8, labels are int16.

    Args, returns and raises as `prepare_pair`; of the recipe only `skull_strip` and `bias_correction` have a say. The
    record has a weight: how often the subject is drawn in training.
    """
    began = time.monotonic()
    with _appearing_together(pair, output) as folder:
        # load
        target = load_volume(pair.target, pair.target_contrast, folder)
        spacing = target.image.header.get_zooms()[:3]
        # brain
        brain = find_target_brain(target, recipe.skull_strip, pair.stripped, pair.labels)
        mask = np.asarray(brain.mask.dataobj) > 0
        box = crop_to(mask, TARGET_MARGIN)
        # images
        image = correct_bias(target.data, mask, spacing) if recipe.bias_correction else target.data
        volumes = {"target": (image * mask).astype(np.float32), "mask": mask.astype(np.uint8)}
        if pair.labels is not None:
            volumes["labels"] = np.asarray(read_volume(pair.labels).dataobj).astype(np.int16)
        # write
        affine = target.image.affine @ nib.affines.from_matvec(np.eye(3), [part.start for part in box])
        stored = {key: volume[box] for key, volume in volumes.items()}
        shown = scaled_by_percentile(torch.from_numpy(stored["target"]), mask[box], name=target.path.name).numpy()
        picture = quality_picture(None, shown, mask[box], (None, target.contrast), spacing)
        _write(stored, affine, picture, pair, folder)
    # record
    return {
        "target": _volume_record(target),
        "registration": None,
        **_brain_record(brain, mask[box], affine, 1.0),
        # volumes scanned finer than the training's spacing teach sharpness
        "weight": 2.0 if max(spacing) < FINE_SPACING else 1.0,
        "seconds": round(time.monotonic() - began, 1),
    }


def _registration(source: Volume, target: Volume, subject: str) -> Registration:
    registration = register_rigid(source.image, target.image)
    check_registration(registration, subject)
    return registration


def _seen_brain(
    brain: Brain, grid: Grid, to_mask: np.ndarray, views: np.ndarray, subject: str
) -> tuple[np.ndarray, float]:
    """The brain on a grid where both scans show it, bool, and the share of it that they show.

    Args:
        brain: in its own space.
        grid: where to.
        to_mask: (4, 4), the grid's RAS mm -> the mask's RAS mm.
        views: bool on the grid, what both scans show.
        subject: for the error.
    """
    whole = (on_grid(brain.mask, grid, to_mask) > 0.5) & field_of_view(brain.mask, grid, to_mask)
    mask = whole & views
    seen = float(mask.sum() / max(whole.sum(), 1))
    if seen < 0.5:
        raise CaseError(
            f"Only {100 * seen:.0f} % of the brain of {subject} lies in both scans; check that they belong "
            "together and that the registration is on."
        )
    return mask, seen


def _image(
    volume: Volume, brain: Brain, to_mask: np.ndarray, grid: Grid, to_volume: np.ndarray, recipe: Recipe
) -> np.ndarray:
    """The volume on the grid, its bias field divided out, in its own unit.

    Args:
        volume: the volume.
        brain: its mask is on another grid, perhaps in another space.
        to_mask: (4, 4), the volume's RAS mm -> the mask's RAS mm.
        grid: where to.
        to_volume: (4, 4), the grid's RAS mm -> the volume's RAS mm.
        recipe: how.
    """
    own = Grid(volume.image.affine, volume.image.shape)
    inside = on_grid(brain.mask, own, to_mask) > 0.5
    inside &= field_of_view(brain.mask, own, to_mask)
    if not inside.any():
        raise CaseError(
            f"{volume.path.name} does not show the brain that the mask names; check that they belong together."
        )
    box = crop_to(inside, int(np.ceil(WORKING_MARGIN / min(volume.spacing))))
    part = replace(volume, image=volume.image.slicer[box])
    if recipe.bias_correction and not volume.is_ct:
        part = part.with_data(correct_bias(part.data, inside[box], part.spacing))
    return on_grid(smoothed_for(part, recipe.spacing).image, grid, to_volume)


def _scaled(volume: Volume, image: np.ndarray, mask: np.ndarray, recipe: Recipe) -> np.ndarray:
    """[0, 1] float32, 0 outside the mask: a CT by the window, an MRI by its 99.9 percentile in the brain."""
    if volume.is_ct:
        low, high = recipe.hu_window
        scaled = np.clip((image - low) / (high - low), 0, 1) * mask
    else:
        scaled = scaled_by_percentile(torch.from_numpy(image), mask, name=volume.path.name).numpy()
    if np.mean((scaled[mask] > 0) & (scaled[mask] < 1)) < 0.2:
        raise CaseError(f"{volume.path.name} is all but empty inside the brain; check its values and the brain mask.")
    return scaled.astype(np.float32)


def _write(
    volumes: Mapping[str, np.ndarray], affine: np.ndarray, picture: Image.Image, pair: Pair, folder: Path
) -> None:
    names = output_files(pair)
    for key, volume in volumes.items():
        nib.save(nib.Nifti1Image(volume, affine), folder / names[key])
    picture.save(folder / names["picture"])


def _brain_record(brain: Brain, mask: np.ndarray, affine: np.ndarray, seen: float) -> dict[str, Any]:
    millilitres = mask.sum() * abs(np.linalg.det(affine[:3, :3])) / 1000
    return {
        "brain": {"from": brain.origin, "millilitres": round(float(millilitres)), "seen": round(seen, 4)},
        "voxels": list(mask.shape),
    }


def _registration_record(registration: Registration) -> dict[str, Any]:
    figures = asdict(registration)
    matrix = figures.pop("matrix").round(6).tolist()
    return {**{key: round(value, 4) for key, value in figures.items()}, "matrix": matrix}


def _volume_record(volume: Volume) -> dict[str, Any]:
    digest = sha256(np.ascontiguousarray(volume.data).tobytes()).hexdigest()
    return {
        "contrast": volume.contrast,
        "voxels": list(volume.data.shape),
        "spacing_mm": [round(edge, 4) for edge in volume.spacing],
        "values_sha256": digest,
    }
