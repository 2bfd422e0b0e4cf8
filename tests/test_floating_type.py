"""`dtype auto` is the faster type on the machine at hand, measured once and the same from run to run."""

import json
import logging
import math
from functools import partial

import pytest
import torch
from torch import nn

from scripts import floating_type
from scripts.errors import CaseError
from scripts.floating_type import compute_dtype, measured_types, type_chosen_by
from scripts.inferers.bridge import call_network
from scripts.networks import BridgeUNet

CPU = torch.device("cpu")


class Clock:
    """Takes the place of the measurement: counts how often it is asked, and gives the seconds it was told."""

    def __init__(self) -> None:
        self.calls = 0
        self.seconds = {"float32": 1.0, "bfloat16": 0.5}

    def __call__(self, device, network):
        self.calls += 1
        return self.seconds


@pytest.fixture
def clock(monkeypatch, tmp_path):
    """A processor with bfloat16, a cache of its own, and no memory of earlier tests."""
    clock = Clock()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(floating_type, "measured_types", clock)
    monkeypatch.setattr(floating_type, "_has_bfloat16", lambda device: True)
    monkeypatch.setattr(floating_type, "_in_memory", {})
    return clock


@pytest.fixture
def new_process(monkeypatch):
    """Forget what this process has in its memory, as the next one would not know it."""
    return lambda: monkeypatch.setattr(floating_type, "_in_memory", {})


@pytest.fixture
def cache_file(tmp_path):
    return tmp_path / "brain_ct_to_mri" / "floating_type.json"


@pytest.mark.parametrize(
    ("float32", "bfloat16", "chosen"),
    [(1.0, 0.5, "bfloat16"), (35.7, 55.8, "float32"), (1.0, 1.0, "float32"), (1.0, 0.98, "float32")],
)
def test_the_faster_one_is_chosen_and_a_tie_is_float32(clock, float32, bfloat16, chosen):
    clock.seconds = {"float32": float32, "bfloat16": bfloat16}
    assert compute_dtype("auto", "cpu") is getattr(torch, chosen)


def test_what_is_given_up_for_stability_is_below_five_per_cent():
    assert 1 < floating_type.MARGIN < 1.05


def test_the_choice_stays_when_the_machine_has_other_moods(clock, cache_file, new_process, caplog):
    caplog.set_level(logging.INFO)
    assert compute_dtype("auto", CPU) is torch.bfloat16
    clock.seconds = {"float32": 1.0, "bfloat16": 2.0}
    assert compute_dtype("auto", CPU) is torch.bfloat16
    new_process()
    assert compute_dtype("auto", CPU) is torch.bfloat16
    assert clock.calls == 1
    sentence = f"dtype auto: bfloat16; bfloat16 is 2.00 times as fast as float32 here (kept in {cache_file})."
    assert {record.getMessage() for record in caplog.records} == {sentence}


@pytest.mark.parametrize(("name", "value"), [("_processor", lambda: "another processor"), ("torch.__version__", "9.9")])
def test_another_processor_measures_again_and_both_are_kept(clock, cache_file, monkeypatch, name, value):
    compute_dtype("auto", CPU)
    monkeypatch.setattr(f"scripts.floating_type.{name}", value)
    clock.seconds = {"float32": 1.0, "bfloat16": 2.0}
    assert compute_dtype("auto", CPU) is torch.float32
    assert {entry["dtype"] for entry in json.loads(cache_file.read_text()).values()} == {"bfloat16", "float32"}


def test_another_network_measures_again_and_weights_do_not_matter(clock):
    networks = [nn.Conv2d(1, channels, 3) for channels in (2, 2, 3)]
    for network in networks:
        compute_dtype("auto", CPU, network)
    assert clock.calls == 2


@pytest.mark.parametrize(
    "content", ["", "{", "[1]", '{"KEY": 1}', '{"KEY": {"dtype": "float8", "times_as_fast": 2}}', b"\xff\x00"]
)
def test_a_damaged_cache_is_measured_anew(clock, cache_file, content, new_process):
    compute_dtype("auto", CPU)
    key = next(iter(json.loads(cache_file.read_text())))
    cache_file.write_bytes(content if isinstance(content, bytes) else content.replace("KEY", key).encode())
    new_process()
    assert compute_dtype("auto", CPU) is torch.bfloat16
    assert clock.calls == 2
    assert list(json.loads(cache_file.read_text())) == [key]


