"""Make-A-Volume from its overlays, on tiny volumes: codec, slices, layers along z, and the main job with them."""

import json
import re

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, run

from scripts.errors import CaseError
from scripts.weights import load_weights
from tests.phantoms import write_head_ct, write_training_set

EDGE = 6.0
SMALL = {
    **{"spacing": [EDGE] * 3, "slab_shape": [32, 32], "max_epochs": 2, "iterations_per_epoch": 3, "batch_size": 4},
    **{"warmup_iterations": 1, "num_workers": 0, "prepare_workers": 1, "dtype": "float32", "val_interval": 1},
    "device": "$torch.device('cpu')",
}
TINY_CODEC = {"autoencoder#channels": [8, 8, 8], "autoencoder#latent_channels": 4, "autoencoder#norm_num_groups": 4}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Three round heads, each with a texture of its own, and a fourth for validation."""
    folder = tmp_path_factory.mktemp("pairs")
    write_training_set(folder, 3)
    return folder


@pytest.fixture(scope="module")
def train(tmp_path_factory, bundle_root, pairs):
    """Runs train.json with overlays and options; gives the output folder."""

    def run_training(*overlays, name, output_dir=None, **options):
        folder = output_dir or tmp_path_factory.mktemp(name)
        configs = [str(bundle_root / "configs" / f"{config}.json") for config in ("train", *overlays)]
        run(config_file=configs, dataset_dir=str(pairs), output_dir=str(folder), **{**SMALL, **options})
        return folder

    return run_training


@pytest.fixture(scope="module")
def codec(train):
    return train("autoencoder", name="autoencoder", **TINY_CODEC)


def refused(train, *args, **kwargs):
    """The sentence that a training ends with."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 - MONAI wraps what it meets
        train(*args, **kwargs)
    error = caught.value
    while error.__cause__ is not None:
        error = error.__cause__
    assert isinstance(error, CaseError)
    return str(error)


def test_the_codec_is_trained_and_tells_what_it_loses(codec, bundle_root):
    content = torch.load(codec / "model.pt", weights_only=True)
    assert (content["latent_std"] > 0).all()
    assert content["autoencoder.encoder.blocks.0.conv.weight"].dtype == torch.float16
    quality = json.loads((codec / "codec.json").read_text())
    assert set(quality) == {"CT", "T1"}
    assert set(quality["T1"]) == {"p3"}
    assert 5 < quality["T1"]["p3"]["psnr"] < 40


TINY_SLICE = {
    **TINY_CODEC,
    **{f"slice_network#{name}": value for name, value in {"channels": [8, 8], "norm_num_groups": 4}.items()},
    "slice_network#num_head_channels": 8,
}


@pytest.fixture(scope="module")
def slices(train, codec):
    return train("make_a_volume_slice", name="slice", codec=str(codec / "model.pt"), codec_gate=0, **TINY_SLICE)


def test_a_slice_network_carries_its_codec(slices, codec):
    content = torch.load(slices / "model.pt", weights_only=True)
    for name, value in torch.load(codec / "model.pt", weights_only=True).items():
        assert torch.equal(content[f"codec.{name}"], value)
    assert any(name.startswith("network.") for name in content)


def test_a_codec_that_loses_too_much_is_refused_with_its_figure(train, codec):
    options = {"name": "gate", "codec": str(codec / "model.pt"), "codec_gate": 60, **TINY_SLICE}
    said = refused(train, "make_a_volume_slice", **options)
    assert re.match(
        r"The codec gives T1 back with \d+\.\d dB in the brain of 1 held-out people, less than the 60 dB", said
    )


def test_a_network_without_its_codec_or_with_another_is_refused(train, codec, slices, tmp_path):
    said = refused(train, "make_a_volume_slice", name="none", codec_gate=0, **TINY_SLICE)
    assert "needs its codec: give --codec" in said
    other = torch.load(codec / "model.pt", weights_only=True)
    other["latent_mean"] += 1
    torch.save(other, tmp_path / "other.pt")
    options = {"codec": str(tmp_path / "other.pt"), "init_weights": str(slices / "model.pt"), "codec_gate": 0}
    said = refused(train, "make_a_volume_slice", name="other", **options, **TINY_SLICE)
    assert "was trained with another codec than" in said


