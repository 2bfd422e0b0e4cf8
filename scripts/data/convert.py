"""A folder of DICOM to one NIfTI volume, by dcm2niix (Li et al. 2016), with what it leaves to its user.

dcm2niix reads the pixels, turns slices of a tilted gantry into right-angled volumes and fills uneven gaps. It also
writes several volumes where a folder holds several, a right-angled header over leaning slices where it cannot correct
them, and some corrected volumes at a wrong place. The positions in the DICOM headers tell each of these.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from scripts.data.pairs import files_below
from scripts.files import CaseError

_INSTALL = "pip install -r requirements-prepare.txt brings it"
_TAGS = ["ImageOrientationPatient", "SOPInstanceUID", "SeriesInstanceUID"]
_TAGS += ["ImagePositionPatient", "PixelSpacing", "Rows", "Columns"]
_SEVERAL = "give the folder of one series alone"


def convert_dicom(
    folder: Path, output: Path, timeout_s: float = 600, max_gap_mm: float = 15.0, straight_deg: float = 0.5
) -> Path:
    """Convert the one volume of a DICOM folder; scouts and single slices beside it are left out.

    Slices of a tilted gantry and uneven gaps come out corrected, on a right-angled even grid. Values keep their unit
    (HU). Neither the file nor an error holds a name out of the DICOM. Positions of multi-frame files are not checked.

    Args:
        folder: with DICOM files, of any name, in it or below it.
        output: file to write, `.nii.gz` or `.nii`; its folder is made.
        timeout_s: of dcm2niix, in seconds.
        max_gap_mm: the widest gap between two slices that is filled, in mm.
        straight_deg: slices that lean by less count as upright, in degrees.

    Returns:
        `output`.

    Raises:
        CaseError: dcm2niix or pydicom is missing; no volume or several; a lean or gaps that cannot be corrected; slices
            that are missing, unreadable or twice there.
    """
    folder, output = Path(folder), Path(output)
    if not folder.is_dir():
        raise CaseError("The DICOM folder is not there; correct the path.")
    stack = _read_stack(folder)
    with tempfile.TemporaryDirectory() as working:
        _run_dcm2niix(folder, Path(working), timeout_s)
        written = _one_volume(Path(working))
        if stack is not None:
            stack.check(written.slices, max_gap_mm, straight_deg)
            _refuse_uncorrected(stack, written, straight_deg)
        image = nib.load(written.best)
        affine = image.affine if stack is None or not written.tilt else _centred(image, stack)
        _save(np.asarray(image.dataobj), affine, output)
    return output


@dataclass(frozen=True)
class Stack:
    """Where parallel slices lie, in DICOM's LPS mm, in the order along their normal.

    Attributes:
        positions: (N, 3) centre of the first voxel of each slice.
        row: (3,) direction of rising column index.
        column: (3,) direction of rising row index.
        to_centre: (3,) from the first voxel of a slice to its middle.
    """

    positions: np.ndarray
    row: np.ndarray
    column: np.ndarray
    to_centre: np.ndarray

    @property
    def gaps(self) -> np.ndarray:
        """(N - 1,) distances of neighbouring slices along the normal, mm."""
        return np.diff(self.positions @ np.cross(self.row, self.column))

    @property
    def lean_deg(self) -> tuple[float, float]:
        """Angles by which the stack leans along the rows and along the columns of its slices; 0 is upright."""
        way = self.positions[-1] - self.positions[0]
        height = way @ np.cross(self.row, self.column)
        return tuple(float(np.degrees(np.arctan2(way @ axis, height))) for axis in (self.row, self.column))

    @property
    def centre(self) -> np.ndarray:
        """(3,) middle of the stack."""
        return (self.positions[0] + self.positions[-1]) / 2 + self.to_centre

    def check(self, slices_written: int, max_gap_mm: float, straight_deg: float) -> None:
        """Refuse a stack that makes no volume, whatever dcm2niix wrote."""
        gaps = self.gaps
        if gaps.min() < 0.05:
            raise CaseError(f"The DICOM series has several slices at one place; {_SEVERAL}.")
        if slices_written != len(self.positions):
            raise CaseError(
                f"Of {len(self.positions)} slices of the DICOM series {slices_written} could be converted; export it "
                "again, or give the folder of one series alone."
            )
        if gaps.max() > max_gap_mm:
            raise CaseError(
                f"The DICOM series has a gap of {gaps.max():.1f} mm between two slices, wider than {max_gap_mm:g} mm; "
                "slices are missing, export it again."
            )
        share = np.concatenate([[0], np.cumsum(gaps)]) / gaps.sum()
        line = self.positions[0] + share[:, None] * (self.positions[-1] - self.positions[0])
        if np.abs(self.positions - line).max() > 1:
            raise CaseError("The slices of the DICOM series do not lie on one line; give the folder of one series.")
        if abs(self.lean_deg[0]) > straight_deg:
            raise CaseError(
                f"The slices of the DICOM series lean sideways by {abs(self.lean_deg[0]):.1f} degrees, which cannot be "
                "corrected; export an upright series."
            )


def _read_stack(folder: Path) -> Stack | None:
    """The folder's largest set of parallel slices of one series; None where no header has a position."""
    try:
        import pydicom  # an extra, like dcm2niix
    except ImportError as error:
        raise CaseError(f"DICOM needs the package pydicom; {_INSTALL}.") from error
    stacks: list[dict[str, pydicom.Dataset]] = []
    for path in files_below(folder):
        try:
            with warnings.catch_warnings(action="ignore"):  # of small faults of form; they may quote a name
                header = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=_TAGS)
            orientation, identity, series, *_ = (getattr(header, tag) for tag in _TAGS)
        except Exception:
            continue  # no DICOM, or none with a place: a report, an index, a text
        for stack in stacks:
            first = next(iter(stack.values()))
            if first.SeriesInstanceUID == series and np.allclose(first.ImageOrientationPatient, orientation, atol=0.01):
                stack[identity] = header  # a copied file has the same identity
                break
        else:
            stacks.append({identity: header})
    largest = list(max(stacks, key=len, default={}).values())
    return _stack_of(largest) if len(largest) > 1 else None


