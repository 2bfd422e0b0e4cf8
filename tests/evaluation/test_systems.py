"""Tables of whole systems: what a row is, what it costs, and the command that makes them."""

import json

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from torch import nn

from scripts.errors import CaseError, reason
from scripts.evaluation.systems import (
    FIGURES,
    PUBLISHED,
    Meter,
    System,
    SystemSampler,
    given_rows,
    published_notes,
    run_systems,
    system_figures,
)
from scripts.schedulers import BrownianBridgeScheduler, GaussianDiffusionScheduler
from tests.evaluation.test_workflows import folder, run  # noqa: F401 - fixtures
from tests.test_make_a_volume import TINY_SLICE, codec, pairs, slices, train, volumes  # noqa: F401 - fixtures


def as_noise(weights, path):
    """Weights of a bridge as if diffusion from noise had been trained; gives the path."""
    content = torch.load(weights, weights_only=True)
    (mark,) = (name for name in content if name.startswith("trained_with."))
    signature = GaussianDiffusionScheduler(prediction_type="sample").signature
    torch.save({f"trained_with.{signature}" if n == mark else n: value for n, value in content.items()}, path)
    return str(path)


SHAPE = (1, 16, 16, 10)
STEPS = 2
FORMULA = {
    "device": "cpu",
    "slab_size": 3,
    "network_def": {"_target_": "tests.phantoms.EchoNetwork", "slab_size": "@slab_size"},
    "network": "@network_def",
    "scheduler": {"_target_": "scripts.schedulers.BrownianBridgeScheduler", "prediction_type": "sample"},
    "validate": {
        "inferer": {
            "_target_": "scripts.inferers.ISTAInferer",
            "scheduler": "@scheduler",
            "sampler": "implicit",
            "num_inference_steps": STEPS,
            "slab_size": "$@network_def.slab_size",
        }
    },
}
CONV = {"network_def": {"_target_": "tests.evaluation.test_systems.ConvNetwork", "slab_size": "@slab_size"}}


class ConvNetwork(nn.Module):
    """Predicts -1 (a volume of zeros), by one convolution of the source."""

    def __init__(self, slab_size: int = 3) -> None:
        super().__init__()
        self.slab_size = slab_size
        self.layer = nn.Conv2d(slab_size, slab_size, 3, padding=1)
        nn.init.zeros_(self.layer.weight)
        nn.init.constant_(self.layer.bias, -1)

    def forward(self, x, timesteps=None, context=None, source=None):
        """Slabs (n, K, H, W)."""
        return self.layer(source)


def made_pairs() -> list[dict]:
    """Two people whose sources are 0.1 off their targets in the mask."""
    made = []
    for subject in ("anna", "bert"):
        target = 0.2 + 0.5 * torch.rand(SHAPE, generator=torch.Generator().manual_seed(len(made)))
        mask = torch.ones(SHAPE)
        mask[:, 12:] = 0
        made.append({"subject": subject, "source": (target + 0.1) * mask, "target": target * mask, "mask": mask})
    return made


@pytest.fixture
def table(tmp_path):
    """Run rows of formulas on two people; gives the results."""
    torch.save({}, tmp_path / "echo.pt")
    torch.save(ConvNetwork().state_dict(), tmp_path / "conv.pt")

    def sampler(system):
        return SystemSampler(system, lambda name, pair: (None, None), lambda *v: system_figures(*v, (2, 2, 2)))

    def make(rows, config=FORMULA):
        rows = {row: {"config": [], "weights": tmp_path / "echo.pt", **entry} for row, entry in rows.items()}
        return run_systems(made_pairs(), rows, config, sampler, tmp_path / "kept", tmp_path)

    return make


