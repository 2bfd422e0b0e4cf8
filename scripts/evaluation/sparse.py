"""Tables of sparse scans: every second, fourth or eighth slice of held-out pairs is given, the rest is inferred.

The volumes are on the network's grid and dense; what is left out of their sources is known in their targets.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.sparsity import SparseScan, filled_slab
from .ablation import by_row, paired_tests, quality_table, tests_table, write_pair
from .figures import brain_figures, finite
from .results import subject_figures
from .study import Figures, Result, VariantSampler, run_study

FIGURES = (
    *("psnr_missing", "ssim_missing", "nrmse_missing", "highpass_missing", "psnr_given", "ssim_given"),
    *("nrmse", "psnr", "ssim", "psnr_brain", "ssim_brain", "i_ssim_error_brain"),
    *("dice_csf", "dice_gm", "dice_wm"),
)
TESTED = ("psnr_missing", "ssim_missing", "psnr_given", "psnr_brain", "ssim_brain", "dice_gm", "dice_wm")
PUBLISHED = {
    "CT2MR": (0.1138, 19.293, 0.6015, 0.9484),
    "I3Net": (0.1653, 11.775, 0.5581, 0.9407),
    "ReBrain": (0.1054, 20.759, 0.6682, 0.9662),
}
"""NRMSE, PSNR, SSIM and I-SSIM of the paper's Table 1, SynthRAD2023, half of the slices given, whole volumes."""
DENSE = "all slices given"
MRI_INTERPOLATED = "given slices, MRI interpolated"
CT_INTERPOLATED = "CT interpolated, bridge"
SPARSE = "sparse bridge"
METHODS = (DENSE, MRI_INTERPOLATED, CT_INTERPOLATED, SPARSE)


class SparseInferer:
    """Translates a dense source as if every k-th of its slices had been acquired.

    Args:
        inferer: such as `ISTAInferer`, with the channel `missing` for the sparse bridge.
        every: k.
        method: one of `METHODS`. `MRI_INTERPOLATED` takes the synthetic image at the given slices and draws lines
            between them; `CT_INTERPOLATED` does not tell the network which slices are missing; `SPARSE` does.
        references: (volume (1, C, H, W, Z) of a sparse source, its `missing`, the true target or None) -> further
            channels of the input, such as hints; None for none.

    `truth` is the true target (1, 1, H, W, Z), which only an oracle among the references looks at.
    """

    def __init__(
        self,
        inferer: Callable[..., Tensor],
        every: int = 1,
        method: str = SPARSE,
        references: Callable[[Tensor, Tensor, Tensor | None], Tensor] | None = None,
    ) -> None:
        if method not in METHODS:
            raise ValueError(f"There is no method {method!r}; use one of {', '.join(METHODS)}.")
        self.inferer = inferer
        self.scan = SparseScan(1.0 if method == DENSE else float(every))
        self.method = method
        self.references = references
        self.truth: Tensor | None = None

    def __call__(self, source: Tensor, network: Callable[..., Tensor], style_key: Any = None) -> Tensor:
        """(1, 1, H, W, Z) in [0, 1], all slices -> (1, 1, H, W, Z)."""
        volume = thinned(source, self.scan)
        if self.method == SPARSE:
            missing = missing_channel(source, self.scan)
            more = [] if self.references is None else [self.references(volume, missing, self.truth)]
            volume = torch.cat([volume, missing, *more], dim=1)
        image = self.inferer(volume, network, style_key=style_key)
        if self.method != MRI_INTERPOLATED:
            return image
        places = np.arange(source.shape[-1])
        reading = torch.from_numpy(self.scan.reading(places, len(places))).to(image)
        return image @ reading.T


def thinned(source: Tensor, scan: SparseScan) -> Tensor:
    """What a scan shows of a source (1, C, H, W, Z), [0, 1], background 0: lines between the acquired slices."""
    slices = source[0].movedim(-1, 1).cpu().numpy()
    inside = (slices > 0).any(axis=0)
    reading = scan.reading(np.arange(len(inside)), len(inside))
    filled = filled_slab(slices, inside, reading, inside)
    return torch.from_numpy(filled).movedim(1, -1)[None].to(source)


