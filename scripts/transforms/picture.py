"""A picture of two volumes of one grid: three planes each, side by side."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

_TITLE_HEIGHT = 24
_NOTE = "not for diagnosis"
# plane, the RAS axis it cuts, the marks at its left and right edge; radiological: the patient's right is on the left
_PLANES = (("axial", 2, ("R", "L")), ("coronal", 1, ("R", "L")), ("sagittal", 0, ("A", "P")))


def three_planes(
    source: torch.Tensor,
    synthetic: torch.Tensor,
    affine: np.ndarray | torch.Tensor,
    source_window: tuple[float, float] | None = None,
    titles: tuple[str, str] = ("source CT", "synthetic T1"),
    panel_width: int = 320,
) -> Image.Image:
    """Axial, coronal and sagittal plane through the middle of the synthetic image's foreground, the source beside it.

    Radiological display (the patient's left is on the right of the picture, and so marked; anterior is up in the axial
    and left in the sagittal plane), true to scale by the voxel size. The planes are the volume's own, the nearest to
    the anatomical ones.

    Args:
        source: (H, W, Z), any unit.
        synthetic: (H, W, Z), [0, 1].
        affine: voxel to RAS+ mm, of both.
        source_window: what is black and what is white in the source's unit (HU of a CT); for images without a unit
            None, which is from 0 to the 99.5 percentile of what is above it.
        titles: over the two columns.
        panel_width: width of a panel in pixels; the field of view's longest edge fills it.

    Returns:
        a grey picture, one row a plane.
    """
    orientation = nib.io_orientation(np.asarray(affine))
    spacing = nib.affines.voxel_sizes(np.asarray(affine))[np.argsort(orientation[:, 0])]
    low, high = source_window or _window(np.asarray(source))
    volumes = (np.clip((np.asarray(source) - low) / (high - low), 0, 1), np.clip(np.asarray(synthetic), 0, 1))
    volumes = [nib.apply_orientation(volume, orientation) for volume in volumes]
    centre = _centre(volumes[1])
    scale = panel_width / max(spacing * volumes[1].shape)

    rows = []
    for plane, axis, marks in _PLANES:
        panels = [_panel(np.take(v, centre[axis], axis), np.delete(spacing, axis) * scale, marks) for v in volumes]
        rows.append((plane, panels))
    return _page(rows, titles, panel_width)


def _window(volume: np.ndarray) -> tuple[float, float]:
    """0, and the 99.5 percentile of what is above it."""
    above = volume[volume > 0]
    return 0.0, float(np.percentile(above, 99.5)) if above.size else 1.0


def _centre(volume: np.ndarray) -> list[int]:
    """Middle of the voxels above zero, of the whole volume where there are none."""
    inside = np.argwhere(volume > 0)
    return [int(c) for c in (np.median(inside, axis=0) if len(inside) else np.array(volume.shape) // 2)]


def _panel(plane: np.ndarray, scale: np.ndarray, marks: tuple[str, str]) -> Image.Image:
    """A plane of RAS axes, (first, second), as a picture: first axis from high to low rightwards, second upwards."""
    pixels = np.round(255 * plane[::-1, ::-1].T).astype(np.uint8)
    size = tuple(max(round(edge), 1) for edge in np.array(plane.shape) * scale)
    picture = Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(picture)
    for text, x, anchor in ((marks[0], 4, "lm"), (marks[1], size[0] - 4, "rm")):
        draw.text((x, size[1] / 2), text, fill=255, font=_font(), anchor=anchor, stroke_width=1, stroke_fill=0)
    return picture


def _page(rows: list[tuple[str, list[Image.Image]]], titles: tuple[str, str], width: int) -> Image.Image:
    height = _TITLE_HEIGHT + sum(panels[0].height for _, panels in rows)
    page = Image.new("L", (2 * width, height))
    draw = ImageDraw.Draw(page)
    for column, title in enumerate((titles[0], f"{titles[1]}, {_NOTE}")):
        draw.text((column * width + width / 2, _TITLE_HEIGHT / 2), title, fill=255, font=_font(), anchor="mm")
    top = _TITLE_HEIGHT
    for _, panels in rows:
        for column, panel in enumerate(panels):
            page.paste(panel, (column * width + (width - panel.width) // 2, top))
        top += panels[0].height
    return page


def _font() -> ImageFont.ImageFont:
    return ImageFont.load_default(14)