def test_without_a_folder_to_write_it_is_kept_in_memory(clock, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # no folder can be made below a file
    for _ in range(2):
        assert compute_dtype("auto", CPU) is torch.bfloat16
    assert clock.calls == 1
    assert "memory, until the program ends" in caplog.text


def test_of_two_processes_the_first_one_counts(clock, cache_file):
    compute_dtype("auto", CPU)
    key = next(iter(json.loads(cache_file.read_text())))
    kept = floating_type._keep(cache_file, key, {"dtype": "float32", "times_as_fast": 0.9})
    assert kept["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("float32", "spread", "chosen"),
    [
        (2.0, 1.2, "bfloat16"),
        (0.9, 1.2, "bfloat16"),  # no clear gain for float32
        (0.5, 1.2, "float32"),
        (0.5, 1.3, "bfloat16"),  # the times differ by more than what would be clear
        (0.5, math.inf, "bfloat16"),
    ],
)
def test_what_has_not_settled_holds_for_one_run(clock, cache_file, new_process, caplog, float32, spread, chosen):
    caplog.set_level(logging.INFO)
    clock.seconds = {"float32": float32, "bfloat16": 1.0, "spread": spread}
    for _ in range(2):
        assert compute_dtype("auto", CPU) is getattr(torch, chosen)
    assert clock.calls == 1
    assert not cache_file.exists()
    assert "the machine is too busy for a reliable measurement" in caplog.text
    assert "(kept in memory, until the program ends)" in caplog.text
    new_process()
    clock.seconds = {"float32": 1.0, "bfloat16": 2.0, "spread": 1.01}
    assert compute_dtype("auto", CPU) is torch.float32
    assert len(json.loads(cache_file.read_text())) == 1


@pytest.mark.parametrize("spread", [1.01, 2.0])
def test_what_another_process_keeps_during_the_measurement_counts(clock, new_process, monkeypatch, spread):
    def measured_while_another_keeps(device, network):
        floating_type._keep(floating_type._cache_file(), key, {"dtype": "float32", "times_as_fast": 0.9})
        return {"float32": 1.0, "bfloat16": 0.5, "spread": spread}

    key = floating_type._key(CPU, None)
    monkeypatch.setattr(floating_type, "measured_types", measured_while_another_keeps)
    assert compute_dtype("auto", CPU) is torch.float32


def test_what_is_set_or_emulated_is_not_measured(clock, monkeypatch):
    for name in ("float32", "bfloat16", "float16"):
        assert compute_dtype(name, "cpu") is getattr(torch, name)
        assert type_chosen_by(name, "cpu") == "setting"
    assert type_chosen_by("auto", "cpu") == "measured"
    monkeypatch.setattr(floating_type, "_has_bfloat16", lambda device: False)
    assert compute_dtype("auto", "cpu") is torch.float32
    assert type_chosen_by("auto", "cpu") == "processor"
    assert clock.calls == 0


def test_another_name_is_refused():
    with pytest.raises(CaseError, match=r"^dtype is float8; use one of auto, float32, bfloat16, float16\.$"):
        compute_dtype("float8", "cpu")


class Sleeper(nn.Module):
    """A network whose calls take as long as it is told, by a clock of its own."""

    now = 0.0

    def __init__(self, seconds: dict) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seconds = seconds

    def forward(self, x, timesteps, context=None, source=None):
        assert x.shape == source.shape
        assert not torch.is_grad_enabled()
        dtype = torch.bfloat16 if torch.is_autocast_enabled("cpu") else torch.float32
        Sleeper.now += self.seconds[dtype][0] + self.seconds[dtype][1] * x[:, 0].numel()
        return x


def sleeper_clock(monkeypatch):
    monkeypatch.setattr(Sleeper, "now", 0.0)
    for clock in ("perf_counter", "thread_time"):
        monkeypatch.setattr(f"scripts.floating_type.time.{clock}", lambda: Sleeper.now)


@pytest.mark.parametrize("factor", [0.5, 2])  # with time for the large call and without
def test_what_a_call_takes_is_told_from_what_a_pixel_takes(monkeypatch, factor):
    """The batch of the main job is extrapolated; random numbers, threads and the network's training mode are left."""
    sleeper_clock(monkeypatch)
    seconds = {torch.float32: (0.01 * factor, 4e-6 * factor), torch.bfloat16: (0.012 * factor, 2e-6 * factor)}
    network, random_state, threads = Sleeper(seconds).train(), torch.get_rng_state(), torch.get_num_threads()
    measured = measured_types(CPU, network)
    pixels = 8 * 104 * 128
    assert measured["float32"] == pytest.approx(factor * (0.01 + 4e-6 * pixels))
    assert measured["bfloat16"] == pytest.approx(factor * (0.012 + 2e-6 * pixels))
    assert measured["spread"] == pytest.approx(1)
    assert network.training
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.get_num_threads() == threads
    assert Sleeper.now < floating_type.LIMIT


def test_a_heavy_network_is_called_once_and_represented_by_typical_layers(monkeypatch):
    sleeper_clock(monkeypatch)
    monkeypatch.setattr(
        floating_type, "_TypicalLayers", lambda: Sleeper({torch.float32: (0, 2e-6), torch.bfloat16: (0, 1e-6)})
    )
    measured = measured_types(CPU, Sleeper({torch.float32: (0.4, 0), torch.bfloat16: (0.4, 0)}))
    assert measured["float32"] / measured["bfloat16"] == pytest.approx(2)
    assert 0.4 < Sleeper.now < floating_type.LIMIT


def test_what_cannot_be_measured_has_not_settled(monkeypatch):
    monkeypatch.setattr(floating_type, "_seconds_extrapolated", lambda *_: (_ for _ in ()).throw(RuntimeError))
    assert measured_types(CPU, None)["spread"] == math.inf


def in_turns(monkeypatch, durations, limit):
    """Times of one call whose rounds take the durations, until the limit."""
    clock = [0.0]

    def seconds(call, device):
        clock[0] += durations[0]
        return durations.pop(0)

    monkeypatch.setattr(floating_type, "_seconds", seconds)
    monkeypatch.setattr("scripts.floating_type.time.perf_counter", lambda: clock[0])
    return floating_type._in_turns({"call": lambda: None}, CPU, 3, limit)["call"]


def test_times_are_taken_until_the_lowest_two_agree(monkeypatch):
    """A disturbance of the first rounds does not count."""
    assert in_turns(monkeypatch, [9.0, 8.0, 3.0, 2.0, 4.0, 2.05, 5.0], math.inf) == [9.0, 8.0, 3.0, 2.0, 4.0, 2.05]


def test_no_round_starts_that_would_pass_the_limit(monkeypatch):
    times = in_turns(monkeypatch, [0.3, 0.4, 0.2, 0.1], 1.2)
    assert times == [0.3, 0.4, 0.2]
    assert floating_type._spread({"call": times}) == pytest.approx(1.5)
    assert in_turns(monkeypatch, [0.8, 0.8], 1.2) == [0.8]
    assert floating_type._spread({"call": [0.8]}) == math.inf


@pytest.mark.parametrize("network", [None, nn.Linear(2, 2), nn.Identity()])
def test_other_networks_are_represented_by_typical_layers(network):
    measured = measured_types(CPU, network)
    assert all(0 < measured[name] < 60 for name in ("float32", "bfloat16"))
    assert measured["spread"] >= 1


@pytest.mark.slow
def test_the_measure_agrees_with_a_longer_one_of_the_network():
    """The same choice as whole batches of the main job, or two types that are nearly alike."""
    network = BridgeUNet(channels=(64, 128, 192), num_res_blocks=1, norm_num_groups=16, space_to_depth=2)
    network = network.to(memory_format=torch.channels_last).eval()
    slabs = torch.zeros(8, 3, 104, 128)
    calls = {
        name: partial(call_network, network, slabs, 500, slabs, dtype=getattr(torch, name))
        for name in ("float32", "bfloat16")
    }
    with torch.no_grad():
        rounds = [{name: floating_type._seconds(call, CPU) for name, call in calls.items()} for _ in range(8)]
    float32, bfloat16 = (min(seconds[name] for seconds in rounds) for name in ("float32", "bfloat16"))
    short = measured_types(CPU, network, least_rounds=4)
    measured = short["float32"] / short["bfloat16"]
    assert (measured > 1) == (float32 > bfloat16) or abs(float32 / bfloat16 - 1) < 0.1
