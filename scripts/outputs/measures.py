"""What is measured of each translated case, and what of it is worth a warning; for the JSON, the log and the report."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.utils import convert_to_numpy

from ..conditioning.style_key import compute_style_key, load_style_keys
from ..conditioning.training_range import TrainingRange, key_contrast, keys_of_contrast
from ..watch.brain_shape import orientation_by_shape
from .ct_oddities import ct_measures, ct_warnings, metal_measures

__all__ = ["UNKNOWN_ORIENTATION", "CaseMeasures", "border_area", "case_warnings"]

logger = logging.getLogger(__name__)

UNKNOWN_ORIENTATION = "unknown: the source's header does not say how its axes lie, so that left and right are a guess"
# Median of the brain's soft tissue: 20 to 31 HU in real CT, 20 to 40 in the simulated CT of the training.
PLAUSIBLE_MEDIAN_HU = (12.0, 50.0)
# Largest cut through the brain by a face of the volume that is still harmless: brainstem and cerebellum at its foot.
LARGEST_BORDER_AREA = 20.0
THICKEST_VOXEL = 3.0  # mm
# Standard deviation from which a voxel says little: grey and white matter differ by about twice as much.
HIGH_UNCERTAINTY = 0.15
# Logarithms: how much likelier another orientation must be by the brain's shape (at most 5 for heads bent by 25
# degrees), and how likely the shape (-4 to -20 for whole brains, less for parts of one)
LEAST_BRAIN_ML = 500.0
LEAST_SHAPE_MARGIN, LEAST_SHAPE_LIKELIHOOD = 8.0, -25.0
LARGEST_UNCERTAIN_SHARE = 0.3
_NOT_MEASURED = "How far cases are from the training is not measured"


class CaseMeasures:
    """Measures a translated case against the training.

    Args:
        source_keys_file: style keys of the training's sources (`save_style_keys`).
        style_keys_file: style keys of the training's targets.
        input_key: key of what the network was given, [0, 1], background 0.
        num_contrasts: its first channels; what follows are conditions, which are not measured.
        source_key: key of the source as loaded, in its unit.
        mask_key: key of the brain mask on the source's grid.
        window: HU that 0 and 1 of the network's input stand for; with it what only a CT has (`ct_measures`) is
            measured, too.
        contrasts: names of the first channels of the input, of which those that are there are compared, each with the
            training's keys of the same contrast (`keys_of_contrast`); None for a source of one contrast.
        target_contrast: of whose keys the synthetic image is compared with, where `contrasts` are given.

    A file that is missing, or has keys of fewer than three people, leaves its measures out; the log says so.
    """

    def __init__(
        self,
        source_keys_file: str | Path,
        style_keys_file: str | Path,
        input_key: str = "image",
        source_key: str = "source",
        mask_key: str = "mask",
        window: Sequence[float] | None = None,
        num_contrasts: int = 1,
        contrasts: Sequence[str] | None = None,
        target_contrast: str | None = None,
    ) -> None:
        self.window = window
        self.num_contrasts = num_contrasts
        self.contrasts = contrasts
        self.target_contrast = target_contrast if contrasts else None
        self.input_key = input_key
        self.source_key = source_key
        self.mask_key = mask_key
        self.ranges = {"source": _Ranges(source_keys_file), "synthetic": _Ranges(style_keys_file)}
        if not contrasts:
            for ranges in self.ranges.values():
                ranges.of(None)  # so that the log says first what will not be measured

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[str, Any]:
        """Numbers by name.

        `source_distance`, `source_contrast`, `synthetic_distance` and their `_limit` (`TrainingRange`), those of the
        source by contrast in `by_contrast` where there are several; `source_median` in the source's unit; `brain_ml`;
        `brain_at_border_cm2` (`border_area`); where there is an item `uncertainty`, its mean in the brain
        `uncertainty_mean` and the share of the brain that is above `HIGH_UNCERTAINTY`, `uncertainty_high_share`;
        `shape_margin`, `shape_likelihood`, `shape_front` and `shape_top` of the orientation that suits the brain's
        shape best (`ShapeOrientation`); of a CT those of `ct_measures`, `metal_measures` and, where the lesion watch
        looked, `asymmetric_ml`.
        """
        mask = np.asarray(torch.as_tensor(data[self.mask_key])[0].cpu()) > 0.5
        source = np.asarray(torch.as_tensor(data[self.source_key])[0].cpu())
        affine = np.asarray(data[self.source_key].affine, dtype=np.float64)
        measured = {
            "source_median": float(np.median(source[mask])),
            "brain_ml": float(mask.sum() * abs(np.linalg.det(affine[:3, :3])) / 1000),
            "brain_at_border_cm2": border_area(mask, affine),
            **_shape_measures(mask, affine),
        }
        if "uncertainty" in data:
            spread = np.asarray(torch.as_tensor(data["uncertainty"])[0].cpu())[mask]
            measured["uncertainty_mean"] = float(spread.mean())
            measured["uncertainty_high_share"] = float((spread > HIGH_UNCERTAINTY).mean())
        measured |= self._against_training(data)
        if self.window is not None:
            image = data[self.input_key]
            measured |= ct_measures(convert_to_numpy(image[0]), convert_to_numpy(image.pixdim), source, self.window)
            measured |= metal_measures(source, mask, affine)
        if "asymmetric_ml" in data:
            measured["asymmetric_ml"] = data["asymmetric_ml"]
        return _rounded(measured)

    def _against_training(self, data: Mapping[Hashable, Any]) -> dict[str, Any]:
        """How far source and synthetic image are from the training's."""
        measured = self.ranges["synthetic"].compared("synthetic", data["synthetic"], self.target_contrast)
        source, ranges = data[self.input_key][: self.num_contrasts], self.ranges["source"]
        if not self.contrasts:
            return measured | ranges.compared("source", source)
        there = {name: image for name, image in zip(self.contrasts, source, strict=True) if image.any()}
        told = {name: ranges.compared("source", image, name) for name, image in there.items()}
        return {**measured, "by_contrast": {name: one for name, one in told.items() if one}}


