"""Style keys: the intensity histogram of a target volume as conditioning (CT2MRI, style key conditioning).

A key is a (3, B) array [h, c, d]: the histogram h of B bins that sums to 10, its cumulative sum c, and ten times its
first difference d. It is computed from a skull-stripped volume scaled to [0, 1] as in training.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch

from ..contrasts import CONTRASTS
from ..errors import CaseError
from ..volumes.load import read_volume
from .training_range import NO_PEOPLE, person_of

_FOREGROUND = 0.001  # intensities up to here are background and not counted
_TOTAL = 10.0
_BINS = 128
# An 8-bit image has at most 256 levels. With fewer than 16 it is a label map, whose levels are meant as they are.
_FEW_LEVELS = range(16, 257)
NO_STYLE = "none"
"""Name of the key of zeros, which training puts in the place of some keys: the network goes by the source alone."""
_LARGEST_BRAIN = 2.2  # litres, with its cerebrospinal fluid; a whole head has at least 3


def compute_style_key(image: np.ndarray | torch.Tensor, num_bins: int = _BINS) -> np.ndarray:
    """Style key of one image.

    Images of few grey levels (an 8-bit source) would leave empty bins: each level is spread evenly half-way to its
    neighbours, which is what a uniform dither does on average.

    Args:
        image: skull-stripped volume of any shape, scaled to [0, 1] as in training; values beyond are clipped.
        num_bins: number of bins B.

    Returns:
        (3, num_bins) float32: histogram (sum 10), cumulative histogram (ends at 10), ten times the first difference.

    Raises:
        ValueError: when no voxel is above the background, or a voxel is not finite.
    """
    values = torch.as_tensor(image).detach().cpu().double().numpy().ravel()
    if not np.isfinite(values).all():
        raise ValueError("The image of a style key has voxels that are NaN or infinite; repair it first.")
    values = values[values > _FOREGROUND]
    values = np.minimum(values, 1.0, out=values)
    if values.size == 0:
        raise ValueError(
            f"The image of a style key is empty: no voxel is above {_FOREGROUND}; give a volume in [0, 1]."
        )
    return style_key_from_histogram(_histogram(values, num_bins))


def style_key_from_histogram(histogram: np.ndarray) -> np.ndarray:
    """Style key of a histogram of the foreground, (B,) counts of any total, as (3, B) float32."""
    h = np.asarray(histogram, dtype=np.float64)
    h = _TOTAL * h / h.sum()
    slope = np.diff(h)
    d = 10.0 * np.concatenate([slope[:1], slope])
    return np.stack([h, np.cumsum(h), d]).astype(np.float32)


def _histogram(values: np.ndarray, num_bins: int) -> np.ndarray:
    """Counts in equal bins over (0.001, 1)."""
    edges = np.linspace(_FOREGROUND, 1.0, num_bins + 1)
    if len(np.unique(values[:100_000])) > max(_FEW_LEVELS):  # then all have as many, which need not be sorted
        return np.histogram(values, edges)[0]
    levels, counts = np.unique(values, return_counts=True)
    if len(levels) not in _FEW_LEVELS or values.size < 4 * len(levels):
        return np.histogram(values, edges)[0]
    middles = (levels[1:] + levels[:-1]) / 2
    first, last = 2 * levels[0] - middles[0], 2 * levels[-1] - middles[-1]
    borders = np.clip(np.concatenate([[first], middles, [last]]), _FOREGROUND, 1.0)
    return np.diff(np.interp(edges, borders, np.concatenate([[0], np.cumsum(counts)])))


def average_style_key(keys: Iterable[np.ndarray]) -> np.ndarray:
    """Mean of style keys, (3, B) float32, which is the key of the mean histogram. Raises ValueError without any key."""
    keys = list(keys)
    if not keys:
        raise ValueError("There is no style key to average; give at least one.")
    return np.mean(keys, axis=0, dtype=np.float64).astype(np.float32)


def nearest_style_key(key: np.ndarray, keys: Mapping[str, np.ndarray]) -> str:
    """Name of the key whose histogram is nearest in L1, such as the "best" training subject for a known target.

    Raises:
        ValueError: when there are no keys.
    """
    if not keys:
        raise ValueError("There is no style key to choose from; give at least one.")
    return min(keys, key=lambda name: float(np.abs(np.asarray(keys[name][0], np.float64) - key[0]).sum()))


def save_style_keys(keys: Mapping[str, np.ndarray], path: str | Path, **notes: object) -> None:
    """Write keys by name as JSON, {"keys": {name: 3 x B lists}} and any notes beside them; float32 is kept exactly."""
    listed = {name: [[float(f"{v:.9g}") for v in row] for row in key] for name, key in keys.items()}
    Path(path).write_text(json.dumps({**notes, "keys": listed}) + "\n", encoding="utf-8")


def load_style_keys(
    path: str | Path, otherwise: str = "give --style_keys_file or --source_keys_file"
) -> dict[str, np.ndarray]:
    """Read what `save_style_keys` wrote: name to (3, B) float32.

    Args:
        path: of the file.
        otherwise: what to do where there is none, for the error.

    Raises:
        CaseError: when there is no such file.
        ValueError: when it holds something else.
    """
    try:
        listed = json.loads(Path(path).read_text(encoding="utf-8"))["keys"]
        keys = {name: np.asarray(key, dtype=np.float32) for name, key in listed.items()}
    except FileNotFoundError:
        raise CaseError(f"There is no {path} with the keys of these weights; {otherwise}.") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} cannot be read as style keys ({error!r}); give a file with names under keys."
        ) from None
    for name, key in keys.items():
        if key.ndim != 2 or key.shape[0] != 3:
            raise ValueError(f"{path} holds a style key {name} of shape {key.shape}; a key is (3, number of bins).")
    return keys


def resolve_style_key(name_or_path: str | Path, keys_file: str | Path, contrast: str | None = None) -> np.ndarray:
    """Style key that a user asked for.

    Args:
        name_or_path: name of a key in keys_file, such as "average", or "none" for a key of zeros, or path to a
            skull-stripped T1 volume (NIfTI, NRRD, MHA, MGZ) of any intensity scale, whose key is computed.
        keys_file: JSON of `save_style_keys`; read for names alone, and needed for all but "none".
        contrast: of the target, where the file has keys of several, named `anna#T1`; None for keys of one.

    Returns:
        (3, B) float32.

    Raises:
        ValueError: in one sentence, when it is neither, the volume cannot be read or is no stripped brain, or the name
            is of another contrast's key; a CaseError where a name is given and the file is not there.
    """
    if str(name_or_path) == "best":
        raise ValueError(
            "The style key best is that of the training subject nearest to the real MRI, which is not known here; it "
            f"is for evaluation alone: use {'average' if contrast is None else NO_STYLE}, or the path of a "
            f"skull-stripped {contrast or 'T1'} volume."
        )
    path = Path(name_or_path).expanduser()
    # volumes have a suffix: a file called like a key does not take its place
    if path.suffix and path.is_file():
        return _style_key_of_file(path)
    otherwise = f"the path of a skull-stripped {contrast or 'T1'} volume"
    return named_style_key(str(name_or_path), keys_file, otherwise, contrast)


def _check_contrast(name: str, contrast: str | None, otherwise: str) -> None:
    """Refuse the name of a key of another contrast than the target's; `otherwise` says what else could be given."""
    ending = name.rpartition("#")[2]
    if contrast is not None and ending in CONTRASTS and ending != contrast:
        raise ValueError(
            f"The style key {name} is of a {ending}, but a {contrast} is made; give the name of a key that ends in "
            f"#{contrast}, {otherwise + ', ' if otherwise else ''}or {NO_STYLE}."
        )


