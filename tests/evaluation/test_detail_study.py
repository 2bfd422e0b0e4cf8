"""Rows of the dial's study, and the filter that stands beside it."""

import pytest
import torch

from scripts.evaluation.detail import MEAN, UnsharpMask, detail_variants, unsharp_mask
from scripts.evaluation.samplers import sampler_variants
from scripts.inferers import ISTAInferer
from scripts.schedulers import BrownianBridgeScheduler


def test_the_mean_is_one_row_and_every_sampler_has_the_dial():
    variants = detail_variants(sampler_variants([["implicit", "lambda"]], [3, 5]), [0.5, 1], [0.5])
    assert list(variants) == [
        MEAN,
        f"{MEAN}, mirrored",
        "unsharp mask of the mean, 0.5",
        *(f"F2 implicit, lambda, {steps}, detail {d}" for steps in (3, 5) for d in (0.5, 1)),
    ]
    assert [variant.get("unsharp_amount") for variant in variants.values()] == [None, None, 0.5, None, None, None, None]
    evaluations = []
    for variant in variants.values():
        settings = {k: v for k, v in variant.items() if k not in ("style_key", "unsharp_amount")}
        evaluations.append(ISTAInferer(BrownianBridgeScheduler(), **settings).evaluations)
    assert evaluations == [1, 2, 1, 2, 3, 3, 5]


def image_of(source, network, style_key=None):
    return source


def test_an_unsharp_mask_leaves_what_is_smooth_and_raises_what_is_fine():
    ramp = torch.linspace(0.2, 0.8, 30).reshape(1, 1, 30, 1, 1).expand(1, 1, 30, 20, 20)
    inside = (..., slice(6, -6), slice(6, -6), slice(6, -6))
    torch.testing.assert_close(UnsharpMask(image_of, 2.0)(ramp, None)[inside], ramp[inside], rtol=0, atol=1e-4)
    stripes = 0.5 + 0.1 * (-1.0) ** torch.arange(30).reshape(1, 1, 30, 1, 1).expand(1, 1, 30, 20, 20)
    raised = UnsharpMask(image_of, 1.0)(stripes, None)[inside] - 0.5
    # a Gaussian of one voxel leaves exp(-pi^2 / 2) = 0.7 % of the finest stripes
    torch.testing.assert_close(raised, (2 - 0.0072) * (stripes[inside] - 0.5), rtol=0.01, atol=0)
    assert float(UnsharpMask(image_of, 50.0)(stripes, None).max()) == 1
    assert unsharp_mask(image_of, 0) is image_of


def test_the_filter_hands_the_style_key_on():
    def keyed(source, network, style_key=None):
        return torch.full_like(source, style_key)

    made = UnsharpMask(keyed, 1.0)(torch.zeros(1, 1, 20, 20, 20), None, style_key=0.3)
    assert float(made[0, 0, 10, 10, 10]) == pytest.approx(0.3, abs=1e-4)