def _rounded(measured: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _rounded(value) if isinstance(value, Mapping) else round(value, 4) for name, value in measured.items()
    }


def _shape_measures(mask: np.ndarray, affine: np.ndarray) -> dict[str, float]:
    whole = mask.sum() * abs(np.linalg.det(affine[:3, :3])) / 1000 > LEAST_BRAIN_ML
    found = orientation_by_shape(mask, affine) if whole else None
    if found is None:
        return {}
    return {
        "shape_margin": found.margin,
        "shape_likelihood": found.log_likelihood,
        "shape_front": float(found.front),
        "shape_top": float(found.top),
    }


class _Ranges:
    """The ranges of a file of style keys: of all of them, or of those of each contrast.

    Args:
        keys_file: of `save_style_keys`. What cannot be compared with it, the log says once.
    """

    def __init__(self, keys_file: str | Path) -> None:
        self._of: dict[str | None, TrainingRange | None] = {}
        self._keys: Mapping[str, np.ndarray] | None = None
        try:
            self._keys = load_style_keys(keys_file)
        except ValueError as error:
            logger.warning(f"{_NOT_MEASURED}: {error}")

    def of(self, contrast: str | None) -> TrainingRange | None:
        """That of the keys of a contrast, or of all keys for None; None where there are too few people."""
        if self._keys is not None and contrast not in self._of:
            keys = self._keys if contrast is None else keys_of_contrast(self._keys, contrast)
            try:
                self._of[contrast] = TrainingRange(keys)
            except ValueError as error:
                what = f"How far a {contrast} is from the training is not measured" if contrast else _NOT_MEASURED
                logger.warning(f"{what}: {error}")
                self._of[contrast] = None
        return self._of.get(contrast)

    def compared(self, name: str, image: torch.Tensor, contrast: str | None = None) -> dict[str, float]:
        """An image in [0, 1] against the training, its measures beginning with `name`; none without a range."""
        training = self.of(contrast)
        return {} if training is None else _compared(name, image, training)


def _compared(name: str, image: torch.Tensor, training: TrainingRange) -> dict[str, float]:
    """An image in [0, 1] against the training; one without a voxel above the background is as far as can be."""
    measured = {f"{name}_distance": 1.0, f"{name}_distance_limit": training.distance_limit}
    values = convert_to_numpy(image)
    # only these are counted, and they are few; PyTorch would list their places first, eight times the memory
    values = values[values > 0.001]
    if not values.size:
        return measured
    key = compute_style_key(values)
    measured[f"{name}_distance"] = training.distance(key)
    if name == "source":
        measured |= {"source_contrast": key_contrast(key), "source_contrast_limit": training.contrast_limit}
    return measured


def border_area(mask: np.ndarray, affine: np.ndarray) -> float:
    """Largest area, in cm^2, with which a mask (H, W, Z) touches one of the six faces of its volume.

    Args:
        mask: bool.
        affine: voxel to mm.
    """
    spacing = np.linalg.norm(np.asarray(affine, dtype=np.float64)[:3, :3], axis=0)
    areas = []
    for axis in range(3):
        pixel = np.prod(np.delete(spacing, axis)) / 100
        areas += [pixel * np.take(mask, index, axis).sum() for index in (0, -1)]
    return float(max(areas))