def named_style_key(name: str, keys_file: str | Path, otherwise: str = "", contrast: str | None = None) -> np.ndarray:
    """Style key of a name in a file of `save_style_keys`, or the key of zeros for "none"; (3, B) float32.

    "none" needs no file; where there is one, the key of zeros has as many bins as those of the file.

    Raises:
        CaseError: there is no such file.
        ValueError: there is no such key, and `otherwise` says what else could be given; or the name is of another
            contrast's key than `contrast`.
    """
    _check_contrast(name, contrast, otherwise)
    if name == NO_STYLE and not os.path.exists(keys_file):
        return np.zeros((3, _BINS), np.float32)
    keys = load_style_keys(keys_file, _instead_of_a_file(otherwise))
    if name in keys:
        return keys[name]
    if name == NO_STYLE and keys:
        return np.zeros_like(next(iter(keys.values())))
    known = ", ".join([*sorted(keys), NO_STYLE])
    raise ValueError(
        f"The style key {name} is neither a known name nor a file; use one of {known}, or {otherwise}."
        if otherwise
        else f"There is no style key {name}; use one of {known}."
    )


def _instead_of_a_file(otherwise: str = "") -> str:
    """What to do where a key is asked for by name and the file is not there."""
    return f"give --style_keys_file, or --style_key {NO_STYLE}{' or ' + otherwise if otherwise else ''}"


