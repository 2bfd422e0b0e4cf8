"""Sampling steps of any process x_t = b_t x0 + a_t y + c_t eps, as coefficients; `SAMPLERS` is the only list of them.

Sources: DBIM (Zheng et al., ICLR 2025) for `implicit`; with a = 0 it is DDIM (Song et al., ICLR 2021). BBDM (Li et al.,
CVPR 2023) for `ancestral`; with a = 0 it is the DDPM posterior (Ho et al., NeurIPS 2020). CT2MRI (Choo et al., MICCAI
2024) for `mean_path`. The second-order samplers are exponential integrators with one step of memory, in the manner of
DPM-Solver++ (Lu et al., 2022).

Notation, used inside the formulas:
    x0, y      target and source
    b, a, c^2  their weights and the variance at a timestep (`Node`); SNR = b^2 / c^2
    t, u, p    the timestep now, the one stepped to (u < t), and the one before now (p > t)
    lam        ln(b / c), the half log signal-to-noise ratio
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

__all__ = ["SAMPLERS", "Node", "Sampler", "StepCoefficients", "sampler_named"]


class Node(NamedTuple):
    """A timestep: x_t has the mean `target` x0 + `source` y and the variance `variance`."""

    target: float
    source: float
    variance: float

    @property
    def log_snr(self) -> float:
        """lam, the half log signal-to-noise ratio."""
        return 0.5 * math.log(self.target**2 / self.variance)


class StepCoefficients(NamedTuple):
    """A step as x_u = sample x_t + original x0_t + source y + change (x0_t - x0_p) + noise z."""

    sample: float
    original: float
    source: float = 0.0
    change: float = 0.0
    noise: float = 0.0


class Sampler(NamedTuple):
    """How a step goes from t to u, given x0_hat, the prediction of x0 at t.

    A sampler makes one evaluation of the network a step, and may look back to the one before. One that evaluates
    between t and u needs more than coefficients: it would get a field here for what it evaluates there, and a loop over
    that field where `ISTAInferer` asks for x0_hat, which is the one place that calls the network.

    Attributes:
        coefficients: called (t, u, p, eta) with a `Node` each, p None where there is no step before; double precision.
        second_order: whether a step uses the x0_hat of the step before it; it keeps its order on the lambda grid only.
        paper_name: what tables call it.
    """

    coefficients: Callable[[Node, Node, Node | None, float], StepCoefficients]
    second_order: bool = False
    paper_name: str = ""


def _implicit(t: Node, u: Node, p: Node | None, eta: float) -> StepCoefficients:
    """b_u x0 + a_u y + k (x_t - b_t x0 - a_t y) + sqrt(v) z, with k so that the variance is c_u^2."""
    # 1 - SNR_t / SNR_u
    gained = 1 - (t.target / u.target) ** 2 * (u.variance / t.variance)
    v = eta**2 * u.variance * gained
    k = math.sqrt((u.variance - v) / t.variance)
    return StepCoefficients(k, u.target - k * t.target, u.source - k * t.source, noise=math.sqrt(v))


def _ancestral(t: Node, u: Node, p: Node | None, eta: float) -> StepCoefficients:
    """Mean and variance of q(x_u | x_t, x0) (BBDM, eq. 7)."""
    return _implicit(t, u, p, 1.0)


def _mean_path(t: Node, u: Node, p: Node | None, eta: float) -> StepCoefficients:
    """The mean of `_ancestral`."""
    return _ancestral(t, u, p, eta)._replace(noise=0.0)


def _implicit_2(t: Node, u: Node, p: Node | None, eta: float) -> StepCoefficients:
    """`_implicit` at eta = 0 with x0 linear in lam."""
    first = _implicit(t, u, None, 0.0)
    if p is None:
        return first
    change = _second_order(u.log_snr - t.log_snr) / (t.log_snr - p.log_snr)
    return first._replace(change=u.target * change)


def _mean_path_2(t: Node, u: Node, p: Node | None, eta: float) -> StepCoefficients:
    """`_mean_path` of a bridge with x0 linear in ln a."""
    if not t.source:
        raise ValueError("The sampler mean_path_2 is for bridges alone; use implicit_2.")
    first = _mean_path(t, u, None, 0.0)
    if p is None:
        return first
    return first._replace(change=_second_order(math.log(t.source / u.source)) / math.log(p.source / t.source))


def _second_order(h: float) -> float:
    """h - 1 + e^-h, without cancellation for small h."""
    return h + math.expm1(-h)


SAMPLERS: dict[str, Sampler] = {
    "ancestral": Sampler(_ancestral, paper_name="F1"),
    "implicit": Sampler(_implicit, paper_name="F2"),
    "mean_path": Sampler(_mean_path, paper_name="F3"),
    "implicit_2": Sampler(_implicit_2, second_order=True, paper_name="F4"),
    "mean_path_2": Sampler(_mean_path_2, second_order=True, paper_name="F5"),
}
"""Name -> sampler.

ancestral: drawn from q(x_u | x_t, x0_hat). Needs noise.
implicit: keeps the marginals for any noise level eta in [0, 1]; eta = 1 is `ancestral`, eta = 0 needs no noise.
mean_path: `ancestral` without its noise (what CT2MRI runs).
implicit_2, mean_path_2: second order in the step of lam, or of ln a (bridges alone).
"""


def sampler_named(name: str) -> Sampler:
    """The sampler of a name.

    Raises:
        ValueError: there is none; the sentence lists those there are.
    """
    if name not in SAMPLERS:
        raise ValueError(f"{name!r} is not a valid sampler; use one of {', '.join(SAMPLERS)}.")
    return SAMPLERS[name]
