"""NVFlare trains two sites: the mean of their networks, and nothing else of them; needs requirements-federated.txt."""

import json
import os
import pickle
import subprocess
import sys
import types
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from scripts.errors import CaseError
from scripts.federated.command import federate, federated_model, first_weights
from scripts.federated.sharing import STYLE_KEY
from scripts.federated.site import FAILURE, shared_identity, take_part
from tests.phantoms import TINY_TRAINING

pytestmark = pytest.mark.federated

TINY = {
    **TINY_TRAINING,
    "slab_shape": [32, 32],
    "num_rounds": 2,
    "iterations_per_epoch": 2,
    "warmup_iterations": 1,
    "prepare_workers": 1,
}
KEEP_STARTS = """
import torch
from ignite.engine import Events

class KeepStarts:
    def __init__(self, network, folder):
        self.network, self.folder = network, folder

    def attach(self, engine):
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine):
        torch.save(self.network.state_dict(), f"{self.folder}/start_{engine.state.epoch}.pt")
"""
KEPT = {"+train#handlers": [{"_target_": "keep_starts.KeepStarts", "network": "@network", "folder": "@output_dir"}]}


def site_of(folder, people):
    """A data set of people whose CT tells the T1."""
    folder.mkdir()
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in (30, 36, 28)), indexing="ij"))
    mask, entries = (grid**2).sum(0) < 0.8, []
    for person in range(people):
        t1 = (0.3 + 0.6 * np.random.default_rng(person).random(mask.shape)) * mask
        volumes = {"target": 1000 * t1, "source": np.where(mask, 20 + 20 * t1, -1000), "mask": mask}
        entries.append({"subject": f"person{person}", **{key: f"{person}_{key}.nii.gz" for key in volumes}})
        for key, volume in volumes.items():
            nib.save(nib.Nifti1Image(volume.astype(np.float32), np.diag([4.0, 4, 4, 1])), folder / entries[-1][key])
    (folder / "datalist.json").write_text(json.dumps({"training": entries, "validation": [], "test": []}))
    return str(folder)


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    """Data sets of two and of six people."""
    folder = tmp_path_factory.mktemp("sites")
    return [site_of(folder / "small site", 2), site_of(folder / "large", 6)]


@pytest.fixture(scope="module")
def config_files(bundle_root, tmp_path_factory):
    """Of a tiny training, which starts from given weights."""
    tiny = tmp_path_factory.mktemp("config") / "tiny.json"
    tiny.write_text(json.dumps(TINY))
    files = [*(str(bundle_root / "configs" / name) for name in ("train.json", "federated.json")), str(tiny)]
    parser = ConfigParser()
    parser.read_config(files)
    torch.save(parser.get_parsed_content("network_def").state_dict(), tiny.with_name("model.pt"))
    tiny.write_text(json.dumps({**TINY, "init_weights": str(tiny.with_name("model.pt"))}))
    return files


@pytest.fixture(scope="module")
def trained(config_files, sites, tmp_path_factory):
    """The output of two rounds; each site also kept what each of them started from."""
    folder = tmp_path_factory.mktemp("code")
    (folder / "keep_starts.py").write_text(KEEP_STARTS)
    (folder / "kept.json").write_text(json.dumps(KEPT))
    output = tmp_path_factory.mktemp("trained") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        said = federate(*sites, output_dir=str(output), config_file=[*config_files, str(folder / "kept.json")])
    assert said == f"{output / 'model.pt'} and {output / 'style_keys.json'}"
    return output


def weights(path, part=None):
    held = torch.load(path, weights_only=True)
    return held if part is None else held[part]


def assert_mean(mean, first, second, people=(2, 6)):
    """By the people of the sites."""
    assert mean.keys() == first.keys() == second.keys()
    # apart far beyond the tolerance; in the first steps not in every layer, since the last one starts at zero
    assert max((first[name] - second[name]).abs().max() for name in mean) > 1e-4
    for name, value in mean.items():
        expected = (people[0] * first[name] + people[1] * second[name]) / sum(people)
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)


def test_each_round_starts_from_the_mean_by_people_of_the_one_before_and_the_result_is_that_of_the_last(
    trained, config_files
):
    folders = [trained / "site-1", trained / "site-2"]
    start = weights(Path(config_files[-1]).with_name("model.pt"))
    after = [[weights(f / f"checkpoint_epoch={n}.pt", "network") for f in folders] for n in (1, 2)]
    for number in (1, 2):
        first, second = (weights(folder / f"start_{number}.pt") for folder in folders)
        torch.testing.assert_close(first, second, rtol=0, atol=0)
        if number == 1:
            torch.testing.assert_close(first, start, rtol=0, atol=0)
        else:
            assert_mean(first, *after[0])
    assert_mean(weights(trained / "model.pt"), *after[1])


def test_the_style_key_is_that_of_the_site_with_people_enough(trained):
    ours, small, large = (
        json.loads((trained / name / "style_keys.json").read_text())["keys"] for name in ("", "site-1", "site-2")
    )
    assert ours.keys() == {"average"}
    np.testing.assert_allclose(ours["average"], large["average"], rtol=1e-5, atol=1e-6)
    assert not np.allclose(ours["average"], small["average"], rtol=1e-5, atol=1e-6)


