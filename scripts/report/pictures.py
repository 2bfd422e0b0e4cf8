"""Still pictures of a case: for paper, for browsers without WebGL2, and small ones for the table."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from ..outputs.picture import PLANES, font, panel
from .volumes import ShownVolume

TITLE_HEIGHT = 26
# colours of the error map: too dark, none, too bright
ERROR_COLOURS = ((64, 140, 255), (0, 0, 0), (255, 96, 48))
# colour of the uncertainty, which covers the synthetic image the more the higher it is
UNCERTAINTY_COLOUR = (255, 160, 0)


def still_picture(volumes: Sequence[ShownVolume], panel_width: int = 260) -> Image.Image:
    """A column for each image, a row for each plane through the middle of the synthetic brain; radiological display."""
    centre = _centre(volumes)
    scale = panel_width / max(volumes[0].spacing * volumes[0].voxels.shape)
    under = next(v for v in volumes if v.key == "synthetic")
    columns = [[_plane(v, axis, centre, scale, marks, under) for _, axis, marks in PLANES] for v in volumes]
    page = Image.new("RGB", (panel_width * len(volumes), TITLE_HEIGHT + sum(p.height for p in columns[0])))
    draw = ImageDraw.Draw(page)
    for number, (volume, panels) in enumerate(zip(volumes, columns, strict=True)):
        middle = (number + 0.5) * panel_width
        draw.text((middle, TITLE_HEIGHT / 2), volume.title, fill="white", font=font(), anchor="mm")
        top = TITLE_HEIGHT
        for picture in panels:
            page.paste(picture, (int(middle - picture.width / 2), top))
            top += picture.height
    return page


def thumbnail(volumes: Sequence[ShownVolume], width: int = 56) -> Image.Image:
    """The axial plane of the synthetic image."""
    volume = next(v for v in volumes if v.key == "synthetic")
    scale = width / (volume.spacing[0] * volume.voxels.shape[0])
    return _plane(volume, 2, _centre(volumes), scale, ("", ""))


def data_url(picture: Image.Image) -> str:
    """A picture as the address of an `<img>`."""
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _centre(volumes: Sequence[ShownVolume]) -> np.ndarray:
    inside = np.argwhere(next(v for v in volumes if v.key == "synthetic").voxels > 0)
    return np.median(inside, axis=0).astype(int)


def _plane(
    volume: ShownVolume,
    axis: int,
    centre: np.ndarray,
    scale: float,
    marks: tuple[str, str],
    under: ShownVolume | None = None,
) -> Image.Image:
    shade = _shade(volume, axis, centre)
    if volume.key == "uncertainty" and under is not None:
        colours = (1 - shade) * _shade(under, axis, centre) + shade * np.array(UNCERTAINTY_COLOUR) / 255
    elif volume.key == "error":
        below, none, above = (np.array(colour) / 255 for colour in ERROR_COLOURS)
        signed = 2 * shade - 1
        colours = none + np.maximum(signed, 0) * (above - none) + np.maximum(-signed, 0) * (below - none)
    else:
        colours = np.repeat(shade, 3, axis=-1)
    return panel(colours, np.delete(volume.spacing, axis) * scale, marks)


def _shade(volume: ShownVolume, axis: int, centre: np.ndarray) -> np.ndarray:
    """(first, second, 1): a plane within its window, 0 to 1."""
    low, high = volume.window
    plane = np.take(volume.values, centre[axis], axis)
    return np.clip((plane - low) / (high - low), 0, 1)[..., None]