def unknown_style_keys(name_or_path: str | Path, keys_file: str | Path, spread: float = 0.25) -> list[np.ndarray]:
    """Style keys that the target may have as well as the one that was asked for.

    Args:
        name_or_path: as in `resolve_style_key`. "average" says that the style is not known; anything else that it is.
        keys_file: JSON of `save_style_keys`.
        spread: how far from the average towards the keys of the training's people, 0 to 1. Whole keys make samples
            differ most in white matter, where images err least: 0.25 had the better rank correlation with the error.

    Returns:
        a key (3, B) float32 for each person of the training; none where the style is known.
    """
    if str(name_or_path) != "average":
        return []
    keys = load_style_keys(keys_file)
    average = keys["average"]
    return [average + spread * (key - average) for name, key in keys.items() if name not in NO_PEOPLE]


def choose_style_key(
    name_or_path: str | Path | None,
    keys_file: str | Path,
    target: np.ndarray | torch.Tensor,
    subject: str | None = None,
    contrast: str | None = None,
) -> tuple[str | None, np.ndarray | None]:
    """Style key where the target is known, as in evaluation.

    Args:
        name_or_path: as in `resolve_style_key`; None for no key; "best" for the training subject whose key is nearest
            to the target's own (CT2MRI, table 2), which tells what a fitting key is worth and is no honest default.
        keys_file: JSON of `save_style_keys`.
        target: as `compute_style_key` takes it; read for "best" alone.
        subject: name of the target's person, or of a subject that the file names after its person: no key of that
            person is ever taken for "best".
        contrast: of the target, where the file has keys of several: "best" is one of them.

    Returns:
        name of the key used and the key (3, B) float32; None and None for no key.

    Raises:
        ValueError: as in `resolve_style_key`, or when there is no training subject to choose from.
    """
    if name_or_path is None:
        return None, None
    if str(name_or_path) != "best":
        return Path(name_or_path).name, resolve_style_key(name_or_path, keys_file, contrast)
    listed = load_style_keys(keys_file, _instead_of_a_file())
    own = {subject, *(person_of(name) for name in listed if subject in name.split("#"))}
    keys = listed if contrast is None else {name: key for name, key in listed.items() if name.endswith(f"#{contrast}")}
    keys = {name: key for name, key in keys.items() if name not in NO_PEOPLE and person_of(name) not in own}
    if not keys:
        what = "a training subject" if contrast is None else f"a training subject's {contrast}"
        raise ValueError(f"{keys_file} has no key of {what}, of which best chooses; use {NO_STYLE}.")
    name = nearest_style_key(compute_style_key(target), keys)
    return name, keys[name]


def _style_key_of_file(path: Path) -> np.ndarray:
    """Style key of a skull-stripped volume on disk, scaled as in training: by its 99.9 percentile, then clipped."""
    values, voxel_volume = _read_volume(path)
    levels, counts = np.unique(values, return_counts=True)
    background = levels[counts.argmax()]
    if background > 0 or counts.max() < 0.1 * values.size:
        raise ValueError(f"{path} has no constant background as a skull-stripped T1 has; strip its skull.")
    foreground = values[values > 0]
    if foreground.size == 0:
        raise ValueError(f"{path} is empty, with no voxel above 0; give a skull-stripped T1 volume.")
    litres = foreground.size * voxel_volume / 1e6
    if litres > _LARGEST_BRAIN:
        raise ValueError(
            f"{path} has {litres:.1f} litres above 0, more than any brain; it may be a whole head: strip its skull."
        )
    return compute_style_key(values / np.percentile(foreground, 99.9))


def _read_volume(path: Path) -> tuple[np.ndarray, float]:
    """Voxels of a 3D volume as float64 and the volume of one in mm^3."""
    image = read_volume(path)
    values = image.get_fdata()
    if not np.isfinite(values).all():
        raise ValueError(f"{path} has voxels that are NaN or infinite; replace them by 0, which is no brain.")
    return values, float(abs(np.linalg.det(image.affine[:3, :3])))
