"""A folder of DICOM to one NIfTI volume, by dcm2niix."""

from __future__ import annotations

from pathlib import Path


def convert_dicom(folder: Path, output: Path) -> Path:
    """Convert the one volume of a DICOM folder."""
    raise NotImplementedError
