"""Settings of a request, without a server; tests/label has the real one."""

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from scripts.conditioning.style_key import compute_style_key, resolve_style_key, save_style_keys
from scripts.errors import CaseError
from scripts.inferers import ISTAInferer
from scripts.schedulers import BrownianBridgeScheduler
from scripts.serving.requests import KeepRequestd, RequestInferer


@pytest.fixture
def keys_file(tmp_path):
    keys = {name: compute_style_key(np.random.default_rng(i).beta(2 + i, 2, 5000)) for i, name in enumerate("pq")}
    save_style_keys({"other": keys["q"], "average": keys["p"]}, tmp_path / "keys.json")
    return tmp_path / "keys.json"


@pytest.fixture
def inferer(keys_file):
    key = np.zeros((3, 128), np.float32)
    inferer = ISTAInferer(BrownianBridgeScheduler(), key, num_inference_steps=4, sampler="implicit")
    return RequestInferer(inferer, keys_file)


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
    return KeepRequestd("image")({"image": image, **request})["image"][None]


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
    assert inferer.inferer.scheduler.timesteps.numel() == 4


def test_a_choice_that_nobody_made_is_its_first(inferer):
    request = {"sampler": ["implicit", "ancestral"], "num_inference_steps": None, "step_size": ""}
    torch.testing.assert_close(inferer(volume(**request), Spy()), inferer(volume(), Spy()))
    assert (inferer(volume(sampler="ancestral"), Spy()) - inferer(volume(), Spy())).abs().max() > 0.1
    assert len(styles(inferer, volume(style_key=[]))) == 4


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"style_key": "nobody"}, "There is no style key nobody; use one of average, other"),
        ({"num_inference_steps": True}, "has to be a whole number"),
        ({"num_inference_steps": {}}, "has to be a whole number"),
        ({"step_size": "nan"}, "a positive number"),
        ({"step_size": "inf"}, "a positive number"),
        ({"sampler": "guess"}, "'guess' is not a valid"),
        ({"mirrored": "maybe"}, "mirrored is 'maybe'; it must be True or False"),
        ({"detail": "full"}, "detail is 'full'; it must be a number from 0"),
        ({"device": "tpu"}, "There is no device tpu"),
        ({"model_filename": "another.pt"}, "only model.pt fits"),
        ({"device": "meta"}, "There is no device meta"),
        ({"step_size": 10**400}, "a positive number"),
        ({"num_inference_steps": float("inf")}, "has to be a whole number"),
        ({"result_extension": ".png"}, "result_extension is .png; use one of .nii.gz"),
        ({"result_dtype": "int16"}, "no label map"),
        ({"result_dtype": "nothing"}, "no label map"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(inferer, request_, words):
    with pytest.raises(CaseError, match=words):
        inferer(volume(**request_), Spy())


def test_what_fits_is_let_through(inferer):
    volume(device="cpu", model_filename=["model.pt", "another.pt"], result_dtype="float32")


def test_a_whole_number_may_come_as_text_or_float(inferer):
    assert len(styles(inferer, volume(num_inference_steps=2.0))) == len(
        styles(inferer, volume(num_inference_steps="2"))
    )


def test_a_request_turns_the_dial(inferer):
    assert [len(styles(inferer, volume(detail=detail))) for detail in (0, "0.5", 1)] == [1, 3, 4]
    assert len(styles(inferer, volume(detail=0, num_inference_steps=1000))) == 1


def test_yes_and_no_may_come_as_text(inferer):
    counts = [len(styles(inferer, volume(mirrored=value, detail=0))) for value in ("false", "0", False, "True", 1)]
    assert counts == [1, 1, 1, 2, 2]


def test_a_request_is_short_and_the_main_job_as_long_as_it_likes(inferer):
    assert len(styles(inferer, volume(num_inference_steps=100))) == 100
    with pytest.raises(CaseError, match=r"num_inference_steps is 101, .* more than 100 evaluations"):
        inferer(volume(num_inference_steps=101), Spy())
    with pytest.raises(CaseError, match="num_corrections 1000000000"):
        inferer(volume(num_corrections=10**9), Spy())
    assert (
        len(styles(RequestInferer(inferer.inferer.changed(num_inference_steps=101), inferer.keys_file), volume()))
        == 101
    )


def test_a_network_in_any_layout_gets_that_of_the_main_job(inferer):
    spy = Spy()
    spy.layer = torch.nn.Conv2d(2, 2, 3)
    inferer(volume(), spy)
    assert spy.layer.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_request_gets_no_nan(inferer):
    with pytest.raises(CaseError, match="ask for a smaller step_size"):
        inferer(volume(step_size=1e308, num_corrections=1), lambda x, *_, **__: x.sin())


def test_a_request_s_style_key_is_a_name_and_opens_no_file(inferer, tmp_path):
    brain = np.zeros((20, 20, 20), np.float32)
    brain[5:15, 5:15, 5:15] = np.random.default_rng(0).beta(3, 2, (10, 10, 10))
    nib.save(nib.Nifti1Image(brain, np.eye(4)), tmp_path / "brain.nii.gz")
    resolve_style_key(tmp_path / "brain.nii.gz", inferer.keys_file)  # the main job takes it
    with pytest.raises(CaseError, match=r"There is no style key .*brain\.nii\.gz; use one of average, other"):
        inferer(volume(style_key=str(tmp_path / "brain.nii.gz")), Spy())


def test_a_request_may_ask_for_no_style(inferer):
    styled = RequestInferer(inferer.inferer.changed(style_key=np.ones((3, 128), np.float32)), inferer.keys_file)
    assert styles(styled, volume())[0].all()
    assert not styles(styled, volume(style_key="none"))[0].any()


def test_a_result_is_nifti_unless_asked_otherwise():
    image = MetaTensor(torch.zeros(1, 2, 2, 2))
    for asked, given in (
        ({}, ".nii.gz"),
        ({"result_extension": ""}, ".nii.gz"),
        ({"result_extension": ".nrrd"}, ".nrrd"),
    ):
        assert KeepRequestd("image")({"image": image, **asked})["result_extension"] == given
