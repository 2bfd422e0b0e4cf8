"""The tasks of CoLa-Diff (Jiang et al., MICCAI 2023) by name, and the figures that the paper gives for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from ..errors import CaseError
from .figures import markdown_table


@dataclass(frozen=True)
class Task:
    """One contrast from all others of a data set.

    Attributes:
        data: name of the data set.
        contrasts: of each of its subjects.
        target: which of them is made from the others.
    """

    data: str
    contrasts: tuple[str, ...]
    target: str

    @property
    def sources(self) -> tuple[str, ...]:
        """All contrasts but the target."""
        return tuple(name for name in self.contrasts if name != self.target)


_DATA = {"brats": ("BraTS 2018", ("T1", "T1ce", "T2", "FLAIR")), "ixi": ("IXI", ("T1", "T2", "PD"))}
TASKS = {
    f"{short}_{target.lower()}": Task(data, contrasts, target)
    for short, (data, contrasts) in _DATA.items()
    for target in contrasts
}
"""Name -> task: brats_t1, brats_t1ce, brats_t2, brats_flair, ixi_t1, ixi_t2, ixi_pd."""
PUBLISHED = {
    "MM-GAN": ((25.78, 26.30, 26.11, 24.09, 27.32, 30.87, 30.61), (90.67, 91.22, 90.58, 88.32, 92.35, 94.68, 95.42)),
    "Hi-Net": ((27.42, 27.02, 25.64, 25.87, 28.89, 32.58, 31.79), (93.46, 93.35, 92.59, 91.22, 93.78, 96.54, 96.51)),
    "ProvoGAN": ((27.79, 29.26, 26.72, 25.64, 24.21, 29.19, 29.93), (93.51, 93.96, 92.98, 90.42, 90.46, 94.08, 94.62)),
    "LDM": ((24.55, 25.61, 24.79, 23.12, 24.19, 27.04, 27.36), (88.34, 89.18, 88.47, 86.90, 88.75, 91.23, 91.52)),
    "CoLa-Diff": ((28.26, 29.35, 28.33, 26.68, 30.20, 32.86, 32.24), (93.65, 94.18, 93.80, 91.89, 94.49, 96.57, 96.95)),
}
"""PSNR (dB) and SSIM (%) of the paper's Table 1, each in the order of `TASKS`."""
PUBLISHED_PARTS = {
    "without network": (27.1074, 90.1268),
    "without structure": (27.7542, 91.4865),
    "without auto-weight": (26.3896, 89.7129),
    "without filtering": (27.9753, 92.1584),
}
"""PSNR (dB) and SSIM (%) of the paper's Table 2, BraTS 2018, T1 + T1ce + FLAIR to T2."""
PUBLISHED_NUMBERS = {
    "BraTS 2018, T1 to T2": (26.6355, 91.7438),
    "BraTS 2018, T1 + T1ce to T2": (27.3089, 92.9772),
    "BraTS 2018, T1 + T1ce + FLAIR to T2": (28.3126, 93.7041),
    "IXI, T1 to T2": (32.1640, 96.0253),
    "IXI, T1 + PD to T2": (32.8721, 96.5932),
}
"""PSNR (dB) and SSIM (%) of the paper's Table 2, by the number of sources."""

Translation = tuple[str, tuple[str, ...]]  # target, sources


def task_named(name: str) -> Task:
    """The task of a name.

    Raises:
        CaseError: there is none of that name.
    """
    if (task := TASKS.get(str(name).strip().lower())) is None:
        raise CaseError(f"There is no task {name!r}; give one of {', '.join(TASKS)}.")
    return task


def subsets(contrasts: Sequence[str]) -> list[tuple[str, ...]]:
    """All 2^k - 1 subsets of k contrasts that are not empty, the small ones first."""
    return [chosen for number in range(1, len(contrasts) + 1) for chosen in combinations(contrasts, number)]


def translations(contrasts: Sequence[str], targets: Sequence[str], task: str | None = None) -> list[Translation]:
    """Which contrasts are made from which.

    Args:
        contrasts: that there are.
        targets: those of them that are made.
        task: name of a task; then that alone, all of its sources at once and each by itself.

    Returns:
        target and sources: for each target all subsets of the other contrasts.

    Raises:
        CaseError: no such task, or one of its contrasts is none of those.
    """
    if task is not None:
        chosen = task_named(task)
        if absent := [name for name in chosen.contrasts if name not in contrasts]:
            raise CaseError(f"The task {task} needs {absent[0]}, which is none of the contrasts; add it to contrasts.")
        return [(chosen.target, sources) for sources in [*((name,) for name in chosen.sources), chosen.sources]]
    return [(target, chosen) for target in targets for chosen in subsets([n for n in contrasts if n != target])]


def published_table(target: str, task: str | None = None) -> str | None:
    """Markdown: what the paper gives for a target, of one task or of both data sets; None where it gives nothing."""
    named = {name: one for name, one in TASKS.items() if one.target == target and task in (None, name)}
    if not named:
        return None
    header = [f"{one.data}, {' + '.join(one.sources)} to {target}" for one in named.values()]
    places = [list(TASKS).index(name) for name in named]
    rows = [
        [method, *(f"{psnr[place]:.2f} / {ssim[place]:.2f}" for place in places)]
        for method, (psnr, ssim) in PUBLISHED.items()
    ]
    return markdown_table(["PSNR (dB) / SSIM (%)", *header], rows)


def published_rows(rows: Mapping[str, tuple[float, float]]) -> str:
    """`PUBLISHED_PARTS` or `PUBLISHED_NUMBERS` in a line."""
    return "; ".join(f"{name} {psnr:.4f} / {ssim:.4f}" for name, (psnr, ssim) in rows.items())