def test_a_row_of_a_formula_has_its_figures(table):
    results = table({"echo": {}})
    assert [(result.row, result.subject) for result in results] == [("echo", "anna"), ("echo", "bert")]
    for result in results:
        assert result.figures["mae"] == pytest.approx(255 * 0.1 * 12 / 16, rel=1e-4)
        assert result.figures["psnr_brain"] == pytest.approx(20, abs=1e-3)
        assert result.figures["adjacent_ratio_brain"] == pytest.approx(1, rel=1e-4)
        assert result.figures["gflop_network"] == 0
        assert set(FIGURES) <= set(result.figures)


def test_the_work_of_a_convolution_is_known(table, tmp_path):
    def gflop(slab, number):
        return 2 * 9 * slab * slab * 16 * 16 * number / 1e9

    entry = {"config": [CONV], "weights": tmp_path / "conv.pt"}
    stepped = 4 + 10  # slabs at 0, 3, 6, 9 of ten; the last evaluation has all
    settings = {"all": {}, "every third": {"slab_stride": 3}, "one step": {"num_inference_steps": 1}}
    results = table({row: {**entry, **more} for row, more in settings.items()})
    work = {result.row: result.figures["gflop_network"] for result in results}
    assert work == pytest.approx({"all": gflop(3, 20), "every third": gflop(3, stepped), "one step": gflop(3, 10)})
    assert {result.row: result.evaluations for result in results} == {"all": 2, "every third": 1.4, "one step": 1}
    assert all(result.figures["mae"] > 0 and result.figures["gflop_encode"] == 0 for result in results)


def test_the_first_call_is_counted_for_all():
    layer = nn.Conv2d(2, 5, 3, padding=1)
    meter = Meter(layer)
    for number in (1, 4, 2):
        x = torch.rand(number, 2, 6, 7)
        torch.testing.assert_close(meter(x), layer(x))
    assert meter.gflop == pytest.approx(7 * 2 * 2 * 5 * 9 * 6 * 7 / 1e9)
    assert meter.seconds > 0


def test_a_codec_alone_gives_the_target_back(table):
    orthonormal = {"validate#inferer#codec": {"_target_": "scripts.codec.OrthonormalCodec"}}
    latent = {**FORMULA, "slab_size": 1}
    entry = {"config": [orthonormal]}
    alone, echo = (
        [result.figures for result in table({row: settings}, latent)]
        for row, settings in {"codec": {**entry, "codec_alone": True}, "echo": entry}.items()
    )
    assert [figures["mae"] for figures in alone] == pytest.approx([0, 0], abs=1e-4)
    assert [figures["mae"] for figures in echo] == pytest.approx([255 * 0.1 * 12 / 16] * 2, rel=1e-4)
    assert all(figures["seconds_encode"] > 0 and figures["seconds_decode"] > 0 for figures in (*alone, *echo))


def test_what_was_measured_is_not_measured_again(table, tmp_path, monkeypatch):
    first = table({"echo": {}, "all": {"config": [CONV], "weights": tmp_path / "conv.pt"}})
    with monkeypatch.context() as patch:
        patch.setattr(ConvNetwork, "forward", lambda *_, **__: pytest.fail("measured again"))
        again = table({"echo": {}, "all": {"config": [CONV], "weights": tmp_path / "conv.pt"}})
    assert [(r.figures["psnr"], r.seconds) for r in again] == [(r.figures["psnr"], r.seconds) for r in first]
    patched = ConvNetwork()
    nn.init.constant_(patched.layer.bias, 0.5)
    torch.save(patched.state_dict(), tmp_path / "conv.pt")
    made = table({"all": {"config": [CONV], "weights": tmp_path / "conv.pt"}})
    assert made[0].figures["mae"] != first[2].figures["mae"]
    steps = table({"echo": {"config": [{"validate#inferer#num_inference_steps": 3}]}})
    assert steps[0].evaluations == 3


