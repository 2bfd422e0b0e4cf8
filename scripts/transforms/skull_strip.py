"""Skull strip: where the brain is, by an own method, a mask that exists, or any program."""

from __future__ import annotations

import copy
import logging
import os
import shlex
import signal
import subprocess
from collections.abc import Hashable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from scipy import ndimage

from ..dicom.series import series_identity
from ..errors import CaseError
from ..files import temporary_folder
from ..volumes.find import IMAGE_SUFFIXES, stem_of
from ..volumes.load import LoadVolume, file_name, tell_doubt
from ..volumes.parts import sha256_of_volume
from .ct_brain_mask import ct_brain_mask, foreground, is_stripped
from .mri_brain_mask import is_stripped_mri, mri_brain_mask

__all__ = ["MaskFiles", "SkullStripd", "method_name", "recorded_method"]

logger = logging.getLogger(__name__)

_METHODS = ("auto", "none", "builtin", "hd-bet")


class SkullStripd(MapTransform):
    """Adds a brain mask on the grid of the image, whose values stay as they are.

    Args:
        keys: key of the image, a MetaTensor (1, H, W, Z); for the method `builtin` a CT in HU.
        mask_key: key of the mask: a uint8 MetaTensor (1, H, W, Z), 1 in the brain, with the affine and the trace of
            applied transforms of the image, so that it can be inverted like it. Its meta names the `skull_strip`, and
            has the `mask_sha256` of a mask that was read from a file.
        method: one of
            `builtin`: classical method for CT (`ct_brain_mask`); a CT that is stripped already is left alone: its mask
            is what is not background.
            `hd-bet`: for MRI of any contrast (`mri_brain_mask`); an MRI that is stripped already is left alone.
            `auto`: `builtin` for a CT (`contrast` of the image's meta), `hd-bet` for any other contrast.
            `none`: what is not background, or everything where no background is constant.
            a path: of a mask (above 0.5 inside), or of a folder that holds one for each case, named like the image's
            file (`a.nii.gz`) or like the end of its path with `_` or `/` between the parts (`sub1_a.nii.gz`,
            `sub1/a.nii.gz`), for DICOM like the case or the series' UID; a mask on another grid is resampled.
            a command with `{input}` and `{mask}`: it is run without a shell, reads NIfTI from the one path and has to
            write a mask to the other.
        timeout: seconds that the command may take.
        working_spacing: edge of the voxels that `builtin` computes on, mm.
        allow_missing_keys: no error where the image is missing.

    Raises:
        CaseError: a method that is neither a name, a path that is there, nor a command with both marks; a mask that is
            missing, empty or elsewhere; a command that fails, times out or writes no mask; no brain in the CT.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        mask_key: str = "mask",
        method: str | os.PathLike = "builtin",
        timeout: float = 1800.0,
        working_spacing: float = 2.0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if len(self.keys) != 1:
            raise ValueError(f"one image, not {len(self.keys)}: there is one mask key")
        self.mask_key = mask_key
        self.method = _checked_method(os.fspath(method))
        self.timeout = timeout
        self.working_spacing = working_spacing

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add the mask of the image."""
        d = dict(data)
        for key in self.key_iterator(d):
            image = d[key]
            mask, told = self._mask(image, d.get("case"))
            meta = {**copy.deepcopy(image.meta), **told}
            d[self.mask_key] = MetaTensor(
                torch.from_numpy(mask.astype(np.uint8))[None].to(image.device),
                meta=meta,
                applied_operations=copy.deepcopy(image.applied_operations),
            )
        return d

    def _mask(self, image: MetaTensor, case: str | None) -> tuple[np.ndarray, dict[str, str]]:
        """(H, W, Z) bool, and for the meta how it came about."""
        volume = image[0].detach().cpu().numpy()
        affine = np.asarray(image.affine.cpu(), dtype=np.float64)
        if self.method not in _METHODS and "{input}" not in self.method:
            path = _mask_path(Path(self.method), _source_of(image), image.meta.get("series_uid"), case)
            of_series = bool(image.meta.get("series_uid"))
            mask = _load_mask(path, volume.shape, affine, file_name(image), of_series)
            return mask, {"skull_strip": path.name, "mask_sha256": sha256_of_volume(path)}
        mask, how = self._found_mask(volume, affine, image)
        return mask, {"skull_strip": how}

    def _found_mask(self, volume: np.ndarray, affine: np.ndarray, image: MetaTensor) -> tuple[np.ndarray, str]:
        """As `_mask`, of a method that looks for the brain, and what it did."""
        method = self.method
        if method == "auto":
            method = "builtin" if image.meta.get("contrast") == "CT" else "hd-bet"
        if method == "none":
            return foreground(volume), "none"
        if method == "builtin":
            if is_stripped(volume):
                return foreground(volume), "already stripped"
            return ct_brain_mask(volume, affine, file_name(image), self.working_spacing), "builtin"
        if method == "hd-bet":
            if is_stripped_mri(volume, affine):
                return foreground(volume), "already stripped"
            logger.info(
                f"{file_name(image)}: HD-BET looks for the brain, which takes about half a minute on a CPU; a stripped "
                "volume, or skull_strip with a folder of masks or none, does without."
            )
            return mri_brain_mask(volume, affine), "hd-bet"
        return self._command_mask(volume, affine, file_name(image)), method_name(self.method)

    def _command_mask(self, volume: np.ndarray, affine: np.ndarray, name: str) -> np.ndarray:
        with temporary_folder() as folder:
            source, mask = folder / "input.nii.gz", folder / "mask.nii.gz"
            nib.save(nib.Nifti1Image(volume.astype(np.float32), affine), source)
            # split first: a path with blanks stays one argument
            arguments = [
                part.replace("{input}", str(source)).replace("{mask}", str(mask)) for part in shlex.split(self.method)
            ]
            _run(arguments, self.timeout, folder / "stderr", name)
            if not mask.exists():
                raise CaseError(
                    f"The skull-strip command {arguments[0]} wrote no mask for {name}; it has to write one to {{mask}}."
                )
            return _load_mask(mask, volume.shape, affine, name)


