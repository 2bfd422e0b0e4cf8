"""A MONAI Label server as a client meets it, and the heads that the tests' server has."""

from __future__ import annotations

import gzip
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

TURN = np.array([[0.96, -0.28, 0.0], [0.28, 0.96, 0.0], [0.0, 0.0, 1.0]])
TILT = np.array([[1.0, 0.0, 0.0], [0.0, 0.8, -0.6], [0.0, 0.6, 0.8]])
GRIDS = {
    "ras": (np.diag([6.0, 6.0, 6.0]), (34, 40, 32)),
    "las": (np.diag([-6.0, 6.0, 6.0]), (34, 40, 32)),
    "permuted": (np.array([[0.0, 0.0, 6.0], [-6.0, 0.0, 0.0], [0.0, 6.0, 0.0]]), (40, 32, 34)),
    "oblique": (TURN @ TILT @ np.diag([-6.0, 6.0, 6.0]), (34, 40, 34)),
    "anisotropic": (TURN @ np.diag([3.0, -4.0, 9.0]), (66, 60, 22)),
}
"""Axes (mm) and voxels of the heads that are served."""


@dataclass(frozen=True)
class Server:
    """Where the server answers, and what belongs to it."""

    url: str
    app: Path
    temporary: Path

    def infer(self, model: str, image: str = "", file: Path | None = None, **params: Any):
        """The response of a request for a result image; the image by its name, or uploaded."""
        import requests

        with open(file or os.devnull, "rb") as content:
            files = {"file": (file.name, content)} if file else {"nothing": (None, "")}
            return requests.post(
                f"{self.url}/infer/{model}",
                params={"image": image, "output": "image"},
                data={"params": json.dumps(params)},
                files=files,
                timeout=300,
            )

    def info(self) -> dict[str, Any]:
        """What the server says of itself."""
        import requests

        response = requests.get(f"{self.url}/info/", timeout=60)
        response.raise_for_status()
        return response.json()


def unpacked(path: str) -> bytes:
    """Bytes of a .nii.gz file without its compression."""
    return gzip.decompress(Path(path).read_bytes())


def image_of(response: Any) -> nib.Nifti1Image:
    """The NIfTI image that a response carries."""
    assert response.status_code == 200, response.text[:500]
    return nib.Nifti1Image.from_bytes(gzip.decompress(response.content))