def test_rows_without_weights_are_told_and_left_out(tmp_path, capsys):
    torch.save({}, tmp_path / "a.pt")
    rows = {"slice": {"weights": None}, "pixel": {"weights": str(tmp_path / "a.pt")}}
    assert list(given_rows(rows)) == ["pixel"]
    assert "The row slice is left out: its weights are not given." in capsys.readouterr().out
    with pytest.raises(CaseError, match=r"There is no weights file .*b\.pt for the row pixel"):
        given_rows({"pixel": {"weights": str(tmp_path / "b.pt")}})
    with pytest.raises(CaseError, match="None of the rows has weights"):
        given_rows({"slice": {"weights": None}})


def test_noise_from_slice_to_slice_is_told_from_blur():
    rng = np.random.default_rng(0)
    reference = np.cumsum(rng.normal(0, 0.01, (16, 16, 20)), axis=2) + 0.5
    mask = np.ones(reference.shape, bool)
    noisy = reference + rng.normal(0, 0.05, reference.shape)
    smooth = np.repeat(reference.mean(axis=2, keepdims=True), 20, axis=2)
    ratios = [system_figures(image, reference, mask, (2, 2, 2))["adjacent_ratio_brain"] for image in (noisy, smooth)]
    assert ratios[0] > 3
    assert ratios[1] == pytest.approx(0, abs=1e-6)


def test_the_papers_figures_are_told_by_data_set():
    first, second = published_notes().values()
    assert first.count("/") == second.count("/") == 2 * len(PUBLISHED)
    assert "Make-A-Volume, 200 steps 5.243 / 0.788 / 29.446" in first
    assert "without volumetric layers 10.925 / 0.667 / 24.623" in second


@pytest.fixture
def tiny_rows(bundle_root, tmp_path):
    """An overlay of the command by which the rows in a latent have tiny networks; gives the file and the rows."""
    parser = ConfigParser()
    parser.read_config([bundle_root / "configs" / f"{name}.json" for name in ("train", "evaluate_make_a_volume")])
    (tmp_path / "tiny.json").write_text(json.dumps(TINY_SLICE))
    files = {row: entry["config"] for row, entry in parser["systems"].items() if "_volume" in "".join(entry["config"])}
    tiny = {row: [first, str(tmp_path / "tiny.json"), *more] for row, (first, *more) in files.items()}
    (tmp_path / "rows.json").write_text(json.dumps({f"systems#{row}#config": config for row, config in tiny.items()}))
    return str(tmp_path / "rows.json"), list(tiny)


def test_the_command_makes_the_table(run, tiny_rows, slices, volumes, tmp_path, capsys):  # noqa: F811
    overlay, latent = tiny_rows
    latent.remove("slice in a latent without loss")
    assert len(latent) == 10
    weights = {
        "slice_weights": str(slices / "model.pt"),
        "volume_weights": str(volumes / "model.pt"),
        "noise_slice_weights": as_noise(slices / "model.pt", tmp_path / "slices.pt"),
        "noise_volume_weights": as_noise(volumes / "model.pt", tmp_path / "volumes.pt"),
    }
    out = run("evaluate_make_a_volume.json", overlay, subjects="head0", **weights)
    assert "The row palette is left out" in capsys.readouterr().out
    text = (out / "make_a_volume.md").read_text()
    assert "| slice from one noise for all slices | 1 |" in text
    assert "- pixel bridge: what is shipped, without a latent" in text
    assert "- palette" not in text
    rows = json.loads((out / "make_a_volume.json").read_text())["rows"]
    assert list(rows) == [*latent, "pixel bridge"]
    figures = {row: of["head0"]["figures"] for row, of in rows.items()}
    assert len({one["mae"] for one in figures.values()}) > 6  # networks of six iterations hardly differ
    work = {row: one["gflop_network"] for row, one in figures.items()}
    assert work["codec alone"] == figures["pixel bridge"]["gflop_decode"] == 0
    assert work["slice from one noise for all slices"] == work["slice from noise"] == work["slice"]
    # a slab more at each end, and the layers along z
    assert 3 * work["slice"] < work["slice with co-prediction"] < 3.5 * work["slice"]
    assert work["slice"] < work["volume K = 9 disjoint"] < work["volume"]
    assert figures["slice"]["gflop_decode"] == figures["codec alone"]["gflop_decode"] > 0
    # the background of virtual slices is encoded as well
    assert figures["slice"]["gflop_encode"] > figures["codec alone"]["gflop_encode"] > 0


