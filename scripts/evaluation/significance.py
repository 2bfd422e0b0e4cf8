"""Whether two methods differ on the same subjects: the paired t-test."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

from .figures import digits_of, label, markdown_table


@dataclass(frozen=True)
class PairedTest:
    """A paired, two-sided t-test.

    Attributes:
        n: subjects that both have.
        difference: mean of first minus second.
        t, p: statistic and probability; NaN for fewer than two subjects, or where all differ by the same.
    """

    n: int
    difference: float
    t: float
    p: float


def paired_test(first: Mapping[str, float], second: Mapping[str, float]) -> PairedTest:
    """Test the values of one figure by subject, over the subjects that both have a finite value for."""
    common = [s for s in first if s in second and np.isfinite(first[s]) and np.isfinite(second[s])]
    differences = np.array([first[s] - second[s] for s in common], dtype=float)
    mean = float(differences.mean()) if len(common) else float("nan")
    # equal differences have no spread to test against
    if len(common) < 2 or np.ptp(differences) <= 1e-12 * np.abs(differences).max():
        return PairedTest(len(common), mean, float("nan"), float("nan"))
    result = stats.ttest_rel([first[s] for s in common], [second[s] for s in common])
    return PairedTest(len(common), mean, float(result.statistic), float(result.pvalue))


def significance_row(figure: str, test: PairedTest) -> list[str]:
    """One line of a table: figure, n, mean difference, t, p; "-" where there is no test."""
    t, p = ("-" if np.isnan(value) else text for value, text in ((test.t, f"{test.t:.2f}"), (test.p, f"{test.p:.2g}")))
    difference = "-" if np.isnan(test.difference) else f"{test.difference:+.{digits_of(figure)}f}"
    return [label(figure), str(test.n), difference, t, p]


def compare_runs(first: Mapping[str, Mapping[str, float]], second: Mapping[str, Mapping[str, float]]) -> str:
    """Test every figure of the synthetic images that two runs have in common.

    Args:
        first, second: subject -> figure -> value.

    Returns:
        Markdown table: figure, n, mean difference (first minus second), t, p.

    Raises:
        ValueError: the runs have no subject in common.
    """
    if not first.keys() & second.keys():
        raise ValueError("The two runs have no subject in common; compare evaluations of the same subjects.")
    # what the real image has of its own is the same in both
    own = {"i_ssim_reference", "i_ssim_reference_brain"}
    names = [n for n in next(iter(first.values())) if n in next(iter(second.values())) and n not in own]
    rows = []
    for name in names:
        columns = [{s: run[s].get(name, float("nan")) for s in run} for run in (first, second)]
        rows.append(significance_row(name, paired_test(*columns)))
    return markdown_table(["figure", "n", "mean difference", "t", "p"], rows)
