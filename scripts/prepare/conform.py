"""One pair of raw scans to a training pair: one geometry, one brain, values in [0, 1]."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from ..errors import CaseError
from ..transforms.bias_field import correct_bias
from ..volumes.grids import IDENTITY, Grid, field_of_view, grid_about, on_grid
from ..volumes.load import LoadVolume
from ..volumes.scaling import ScaleByBrainPercentiled
from .brain import Brain, crop_to, find_brain
from .pairs import Pair
from .quality import quality_picture
from .register import Registration, check_registration, register_rigid
from .volumes import Volume, load_volume, smoothed_for

WORKING_MARGIN = 12.0  # mm about the brain that the work is done on


@dataclass(frozen=True)
class Recipe:
    """How a pair is prepared; the same recipe and input give the same volumes.

    Attributes:
        registration: whether the source is registered rigidly to the target.
        skull_strip: see `find_brain`.
        spacing: edge of the voxels, mm.
        hu_window: HU that become 0 and 1 in a CT.
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
    """Names of a pair's files in the output folder: "source", "target", "mask", "picture", with labels "labels"."""
    names = {key: f"{pair.subject}_{key}.nii.gz" for key in ("source", "target", "mask")}
    if pair.labels is not None:
        names["labels"] = f"{pair.subject}_labels.nii.gz"
    return {**names, "picture": f"quality/{pair.subject}.png"}


def remove_files(pair: Pair, output: Path) -> None:
    """Remove a pair's files, those under temporary names too; no error where there are none."""
    for name in output_files(pair).values():
        (output / name).unlink(missing_ok=True)
    shutil.rmtree(_working_folder(pair, output), ignore_errors=True)


def _working_folder(pair: Pair, output: Path) -> Path:
    return output / f".{pair.subject}.partial"


def prepare_pair(pair: Pair, recipe: Recipe, output: Path) -> dict[str, Any]:
    """Make a pair's files, see `output_files`; they appear together, under temporary names before.

    Source and target: float32 in [0, 1], 0 outside the brain; mask: uint8; labels: int16; all on one isotropic grid
    along the target's axes in RAS order. Each volume is interpolated once.

    Args:
        pair: what is prepared.
        recipe: how.
        output: folder to write to.

    Returns:
        The subject's record: what was loaded, registration, brain, grid and time, as `_record` names them.

    Raises:
        CaseError: the pair cannot be prepared.
    """
    began = time.monotonic()
    working = _working_folder(pair, output)
    shutil.rmtree(working, ignore_errors=True)
    (working / "quality").mkdir(parents=True)
    try:
        source = load_volume(pair.source, pair.source_contrast, working)
        target = load_volume(pair.target, pair.target_contrast, working)
        registration = None
        if recipe.registration:
            registration = register_rigid(source.image, target.image)
            check_registration(registration, pair.subject)
        brain = find_brain(source, target, recipe.skull_strip, pair.mask, pair.labels)
        to_source = IDENTITY if registration is None else registration.matrix
        made = _Conformed.of(source, target, brain, to_source, recipe, pair.subject)
        _write(made, pair, working)
        (output / "quality").mkdir(exist_ok=True)
        for name in output_files(pair).values():
            os.replace(working / name, output / name)
        return _record(source, target, registration, brain, made, time.monotonic() - began)
    finally:
        shutil.rmtree(working, ignore_errors=True)


@dataclass(frozen=True)
class _Conformed:
    """A pair on one grid: source and target in [0, 1], the brain, and the share of it that both scans show."""

    grid: Grid
    source: np.ndarray
    target: np.ndarray
    mask: np.ndarray
    seen: float

    @classmethod
    def of(
        cls, source: Volume, target: Volume, brain: Brain, to_source: np.ndarray, recipe: Recipe, subject: str
    ) -> _Conformed:
        """`to_source`: (4, 4), the target's RAS mm -> the source's RAS mm."""
        from_target = to_source if brain.of_source else IDENTITY  # to the space of the mask
        grid = grid_about(brain.mask, target.image.affine, recipe.spacing, recipe.margin, np.linalg.inv(from_target))
        whole = (on_grid(brain.mask, grid, from_target) > 0.5) & field_of_view(brain.mask, grid, from_target)
        views = field_of_view(target.image, grid) & field_of_view(source.image, grid, to_source)
        mask = whole & views
        seen = float(mask.sum() / max(whole.sum(), 1))
        if seen < 0.5:
            raise CaseError(
                f"Only {100 * seen:.0f} % of the brain of {subject} lies in both scans; check that they belong "
                "together and that the registration is on."
            )
        spaces = ((source, to_source, from_target @ np.linalg.inv(to_source)), (target, IDENTITY, from_target))
        images = [_image(volume, brain, to_mask, grid, to_volume, recipe) for volume, to_volume, to_mask in spaces]
        values = [_scaled(v, image, mask, recipe) for v, image in zip((source, target), images, strict=True)]
        return cls(grid, *values, mask, seen)


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
        tensors = {"image": torch.from_numpy(image)[None], "mask": torch.from_numpy(mask)[None]}
        scaled = ScaleByBrainPercentiled("image")(tensors)["image"][0].numpy()
    if np.mean((scaled[mask] > 0) & (scaled[mask] < 1)) < 0.2:
        raise CaseError(f"{volume.path.name} is all but empty inside the brain; check its values and the brain mask.")
    return scaled.astype(np.float32)


def _write(made: _Conformed, pair: Pair, folder: Path) -> None:
    names = output_files(pair)
    volumes = {"source": made.source, "target": made.target, "mask": made.mask.astype(np.uint8)}
    if pair.labels is not None:
        labels = LoadVolume()(pair.labels)
        image = nib.Nifti1Image(np.squeeze(labels.numpy()), np.asarray(labels.affine, dtype=np.float64))
        volumes["labels"] = (on_grid(image, made.grid, order=0) * made.mask).astype(np.int16)
    for key, volume in volumes.items():
        nib.save(nib.Nifti1Image(volume, made.grid.affine), folder / names[key])
    contrasts = (pair.source_contrast, pair.target_contrast)
    quality_picture(made.source, made.target, made.mask, contrasts).save(folder / names["picture"])


def _record(
    source: Volume, target: Volume, registration: Registration | None, brain: Brain, made: _Conformed, seconds: float
) -> dict[str, Any]:
    millilitres = made.mask.sum() * abs(np.linalg.det(made.grid.affine[:3, :3])) / 1000
    return {
        "source": _volume_record(source),
        "target": _volume_record(target),
        "registration": None if registration is None else _registration_record(registration),
        "brain": {"from": brain.origin, "millilitres": round(float(millilitres)), "seen": round(made.seen, 4)},
        "voxels": list(made.grid.shape),
        "seconds": round(seconds, 1),
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
