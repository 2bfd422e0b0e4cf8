"""Table 2 of CT2MRI (Choo et al., MICCAI 2024): what the style key, co-prediction and correction buy."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from ..files import write_whole
from .figures import digits_of, finite, format_spread, label, markdown_table
from .significance import PairedTest, paired_test
from .study import Result

FIGURES = (
    *("nrmse", "psnr", "ssim", "i_ssim"),
    *("nrmse_brain", "psnr_brain", "ssim_brain", "i_ssim_brain"),
    *("pearson_brain", "sharpness_brain", "highpass_brain", "adjacent_difference_brain"),
)
TESTED = ("nrmse", "psnr", "ssim", "psnr_brain", "ssim_brain")


def by_row(results: Sequence[Result]) -> dict[str, dict[str, Result]]:
    """Row -> subject -> result, in the order of their appearance."""
    rows: dict[str, dict[str, Result]] = {}
    for result in results:
        rows.setdefault(result.row, {})[result.subject] = result
    return rows


def quality_table(results: Sequence[Result], figures: Sequence[str] = FIGURES) -> str:
    """Markdown: a line for each row with mean ± standard deviation over its subjects, and what it cost."""
    lines = []
    for name, row in by_row(results).items():
        spreads = [format_spread([r.figures[f] for r in row.values()], digits_of(f)) for f in figures]
        costs = [sum(getattr(r, key) for r in row.values()) / len(row) for key in ("evaluations", "seconds")]
        lines.append([name, str(len(row)), *spreads, f"{costs[0]:g}", f"{costs[1]:.1f}"])
    return markdown_table(["", "n", *map(label, figures), "evaluations", "seconds"], lines)


def paired_tests(
    results: Sequence[Result], baseline: str, tested: Sequence[str] = TESTED
) -> dict[str, dict[str, PairedTest]]:
    """Row -> figure -> paired t-test of that row against the baseline's; the baseline and "real" have none."""
    rows = by_row(results)
    values = {
        name: {f: {s: r.figures[f] for s, r in row.items()} for f in tested}
        for name, row in rows.items()
        if name != "real"
    }
    if baseline not in values:
        return {}
    return {
        name: {f: paired_test(row[f], values[baseline][f]) for f in tested}
        for name, row in values.items()
        if name != baseline
    }


def tests_table(tests: Mapping[str, Mapping[str, PairedTest]], tested: Sequence[str]) -> str:
    """Markdown: mean difference with p in brackets for each row and tested figure."""

    def cell(figure: str, test: PairedTest) -> str:
        p = "-" if math.isnan(test.p) else f"{test.p:.2g}"
        return f"{test.difference:+.{digits_of(figure)}f} ({p})"

    lines = [
        [name, str(max(t.n for t in row.values())), *(cell(f, t) for f, t in row.items())]
        for name, row in tests.items()
    ]
    return markdown_table(["", "n", *map(label, tested)], lines)


def write_ablation(
    results: Sequence[Result],
    path: str | os.PathLike,
    notes: Mapping[str, object],
    baseline: str = "Pure BBDM",
    figures: Sequence[str] = FIGURES,
    tested: Sequence[str] = TESTED,
) -> None:
    """Write the table as Markdown and every subject's figures as JSON beside it; print the table.

    Args:
        results: of `run_study`, "real" first.
        path: of the Markdown file.
        notes: what was done, told below the table by name.
        baseline: row that the others are tested against.
        figures: columns of the table.
        tested: those of them that are tested.
    """
    tests = paired_tests(results, baseline, tested)
    subjects = list(dict.fromkeys(r.subject for r in results))
    chosen = {r.subject: r.style_key for r in results if "best" in r.row}
    notes = {"subjects": ", ".join(subjects), **notes}
    if chosen:
        notes["best key"] = ", ".join(f"{key} for {subject}" for subject, key in chosen.items())
    text = [quality_table(results, figures), ""]
    if tests:
        text += [
            f"Mean difference to {baseline} (p of the paired t-test over subjects):",
            "",
            tests_table(tests, tested),
            "",
        ]
    text += ["Mean ± standard deviation over subjects. Evaluations: of the network on each slab."]
    text += ["", *(f"- {name}: {value}" for name, value in notes.items())]
    content = {
        "notes": notes,
        "rows": {name: {s: _as_json(r) for s, r in row.items()} for name, row in by_row(results).items()},
        "tests": {name: {f: finite(asdict(t)) for f, t in row.items()} for name, row in tests.items()},
    }
    write_pair("\n".join(text), content, path)


def write_pair(text: str, content: Mapping, path: str | os.PathLike) -> None:
    """Write Markdown, and JSON beside it under the same name; print the Markdown."""
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, text + "\n")
    write_whole(file.with_suffix(".json"), json.dumps(content, indent=1, allow_nan=False) + "\n")
    print(text)


def _as_json(result: Result) -> dict:
    kept = {k: v for k, v in asdict(result).items() if k not in ("row", "subject", "settings")}
    return {**kept, "figures": finite(result.figures)}
