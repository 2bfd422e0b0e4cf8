"""The report's pages: what goes where, and the command that writes them."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from tqdm import tqdm

from ..errors import CaseError, reason
from ..evaluation.figures import digits_of, label
from ..files import check_folder, write_whole
from ..outputs.measures import HIGH_UNCERTAINTY, case_warnings
from ..transforms.onto_reference import ALL_SEEN
from .cases import Case, list_cases, list_failures
from .charts import distribution
from .pictures import ERROR_COLOURS, UNCERTAINTY_COLOUR, data_url, still_picture, thumbnail
from .volumes import ShownVolume, case_volumes

logger = logging.getLogger(__name__)

HERE = Path(__file__).parent
SAMPLE = HERE.parents[1] / "docs" / "sample"
ASSETS = ("templates/report.css", "templates/index.js", "templates/case.js", "niivue/niivue.umd.js", "niivue/LICENSE")
# figures of the table, in this order; the others stand on the case's page
COLUMNS = (
    *("psnr", "ssim", "nrmse", "i_ssim", "pearson", "sharpness", "highpass", "lowpass"),
    *("dice_csf", "dice_gm", "dice_wm"),
)
MEASURES = {
    "source_distance": "source: distance from training",
    "synthetic_distance": "synthetic: distance from training",
    "source_contrast": "source: contrast",
    "source_median": "source: median in the brain",
    "brain_ml": "brain (mL)",
    "uncertainty_mean": "uncertainty: mean",
    "uncertainty_high_share": f"uncertainty: share of the brain above {HIGH_UNCERTAINTY:g}",
}


@dataclass
class Page:
    """A case with what its page shows.

    Attributes:
        case: what is shown.
        file: name of the page.
        volumes: its images.
        figures: against the real image.
        warnings: what is odd about it.
        fields: of the template; with the images, empty once the page is written.
        row: of the table.
    """

    case: Case
    file: str
    volumes: list[ShownVolume]
    figures: dict[str, float]
    warnings: list[str]
    fields: dict[str, Any] = field(default_factory=dict)
    row: dict[str, Any] = field(default_factory=dict)


def report(
    results_dir: str, dataset_dir: str | None = None, real: str | None = None, output: str | None = None
) -> None:
    """Write pages that show a folder of results: a table of the cases, and a viewer for each.

    They open from disk in any browser and need no network: open index.html.

    Args:
        results_dir: output folder of the main job, or of an evaluation.
        dataset_dir: folder (or file) of the sources that the main job was given, to show them beside the results.
        real: folder of real, skull-stripped images named like the cases (CASE.nii.gz), or one file for one case.
        output: folder to write, RESULTS_DIR/report by default.
    """
    results = Path(str(results_dir)).expanduser()
    folder = results / "report" if output is None else Path(str(output)).expanduser()
    sources = [SAMPLE] if dataset_dir is None else [Path(str(dataset_dir)).expanduser()]
    cases, damaged = list_cases(results, sources, None if real is None else Path(str(real)).expanduser())
    failures = [*list_failures(results), *damaged]
    _write_assets(folder)
    pages, rows = _write_cases(folder, cases, failures)
    if not pages:
        raise CaseError(f"No case of {results} can be shown; the last one: {failures[-1]['reason']}")
    write_whole(folder / "index.html", _render("index.html", **_index_fields(pages, rows, failures)))
    _remove_other_cases(folder, {page.file for page in pages})
    print(f"{len(pages)} of {len(cases)} cases shown; open {(folder / 'index.html').resolve()}")


def _write_assets(folder: Path) -> None:
    """The viewer, scripts and style that all pages share."""
    check_folder(folder)
    (folder / "assets").mkdir(exist_ok=True)
    for asset in ASSETS:
        shutil.copyfile(HERE / asset, folder / "assets" / _asset_name(asset))


def _write_cases(
    folder: Path, cases: Sequence[Case], failures: list[dict[str, str]]
) -> tuple[list[Page], list[dict[str, Any]]]:
    """Write the cases' pages, each once its follower is known; those that cannot be read join the failures.

    Returns:
        the pages, without their images, and a row of the table for each.
    """
    pages, rows = [], []
    reasons = {failure["case"]: failure["reason"] for failure in failures}
    for case in tqdm(cases, desc="cases", unit="case"):
        if case.subject in reasons:
            case.warnings.append(
                f"This image is of an earlier run; in the latest one the case failed: {reasons[case.subject]}"
            )
        page = _make_page(case, f"case-{len(pages) + 1:03d}.html", failures)
        if page is not None:
            if pages:
                _write_case(folder, pages, following=page.file)
            pages.append(page)
            rows.append(page.row)
    if pages:
        _write_case(folder, pages)
    return pages, rows


def _asset_name(asset: str) -> str:
    return "niivue.LICENSE.txt" if asset.endswith("LICENSE") else Path(asset).name


def _make_page(case: Case, file: str, failures: list[dict[str, str]]) -> Page | None:
    """The case with its images; one that cannot be read joins the failures."""
    try:
        volumes, figures = case_volumes(case)
        page = Page(case, file, volumes, figures, [*case.warnings, *case_warnings(case.record)])
        page.fields, page.row = _case_fields(page), _row(page)
        return page
    except CaseError as error:
        why = str(error)
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # such as text in place of a number
        logger.error("a case that cannot be shown", exc_info=error)
        why = f"The JSON beside {case.synthetic.name} is damaged; translate or evaluate the case again."
    except Exception as error:
        why = reason(error)
    failures.append({"case": case.name, "file": case.synthetic.name, "reason": why})
    return None


def _write_case(folder: Path, pages: Sequence[Page], following: str | None = None) -> None:
    """Write the last page and let go of its images: one case at a time stays in memory."""
    page = pages[-1]
    previous = pages[-2].file if len(pages) > 1 else None
    write_whole(folder / page.file, _render("case.html", **page.fields, previous=previous, following=following))
    page.volumes, page.fields = [], {}


def _remove_other_cases(folder: Path, written: set[str]) -> None:
    """Delete the pages of an earlier report: a patient who was removed has to be gone from it."""
    for path in folder.iterdir():
        if re.fullmatch(r"case-\d{3,}\.html", path.name) and path.name not in written:
            path.unlink()


def _render(template: str, **fields: Any) -> str:
    """A page; jinja2 escapes whatever a user gave."""
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    fields["niivue"] = (HERE / "niivue" / "VERSION").read_text(encoding="utf-8").strip()
    return environment.get_template(template).render(today=date.today().isoformat(), **fields)


def _case_fields(page: Page) -> dict[str, Any]:
    record = page.case.record
    return {
        "name": page.case.name,
        "warnings": page.warnings,
        "notes": [*_made_from(page), *page.case.notes],
        "measured": bool(record.get("measured")),
        "images": [_image_fields(volume) for volume in page.volumes],
        "error_colours": ERROR_COLOURS,
        "uncertainty_colour": UNCERTAINTY_COLOUR,
        "picture": data_url(still_picture(page.volumes)),
        "voxel": " x ".join(f"{edge:.3g}" for edge in page.volumes[0].spacing),
        "figures": [(label(name), _number(name, value)) for name, value in page.figures.items()],
        "measures": _measure_rows(record.get("measured") or {}),
        "record": list(_flat(record)),
    }


def _made_from(page: Page) -> list[str]:
    """A sentence on the contrasts that a synthetic image of several was made from."""
    used = page.case.record.get("contrasts_used") or []
    if not used:
        return []
    shown = f"; the {page.case.record.get('source_contrast')}, on whose grid it lies, is shown"
    seen = {name: share for name, share in (page.case.record.get("seen") or {}).items() if name in used}
    parts = [f"The {name} shows {share:.1%} of the brain." for name, share in seen.items() if share < ALL_SEEN]
    return [f"Made from {', '.join(used)}{shown if page.case.source is not None and len(used) > 1 else ''}.", *parts]


def _image_fields(volume: ShownVolume) -> dict[str, Any]:
    low, high = volume.window
    return {
        "key": volume.key,
        "title": volume.title,
        "low": low,
        "high": high,
        "unit": volume.unit,
        "step": 1 if volume.unit else round((high - low) / 50, 3),
        "data": volume.base64(),
    }


def _measure_rows(measured: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Label, value and limit of what the main job measured."""
    rows = []
    for name, text in MEASURES.items():
        if name in measured:
            rows.append((text, *_value_and_limit(name, measured)))
        of_contrasts = measured.get("by_contrast", {}).items() if name.startswith("source_") else ()
        rows += [
            (text.replace("source", contrast, 1), *_value_and_limit(name, told))
            for contrast, told in of_contrasts
            if name in told
        ]
    return rows


