"""A tiny head with a ball that tells left from right."""

import nibabel as nib
import numpy as np

SHAPE, SPACING = (40, 44, 36), 4.0
# the patient's left, in front, above
BALL = np.array([-36.0, 30.0, 24.0])
NAMES = ('a <b>"&', "b", "c")


def phantom(shift: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """CT, synthetic T1 and affine: an ellipsoid with a bright ball at `BALL`, stored LAS."""
    affine = np.diag([-SPACING, SPACING, SPACING, 1.0])
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(SHAPE) - 1) / 2)
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij"), axis=-1)
    where = nib.affines.apply_affine(affine, grid)
    brain = np.linalg.norm(where / [60, 70, 55], axis=-1) < 1
    ball = brain & (np.linalg.norm(where - BALL, axis=-1) < 14)
    ct = np.where(brain, np.where(ball, 70.0, 25.0), -1000.0).astype(np.float32)
    t1 = np.where(brain, np.where(ball, 1.0, 0.4 + shift), 0.0).astype(np.float32)
    return ct, t1, affine
