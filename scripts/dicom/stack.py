"""Parallel slices in space: their order, gaps and lean, and what of these makes no volume."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import CaseError

SAME_PLACE_MM = 0.05
_MANY_RUNS = 5  # of gaps that differ: more than a missing slice or two make


@dataclass(frozen=True, eq=False)
class Stack:
    """Where parallel slices lie, in DICOM's LPS mm, in the order along their normal (PS3.3 C.7.6.2).

    Attributes:
        positions: (N, 3) centre of the first voxel of each slice.
        row: (3,) direction of rising column index.
        column: (3,) direction of rising row index.
        shape: rows and columns of a slice.
        spacing: mm between rows and between columns.
        turned_deg: the most that a slice is turned against the first, degrees.
    """

    positions: np.ndarray
    row: np.ndarray
    column: np.ndarray
    shape: tuple[int, int]
    spacing: tuple[float, float]
    turned_deg: float = 0.0

    @property
    def normal(self) -> np.ndarray:
        """(3,) direction in which the slices follow each other."""
        return np.cross(self.row, self.column)

    @property
    def axes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The normal, the direction across the rows' columns, and that down the rows."""
        return self.normal, self.row, self.column

    @property
    def gaps(self) -> np.ndarray:
        """(N - 1,) distances of neighbouring slices along the normal, mm."""
        return np.diff(self.positions @ self.normal)

    @property
    def repeats(self) -> bool:
        """Whether several slices lie at one place, as in a series over time."""
        return len(self.positions) > 1 and bool(self.gaps.min() < SAME_PLACE_MM)

    @property
    def axial(self) -> bool:
        """Whether the normal is within 45 degrees of the body's axis."""
        return bool(abs(self.normal[2]) >= np.sqrt(0.5) - 1e-6)

    @property
    def lean_deg(self) -> tuple[float, float]:
        """Angles by which the stack leans along the rows and along the columns of its slices; 0 is upright."""
        way = self.positions[-1] - self.positions[0]
        height = way @ self.normal
        return tuple(float(np.degrees(np.arctan2(way @ axis, height))) for axis in (self.row, self.column))

    def check(self, name: str, max_gap_mm: float, max_lean_deg: float) -> None:
        """Refuse a stack that makes no volume.

        Args:
            name: of the series, for the sentence.
            max_gap_mm: the widest gap between two slices, mm.
            max_lean_deg: the most that the slices may lean, degrees.

        Raises:
            CaseError: several slices at one place, a gap that is too wide or where a slice is missing, slices that do
                not lie on one line, are turned or lean too far.
        """
        gaps = self.gaps
        if self.repeats:
            raise CaseError(
                f"Of {name} several slices lie at one place (over time, or with other settings); export one volume "
                "alone."
            )
        if gaps.max() > max_gap_mm:
            raise CaseError(
                f"Between two slices of {name} is a gap of {gaps.max():.1f} mm, wider than {max_gap_mm:g} mm; slices "
                "are missing, export it again."
            )
        self._refuse_holes(name)
        share = np.concatenate([[0], np.cumsum(gaps)]) / gaps.sum()
        line = self.positions[0] + share[:, None] * (self.positions[-1] - self.positions[0])
        if np.abs(self.positions - line).max() > 1:
            raise CaseError(f"The slices of {name} do not lie on one line; export one straight series.")
        if self.turned_deg > 0.1:
            raise CaseError(
                f"The slices of {name} are turned against each other by {self.turned_deg:.1f} degrees; export them as "
                "one straight series."
            )
        lean = max(abs(angle) for angle in self.lean_deg)
        if lean > max_lean_deg:
            raise CaseError(f"The slices of {name} lean by {lean:.1f} degrees; export an upright series.")

    def _refuse_holes(self, name: str) -> None:
        if found := hole(self.gaps):
            index, gap, before = found
            why = "a slice is missing"
            if len(runs_of_gaps(self.gaps)) > _MANY_RUNS:
                why = "slices are missing, or those of two acquisitions lie between each other"
            raise CaseError(
                f"Between slices {index + 1} and {index + 2} of {name} is a gap of {gap:.1f} mm, where those beside it "
                f"are {before:.1f} mm; {why}, export one whole acquisition again."
            )


def hole(gaps: np.ndarray) -> tuple[int, float, float] | None:
    """Index and width of the first gap where slices are missing, and the width of those beside it; None without one.

    Slices are missing where gaps are twice or three times as wide as those before and behind: one gap of its own or
    several in a row, as where every second slice is missing; a part that was scanned thicker between two thinner ones
    is longer than those. At the ends a single gap tells.
    """
    runs = runs_of_gaps(gaps)
    for index, (start, count, gap) in enumerate(runs if len(runs) > 1 else []):
        beside = [runs[other] for other in (index - 1, index + 1) if 0 <= other < len(runs)]
        lengths, (before, *behind) = [one[1] for one in beside], [one[2] for one in beside]
        times = gap / before
        alike = all(_alike(before, other) for other in behind)
        short = count <= max(lengths) if behind else count == 1 < max(lengths)
        if alike and short and times > 1.5 and abs(times - round(times)) < 0.2:
            return start, gap, before
    return None


def runs_of_gaps(gaps: np.ndarray) -> list[tuple[int, int, float]]:
    """Index of the first, number and width of gaps in a row that are alike."""
    runs: list[tuple[int, int, float]] = []
    for index, gap in enumerate(gaps):
        if runs and _alike(gap, runs[-1][2]):
            runs[-1] = (runs[-1][0], runs[-1][1] + 1, runs[-1][2])
        else:
            runs.append((index, 1, float(gap)))
    return runs


def _alike(gap: float, other: float) -> bool:
    return abs(gap - other) < 0.15 * min(gap, other)
