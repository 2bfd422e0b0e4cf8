"""What leaves a site, and when a site refuses: without NVFlare."""

import json

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from torch import nn

from scripts.conditioning.style_key import average_style_key
from scripts.errors import CaseError
from scripts.federated import contribution, shared_style_key
from scripts.federated.command import check_federable, federate, federated_model
from scripts.federated.sharing import STYLE_KEY, people_and_keys
from scripts.federated.site import check_identity, check_received


def keys_of(people):
    return list(np.random.default_rng(0).random((people, 3, 128), dtype=np.float32))


@pytest.mark.parametrize(("people", "leaves"), [(1, False), (5, False), (6, True), (20, True)])
def test_a_style_key_leaves_only_as_the_mean_of_more_than_five_people(people, leaves):
    keys = keys_of(people)
    shared = shared_style_key(keys)
    if leaves:
        np.testing.assert_array_equal(shared, average_style_key(keys))
    else:
        assert shared is None


def test_renderings_and_further_scans_of_a_person_are_one_person():
    keys = dict(zip(("anna", "bert#0", "bert#1", "carl#visit1#0", "carl#visit2#0"), keys_of(5), strict=True))
    people = people_and_keys(keys)
    assert list(people) == ["anna", "bert", "carl"]
    assert shared_style_key(people.values()) is None


@pytest.mark.parametrize("people", [5, 6])
def test_nothing_but_weights_and_that_key_is_sent(people):
    weights = nn.Linear(3, 2).state_dict()
    sent = contribution(weights, keys_of(people))
    assert sent.keys() == weights.keys() | ({STYLE_KEY} if people > 5 else set())
    for name, value in weights.items():
        torch.testing.assert_close(sent[name], value, rtol=0, atol=0)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_training_that_made_nan_sends_nothing(value):
    with pytest.raises(CaseError, match=r"training at this site made weights that are NaN or infinite \(bias\)"):
        contribution({"weight": torch.zeros(2), "bias": torch.tensor([0, value])}, [])


def test_a_site_takes_only_weights_of_its_own_network():
    network = nn.Linear(3, 2)
    arrives = {**network.state_dict(), STYLE_KEY: torch.full((3, 128), torch.nan)}  # no key yet
    check_received(arrives, network)
    with pytest.raises(CaseError, match=r"another than this site's \(1 missing: bias\); give all sites"):
        check_received({"weight": arrives["weight"]}, network)
    with pytest.raises(CaseError, match="The server sent weights that are NaN"):
        check_received({**arrives, "bias": torch.full((2,), torch.nan)}, network)


def test_a_site_takes_part_in_no_training_of_another_kind():
    job = {"target_contrast": "T1", "spacing": [1.5, 1.5, 1.5]}
    check_identity({**job, "more": 1}, job)
    with pytest.raises(CaseError, match=r"another than the job's \(its target_contrast is FLAIR, not T1\)"):
        check_identity({**job, "target_contrast": "FLAIR"}, job)


def test_one_site_is_no_federation(tmp_path):
    with pytest.raises(CaseError, match="two sites or more"):
        federate("a", output_dir=str(tmp_path))


def test_a_folder_with_a_training_or_a_space_is_refused(tmp_path):
    with pytest.raises(CaseError, match="without spaces"):
        federate("a", "b", output_dir=str(tmp_path / "my runs"))
    (tmp_path / "model.pt").touch()
    with pytest.raises(CaseError, match="is not empty"):
        federate("a", "b", output_dir=str(tmp_path))


@pytest.mark.parametrize("value", [torch.nan, 0.5])
def test_the_result_of_the_server_becomes_weights_and_keys(tmp_path, value):
    network, key = nn.Linear(3, 2).state_dict(), torch.full((3, 128), value)
    torch.save({"model": {**network, STYLE_KEY: key}, "meta_props": {"current_round": 1}}, tmp_path / "result.pt")
    federated_model(str(tmp_path / "result.pt"), output_dir=str(tmp_path / "out"))
    torch.testing.assert_close(torch.load(tmp_path / "out" / "model.pt", weights_only=True), dict(network))
    keys = tmp_path / "out" / "style_keys.json"
    assert keys.is_file() == (value == 0.5)
    assert not keys.is_file() or json.loads(keys.read_text())["keys"]["average"][0][0] == 0.5


@pytest.mark.parametrize("content", [None, {"weight": torch.zeros(1)}, torch.zeros(1)])
def test_what_is_no_result_of_the_server_is_refused(tmp_path, content):
    if content is not None:
        torch.save(content, tmp_path / "result.pt")
    with pytest.raises(CaseError, match=r"give the FL_global_model\.pt of NVFlare's server"):
        federated_model(str(tmp_path / "result.pt"), output_dir=str(tmp_path / "out"))


@pytest.mark.parametrize(
    "names", [("train",), ("train", "many_to_one_train"), ("train", "flair_to_t1"), ("train", "pix2pix")]
)
def test_trainings_of_a_network_on_pixels_can_be_federated(bundle_root, names):
    check_federable(merged(bundle_root, *names, "federated"))


@pytest.mark.parametrize(
    "names",
    [
        ("autoencoder",),
        ("make_a_volume_slice",),
        ("make_a_volume_volume",),
        ("many_to_one_train", "cola_diff_train"),
        ("rebrain_control",),
        ("rebrain_retrieval",),
    ],
    ids="+".join,
)
def test_trainings_that_need_more_than_the_shared_network_are_refused(bundle_root, names):
    with pytest.raises(CaseError, match="This training cannot be federated"):
        check_federable(merged(bundle_root, "train", *names, "federated"))


def test_without_rounds_it_is_refused(bundle_root):
    with pytest.raises(CaseError, match=r"add configs/federated\.json"):
        check_federable(merged(bundle_root, "train"))


def merged(bundle_root, *names):
    parser = ConfigParser()
    parser.read_config([str(bundle_root / "configs" / f"{name}.json") for name in names])
    return parser


def test_a_result_without_a_key_leaves_no_key_of_another(tmp_path):
    keys = tmp_path / "style_keys.json"
    for key, there in ((torch.full((3, 128), 1 / 128), True), (torch.full((3, 128), torch.nan), False)):
        torch.save({"model": {"weight": torch.ones(2), STYLE_KEY: key}}, tmp_path / "global.pt")
        federated_model(str(tmp_path / "global.pt"), output_dir=str(tmp_path))
        assert keys.is_file() == there
    assert torch.load(tmp_path / "model.pt", weights_only=True).keys() == {"weight"}