def _value_and_limit(name: str, measured: Mapping[str, float]) -> tuple[str, str]:
    limit = measured.get(f"{name}_limit")
    side = "at least" if name == "source_contrast" else "at most"
    return _number(name, measured[name]), "" if limit is None else f"{side} {limit:.3f}"


def _flat(record: Mapping[str, Any], before: str = "") -> Any:
    """(name, value) of a record without its measures, nested names joined by a dot."""
    for name, value in record.items():
        if isinstance(value, Mapping):
            if name != "measured":
                yield from _flat(value, f"{before}{name}.")
        else:
            named = isinstance(value, list) and all(isinstance(one, str) for one in value)
            yield f"{before}{name}", "-" if value is None else ", ".join(value) if named else value


def _number(name: str, value: float) -> str:
    digits = {"brain_ml": 0, "source_median": 1}.get(name)
    return f"{value:.{digits_of(name) if digits is None else digits}f}"


def _row(page: Page) -> dict[str, Any]:
    """A row of the table: the figures and measures by name."""
    measured = page.case.record.get("measured") or {}
    return {
        "name": page.case.name,
        "file": page.file,
        "thumbnail": data_url(thumbnail(page.volumes)),
        "warnings": page.warnings,
        "values": {**page.figures, **{name: measured[name] for name in MEASURES if name in measured}},
    }


def _index_fields(
    pages: Sequence[Page], rows: Sequence[Mapping[str, Any]], failures: Sequence[dict[str, str]]
) -> dict[str, Any]:
    present = {name for row in rows for name in row["values"]}
    figures = [name for base in COLUMNS for name in (f"{base}_brain", base) if name in present]
    # where a figure is there inside the brain and over the whole volume, the honest one is enough
    figures = [name for name in figures if name.endswith("_brain") or f"{name}_brain" not in present]
    columns = [(name, label(name)) for name in figures] + [(n, text) for n, text in MEASURES.items() if n in present]
    links = {row["name"]: row["file"] for row in rows}
    charts = []
    for name, text in columns:
        values = {row["name"]: row["values"][name] for row in rows if name in row["values"]}
        if len(values) > 1:
            largest = max(map(abs, values.values()))
            charts.append((text, distribution(values, links, 3 if largest < 10 else 1 if largest < 200 else 0)))
    return {
        "rows": rows,
        "columns": columns,
        "number": _number,
        "charts": charts,
        "failures": failures,
        "num_warned": sum(bool(page.warnings) for page in pages),
        "num_real": sum(page.case.real is not None for page in pages),
    }