def missing_channel(source: Tensor, scan: SparseScan) -> Tensor:
    """The condition `missing` of a source (1, C, H, W, Z), (1, 1, H, W, Z)."""
    count = source.shape[-1]
    missing = torch.from_numpy(scan.missing(np.arange(count), count)).to(source)
    return missing.expand(source.shape[0], 1, *source.shape[2:]).contiguous()


def sparse_figures(
    image: np.ndarray,
    reference: np.ndarray,
    mask: np.ndarray,
    spacing_mm: Sequence[float],
    every: int,
    target_contrast: str = "T1",
) -> dict[str, float]:
    """`subject_figures`, and `brain_figures` of the missing and of the given slices under "_missing" and "_given".

    `i_ssim_error_brain` is how far the I-SSIM is from the real image's: alone it rewards blur. With nothing missing,
    all slices count as both.
    """
    figures = subject_figures(image, reference, mask, spacing_mm, target_contrast)
    figures["i_ssim_error_brain"] = abs(figures["i_ssim_brain"] - figures["i_ssim_reference_brain"])
    count = image.shape[-1]
    given = SparseScan(float(every)).missing(np.arange(count), count) == 0
    for name, slices in (("given", given), ("missing", ~given if every > 1 else given)):
        part = brain_figures(image, reference, mask & slices, spacing_mm)
        figures |= {f"{figure}_{name}": value for figure, value in part.items()}
    return figures


def run_sparse(
    pairs: Sequence[Mapping],
    variants: Mapping[str, Mapping[str, Any]],
    sampler: Callable[[Figures], VariantSampler],
    figures: Callable[..., dict[str, float]],
    every: Sequence[int],
    folder: str | os.PathLike,
) -> dict[int, list[Result]]:
    """Each variant on each pair for each k.

    Args:
        pairs, folder: as in `run_study`.
        variants: row -> settings of the inferer; `every` is added.
        sampler: figures -> a sampler of variants that measures them.
        figures: `sparse_figures`, called with `every=k` beside the volumes.
        every: the k.
    """
    results = {}
    for k in every:
        rows = {row: {**settings, "every": k} for row, settings in variants.items()}
        results[k] = run_study(pairs, rows, sampler(partial(figures, every=k)), folder)
    return results


def write_sparse(
    results: Mapping[int, Sequence[Result]],
    path: str | os.PathLike,
    notes: Mapping[str, object],
    baseline: str = MRI_INTERPOLATED,
) -> None:
    """Write the tables as Markdown and every subject's figures as JSON beside it; print the tables.

    Args:
        results: of `run_sparse`.
        path: of the Markdown file.
        notes: what was done, told below the tables by name.
        baseline: row that the others are tested against.
    """
    text, content = [], {}
    for k, measured in results.items():
        tests = paired_tests(measured, baseline, TESTED)
        text += [f"## Every {_ordinal(k)} slice given", "", quality_table(measured, FIGURES), ""]
        if tests:
            text += [f"Mean difference to {baseline} (p of the paired t-test over subjects):", ""]
            text += [tests_table(tests, TESTED), ""]
        content[str(k)] = {
            row: {subject: {"figures": finite(r.figures), "seconds": r.seconds} for subject, r in of.items()}
            for row, of in by_row(measured).items()
        }
    text += ["Mean ± standard deviation over subjects; figures without further words are over the whole volume."]
    published = "; ".join(f"{name} {' / '.join(map(str, values))}" for name, values in PUBLISHED.items())
    notes = {**notes, "the paper's (NRMSE / PSNR / SSIM / I-SSIM, SynthRAD2023, every second slice)": published}
    text += ["", *(f"- {name}: {value}" for name, value in notes.items())]
    write_pair("\n".join(text), {"notes": dict(notes), "every": content}, path)


def _ordinal(k: int) -> str:
    return {2: "second", 4: "fourth", 8: "eighth"}.get(k, f"{k}th")