class MaskFiles:
    """Which file a method takes the mask of a case from.

    Args:
        method: of `SkullStripd`.

    Raises:
        CaseError: see `SkullStripd`.
    """

    def __init__(self, method: str | os.PathLike) -> None:
        self.method = _checked_method(os.fspath(method))

    def __call__(self, image: str | Sequence[str], case: str) -> Path | None:
        """The file; None for a method that looks for the brain.

        Args:
            image: path of a volume, or those of a DICOM series.
            case: CASE.

        Raises:
            CaseError: the folder has none for the case, or the series cannot be read.
        """
        if self.method in _METHODS or "{input}" in self.method:
            return None
        uid = None if isinstance(image, str) else series_identity(image)[0]
        return _mask_path(Path(self.method), image if isinstance(image, str) else image[0], uid, case)


def recorded_method(method: str | os.PathLike) -> str:
    """As `method_name`; of a command also digits that stand for its arguments, with which it finds another brain."""
    method = os.fspath(method)
    arguments = f", arguments {sha256(method.encode()).hexdigest()[:12]}" if "{input}" in method else ""
    return f"{method_name(method)}{arguments}"


def method_name(method: str | os.PathLike) -> str:
    """How records name a method: without the folders of a path or the arguments of a command, which may hold names."""
    method = os.fspath(method)
    program = shlex.split(method)[0] if "{input}" in method else method
    return Path(program).name


def _checked_method(method: str) -> str:
    """The method, or an error before the first case."""
    marks = ["{input}" in method, "{mask}" in method]
    if method in _METHODS:
        return method
    if any(marks):
        if not all(marks):
            raise CaseError(f"The skull-strip command {method!r} needs both {{input}} and {{mask}}; add the other one.")
        try:
            shlex.split(method)
        except ValueError as error:
            raise CaseError(f"The skull-strip command {method!r} has unbalanced quotes; close them.") from error
        return method
    path = Path(method).expanduser()
    if not path.exists():
        raise CaseError(
            f"The skull-strip method {method!r} is no path that is there; give none, builtin, hd-bet, a mask "
            "file, a folder of masks, or a command with {input} and {mask}."
        )
    return str(path)


def _run(arguments: list[str], timeout: float, stderr: Path, name: str) -> None:
    """Run a program to its end; whatever it started ends with it when the time is over."""
    what = f"The skull-strip command {arguments[0]}"
    with stderr.open("wb") as log:
        try:
            process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=log, start_new_session=True)
        except OSError as error:
            raise CaseError(
                f"{what} cannot be started ({error.strerror}); install it or give its full path."
            ) from error
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise CaseError(
                f"{what} took longer than {timeout:g} s for {name}; run it by hand, and give its masks as a folder."
            ) from error
        finally:  # also when the user interrupts
            if process.poll() is None:
                _kill(process)
                process.wait()
    if code != 0:
        lines = [line for line in stderr.read_text(errors="replace").splitlines() if line.strip()]
        message = f"said: {lines[-1].strip()}" if lines else "said nothing"
        raise CaseError(f"{what} failed for {name} with exit code {code} and {message}")


