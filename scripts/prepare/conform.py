"""Raw scans of one subject to what the training reads: one geometry, one brain."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from PIL import Image

from ..errors import CaseError
from ..files import is_temporary, longest_name, move, remove, temporary_name, writing_into
from ..registration.rigid import Registration, register_checked
from ..transforms.bias_field import correct_bias
from ..volumes.grids import IDENTITY, Grid, field_of_view, grid_about, on_grid
from ..volumes.load import read_volume
from ..volumes.scaling import scaled_by_percentile
from .brain import Brain, crop_to, find_brain, find_target_brain, is_stripped_volume
from .pairs import ContrastSet, Pair, Subject
from .quality import one_below_another, quality_picture
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


def output_files(pair: Subject) -> dict[str, str]:
    """Names of a subject's files in the output folder: of its `volumes` and `masks`, "mask" in any case, "picture"."""
    keys = dict.fromkeys([*pair.volumes, "mask", *pair.masks])
    return {**{key: f"{pair.subject}_{key}.nii.gz" for key in keys}, "picture": f"quality/{pair.subject}.png"}


def remove_files(pair: Subject, output: Path) -> None:
    """Remove a subject's files; no error where there are none."""
    for name in output_files(pair).values():
        remove(output / name)


def name_problem(pair: Subject, output: Path) -> str | None:
    """Why a subject's files cannot have their names, told before it is prepared; None where they can."""
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
def _appearing_together(pair: Subject, output: Path) -> Iterator[Path]:
    """Gives a folder to write a subject's files to, from where they move to the output folder when all are written.

    A file that is not written, of a contrast that was left out, is none in the output folder either.
    """
    working = temporary_name(output / "subject")  # a process makes one at a time
    remove(working)
    try:
        with writing_into(output):
            (working / "quality").mkdir(parents=True)
            yield working
            (output / "quality").mkdir(exist_ok=True)
            for name in output_files(pair).values():
                if (working / name).exists():
                    move(working / name, output / name)
                else:
                    remove(output / name)
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
        stored = {**shown, **_masks_on(grid, pair, mask)}
        if source.is_ct:
            stored["source"] = (source_image * mask).astype(np.float32)
        picture = quality_picture(shown["source"], shown["target"], mask, (source.contrast, target.contrast))
        _write(stored, grid.affine, picture, pair, folder)
    # record
    return {
        "source": _volume_record(source),
        "target": _volume_record(target),
        "registration": _registration_record(registration),
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


def prepare_contrasts(subject: ContrastSet, recipe: Recipe, output: Path) -> dict[str, Any]:
    """Make the files of several contrasts of a subject, see `output_files`; they appear together.

    All lie on one isotropic grid along the axes of the first contrast in RAS order, each interpolated once, 0 outside
    the brain. They are float32 in their own units, the bias field of an MRI divided out; a CT is in HU, not clipped.
    The mask and that of a lesion are uint8, labels are int16. The brain is what all contrasts show; one that shows less
    than half of it, cannot be read or registered, or is all but empty, is left out.

    Args:
        subject: what is prepared.
        recipe: how.
        output: folder to write to.

    Returns:
        The subject's record: "contrasts" and "registrations" by contrast, "left_out" with the reason for each contrast
        that was, brain, grid and time.

    Raises:
        CaseError: fewer than two contrasts are left, the one in whose space the masks are cannot be read, or no brain
            was found.
    """
    began = time.monotonic()
    left_out: dict[str, str] = {}
    with _appearing_together(subject, output) as folder:
        # load
        volumes = _done(subject.files, lambda name: load_volume(subject.files[name], name, folder), left_out)
        _refuse_too_few(volumes, left_out, subject.subject)
        if why := subject.masks_problem(left_out):
            raise CaseError(f"{subject.subject}: {why}.")
        reference = next(iter(volumes.values()))
        # register
        registrations = _registrations(volumes, subject.subject, recipe, left_out)
        to_volume = {name: IDENTITY if found is None else found.matrix for name, found in registrations.items()}
        # brain
        brain, to_mask = _brain_of_set(subject, volumes, to_volume, recipe)
        # grid
        grid = grid_about(brain.mask, reference.image.affine, recipe.spacing, recipe.margin, np.linalg.inv(to_mask))
        views = {name: field_of_view(volumes[name].image, grid, matrix) for name, matrix in to_volume.items()}
        mask_in = partial(_seen_brain, brain, grid, to_mask, subject=subject.subject)

        # images
        def image(name: str) -> np.ndarray:
            own, seen_by_both = to_volume[name], views[name] & views[reference.contrast]
            made = _image(volumes[name], brain, to_mask @ np.linalg.inv(own), grid, own, recipe)
            _scaled(volumes[name], made, mask_in(views=seen_by_both)[0], recipe)  # refuses one that is all but empty
            return made

        images = _done(to_volume, image, left_out)
        _refuse_too_few(images, left_out, subject.subject)
        mask, seen = mask_in(views=np.logical_and.reduce([views[name] for name in images]))
        shown = {name: _scaled(volumes[name], made, mask, recipe) for name, made in images.items()}
        # write
        kept = subject.without(left_out)
        stored = {key: (images[name] * mask).astype(np.float32) for key, (name, _) in kept.volumes.items()}
        _write({**stored, **_masks_on(grid, kept, mask)}, grid.affine, _pictures(shown, mask), kept, folder)
    # record
    return {
        "contrasts": {name: _volume_record(volumes[name]) for name in images},
        "registrations": {name: _registration_record(registrations[name]) for name in images},
        "left_out": left_out,
        **_brain_record(brain, mask, grid.affine, seen),
        "seconds": round(time.monotonic() - began, 1),
    }


def _done(names: Iterable[str], make: Callable[[str], Any], left_out: dict[str, str]) -> dict[str, Any]:
    """What is made of each contrast; one of which nothing can be made goes to `left_out` with the reason."""
    made = {}
    for name in names:
        try:
            made[name] = make(name)
        except CaseError as error:
            left_out[name] = str(error)
    return made


def _refuse_too_few(contrasts: Iterable[str], left_out: Mapping[str, str], subject: str) -> None:
    there = list(contrasts)
    if len(there) < 2:
        reasons = " ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise CaseError(
            f"{subject} has {there[0] if there else 'nothing'} left, and two contrasts are needed. {reasons}"
        )


