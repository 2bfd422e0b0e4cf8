"""Pictures and a page by which a person sees in a minute whether a prepared set can be trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import itk
import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from ..outputs.picture import PLANES, font, panel

ZOOM = 2  # pixels for each voxel
TITLE_HEIGHT = 24
EDGE = (1.0, 0.55, 0.0)  # orange, on grey
OUTLINE = (0.2, 0.9, 1.0)


def quality_picture(
    source: np.ndarray | None,
    target: np.ndarray,
    mask: np.ndarray,
    contrasts: tuple[str | None, str],
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    tile: int = 16,
) -> Image.Image:
    """Three planes of a pair: both as a checkerboard, the target's edges over the source, the mask over the target.

    Without a source: the target, and the mask over it. Radiological display (the patient's left is on the right of the
    picture, and so marked), true to scale.

    Args:
        source: (H, W, Z) with RAS axes, [0, 1]; or None.
        target: likewise, on the same grid.
        mask: brain mask on that grid, positive inside.
        contrasts: names of source and target for the titles.
        spacing: edges of the voxels, any unit.
        tile: edge of a field of the checkerboard, voxels.

    Returns:
        a picture in colours, one row a plane.
    """
    inside = mask > 0
    shown = [None if volume is None else _stretched(volume, inside) for volume in (source, target)]
    centre = np.median(np.argwhere(inside), axis=0).astype(int)
    edges = np.asarray(spacing, dtype=float) / min(spacing)
    rows = []
    for _, axis, marks in PLANES:
        planes = [None if volume is None else np.take(volume, centre[axis], axis) for volume in (*shown, inside)]
        rows.append([panel(view, np.delete(edges, axis), marks) for view in _views(*planes, tile)])
    titles = [contrasts[1]]
    if source is not None:
        titles = [f"{contrasts[0]} and {contrasts[1]} in turn", f"edges of the {contrasts[1]} over the {contrasts[0]}"]
    return _page(rows, [*titles, f"brain mask over the {contrasts[1]}"])


def one_below_another(pictures: Sequence[Image.Image]) -> Image.Image:
    """Several pictures as one."""
    page = Image.new("RGB", (max(one.width for one in pictures), sum(one.height for one in pictures)))
    top = 0
    for one in pictures:
        page.paste(one, (0, top))
        top += one.height
    return page


def _stretched(volume: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """The volume with the darkest and brightest percent of the brain at 0 and 1."""
    low, high = np.percentile(volume[inside], (1, 99))
    return np.clip((volume - low) / max(high - low, 1e-6), 0, 1) * inside


def _views(source: np.ndarray | None, target: np.ndarray, inside: np.ndarray, tile: int) -> list[np.ndarray]:
    """The pictures of a plane, each (first, second, 3) in [0, 1], `ZOOM` pixels a voxel."""
    region = _zoomed(inside.astype(np.float32)) > 0.5
    outlined = _marked(_zoomed(target), region & ~ndimage.binary_erosion(region, iterations=1), OUTLINE)
    if source is None:
        return [_grey(_zoomed(target)), outlined]
    fields = (np.indices(source.shape) // tile).sum(axis=0) % 2 == 0
    board = _zoomed(np.where(fields, source, target))
    return [_grey(board), _marked(_zoomed(source), _edges(_zoomed(target)), EDGE), outlined]


def _zoomed(plane: np.ndarray) -> np.ndarray:
    return ndimage.zoom(plane, ZOOM, order=1, mode="nearest", grid_mode=True)


def _edges(plane: np.ndarray) -> np.ndarray:
    """Canny's edges of a plane in [0, 1], bool."""
    image = itk.image_from_array(np.ascontiguousarray(plane, dtype=np.float32))
    edges = itk.canny_edge_detection_image_filter(
        image, variance=float((1.5 * ZOOM) ** 2), lower_threshold=0.01, upper_threshold=0.03
    )
    return itk.array_from_image(edges) > 0


def _grey(plane: np.ndarray) -> np.ndarray:
    return np.repeat(plane[..., None], 3, axis=2)


def _marked(plane: np.ndarray, where: np.ndarray, colour: Sequence[float]) -> np.ndarray:
    return np.where(where[..., None], np.array(colour), _grey(plane))


