"""A picture of volumes of one grid: three planes each, side by side."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

_TITLE_HEIGHT = 24
_NOTE = "not for diagnosis"
UNCERTAINTY_WINDOW = (0.0, 0.3)
"""Standard deviations that are black and white: the same for all cases, which can then be compared."""
MARK_COLOURS = {1: (1.0, 0.55, 0.0), 2: (0.0, 0.85, 1.0)}  # dark in the source, bright in it
# plane, the RAS axis it cuts, the marks at its left and right edge; radiological: the patient's right is on the left
PLANES = (("axial", 2, ("R", "L")), ("coronal", 1, ("R", "L")), ("sagittal", 0, ("A", "P")))


def three_planes(
    source: torch.Tensor,
    synthetic: torch.Tensor,
    affine: np.ndarray | torch.Tensor,
    titles: tuple[str, ...],
    source_window: tuple[float, float] | None = None,
    panel_width: int = 320,
    real: torch.Tensor | None = None,
    uncertainty: torch.Tensor | None = None,
    marks: torch.Tensor | None = None,
) -> Image.Image:
    """Axial, coronal and sagittal plane through the middle of the synthetic image's foreground, the source beside it.

    With marks, the planes go through the largest region of them, which is outlined.

    Radiological display (the patient's left is on the right of the picture, and so marked; anterior is up in the axial
    and left in the sagittal plane), true to scale by the voxel size. The planes are the volume's own, the nearest to
    the anatomical ones.

    Args:
        source: (H, W, Z), any unit.
        synthetic: (H, W, Z), [0, 1].
        affine: voxel to RAS+ mm, of both.
        titles: over the columns, such as "source CT" and "synthetic T1".
        source_window: what is black and what is white in the source's unit (HU of a CT); for images without a unit
            None, which is from 0 to the 99.5 percentile of what is above it.
        panel_width: width of a panel in pixels; the field of view's longest edge fills it.
        real: (H, W, Z), [0, 1], for a further column with its title.
        uncertainty: (H, W, Z), standard deviation, for a further column with its title.
        marks: (H, W, Z) labels from 1 on, each outlined in a colour of its own.

    Returns:
        a picture, grey without marks, one row a plane.
    """
    orientation = nib.io_orientation(np.asarray(affine))
    spacing = nib.affines.voxel_sizes(np.asarray(affine))[np.argsort(orientation[:, 0])]
    windows = [source_window or _window(np.asarray(source)), (0, 1), (0, 1), UNCERTAINTY_WINDOW]
    columns = [(v, w) for v, w in zip((source, synthetic, real, uncertainty), windows, strict=True) if v is not None]
    # views: only the planes shown are computed with
    volumes = [nib.apply_orientation(np.asarray(v), orientation) for v, _ in columns]
    marked = None if marks is None else nib.apply_orientation(np.asarray(marks), orientation)
    centre = _centre(volumes[1] if marked is None else _largest_part(marked))
    scale = panel_width / max(spacing * volumes[1].shape)

    rows = []
    for plane, axis, sides in PLANES:
        planes = [np.take(volume, centre[axis], axis) for volume in volumes]
        cuts = [_windowed(plane, window) for plane, (_, window) in zip(planes, columns, strict=True)]
        if marked is not None:
            cuts = [_outlined(cut, np.take(marked, centre[axis], axis)) for cut in cuts]
        panels = [panel(cut, np.delete(spacing, axis) * scale, sides) for cut in cuts]
        rows.append((plane, panels))
    return _page(rows, titles, panel_width)


def _windowed(plane: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    low, high = window
    return np.clip((plane - low) / (high - low), 0, 1)


def _largest_part(marks: np.ndarray) -> np.ndarray:
    """The largest connected region of marks, bool."""
    parts, _ = ndimage.label(marks > 0)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return parts == sizes.argmax()


def _outlined(plane: np.ndarray, marks: np.ndarray) -> np.ndarray:
    """A plane (H, W) in [0, 1] in colours (H, W, 3), with the edge of each label drawn outside of it."""
    colours = np.repeat(plane[..., None], 3, axis=-1)
    for label, colour in MARK_COLOURS.items():
        inside = marks == label
        colours[ndimage.binary_dilation(inside) & ~inside] = colour
    return colours


def _window(volume: np.ndarray) -> tuple[float, float]:
    """0, and the 99.5 percentile of what is above it."""
    above = volume[volume > 0]
    return 0.0, float(np.percentile(above, 99.5)) if above.size else 1.0


def _centre(volume: np.ndarray) -> list[int]:
    """Middle of the voxels above zero, of the whole volume where there are none."""
    inside = volume > 0
    columns = inside.sum(axis=2)
    counts = (columns.sum(axis=1), columns.sum(axis=0), inside.sum(axis=(0, 1)))
    return [_middle(count) for count in counts] if columns.any() else [n // 2 for n in volume.shape]


def _middle(counts: np.ndarray) -> int:
    """Median, rounded down, of indices of which there are so many each."""
    up_to, total = np.cumsum(counts), counts.sum()
    return int(np.searchsorted(up_to, [(total - 1) // 2, total // 2], side="right").mean())


def panel(plane: np.ndarray, scale: np.ndarray, marks: tuple[str, str]) -> Image.Image:
    """A plane as radiologists show it: first axis from high to low rightwards, second upwards.

    Args:
        plane: (first, second) of RAS axes, or (first, second, 3) for colours, [0, 1].
        scale: pixels for each voxel, along both axes.
        marks: written at the left and right edge.
    """
    pixels = np.round(255 * plane[::-1, ::-1].swapaxes(0, 1)).astype(np.uint8)
    size = tuple(max(round(edge), 1) for edge in np.array(plane.shape[:2]) * scale)
    picture = Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(picture)
    for text, x, anchor in ((marks[0], 4, "lm"), (marks[1], size[0] - 4, "rm")):
        draw.text((x, size[1] / 2), text, fill="white", font=font(), anchor=anchor, stroke_width=1, stroke_fill="black")
    return picture


def _page(rows: list[tuple[str, list[Image.Image]]], titles: tuple[str, ...], width: int) -> Image.Image:
    height = _TITLE_HEIGHT + sum(panels[0].height for _, panels in rows)
    page = Image.new(rows[0][1][0].mode, (len(titles) * width, height))
    draw = ImageDraw.Draw(page)
    for column, title in enumerate((titles[0], f"{titles[1]}, {_NOTE}", *titles[2:])):
        draw.text((column * width + width / 2, _TITLE_HEIGHT / 2), title, fill="white", font=font(), anchor="mm")
    top = _TITLE_HEIGHT
    for _, panels in rows:
        for column, picture in enumerate(panels):
            page.paste(picture, (column * width + (width - picture.width) // 2, top))
        top += panels[0].height
    return page


def font() -> ImageFont.ImageFont:
    return ImageFont.load_default(14)
