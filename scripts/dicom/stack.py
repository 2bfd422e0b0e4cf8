"""Parallel slices in space: their order, gaps and lean, and what of these makes no volume."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scripts.files import CaseError


@dataclass(frozen=True, eq=False)
class Stack:
    """Where parallel slices lie, in DICOM's LPS mm, in the order along their normal (PS3.3 C.7.6.2).

    Attributes:
        positions: (N, 3) centre of the first voxel of each slice.
        row: (3,) direction of rising column index.
        column: (3,) direction of rising row index.
        shape: rows and columns of a slice.
        spacing: mm between rows and between columns.
    """

    positions: np.ndarray
    row: np.ndarray
    column: np.ndarray
    shape: tuple[int, int]
    spacing: tuple[float, float]

    @property
    def normal(self) -> np.ndarray:
        """(3,) direction in which the slices follow each other."""
        return np.cross(self.row, self.column)

    @property
    def gaps(self) -> np.ndarray:
        """(N - 1,) distances of neighbouring slices along the normal, mm."""
        return np.diff(self.positions @ self.normal)

    @property
    def repeats(self) -> bool:
        """Whether several slices lie at one place, as in a series over time."""
        return len(self.positions) > 1 and bool(self.gaps.min() < 0.05)

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

    @property
    def to_centre(self) -> np.ndarray:
        """(3,) from the first voxel of a slice to its middle."""
        (rows, columns), (between_rows, between_columns) = self.shape, self.spacing
        return self.row * between_columns * (columns - 1) / 2 + self.column * between_rows * (rows - 1) / 2

    @property
    def centre(self) -> np.ndarray:
        """(3,) middle of the stack."""
        return (self.positions[0] + self.positions[-1]) / 2 + self.to_centre

    def check(self, name: str, max_gap_mm: float, straight_deg: float) -> None:
        """Refuse a stack that makes no volume, whatever a converter would write.

        Args:
            name: of the series, for the sentence.
            max_gap_mm: the widest gap between two slices, mm.
            straight_deg: slices that lean by less count as upright, degrees.

        Raises:
            CaseError: several slices at one place, a gap that is too wide or where a slice is missing, slices that do
                not lie on one line or lean sideways.
        """
        gaps = self.gaps
        if self.repeats:
            raise CaseError(
                f"{name} has several slices at one place (over time, or with other settings); export one volume alone."
            )
        if gaps.max() > max_gap_mm:
            raise CaseError(
                f"{name} has a gap of {gaps.max():.1f} mm between two slices, wider than {max_gap_mm:g} mm; slices are "
                "missing, export it again."
            )
        for number in range(1, len(gaps) - 1):
            before, gap, after = gaps[number - 1 : number + 2]
            if gap > 1.5 * max(before, after):
                raise CaseError(
                    f"{name} has a gap of {gap:.1f} mm between slices {number + 1} and {number + 2}, where the gaps "
                    f"beside it are {before:.1f} and {after:.1f} mm; a slice is missing, export it again."
                )
        share = np.concatenate([[0], np.cumsum(gaps)]) / gaps.sum()
        line = self.positions[0] + share[:, None] * (self.positions[-1] - self.positions[0])
        if np.abs(self.positions - line).max() > 1:
            raise CaseError(f"The slices of {name} do not lie on one line; export one straight series.")
        if abs(self.lean_deg[0]) > straight_deg:
            raise CaseError(
                f"The slices of {name} lean sideways by {abs(self.lean_deg[0]):.1f} degrees, which cannot be "
                "corrected; export an upright series."
            )