def _page(rows: list[list[Image.Image]], titles: Sequence[str]) -> Image.Image:
    width = max(picture.width for row in rows for picture in row)
    page = Image.new("RGB", (width * len(titles), TITLE_HEIGHT + sum(row[0].height for row in rows)))
    draw = ImageDraw.Draw(page)
    for column, title in enumerate(titles):
        draw.text(((column + 0.5) * width, TITLE_HEIGHT / 2), title, fill="white", font=font(), anchor="mm")
    top = TITLE_HEIGHT
    for row in rows:
        for column, picture in enumerate(row):
            page.paste(picture, (column * width + (width - picture.width) // 2, top))
        top += row[0].height
    return page


def quality_page(
    records: Mapping[str, Mapping[str, Any]], pictures: Mapping[str, str], failures: Sequence[Mapping[str, str]]
) -> str:
    """An HTML page with a row for each subject, the least mutual information first, and the failures at the top.

    Args:
        records: by subject, as `prepare.json` has them.
        pictures: path of each subject's picture, relative to the page.
        failures: {"subject", "reason"} of those that were left out; with "contrast" that one alone was.
    """
    order = sorted(records, key=lambda name: _mutual_information(records[name]))
    failed = "".join(f"<li><b>{escape(one['subject'])}</b>: {escape(one['reason'])}</li>" for one in failures)
    rows = "\n".join(_row(name, records[name], pictures[name]) for name in order)
    return PAGE.format(
        done=len(records),
        failed=f"<h2>{len(failures)} left out</h2><ul>{failed}</ul>" if failures else "<p>None was left out.</p>",
        rows=rows,
    )


def volume_records(record: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """A subject's record -> those of its volumes: of source and target, or of each contrast."""
    return record.get("contrasts") or {key: record[key] for key in ("source", "target") if key in record}


def _mutual_information(record: Mapping[str, Any]) -> float:
    """The least of a subject's registrations."""
    found = [one["mutual_information_after"] for one in _registrations(record).values() if one]
    return min(found, default=0.0)


def _registrations(record: Mapping[str, Any]) -> dict[str, Mapping[str, Any] | None]:
    """By what their facts start with: of a pair nothing, of several contrasts each that is not the first."""
    if "registrations" not in record:
        return {"": record["registration"]}
    return {f"{name}, ": one for name, one in list(record["registrations"].items())[1:]}


def _row(name: str, record: Mapping[str, Any], picture: str) -> str:
    facts = [("person", record["person"]), ("list", record["section"])]
    for contrast, registration in _registrations(record).items():
        facts += [(f"{contrast}{fact}", value) for fact, value in _registration_facts(registration)]
    brain = record["brain"]
    facts += [("brain", f"{brain['millilitres']} mL, from {brain['from']}")]
    if brain["seen"] < 0.995:
        scans = "all" if "contrasts" in record else "both"
        facts += [(f"seen by {scans} scans", f"{100 * brain['seen']:.0f} % of the brain")]
    for key, volume in volume_records(record).items():
        facts += [
            (f"{key} as scanned", f"{volume['contrast']}, {' x '.join(f'{s:.3g}' for s in volume['spacing_mm'])} mm")
        ]
    listed = "".join(f"<dt>{escape(key)}</dt><dd>{escape(str(value))}</dd>" for key, value in facts)
    link, name = escape(picture), escape(name)
    image = f'<a href="{link}"><img src="{link}" alt="{name}" loading="lazy"></a>'  # noqa: B907 - HTML's own quotes
    return f'<tr id="{name}"><th>{name}<dl>{listed}</dl></th><td>{image}</td></tr>'  # noqa: B907


def _registration_facts(registration: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    if registration is None:
        return [("registration", "none")]
    before, after = registration["mutual_information_before"], registration["mutual_information_after"]
    return [
        ("mutual information", f"{before:.3f} before, {after:.3f} after (nats)"),
        ("moved by", f"up to {registration['displacement_mm']:.1f} mm"),
    ]


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Quality of the prepared set</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 1.5rem auto; max-width: 78rem; padding: 0 1rem; }}
table {{ border-collapse: collapse; width: 100%; }}
tr {{ border-top: 1px solid #bbb; }}
th {{ text-align: left; vertical-align: top; padding: .8rem 1rem .8rem 0; width: 19rem; overflow-wrap: anywhere; }}
td {{ padding: .8rem 0; }}
dl {{ font-weight: normal; margin: .5rem 0; }}
dt {{ color: #666; font-size: .85em; }}
dd {{ margin: 0 0 .4rem; }}
img {{ max-width: 100%; display: block; background: black; }}
</style>
</head>
<body>
<h1>Quality of the prepared set</h1>
<p>{done} subjects, those with the least mutual information first. In the checkerboard the outlines of brain and
ventricles go on from field to field; the orange edges lie on edges of the image below; the blue outline holds the
whole brain and nothing but brain. R and L are the patient's right and left. Leave out a subject that looks wrong, by
its data set or table, and type the command again.</p>
{failed}
<table>
{rows}
</table>
</body>
</html>
"""