def _kill(process: subprocess.Popen) -> None:
    """End a program, and what it started where the system knows groups of processes."""
    if os.name == "nt":
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGKILL)


def _source_of(image: MetaTensor) -> str:
    """The path that an image was loaded from; "" where it came from no file."""
    return str(image.meta.get("filename_or_obj") or "")


def _mask_path(method: Path, source: str, uid: str | None, case: str | None) -> Path:
    """The mask's file: the path itself, or what in that folder matches most of the end of the image's path."""
    if method.is_file():
        return method
    if uid:
        return _dicom_mask_path(method, uid, case)
    if not source:
        raise CaseError(f"A volume without a file name cannot be found in {method}; give the mask's file itself.")
    parts = list(Path(source).absolute().parts[1:])
    parts[-1] = stem_of(parts[-1])
    for first in range(len(parts)):
        for joined in dict.fromkeys(("_".join(parts[first:]), "/".join(parts[first:]))):
            for suffix in IMAGE_SUFFIXES:
                if (method / f"{joined}{suffix}").is_file():
                    return method / f"{joined}{suffix}"
    raise CaseError(
        f"{method} holds no mask for {Path(source).name}; it has to be named like the image, for example "
        f"{parts[-1]}.nii.gz."
    )


def _dicom_mask_path(folder: Path, uid: str, case: str | None) -> Path:
    """The mask named like the case or the UID: the files of a series have names that mean nothing, or a patient's."""
    for name in (case, uid):
        for suffix in IMAGE_SUFFIXES:
            if name and (folder / f"{name}{suffix}").is_file():
                return folder / f"{name}{suffix}"
    raise CaseError(
        f"The folder of masks holds none for the DICOM series {uid}; it has to be named like the case or the series, "
        f"for example {case or uid}.nii.gz."
    )


def _load_mask(
    path: Path, shape: tuple[int, ...], affine: np.ndarray, name: str, of_series: bool = False
) -> np.ndarray:
    """A mask file on the image's grid, (H, W, Z) bool; `of_series`: the image is read from DICOM, the mask was not."""
    mask = LoadVolume(image_only=True)(path)
    inside = np.squeeze(mask.numpy()) > 0.5
    if inside.ndim != 3 or not inside.any():
        what = "empty" if inside.ndim == 3 else "not one 3D volume"
        raise CaseError(f"The mask {path.name} of {name} is {what}; give a mask that is 1 in the brain.")
    to_mask = np.linalg.inv(np.asarray(mask.affine, dtype=np.float64)) @ affine
    if inside.shape == tuple(shape) and np.allclose(to_mask, np.eye(4), atol=1e-2):
        return inside
    if mask.meta.get("unplaced"):
        if of_series:  # dcm2niix, for one, turns each slice upside down
            raise CaseError(
                f"The mask {path.name} of {name} does not say how its axes lie, and programs store the slices of a "
                "DICOM series in different orders; give a mask whose header tells its place."
            )
        return _voxel_by_voxel(inside, tuple(shape), f"The mask {path.name} of {name}")
    tell_doubt(mask)
    centres = np.argwhere(inside)[:: max(1, inside.sum() // 100_000)]
    indices = nib.affines.apply_affine(np.linalg.inv(to_mask), centres)
    within = np.mean(((indices > -0.5) & (indices < np.array(shape) - 0.5)).all(axis=1))
    if within < 0.5:
        raise CaseError(
            f"The mask {path.name} does not fit {name}: {100 * (1 - within):.0f} % of it lies outside the image; give "
            "a mask in the image's own space."
        )
    # grid-constant: a rounding error must not put the border's voxels outside
    resampled = ndimage.affine_transform(
        inside.astype(np.float32), to_mask, output_shape=tuple(shape), order=1, mode="grid-constant"
    )
    return resampled > 0.5


def _voxel_by_voxel(inside: np.ndarray, shape: tuple[int, ...], what: str) -> np.ndarray:
    """A mask whose header does not say where it lies: readers take it for mirrored left to right."""
    if inside.shape != shape:
        raise CaseError(
            f"{what} does not say how its axes lie, and has other voxels than the image; give a mask in the image's "
            "own space."
        )
    logger.warning(f"{what} does not say how its axes lie; it is taken voxel by voxel, look at the picture.")
    return inside
