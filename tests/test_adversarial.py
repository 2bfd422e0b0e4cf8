"""Training against a discriminator: what its trainer is shown, saves and goes on from, and the baselines of slices."""

import types

import numpy as np
import pytest
import torch
from monai.losses import PatchAdversarialLoss
from monai.networks.nets import AutoencoderKL, PatchDiscriminator
from torch import nn
from torch.nn import functional

from scripts import engines
from scripts.codec import LatentCodec, OrthonormalCodec
from scripts.engines import AutoencoderPrepareBatch
from scripts.errors import CaseError, reason
from scripts.inferers import AutoencoderInferer, BridgeInferer
from scripts.losses import AutoencoderLoss
from scripts.networks import BridgeUNet
from scripts.schedulers import BrownianBridgeScheduler, GaussianDiffusionScheduler
from tests.phantoms import TINY_NETWORK
from tests.test_make_a_volume import TINY_CODEC, pairs, train  # noqa: F401 - fixtures
from tests.test_train import dataset_dir, losses_of, workflow  # noqa: F401 - fixtures

SMALL = {"discriminator_def#channels": 4, "discriminator_def#num_layers_d": 2}
STEADY = {"lr_scheduler#lr_lambda": "$lambda iteration: 1.0"}


def part(made, name):
    return made.parser.get_parsed_content(name)


def start_alike(made):
    """The same initial weights in each training."""
    torch.manual_seed(0)
    for parameter in part(made, "network").parameters():
        nn.init.normal_(parameter, std=0.1)
    part(made, "averaged").module.load_state_dict(part(made, "network").state_dict())
    if "discriminator" in made.parser:
        torch.manual_seed(1)
        for parameter in part(made, "discriminator").parameters():
            nn.init.normal_(parameter, std=0.1)
    return made


def trained(made):
    losses = losses_of(start_alike(made))
    return losses, {name: value.clone() for name, value in part(made, "network").state_dict().items()}


def test_a_discriminator_without_weight_has_no_say(workflow, tmp_path):  # noqa: F811
    plain_losses, plain = trained(workflow(output_dir=str(tmp_path / "plain")))
    losses, weights = trained(workflow("adversarial.json", adversarial_weight=0.0, **SMALL))
    assert losses == plain_losses
    assert all(torch.equal(weights[name], plain[name]) for name in plain)


@pytest.mark.parametrize("overlays", [("adversarial.json",), ("pix2pix.json",)], ids=str)
def test_a_training_is_the_plain_loop_it_stands_for(workflow, overlays):  # noqa: F811
    """Isola et al., algorithm in one epoch of three steps; clipping, average and rate of train.json included."""
    made = workflow(*overlays, max_epochs=1, **SMALL, **STEADY, **{"optimizer#eps": 1e-2, "adversarial_weight": 0.3})
    network, judge = part(start_alike(made), "network"), part(made, "discriminator")
    loss_function, conditional = part(made, "loss"), part(made, "discriminator_sees_source")
    saved = [{name: value.clone() for name, value in m.state_dict().items()} for m in (network, judge)]
    losses = losses_of(made)
    after = [{name: value.clone() for name, value in m.state_dict().items()} for m in (network, judge)]

    network.load_state_dict(saved[0])
    judge.load_state_dict(saved[1])
    optimizers = (
        torch.optim.AdamW(network.parameters(), lr=4e-4, eps=1e-2),
        torch.optim.Adam(judge.parameters(), lr=2e-4, betas=(0.5, 0.999)),
    )
    engines.SeedEpochs(dataset=made.train_dataset)(types.SimpleNamespace(state=types.SimpleNamespace(epoch=1)))
    expected = []

    def said(images, truth):
        logits = judge(torch.cat([images, given["source"]], 1) if conditional else images)[-1]
        if conditional:
            return functional.binary_cross_entropy_with_logits(logits, torch.full_like(logits, truth))
        return ((logits - truth) ** 2).mean()

    for batch in made.trainer.data_loader:
        x0, label, _, given = made.trainer.prepare_batch(batch)
        fake = part(made, "train#inferer")(x0, network, **given)
        loss = loss_function(fake, label) + 0.3 * said(fake, 1.0)
        optimizers[0].zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizers[0].step()
        optimizers[1].zero_grad()
        ((said(label, 1.0) + said(fake.detach(), 0.0)) / 2).backward()
        optimizers[1].step()
        expected.append(loss.item())
    assert losses == pytest.approx(expected, rel=1e-4)
    for module, before, now in zip((network, judge), saved, after, strict=True):
        for name, value in module.state_dict().items():
            assert (value - now[name]).float().norm() <= 1e-2 * (value - before[name]).float().norm() + 1e-6, name


