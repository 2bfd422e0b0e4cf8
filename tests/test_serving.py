"""Settings of a request, without a server; tests/label has the real one."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from scripts.files import CaseError
from scripts.schedulers import BrownianBridgeScheduler
from scripts.serving import KeepRequestd, RequestISTAInferer, sampler_choices, style_key_choices
from scripts.style_key import compute_style_key, save_style_keys

NAMES = ("style_key", "num_inference_steps", "step_size", "sampler")


@pytest.fixture
def keys_file(tmp_path):
    keys = {name: compute_style_key(np.random.default_rng(i).beta(2 + i, 2, 5000)) for i, name in enumerate("pq")}
    save_style_keys({"other": keys["q"], "average": keys["p"]}, tmp_path / "keys.json")
    return tmp_path / "keys.json"


@pytest.fixture
def inferer(keys_file):
    key = np.zeros((3, 128), np.float32)
    return RequestISTAInferer(
        keys_file, scheduler=BrownianBridgeScheduler(), style_key=key, num_inference_steps=4, sampler="implicit"
    )


class Spy(torch.nn.Module):
    """Predicts the state and remembers the styles it was given; one call is one evaluation of one slab batch."""

    def __init__(self):
        super().__init__()
        self.styles = []

    def forward(self, x, timesteps=None, context=None, source=None):
        self.styles.append(context[0])
        return torch.zeros_like(x)


def volume(**request):
    image = MetaTensor(torch.rand(1, 6, 6, 4, generator=torch.Generator().manual_seed(0)))
    return KeepRequestd("image", NAMES)({"image": image, **request})["image"][None]


def styles(inferer, inputs):
    spy = Spy()
    inferer(inputs, spy)
    return spy.styles


def test_a_request_holds_for_its_volume_alone(inferer, keys_file):
    before = styles(inferer, volume())
    asked = styles(inferer, volume(style_key="other", num_inference_steps="2"))
    assert len(before) == 4
    assert len(asked) == 2
    wanted = compute_style_key(np.random.default_rng(1).beta(3, 2, 5000))
    torch.testing.assert_close(asked[0], torch.from_numpy(wanted))
    assert (before[0] == 0).all()
    assert len(styles(inferer, volume())) == 4
    assert inferer.scheduler.timesteps.numel() == 4


def test_a_choice_that_nobody_made_is_its_first(inferer):
    request = {"sampler": ["implicit", "ancestral"], "num_inference_steps": None, "step_size": ""}
    torch.testing.assert_close(inferer(volume(**request), Spy()), inferer(volume(), Spy()))
    assert (inferer(volume(sampler="ancestral"), Spy()) - inferer(volume(), Spy())).abs().max() > 0.1
    assert len(styles(inferer, volume(style_key=[]))) == 4


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"style_key": "nobody"}, "The style key nobody is neither"),
        ({"num_inference_steps": True}, "has to be a whole number"),
        ({"num_inference_steps": {}}, "has to be a whole number"),
        ({"step_size": "nan"}, "a positive number"),
        ({"step_size": "inf"}, "a positive number"),
        ({"sampler": "guess"}, "'guess' is not a valid"),
        ({"device": "tpu"}, "There is no device tpu"),
        ({"model_filename": "another.pt"}, "only model.pt fits"),
        ({"result_dtype": "int16"}, "no label map"),
        ({"result_dtype": "nothing"}, "no label map"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(inferer, request_, words):
    with pytest.raises(CaseError, match=words):
        inferer(volume(**request_), Spy())


def test_what_fits_is_let_through(inferer):
    volume(device="cpu", model_filename=["model.pt", "another.pt"], result_dtype="float32")


def test_choices_begin_with_the_default(keys_file):
    assert style_key_choices("average", keys_file) == ["average", "other"]
    assert style_key_choices("/some/t1.nii.gz", keys_file) == ["/some/t1.nii.gz", "other", "average"]
    assert sampler_choices("mean_path")[0] == "mean_path"
    assert len(set(sampler_choices("mean_path"))) == len(sampler_choices("mean_path")) == 5
