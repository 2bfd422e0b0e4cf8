"""From the standard deviation of samples to that of the error: two numbers, measured on people kept apart."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import nnls
from torch import Tensor

__all__ = ["Calibration", "fit_calibration", "read_calibration"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Calibration:
    """sqrt(floor^2 + (factor s)^2): the error that all voxels share, and that which the samples tell.

    Attributes:
        factor: of the samples' standard deviation s, at least 0.
        floor: least standard deviation, in the image's unit.
        measured: whether the two were measured for the weights and settings in use.
    """

    factor: float = 1.0
    floor: float = 0.0
    measured: bool = True

    def __call__(self, spread: Tensor | np.ndarray) -> Tensor | np.ndarray:
        """Standard deviation of the error, shape of the samples' one."""
        return ((self.factor * spread) ** 2 + self.floor**2) ** 0.5

    def settings(self) -> dict[str, Any]:
        """What of it a record tells; JSON values."""
        return {"factor": self.factor, "floor": self.floor, "calibrated": self.measured}


def read_calibration(
    path: str | Path, weights_sha256: str | None = None, sampling: Mapping[str, Any] | None = None
) -> Calibration:
    """The calibration in a JSON with `factor`, `floor`, `weights_sha256`, `sampling`; what is odd the log says.

    Args:
        path: of the JSON; where it is not there, the samples' standard deviation stays as it is.
        weights_sha256: of the weights in use; None asks for none.
        sampling: settings of the inferer in use; None asks for none.

    Raises:
        ValueError: it is something else.
    """
    file = Path(str(path)).expanduser()
    if not file.is_file():
        logger.warning(f"The uncertainty is not calibrated: there is no {file.name}; measure it by uncertainty.json.")
        return Calibration(measured=False)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        factor, floor = float(content["factor"]), float(content["floor"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is no calibration ({error!r}); measure it again by uncertainty.json.") from None
    in_use = {"weights_sha256": weights_sha256, "sampling": None if sampling is None else dict(sampling)}
    given = {name: value for name, value in in_use.items() if value is not None}
    others = [name for name, value in given.items() if _filled(content.get(name)) != _filled(value)]
    if others:
        what = {"weights_sha256": "weights", "sampling": "settings of the sampler"}[others[0]]
        logger.warning(f"{file.name} was measured with other {what}: the uncertainty may be too large or too small.")
    return Calibration(factor, floor, not others)


def _filled(value: Any) -> Any:
    """Settings with what earlier versions did not have; anything else as it is."""
    return {"final_stride": 1, **value} if isinstance(value, Mapping) else value


def fit_calibration(spread: np.ndarray, error: np.ndarray, bins: int = 20) -> tuple[float, float]:
    """Factor and floor by which the mean squared error is floor^2 + factor^2 s^2, over bins of equal counts of s.

    Each bin counts by its relative deviation, so that calm voxels, which are most, are not left to the others.

    Args:
        spread: standard deviation of the samples, of any shape.
        error: of the image at the same voxels.
        bins: how many.

    Returns:
        factor and floor, 0 or above.
    """
    squared, wrong = np.square(np.ravel(spread), dtype=np.float64), np.square(np.ravel(error), dtype=np.float64)
    parts = np.array_split(np.argsort(squared), bins)
    s2, e2 = (np.array([values[part].mean() for part in parts]) for values in (squared, wrong))
    weights = 1 / np.maximum(e2, 1e-12)
    (floor2, factor2), _ = nnls(np.stack([weights, s2 * weights], axis=1), e2 * weights)
    return float(factor2**0.5), float(floor2**0.5)