@pytest.mark.parametrize("overlays", [(), ("pix2pix.json",)], ids=str)
def test_a_resumed_training_is_the_uninterrupted_one(workflow, tmp_path, overlays):  # noqa: F811
    settings = {"val_interval": 1, **STEADY, **(SMALL if overlays else {})}
    whole_losses, whole = trained(workflow(*overlays, output_dir=str(tmp_path / "whole"), **settings))
    first_losses, _ = trained(workflow(*overlays, max_epochs=1, **settings))
    state = torch.load(tmp_path / "out" / "checkpoint_epoch=1.pt", weights_only=True)
    assert set(state["trainer"]) == {"epoch_length", "iteration", "max_epochs"}
    assert ("discriminator" in state) == ("discriminator_optimizer" in state) == bool(overlays)
    resumed = workflow(*overlays, **settings)
    second_losses = losses_of(resumed)
    assert first_losses + second_losses == whole_losses
    for name, value in part(resumed, "network").state_dict().items():
        torch.testing.assert_close(value, whole[name], rtol=0, atol=0)
    assert np.isfinite(whole_losses).all()
    assert (tmp_path / "out" / "model_best.pt").is_file()


def test_checkpoints_without_a_discriminator_are_those_of_another_training(workflow):  # noqa: F811
    workflow("adversarial.json", max_epochs=1, **SMALL).run()
    with pytest.raises(RuntimeError) as refused:
        workflow().run()
    assert "are of another training (its discriminator is another); give another output_dir" in reason(refused.value)


def test_palette_starts_from_noise_and_learns_the_noise(workflow):  # noqa: F811
    made = workflow("palette.json", max_epochs=1, num_inference_steps=3, val_interval=1)
    inputs, label, _, given = made.trainer.prepare_batch(next(iter(made.trainer.data_loader)))
    assert inputs.shape[1] == 1
    assert torch.equal(label, given["noise"])
    starts = []
    made.val_inferer(torch.rand(1, 1, 8, 8, 3), lambda x, t, **_: starts.append(x) or torch.zeros_like(x))
    first = torch.cat(starts)[:3]
    assert abs(float(first.std()) - 1) < 0.3  # of 192 standard normal values, and of no source between -1 and 1
    assert np.isfinite(losses_of(made)).all()
    assert made.evaluator.state.metrics.keys() == {"psnr_brain", "ssim_brain"}


@pytest.mark.parametrize(("sampler", "spacing"), [("implicit", "linear"), ("implicit_2", "lambda")])
def test_an_oracle_of_the_noise_is_sampled_to_the_target(workflow, sampler, spacing):  # noqa: F811
    made = workflow("palette.json", sampler=sampler, timestep_spacing=spacing, num_inference_steps=5)
    scheduler, target = made.val_inferer.scheduler, 0.4
    assert isinstance(scheduler, GaussianDiffusionScheduler)

    def oracle(x, timesteps, **_):
        b, c2 = scheduler.target_weights[timesteps[0]], scheduler.variances[timesteps[0]]
        return (x - b * (2 * target - 1)) / c2.sqrt()

    volume = made.val_inferer(torch.rand(1, 1, 8, 8, 3, dtype=torch.float64), oracle)
    torch.testing.assert_close(volume, torch.full_like(volume, target), rtol=0, atol=1e-4)


def test_both_baselines_translate_in_the_main_job(config_of_inference, tmp_path):
    palette = config_of_inference("palette.json", num_inference_steps=2)
    assert palette["detail"] == 1.0
    for made in (palette, config_of_inference(**{"network_def#slab_size": 1, "sampler": "mean_path"})):
        inferer = made.get_parsed_content("inferer").inferer
        assert inferer.slab_size == made.get_parsed_content("network_def").slab_size == 1


@pytest.fixture
def config_of_inference(bundle_root):
    from monai.bundle import ConfigParser

    def make(*overlays, **overrides):
        parser = ConfigParser()
        parser.read_config([bundle_root / "configs" / name for name in ("inference.json", *overlays)])
        parser.update({**overrides, "network_def#channels": [8, 8], "network_def#norm_num_groups": 4})
        parser.update({"network_def#num_head_channels": 8, "dtype": "float32"})
        return parser

    return make