def test_a_killed_table_goes_on(run, tmp_path):  # noqa: F811
    out = run("evaluate_make_a_volume.json", subjects="head0")
    kept = {path: path.stat().st_mtime_ns for path in (out / "make_a_volume").iterdir()}
    assert len(kept) == 1
    run("evaluate_make_a_volume.json")
    after = {path: path.stat().st_mtime_ns for path in (out / "make_a_volume").iterdir()}
    assert kept.items() < after.items()
    assert len(after) == 2
    assert "Mean ± standard deviation" in (out / "make_a_volume.md").read_text()


def test_settings_that_are_typed_hold_for_the_rows(run):  # noqa: F811
    out = run("evaluate_make_a_volume.json", subjects="head0", num_inference_steps=3, detail=1.0)
    rows = json.loads((out / "make_a_volume.json").read_text())["rows"]
    assert rows["pixel bridge"]["head0"]["evaluations"] == 3


@pytest.mark.parametrize(
    ("name", "row", "evaluations"),
    [
        ("pix2pix", "pix2pix", 1),
        ("palette", "palette", 4),
        ("volumetric_bridge", "pixel bridge with layers along z", None),
    ],
)
def test_pixel_systems_have_rows(run, bundle_root, tmp_path, name, row, evaluations):  # noqa: F811
    torch.manual_seed(0)
    parser = ConfigParser()
    parser.read_config([bundle_root / "configs" / f"{part}.json" for part in ("train", name)])
    parser.update({"network_def#channels": [8, 8], "network_def#norm_num_groups": 4, "device": "cpu"})
    parser["network_def#num_head_channels"] = 8
    torch.save(parser.get_parsed_content("network_def").state_dict(), tmp_path / "row.pt")
    given = {f"{name}_weights": str(tmp_path / "row.pt"), "systems#palette#num_inference_steps": 4}
    out = run("evaluate_make_a_volume.json", rows=row, subjects="head0", **given)
    (measured,) = json.loads((out / "make_a_volume.json").read_text())["rows"][row].values()
    assert evaluations is None or measured["evaluations"] == evaluations
    assert measured["figures"]["gflop_network"] > 0


def test_diffusion_from_noise_is_one_line_apart(bundle_root, slices, tmp_path):  # noqa: F811
    parser = ConfigParser()
    parser.read_config([bundle_root / "configs" / f"{part}.json" for part in ("train", "evaluate_make_a_volume")])
    config = {**parser.config, "device": "cpu", "dtype": "float32"}
    line = parser.get_parsed_content("systems#slice from noise")["config"][-1]
    overlays = [str(bundle_root / "configs" / "make_a_volume_slice.json"), TINY_SLICE]
    bridge = System(config, overlays, slices / "model.pt")
    diffusion = System(config, [*overlays, line], as_noise(slices / "model.pt", tmp_path / "noise.pt"))
    assert isinstance(diffusion.inferer.scheduler, GaussianDiffusionScheduler)
    assert isinstance(bridge.inferer.scheduler, BrownianBridgeScheduler)
    assert diffusion.identity != bridge.identity


def test_a_config_of_a_row_that_is_not_there_is_refused(table):
    with pytest.raises(CaseError, match=r"There is no config file .*nowhere\.json"):
        table({"row": {"config": ["nowhere.json"]}})


def test_a_mistyped_row_is_refused(run):  # noqa: F811
    with pytest.raises(RuntimeError) as refused:
        run("evaluate_make_a_volume.json", rows="slices")
    assert "There is no row 'slices'; use some of codec alone, slice" in reason(refused.value)