@pytest.fixture(scope="module")
def volumes(train, slices):
    options = {"init_weights": str(slices / "model.pt"), "codec_gate": 0, **TINY_SLICE}
    return train("make_a_volume_volume", name="volume", **options)


def test_only_the_layers_along_z_are_tuned(volumes, slices):
    before, after = (torch.load(folder / "model.pt", weights_only=True) for folder in (slices, volumes))
    layers = {name for name in after if ".volumetric." in name}
    assert any(after[name].any() for name in layers)
    kept = {
        name.replace("network.network.", "network.").replace(".block.", "."): name
        for name in after
        if name not in layers
    }
    assert kept.keys() == before.keys()
    for name, value in before.items():
        assert torch.equal(after[kept[name]], value)


def test_layers_along_z_without_the_network_of_slices_are_refused(train, codec):
    options = {"name": "alone", "codec": str(codec / "model.pt"), "codec_gate": 0, **TINY_SLICE}
    said = refused(train, "make_a_volume_volume", **options)
    assert "give --init_weights" in said


@pytest.mark.parametrize("stage", ["slices", "volumes"])
def test_the_main_job_translates_in_the_latent(stage, request, bundle_root, tmp_path):
    weights = request.getfixturevalue(stage) / "model.pt"
    path = write_head_ct(tmp_path / "head_ct.nii.gz")
    configs = [str(bundle_root / "configs" / name) for name in ("inference.json", "make_a_volume.json")]
    options = {**TINY_SLICE, "spacing": [EDGE] * 3, "weights": str(weights), "device": "cpu"}
    outputs = []
    for batch_size in (8, 3):
        folder = tmp_path / f"out{batch_size}"
        more = {"dataset_dir": str(path), "output_dir": str(folder), "batch_size": batch_size}
        run(config_file=configs, logging_file=False, **options, **more)
        outputs.append(nib.load(folder / "head_ct_t1.nii.gz"))
    first, second = (np.asarray(image.dataobj) for image in outputs)
    assert first.shape == nib.load(path).shape
    np.testing.assert_allclose(outputs[0].affine, nib.load(path).affine, atol=1e-5)
    assert first.std() > 0
    np.testing.assert_allclose(first, second, atol=1e-4)
    record = json.loads((folder / "head_ct_t1.json").read_text())
    assert record["weights"] == "model.pt"


def test_a_server_that_loads_the_network_alone_has_the_codec(bundle_root):
    """MONAI Label resolves network_def and inferer, and loads the weights itself."""
    parser = ConfigParser()
    parser.read_config([str(bundle_root / "configs" / name) for name in ("inference.json", "make_a_volume.json")])
    network = parser.get_parsed_content("network_def")
    assert parser.get_parsed_content("inferer").inferer.codec is network.codec


def test_the_networks_are_the_same_in_all_their_configs(bundle_root):
    """What is trained is what translates; each file says it, so that two files are all that a command needs."""
    names = ("autoencoder", "make_a_volume_slice", "make_a_volume_volume", "make_a_volume")
    configs = {name: json.loads((bundle_root / "configs" / f"{name}.json").read_text()) for name in names}
    assert all(config["autoencoder"] == configs["autoencoder"]["autoencoder"] for config in configs.values())
    slices = [dict(configs[name]["slice_network"]) for name in names[1:]]
    for network in slices:
        network.pop("use_flash_attention", None)
    assert slices[0] == slices[1] == slices[2]
    trained, translates = (configs[name]["network_def"]["network"] for name in names[2:])
    assert {**translates, "tune": "volumetric"} == trained
    assert configs["make_a_volume_volume"]["scheduler"] == configs["make_a_volume"]["scheduler"]
    for key in ("slab_stride", "final_stride"):
        assert configs["make_a_volume_volume"][key] == configs["make_a_volume"][key]