def case_warnings(record: Mapping[str, Any]) -> list[str]:
    """What is odd about a case, one sentence each, from the JSON record that the main job writes."""
    measured = record.get("measured") or {}
    grid = record.get("grid") or {}
    windowed = bool(record.get("ct_window"))
    warnings = [*_watch_warnings(record), *_range_warnings(measured), *ct_warnings(measured, windowed)]
    median = measured.get("source_median")
    low, high = PLAUSIBLE_MEDIAN_HU
    in_hu = record.get("hu_window") and record.get("source_contrast", "CT") == "CT"
    if median is not None and in_hu and not low <= median <= high:
        warnings.append(
            f"Intensity far from training: the brain's median is {median:.0f} HU; {low:.0f} to {high:.0f} are usual."
        )
    border = measured.get("brain_at_border_cm2", 0.0)
    if border > LARGEST_BORDER_AREA:
        warnings.append(f"The brain is cut off: {border:.0f} cm² of it lie at the edge of the field of view.")
    uncertain = measured.get("uncertainty_high_share", 0.0)
    if uncertain > LARGEST_UNCERTAIN_SHARE:
        warnings.append(
            f"Uncertain: the standard deviation is above {HIGH_UNCERTAINTY:g} in {uncertain:.0%} of the brain; see the "
            "uncertainty map."
        )
    if sparse := record.get("sparse"):
        source, gap = record.get("source_contrast", "CT"), round(sparse["gap_mm"], 1)
        warnings.append(f"Sparse {source}, gaps of {gap:g} mm: slices between are inferred.")
    elif (thickest := max(grid.get("spacing_mm") or [0.0])) > THICKEST_VOXEL:
        warnings.append(f"Coarse voxels: up to {thickest:.1f} mm; what is smaller is guessed.")
    if used := (record.get("references") or {}).get("found"):
        of = record["references"]["missing"]
        warnings.append(f"Another person's slice was used as a reference at {used} of {of} missing slices.")
    if _lies_otherwise(measured):
        front, top = (_SIDES[int(measured[name])] for name in ("shape_front", "shape_top"))
        warnings.append(
            f"Orientation doubtful: by the brain's shape its forehead is at the {front} and its crown at the {top} of "
            "the image; check the source's header, and left and right with it."
        )
    if grid.get("doubt"):
        warnings.append(f"The source's header contradicts itself: {grid['doubt']}.")
    if str(grid.get("orientation", "")).startswith("unknown"):
        warnings.append(f"Orientation {grid['orientation']}.")
    return warnings


_SIDES = {1: "right", -1: "left", 2: "front", -2: "back", 3: "top", -3: "bottom"}


def _lies_otherwise(measured: Mapping[str, float]) -> bool:
    """Whether another orientation than the header's suits the brain's shape, if it is a whole brain's."""
    likely = measured.get("shape_likelihood", -np.inf) > LEAST_SHAPE_LIKELIHOOD
    return likely and measured.get("shape_margin", 0.0) > LEAST_SHAPE_MARGIN


def _watch_warnings(record: Mapping[str, Any]) -> list[str]:
    """What the lesion watch found, in one sentence."""
    findings = record.get("lesion_watch") or []
    if not findings:
        return []
    told = [
        f"{finding['ml']:.1f} mL {finding['kind']} at ({', '.join(f'{x:.0f}' for x in finding['place_mm'])}) mm"
        for finding in findings[:3]
    ]
    more = f" and {len(findings) - 3} more" if len(findings) > 3 else ""
    source, target = record.get("source_contrast", "CT"), record.get("target_contrast", "T1")
    return [
        f"Lesion watch: the {source} shows what is missing in the synthetic {target}: {', '.join(told)}{more} (RAS); "
        f"look at the {source} there."
    ]


def _range_warnings(measured: Mapping[str, Any]) -> list[str]:
    """What the training keys call odd; of several contrasts, which."""
    warnings = []
    compared = [("source", "source", measured), ("synthetic", "synthetic image", measured)]
    compared += [("source", contrast, told) for contrast, told in measured.get("by_contrast", {}).items()]
    for name, what, told in compared:
        distance, limit = told.get(f"{name}_distance"), told.get(f"{name}_distance_limit")
        if distance is not None and limit is not None and distance > limit:
            warnings.append(
                f"Out of distribution: the intensities of the {what} are far from the training's "
                f"(distance {distance:.2f}, limit {limit:.2f})."
            )
    for name, what, told in compared:
        contrast, limit = told.get(f"{name}_contrast"), told.get(f"{name}_contrast_limit")
        if contrast is not None and limit is not None and contrast < limit:
            warnings.append(
                f"Low contrast: 80 % of the brain in the {what} lie within {contrast:.2f} of the grey scale; "
                f"the training had at least {limit:.2f}."
            )
    return warnings
