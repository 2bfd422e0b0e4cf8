"""A study: every variant on every subject, nothing twice, what it cost."""

import json

import numpy as np
import pytest
import torch

from scripts.conditioning.style_key import choose_style_key
from scripts.errors import CaseError
from scripts.evaluation.study import (
    VariantSampler,
    central_slices,
    check_slices,
    real_results,
    run_study,
    select,
    select_items,
)
from scripts.inferers import ISTAInferer
from scripts.schedulers import BrownianBridgeScheduler

SHAPE = (1, 16, 16, 12)


@pytest.fixture
def pairs() -> list[dict]:
    """Two subjects whose target is 1 - source in the mask; the mask leaves a side out."""
    made = []
    for subject in ("anna", "bert"):
        source = torch.rand(SHAPE, generator=torch.Generator().manual_seed(len(made))) * 0.5 + 0.2
        mask = torch.ones(SHAPE)
        mask[:, 14:] = 0
        made.append({"subject": subject, "source": source, "target": (1 - source) * mask, "mask": mask})
    return made


class Inverse(torch.nn.Module):
    """Predicts the target exactly, x0 = -y in [-1, 1]; with a style key it is off by the key's first value."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x, timesteps, context=None, source=None):
        self.calls += 1
        return -source + (0 if context is None else context[0, 0, 0])


@pytest.fixture
def network() -> Inverse:
    return Inverse()


@pytest.fixture
def sampler(network: Inverse):
    def make(weights: str = "a") -> VariantSampler:
        scheduler = BrownianBridgeScheduler(prediction_type="sample")
        keys = {"off": np.full((3, 8), 0.2, np.float32)}
        return VariantSampler(
            network,
            lambda **settings: ISTAInferer(scheduler, **settings),
            lambda name, pair: (name, None if name is None else keys[name]),
            common={"weights_sha256": weights},
        )

    return make


VARIANTS = {
    "exact": {"style_key": None, "num_inference_steps": 4},
    "corrected": {"style_key": None, "num_inference_steps": 3, "num_corrections": 1, "correction_norm": "paper"},
    "styled": {"style_key": "off", "num_inference_steps": 2},
}


def test_every_variant_meets_every_subject_and_tells_its_cost(pairs, sampler, tmp_path):
    results = {(r.subject, r.row): r for r in run_study(pairs, VARIANTS, sampler(), tmp_path)}
    assert results.keys() == {(s, row) for s in ("anna", "bert") for row in VARIANTS}
    for subject in ("anna", "bert"):
        exact, corrected, styled = (results[subject, row] for row in VARIANTS)
        # S, then S + M (S - 1) evaluations of as many slabs as there are slices
        assert (exact.evaluations, corrected.evaluations, styled.evaluations) == (4, 5, 2)
        assert exact.figures["ssim_brain"] == pytest.approx(1, abs=1e-5)
        assert styled.figures["psnr_brain"] == pytest.approx(20, abs=1e-3)  # off by 0.2 / 2 in [0, 1]
        assert (exact.style_key, styled.style_key) == (None, "off")


def test_what_lies_outside_the_mask_is_background_as_in_the_target(pairs, sampler, tmp_path):
    (result,) = run_study(pairs[:1], {"exact": VARIANTS["exact"]}, sampler(), tmp_path)
    assert result.figures["ssim"] == pytest.approx(1, abs=1e-5)


def test_nothing_is_done_twice_and_a_killed_study_goes_on(pairs, sampler, network, tmp_path):
    class KilledError(Exception):
        pass

    limit, forward = 20, network.forward

    def until_killed(*args, **kwargs):
        if network.calls == limit:
            raise KilledError
        return forward(*args, **kwargs)

    network.forward = until_killed
    with pytest.raises(KilledError):
        run_study(pairs, VARIANTS, sampler(), tmp_path)
    kept = {path.name: path.read_bytes() for path in tmp_path.glob("*.json")}
    assert kept
    network.forward = forward
    first = run_study(pairs, VARIANTS, sampler(), tmp_path)
    assert all((tmp_path / name).read_bytes() == content for name, content in kept.items())
    calls = network.calls
    again = run_study(pairs, VARIANTS, sampler(), tmp_path)
    assert network.calls == calls
    assert [(r.row, r.subject, r.evaluations, r.seconds) for r in again] == [
        (r.row, r.subject, r.evaluations, r.seconds) for r in first
    ]
    assert [r.figures["ssim"] for r in again] == [r.figures["ssim"] for r in first]


@pytest.mark.parametrize("change", ["weights", "settings", "volume"])
def test_what_has_changed_is_done_again(pairs, sampler, network, tmp_path, change):
    run_study(pairs[:1], {"exact": VARIANTS["exact"]}, sampler(), tmp_path)
    calls = network.calls
    variant = {**VARIANTS["exact"], **({"num_inference_steps": 5} if change == "settings" else {})}
    if change == "volume":
        pairs[0]["source"] = pairs[0]["source"] + 0.01
    run_study(pairs[:1], {"exact": variant}, sampler("b" if change == "weights" else "a"), tmp_path)
    assert network.calls > calls
    assert len(list(tmp_path.glob("*.json"))) == 2


def test_a_row_whose_style_key_is_not_there_is_left_out(pairs, network, tmp_path, capsys):
    def no_key(name, pair):
        if name is None:
            return None, None
        raise ValueError("The style key colin27 is neither a known name nor a file.")

    inferer = ISTAInferer(BrownianBridgeScheduler(prediction_type="sample"), num_inference_steps=1)
    sampler = VariantSampler(network, lambda **settings: inferer, no_key)
    results = run_study(
        pairs[:1], {"with": {"style_key": "colin27"}, "without": {"style_key": None}}, sampler, tmp_path
    )
    assert [r.row for r in results] == ["without"]
    assert "The row with is left out: The style key colin27" in capsys.readouterr().out


def test_without_a_file_of_style_keys_the_study_ends(pairs, network, tmp_path):
    """All rows that name one would be left out of a table that looks finished."""
    missing = tmp_path / "style_keys.json"
    inferer = ISTAInferer(BrownianBridgeScheduler(prediction_type="sample"), num_inference_steps=1)
    sampler = VariantSampler(
        network, lambda **settings: inferer, lambda name, pair: choose_style_key(name, missing, pair["target"])
    )
    with pytest.raises(CaseError, match=r"^There is no .*style_keys\.json with the keys of these weights; give"):
        run_study(pairs[:1], {"with": {"style_key": "average"}, "without": {}}, sampler, tmp_path / "out")
    assert [r.row for r in run_study(pairs[:1], {"without": {}}, sampler, tmp_path / "out")] == ["without"]


def test_a_result_on_disk_is_json(pairs, sampler, tmp_path):
    """Also where PSNR has no number: the exact row may reach infinity."""
    run_study(pairs[:1], VARIANTS, sampler(), tmp_path)
    for path in tmp_path.glob("*.json"):
        kept = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))
        assert kept["settings"]["weights_sha256"] == "a"
        assert kept["subject"] == "anna"


def test_the_real_row_is_the_target_itself(pairs):
    result = real_results(pairs)[0]
    assert result.figures["psnr"] == np.inf
    assert result.figures["sharpness_brain"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("typed", "chosen"),
    [(None, ["a b", "+c", "7"]), ("+c,a b", ["a b", "+c"]), (["7"], ["7"]), (7, ["7"]), ("[+c, 7]", ["+c", "7"])],
)
def test_names_are_taken_however_they_were_typed(typed, chosen):
    assert select(typed, ["a b", "+c", "7"], "row") == chosen


def test_an_unknown_name_is_refused():
    with pytest.raises(CaseError, match=r"There is no row 'd'; use some of a, b\."):
        select("a,d", ["a", "b"], "row")


def test_a_chosen_subject_keeps_its_number():
    items = [{"subject": name} for name in ("anna", "bert", "cleo")]
    assert select_items(items, "cleo") == [{"subject": "cleo", "number": 2}]


def test_central_slices_are_those_in_the_middle_of_the_brain(pairs):
    pair = {**pairs[0], "mask": torch.zeros(SHAPE)}
    pair["mask"][..., 1:8] = 1
    piece = central_slices(pair, 3)
    torch.testing.assert_close(piece["source"], pair["source"][..., 3:6])
    assert piece["mask"].shape == piece["target"].shape == (1, 16, 16, 3)
    assert central_slices(pair, 100)["source"].shape == SHAPE
    torch.testing.assert_close(central_slices(pair, None)["target"], pair["target"])


@pytest.mark.parametrize("slices", [4, 6, 0, "7", True])
def test_too_few_slices_are_refused_before_anything_is_translated(slices):
    with pytest.raises(CaseError, match="slices is"):
        check_slices(slices)


def test_enough_slices_or_all_pass():
    check_slices(7)
    check_slices(None)