@pytest.mark.parametrize(
    "line", [{}, {"scheduler#prediction_type": "epsilon"}, {"scheduler#prediction_type": "v_prediction"}]
)
def test_noise_and_the_paper_s_predictions_are_a_line_apart(train, codec, line):
    line = {"scheduler#_target_": "scripts.schedulers.GaussianDiffusionScheduler", **line}
    options = {"codec": str(codec / "model.pt"), "codec_gate": 0, "iterations_per_epoch": 1, "max_epochs": 1}
    folder = train("make_a_volume_slice", name="line", **TINY_SLICE, **options, **line)
    content = torch.load(folder / "model.pt", weights_only=True)
    assert all(value.isfinite().all() for value in content.values() if value.is_floating_point())


def test_another_scheduler_is_another_network(train, slices, codec):
    """Its weights do not fit, its training does not go on, and a case that it made is not done."""
    noise = {"scheduler#_target_": "scripts.schedulers.GaussianDiffusionScheduler", **TINY_SLICE, "codec_gate": 0}
    said = refused(train, "make_a_volume_volume", name="other", init_weights=str(slices / "model.pt"), **noise)
    assert "trained_with.GaussianDiffusionScheduler_sample" in said
    options = {"codec": str(codec / "model.pt"), "output_dir": str(slices), **noise}
    said = refused(train, "make_a_volume_slice", name="resumed", **options)
    assert "are of another training (its scheduler is another)" in said


def test_the_record_tells_what_made_a_case(slices, bundle_root, tmp_path):
    path = write_head_ct(tmp_path / "head_ct.nii.gz")
    configs = [str(bundle_root / "configs" / name) for name in ("inference.json", "make_a_volume.json")]
    options = {**TINY_SLICE, "spacing": [EDGE] * 3, "weights": str(slices / "model.pt"), "device": "cpu"}
    options |= {"dataset_dir": str(path), "output_dir": str(tmp_path / "out"), "logging_file": False}

    def made(**more):
        run(config_file=configs, **options, **more)
        return json.loads((tmp_path / "out" / "head_ct_t1.json").read_text())

    first = made()
    assert first["scheduler"].startswith("BrownianBridgeScheduler_sample_")
    assert len(first["codec"]) == 64
    assert (first["slab_size"], first["slab_stride"], first["final_stride"]) == (9, 9, 5)
    time = (tmp_path / "out" / "head_ct_t1.nii.gz").stat().st_mtime_ns
    made()
    assert (tmp_path / "out" / "head_ct_t1.nii.gz").stat().st_mtime_ns == time
    assert made(**{"network_def#network#slab_size": 5})["slab_size"] == 5
    assert (tmp_path / "out" / "head_ct_t1.nii.gz").stat().st_mtime_ns != time


def test_the_orthonormal_codec_takes_the_autoencoder_s_place(train):
    options = {
        "network_def#codec": {"_target_": "scripts.codec.OrthonormalCodec", "factor": 2},
        **{"autoencoder#latent_channels": 4, "iterations_per_epoch": 1, "max_epochs": 1},
    }
    folder = train("make_a_volume_slice", name="orthonormal", **{**TINY_SLICE, **options})
    content = torch.load(folder / "model.pt", weights_only=True)
    assert not any(name.startswith("codec.") for name in content)


def test_a_network_that_is_not_told_of_gaps_gives_the_mean_between_slices(slices, bundle_root):
    parser = ConfigParser()
    parser.read_config([str(bundle_root / "configs" / name) for name in ("inference.json", "make_a_volume.json")])
    parser.update({**TINY_SLICE, "device": "cpu", "dtype": "float32"})
    network, inferer = (parser.get_parsed_content(name) for name in ("network_def", "inferer"))
    load_weights(network.eval(), slices / "model.pt")
    volume, missing = torch.rand(2, 1, 1, 32, 32, 12)
    sampler = inferer.inferer.changed(style_key=None, progress=False)
    missing[:] = 0
    missing[..., 5:] = 1

    def sampled(missing, detail):
        return sampler.changed(detail=detail)(torch.cat([volume, missing], dim=1), network)

    assert torch.equal(sampled(missing, 1.0)[..., :5], sampled(0 * missing, 1.0)[..., :5])
    assert (sampled(missing, 1.0) - sampled(0 * missing, 1.0))[..., 5:].abs().max() > 1e-4