def _registrations(
    volumes: Mapping[str, Volume], subject: str, recipe: Recipe, left_out: dict[str, str]
) -> dict[str, Registration | None]:
    """Of each contrast to the first; None for that one, and for all where none is asked for."""
    reference = next(iter(volumes.values()))

    def found(name: str) -> Registration | None:
        if volumes[name] is reference or not recipe.registration:
            return None
        return _registration(volumes[name], reference, subject)

    registrations = _done(volumes, found, left_out)
    _refuse_too_few(registrations, left_out, subject)
    return registrations


def _brain_of_set(
    subject: ContrastSet, volumes: Mapping[str, Volume], to_volume: Mapping[str, np.ndarray], recipe: Recipe
) -> tuple[Brain, np.ndarray]:
    """The brain, and (4, 4) RAS mm of the first contrast -> those of the mask.

    Beside the first contrast another may tell it: one that is stripped, a CT beside an MRI, or else any.
    """
    reference, *others = (volumes[name] for name in to_volume)
    differing = [volume for volume in others if volume.is_ct != reference.is_ct]
    other = next(iter([*filter(is_stripped_volume, others), *differing, *others]))
    brain = find_brain(other, reference, recipe.skull_strip, subject.mask, subject.labels)
    return brain, to_volume[other.contrast] if brain.of_source else IDENTITY


def _masks_on(grid: Grid, subject: Subject, mask: np.ndarray) -> dict[str, np.ndarray]:
    """The brain's mask, and labels and lesion on its grid, what there is of them."""
    made = {"mask": mask.astype(np.uint8)}
    for key in ("labels", "lesion"):
        if key in subject.masks:
            values = on_grid(read_volume(subject.masks[key]), grid, order=0) * mask
            made[key] = values.astype(np.int16) if key == "labels" else (values > 0).astype(np.uint8)
    return made


def _pictures(shown: Mapping[str, np.ndarray], mask: np.ndarray) -> Image.Image:
    """The quality picture of each contrast against the first, one below another."""
    first, *others = shown
    return one_below_another([quality_picture(shown[name], shown[first], mask, (name, first)) for name in others])


def _registration(source: Volume, target: Volume, subject: str) -> Registration:
    name = f"{subject}, {source.contrast} to {target.contrast}"
    return register_checked(source.image, target.image, name, (source.path.name, target.path.name))


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
    volumes: Mapping[str, np.ndarray], affine: np.ndarray, picture: Image.Image, pair: Subject, folder: Path
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


def _registration_record(registration: Registration | None) -> dict[str, Any] | None:
    if registration is None:
        return None
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