def _stack_of(headers: list) -> Stack:
    first = headers[0]
    row, column = np.array(first.ImageOrientationPatient, dtype=float).reshape(2, 3)
    positions = np.array([header.ImagePositionPatient for header in headers], dtype=float)
    positions = positions[np.argsort(positions @ np.cross(row, column), kind="stable")]
    between_rows, between_columns = (float(edge) for edge in first.PixelSpacing)
    to_centre = row * between_columns * (first.Columns - 1) / 2 + column * between_rows * (first.Rows - 1) / 2
    return Stack(positions, row, column, to_centre)


def _run_dcm2niix(folder: Path, working: Path, timeout_s: float) -> None:
    """Uncompressed volumes into `working`, named `volume...`; what the program says is dropped: it may hold names."""
    # -g i: the user's own defaults do not count; -b n: no text file; -d 9: folders in the folder too
    options = ["-g", "i", "-b", "n", "-z", "n", "-d", "9", "-f", "volume", "-o", str(working)]
    try:
        subprocess.run(
            [_dcm2niix(), *options, str(folder.resolve())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=timeout_s,
            check=False,  # it fails where one file of many does; what it wrote is counted
        )
    except subprocess.TimeoutExpired as error:
        raise CaseError(
            f"The DICOM folder took dcm2niix longer than {timeout_s:g} s; give the folder of one series alone."
        ) from error


def _dcm2niix() -> str:
    """The program: that of the Python package, else one that is installed."""
    try:
        import dcm2niix

        return str(dcm2niix.bin)
    except ImportError as error:
        if found := shutil.which("dcm2niix"):
            return found
        raise CaseError(f"DICOM needs the program dcm2niix; {_INSTALL}.") from error


@dataclass(frozen=True)
class _Written:
    """What dcm2niix made of one volume: its best file, which corrections that has, slices before any correction."""

    best: Path
    tilt: bool
    even: bool
    slices: int


def _one_volume(working: Path) -> _Written:
    """The only volume that was written, in its most corrected form.

    Raises:
        CaseError: there is none, or several, or one over time.
    """
    volumes: dict[str, list[tuple[bool, bool, Path]]] = {}
    for path in sorted(working.glob("*.nii")):
        match = re.fullmatch(r"(.+?)(?:(_Tilt)?(_Eq)?_\d+|(_Tilt)?(_Eq)?)", path.stem)
        tilt, even = bool(match[2] or match[4]), bool(match[3] or match[5])
        volumes.setdefault(match[1] if tilt or even else path.stem, []).append((tilt, even, path))
    several_slices = [forms for forms in volumes.values() if len(nib.load(min(forms)[2]).shape) > 2]
    several_slices = [forms for forms in several_slices if nib.load(min(forms)[2]).shape[2] > 1]
    if not several_slices:
        raise CaseError(
            "No volume could be made of the DICOM folder, which holds no series of several slices or a damaged file; "
            "export it again."
        )
    if len(several_slices) > 1:
        raise CaseError(f"The DICOM folder holds {len(several_slices)} volumes; {_SEVERAL}.")
    forms = several_slices[0]
    plain = nib.load(min(forms)[2])
    if plain.ndim > 3 and plain.shape[3] > 1:
        raise CaseError(f"The DICOM folder holds {plain.shape[3]} volumes in one series; export the one to use alone.")
    tilt, even, best = max(forms)
    return _Written(best, tilt, even, plain.shape[2])


def _refuse_uncorrected(stack: Stack, written: _Written, straight_deg: float) -> None:
    """Refuse what has to be corrected and was not."""
    lean = abs(stack.lean_deg[1])
    if lean > straight_deg and not written.tilt:
        raise CaseError(
            f"The slices of the DICOM series lean by {lean:.1f} degrees, and dcm2niix corrects that in a CT alone; "
            "export an upright series."
        )
    gaps = stack.gaps
    if np.ptp(gaps) > 0.1 * np.median(gaps) and not written.even:
        raise CaseError(
            f"The gaps between the slices of the DICOM series run from {gaps.min():.1f} to {gaps.max():.1f} mm, and "
            "dcm2niix could not even them out; export a series with even gaps."
        )


def _centred(image: nib.Nifti1Image, stack: Stack) -> np.ndarray:
    """The affine of a volume whose tilt was corrected, moved so that the middle of the stack lies where it was scanned.

    dcm2niix 1.0.20260724 keeps the place of the first voxel when it pads the slices, at whichever end, which puts some
    volumes tens of millimetres off. The slices are shifted along their columns by 0 to `shift` rows.
    """
    way = stack.positions[-1] - stack.positions[0]
    between_rows = image.header.get_zooms()[1]
    shift = abs(way @ stack.column) / between_rows
    rows = 2 * np.linalg.norm(stack.to_centre @ stack.column) / between_rows + 1
    middle = np.array([(image.shape[0] - 1) / 2, (rows - 1 + shift) / 2, (image.shape[2] - 1) / 2])
    affine = image.affine.copy()
    affine[:3, 3] += stack.centre * (-1, -1, 1) - nib.affines.apply_affine(affine, middle)
    return affine


def _save(data: np.ndarray, affine: np.ndarray, output: Path) -> None:
    """Write the volume under a header of its own (dcm2niix's holds the time of the scan), whole or not at all."""
    axes = affine[:3, :3] / nib.affines.voxel_sizes(affine)
    if np.abs(axes.T @ axes - np.eye(3)).max() > 0.01:
        raise CaseError("The DICOM series came out with axes that are not at right angles; export an upright series.")
    whole = np.array_equal(data, np.round(data)) and np.abs(data).max() <= np.iinfo(np.int16).max
    image = nib.Nifti1Image(data.reshape(data.shape[:3]).astype(np.int16 if whole else np.float32), affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    image.header.set_xyzt_units("mm")
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.name}")
    nib.save(image, partial)
    os.replace(partial, output)
