"""A DICOM series to one NIfTI volume, by dcm2niix (Li et al. 2016), with what it leaves to its user.

dcm2niix turns slices of a tilted gantry into right-angled volumes and fills uneven gaps. It also writes a right-angled
header over leaning slices where it cannot correct them, and some corrected volumes at a wrong place: the positions in
the DICOM headers tell. It gets slices that hold their values and places alone (`write_plain`).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from scripts.dicom.headers import INSTALL
from scripts.dicom.plain import write_plain
from scripts.dicom.series import Series, find_series, read_series
from scripts.dicom.stack import Stack
from scripts.files import CaseError


def convert_dicom(folder: Path, output: Path, **options: float) -> Path:
    """Convert the one volume of a DICOM folder; single slices such as scouts beside it are left out.

    Args:
        folder: with DICOM files, of any name, in it or below it.
        output: file to write, `.nii.gz` or `.nii`; its folder is made.
        options: of `convert_series`.

    Returns:
        `output`.

    Raises:
        CaseError: no folder, no volume or several, and what `convert_series` raises.
    """
    convert(only_volume(Path(folder)), Path(output), **options)
    return Path(output)


def only_volume(folder: Path) -> Series:
    """The one series of several slices in a folder and the folders below it.

    Raises:
        CaseError: no folder, none, or several.
    """
    if not folder.is_dir():
        raise CaseError("The DICOM folder is not there; correct the path.")
    volumes = [series for series in find_series(folder) if series.slices > 1]
    if not volumes:
        raise CaseError("No volume could be made of the DICOM folder, which holds no series of several slices.")
    if len(volumes) > 1:
        raise CaseError(f"The DICOM folder holds {len(volumes)} volumes; give the folder of one series alone.")
    return volumes[0]


def convert_series(files: Sequence[str | os.PathLike], output: Path, **options: float) -> tuple[Series, str | None]:
    """Convert the files of one DICOM series, which are one stack of parallel slices; see `convert`.

    Raises:
        CaseError: the files are not one stack, and what `convert` raises.
    """
    stacks = read_series([Path(file) for file in files])
    if len(stacks) != 1 or len(stacks[0].files) != len(files):
        raise CaseError(
            f"Of the {len(files)} files of a DICOM series some are missing, damaged, twice there or of another series; "
            "give the series again."
        )
    return stacks[0], convert(stacks[0], output, **options)


def convert(
    series: Series, output: Path, timeout_s: float = 600, max_gap_mm: float = 15.0, straight_deg: float = 0.5
) -> str | None:
    """Write a DICOM series as NIfTI, whole or not at all.

    Slices of a tilted gantry and uneven gaps come out corrected, on a right-angled even grid. Values keep their unit
    (HU). Neither the file nor an error holds a name out of the DICOM, or that of a file or folder.

    Args:
        series: a stack of parallel slices.
        output: file to write, `.nii.gz` or `.nii`; its folder is made.
        timeout_s: of dcm2niix, in seconds.
        max_gap_mm: the widest gap between two slices that is filled, in mm.
        straight_deg: slices that lean by less count as upright, in degrees.

    Returns:
        What was corrected, in words; None where nothing had to be.

    Raises:
        CaseError: dcm2niix is missing; slices without a place, missing, unreadable or twice there; a lean or gaps that
            cannot be corrected.
    """
    name, stack = series.name, series.stack
    if stack is None:
        raise CaseError(
            f"{_sentence(name)} does not say where its slices lie (ImagePositionPatient, ImageOrientationPatient, "
            "PixelSpacing); export it again with them."
        )
    if series.samples != 1:
        raise CaseError(f"{_sentence(name)} holds colours, not one value a voxel; give the scan itself.")
    if series.slices < 2:
        raise CaseError(f"{_sentence(name)} is a single slice; a volume is needed.")
    stack.check(_sentence(name), max_gap_mm, straight_deg)
    with tempfile.TemporaryDirectory() as working:
        staged, written_to = Path(working) / "dicom", Path(working) / "nifti"
        write_plain(series, staged)
        written_to.mkdir()
        _run_dcm2niix(staged, written_to, timeout_s, name)
        written = _one_volume(written_to, name)
        if written.slices != series.slices:
            raise CaseError(
                f"Of {series.slices} slices of {name} {written.slices} could be read; a file is damaged or of a kind "
                "that dcm2niix does not read: export the series again, uncompressed."
            )
        _refuse_uncorrected(stack, written, straight_deg, name)
        image = nib.load(written.best)
        affine = _centred(image, stack) if written.tilt else image.affine
        _save(np.asarray(image.dataobj), affine, output, name)
    return _corrections(stack, written)


def _sentence(name: str) -> str:
    return name[0].upper() + name[1:]


def _corrections(stack: Stack, written: _Written) -> str | None:
    said = []
    if written.tilt:
        said.append(f"gantry tilt of {abs(stack.lean_deg[1]):.1f} degrees")
    if written.even:
        said.append(f"gaps of {stack.gaps.min():.1f} to {stack.gaps.max():.1f} mm between the slices")
    return " and ".join(said) or None


def _run_dcm2niix(folder: Path, working: Path, timeout_s: float, name: str) -> None:
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
            f"{_sentence(name)} took dcm2niix longer than {timeout_s:g} s; export it again, uncompressed."
        ) from error


def _dcm2niix() -> str:
    """The program: that of the Python package, else one that is installed."""
    try:
        import dcm2niix

        return str(dcm2niix.bin)
    except ImportError as error:
        if found := shutil.which("dcm2niix"):
            return found
        raise CaseError(f"DICOM needs the program dcm2niix; {INSTALL}.") from error


@dataclass(frozen=True)
class _Written:
    """What dcm2niix made of one volume: its best file, which corrections that has, slices before any correction."""

    best: Path
    tilt: bool
    even: bool
    slices: int


def _one_volume(working: Path, name: str) -> _Written:
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
        raise CaseError(f"No volume could be made of {name}, which has a damaged file; export it again.")
    if len(several_slices) > 1:
        raise CaseError(f"{_sentence(name)} holds {len(several_slices)} volumes; export the one to use alone.")
    forms = several_slices[0]
    plain = nib.load(min(forms)[2])
    if plain.ndim > 3 and plain.shape[3] > 1:
        raise CaseError(f"{_sentence(name)} holds {plain.shape[3]} volumes; export the one to use alone.")
    tilt, even, best = max(forms)
    return _Written(best, tilt, even, plain.shape[2])


def _refuse_uncorrected(stack: Stack, written: _Written, straight_deg: float, name: str) -> None:
    """Refuse what has to be corrected and was not."""
    lean = abs(stack.lean_deg[1])
    if lean > straight_deg and not written.tilt:
        raise CaseError(
            f"The slices of {name} lean by {lean:.1f} degrees, and dcm2niix corrects that in a CT alone; "
            "export an upright series."
        )
    gaps = stack.gaps
    if np.ptp(gaps) > 0.1 * np.median(gaps) and not written.even:
        raise CaseError(
            f"The gaps between the slices of {name} run from {gaps.min():.1f} to {gaps.max():.1f} mm, and "
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


def _save(data: np.ndarray, affine: np.ndarray, output: Path, name: str) -> None:
    """Write the volume under a header of its own (dcm2niix's holds the time of the scan), whole or not at all."""
    axes = affine[:3, :3] / nib.affines.voxel_sizes(affine)
    if np.abs(axes.T @ axes - np.eye(3)).max() > 0.01:
        raise CaseError(f"{_sentence(name)} came out with axes that are not at right angles; export an upright series.")
    whole = np.array_equal(data, np.round(data)) and np.abs(data).max() <= np.iinfo(np.int16).max
    image = nib.Nifti1Image(data.reshape(data.shape[:3]).astype(np.int16 if whole else np.float32), affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    image.header.set_xyzt_units("mm")
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.name}")
    nib.save(image, partial)
    os.replace(partial, output)