def test_the_discriminator_sees_slabs_of_states():
    assert engines.discriminator_channels(BridgeUNet(**TINY_NETWORK)) == 3
    assert engines.discriminator_channels(BridgeUNet(**TINY_NETWORK), True) == 6
    latent = BridgeUNet(**{**TINY_NETWORK, "slab_size": 1}, target_channels=4, source_channels=8, condition_channels=1)
    assert engines.discriminator_channels(latent, True) == 12
    assert engines.discriminator_channels(nn.Conv2d(1, 1, 1)) == 1


def step_of(network, inferer, prepare, batch, loss_function, judge, **more):
    """One iteration of the trainer; gives its output."""
    trainer = engines.adversarial_trainer(
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=1e-3),
        loss_function=loss_function,
        inferer=inferer,
        discriminator=judge,
        discriminator_optimizer=torch.optim.SGD(judge.parameters(), lr=1e-3),
        adversarial_loss=PatchAdversarialLoss(),
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=[batch],
        prepare_batch=prepare,
        decollate=False,
        **more,
    )
    trainer.run()
    return trainer.state.output


def test_in_a_latent_it_sees_latents_beside_the_source():
    torch.manual_seed(0)
    network = BridgeUNet(**{**TINY_NETWORK, "slab_size": 1, "space_to_depth": 1}, target_channels=4, source_channels=4)
    inferer = BridgeInferer(BrownianBridgeScheduler(prediction_type="sample"), codec=OrthonormalCodec())
    batch = {"source": torch.rand(2, 1, 32, 32), "target": torch.rand(2, 1, 32, 32), "style_key": torch.rand(2, 3, 128)}
    channels = engines.discriminator_channels(network, True)
    judge = PatchDiscriminator(spatial_dims=2, channels=4, in_channels=channels, num_layers_d=2)
    seen = []
    judge.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    prepare = engines.BridgePrepareBatch(inferer)
    step_of(network, inferer, prepare, batch, nn.L1Loss(), judge, discriminator_sees_source=True)
    assert [images.shape for images in seen] == [(2, 8, 16, 16)] * 3  # generator's turn, real, fake
    target, source = (inferer.encode(batch[name]) for name in ("target", "source"))
    torch.testing.assert_close(seen[1], torch.cat([target, source], dim=1))
    torch.testing.assert_close(seen[2], seen[0])
    torch.testing.assert_close(seen[0][:, 4:], source)


def tiny_codec():
    plain = {"with_encoder_nonlocal_attn": False, "with_decoder_nonlocal_attn": False}
    return LatentCodec(AutoencoderKL(2, 1, 1, (1, 1), (8, 8), (False, False), 4, 4, **plain))


def test_of_a_codec_it_sees_the_reconstruction_and_the_loss_sees_all():
    torch.manual_seed(0)
    judge = PatchDiscriminator(spatial_dims=2, channels=4, in_channels=1, num_layers_d=2)
    seen, network, loss = [], tiny_codec(), AutoencoderLoss()
    batch = {"source": torch.rand(2, 1, 32, 32), "target": torch.rand(2, 1, 32, 32)}
    images = torch.cat([batch["target"], batch["source"]])
    torch.manual_seed(1)
    prediction = network(images)
    expected = loss(prediction, images).item()
    judge.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    torch.manual_seed(1)
    output = step_of(network, AutoencoderInferer(), AutoencoderPrepareBatch(), batch, loss, judge)
    torch.testing.assert_close(seen[0], ((prediction[0] + 1) / 2).detach())
    torch.testing.assert_close(seen[1], images)
    assert output["reconstruction_loss"].item() == pytest.approx(expected)
    assert output["loss"].item() == pytest.approx(expected + output["generator_loss"].item())


def test_what_is_no_image_is_refused(workflow):  # noqa: F811
    made = workflow("palette.json", "adversarial.json", **SMALL)
    with pytest.raises(RuntimeError) as refused:
        made.run()
    assert "prediction_type is epsilon, and a discriminator looks at images" in reason(refused.value)


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(CaseError, match="runs in one process"):
        step_of(tiny_codec(), AutoencoderInferer(), None, {}, nn.L1Loss(), tiny_codec())


def test_a_codec_trains_against_a_discriminator(train):  # noqa: F811
    folder = train("autoencoder", "adversarial", name="codec", **TINY_CODEC, **SMALL)
    assert (torch.load(folder / "model.pt", weights_only=True)["latent_std"] > 0).all()
    states = [torch.load(folder / f"checkpoint_epoch={n}.pt", weights_only=True)["discriminator"] for n in (1, 2)]
    assert states[0]["initial_conv.conv.weight"].shape == (4, 1, 4, 4)
    assert not any(torch.equal(before, states[1][name]) for name, before in states[0].items())