def test_of_small_sites_alone_no_style_key_leaves_any(config_files, tmp_path):
    """The network is their mean all the same, and each keeps its own keys."""
    sites = [site_of(tmp_path / "of_two", 2), site_of(tmp_path / "of_three", 3)]
    output = tmp_path / "out"
    said = federate(*sites, output_dir=str(output), config_file=config_files)
    assert said.startswith(f"{output / 'model.pt'}; no site has people enough to share a style key: translate with")
    last = [weights(output / f"site-{number}" / "checkpoint_epoch=2.pt", "network") for number in (1, 2)]
    assert_mean(weights(output / "model.pt"), *last, people=(2, 3))
    assert not (output / "style_keys.json").exists()
    kept = torch.load(next(output.rglob("FL_global_model.pt")), weights_only=True)["model"]
    assert torch.isnan(kept[STYLE_KEY]).all()
    for number, people in ((1, 2), (2, 3)):
        own = json.loads((output / f"site-{number}" / "style_keys.json").read_text())["keys"]
        assert len(own) == people + 1  # and their average


def test_the_job_runs_by_the_command_of_nvflare_to_the_same_network(trained, config_files, sites, tmp_path):
    job = federate(*sites, output_dir=str(tmp_path / "out"), config_file=config_files, simulate=False)
    work = tmp_path / "work"
    nvflare = str(Path(sys.executable).with_name("nvflare"))
    command = [nvflare, "simulator", job, "-w", str(work), "-c", "site-1,site-2", "-t", "2"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    federated_model(
        str(work / "server" / "simulate_job" / "app_server" / "FL_global_model.pt"), output_dir=str(tmp_path / "result")
    )
    torch.testing.assert_close(
        weights(tmp_path / "result" / "model.pt"), weights(trained / "model.pt"), rtol=1e-4, atol=1e-5
    )


def test_a_site_that_fails_ends_the_training_with_its_reason(config_files, sites, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "datalist.json").write_text('{"training": []}')
    with pytest.raises(CaseError, match=r"ended before its last round \(site-2: .*empty.*; NVFlare's logs are in"):
        federate(sites[0], str(empty), output_dir=str(tmp_path / "out"), config_file=config_files)
    assert not (tmp_path / "out" / "model.pt").exists()


@pytest.fixture
def one_site(config_files, tmp_path, monkeypatch):
    """Call with a data set, what arrives in each round, and changes of the job; gives what is sent, as does `sent`."""
    flare = pytest.importorskip("nvflare.client")
    parser = ConfigParser()
    parser.read_config(config_files)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)

    def function(dataset_dir, arrives=({}, {}), job_id="simulate_job", **changes):
        rounds, sent = iter(arrives), []
        function.sent = sent  # also where the call raises
        waiting = [len(arrives)]

        def is_running():
            waiting[0] -= 1
            return waiting[0] >= 0

        def receive():
            return types.SimpleNamespace(params={**first_weights(parser), **next(rounds)})

        doubles = {"init": lambda: None, "get_site_name": lambda: "site-1", "is_running": is_running}
        doubles |= {"receive": receive, "send": sent.append, "get_job_id": lambda: job_id}
        for name, double in doubles.items():
            monkeypatch.setattr(flare, name, double)
        job = {"config_files": config_files, "identity": shared_identity(parser), "output_dir": str(tmp_path / "o")}
        take_part(**{**job, "dataset_dir": dataset_dir, **changes})
        return sent

    return function


@pytest.mark.parametrize(("which", "people", "has_key"), [(0, 2, False), (1, 6, True)])
def test_only_weights_and_a_key_of_people_enough_leave_a_site(one_site, sites, tmp_path, which, people, has_key):
    from nvflare.app_common.utils.fl_model_utils import FLModelUtils

    sent = one_site(sites[which])
    assert len(sent) == 2
    for number, model in enumerate(sent, 1):
        network = weights(tmp_path / "o" / f"checkpoint_epoch={number}.pt", "network")
        assert model.params.keys() == network.keys() | ({"average_style_key"} if has_key else set())
        assert all(isinstance(value, torch.Tensor) for value in model.params.values())
        assert model.meta == {"NUM_STEPS_CURRENT_ROUND": people}
        others = {name: value for name, value in vars(model).items() if name not in ("params", "meta", "params_type")}
        assert not any(value for value in others.values()), others
        travels = pickle.dumps(dict(FLModelUtils.to_shareable(model)))
        for word in ("person0", "0_target", "nii", "datalist", str(tmp_path), Path(sites[which]).name, "psnr", "loss"):
            assert word.encode() not in travels
    for name, value in network.items():
        torch.testing.assert_close(sent[-1].params[name], value, rtol=0, atol=0)


def test_a_site_that_holds_a_training_refuses_to_mix_it_in(one_site, sites, tmp_path):
    one_site(sites[0], arrives=({},))
    with pytest.raises(CaseError, match="holds a training already"):
        one_site(sites[0])
    assert "holds a training already" in (tmp_path / "o" / FAILURE).read_text()


def test_a_site_whose_log_would_leave_it_takes_no_part(one_site, sites, tmp_path):
    with pytest.raises(CaseError, match="set allow_log_streaming to false"):  # NVFlare's default
        one_site(sites[0], job_id="5b498ca8")
    assert [path.name for path in (tmp_path / "o").iterdir()] == [FAILURE]


def test_a_site_ends_where_another_training_or_nan_arrives_and_sends_nothing(one_site, sites, tmp_path):
    with pytest.raises(CaseError, match=r"another than the job's \(its spacing is \[4.0, 4.0, 4.0\], not \[1.5"):
        one_site(sites[0], identity={"spacing": [1.5, 1.5, 1.5]})
    assert not one_site.sent
    bias = torch.full_like(torch.zeros(8), torch.nan)
    with pytest.raises(CaseError, match=r"The server sent weights that are NaN or infinite \(conv_in"):
        one_site(sites[0], arrives=({"conv_in.1.conv.bias": bias},))
    assert not one_site.sent
    assert "NaN or infinite" in (tmp_path / "o" / FAILURE).read_text()
