"""What leaves a site: weights, and a style key where it tells of people enough."""

import numpy as np
import pytest
import torch
from torch import nn

from scripts.conditioning.style_key import average_style_key
from scripts.errors import CaseError
from scripts.federated import contribution, shared_style_key
from scripts.federated.command import federate


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


@pytest.mark.parametrize("people", [5, 6])
def test_nothing_but_weights_and_that_key_is_sent(people):
    weights = nn.Linear(3, 2).state_dict()
    sent = contribution(weights, keys_of(people))
    assert sent.keys() == weights.keys() | ({"average_style_key"} if people > 5 else set())
    for name, value in weights.items():
        torch.testing.assert_close(sent[name], value, rtol=0, atol=0)


def test_one_site_is_no_federation(tmp_path):
    with pytest.raises(CaseError, match="two sites or more"):
        federate("a", output_dir=str(tmp_path))
