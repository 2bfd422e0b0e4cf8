"""What hangs on MONAI's engines: batches, averages, seeds, checkpoints."""

import math

import pytest
import torch
from ignite.engine import Engine, Events, State
from monai.engines import SupervisedTrainer
from torch import nn

from scripts import engines
from scripts.codec import PixelCodec
from scripts.errors import CaseError
from scripts.inferers import BridgeInferer, ISTAInferer
from scripts.losses import BridgeL2Loss, elbo_weights
from scripts.schedulers import BrownianBridgeScheduler, GaussianDiffusionScheduler
from scripts.weights import load_weights


def make_batch(size=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    source, target = torch.rand(2, size, 3, 8, 8, generator=generator)
    return {"source": source, "target": target, "style_key": torch.rand(size, 3, 16, generator=generator)}


class Recorder:
    """A network that remembers its calls and predicts zeros."""

    def __init__(self):
        self.calls = []

    def __call__(self, x, timesteps, context=None, source=None):
        self.calls.append((x.clone(), timesteps.clone(), source.clone()))
        return torch.zeros_like(x)


@pytest.mark.parametrize("prediction_type", ["gradient", "sample"])
def test_a_network_that_meets_the_label_knows_the_target(prediction_type):
    scheduler = BrownianBridgeScheduler(prediction_type=prediction_type)
    inferer = BridgeInferer(scheduler)
    batch = make_batch()
    inputs, label, args, kwargs = engines.BridgePrepareBatch(inferer)(batch)
    recorder = Recorder()
    inferer(inputs, recorder, *args, **kwargs)
    (noisy, _, source), x0 = recorder.calls[0], PixelCodec().encode(batch["target"])
    torch.testing.assert_close(source, PixelCodec().encode(batch["source"]))
    torch.testing.assert_close(label if prediction_type == "sample" else noisy - label, x0, atol=1e-5, rtol=0)


def test_noise_is_standard_normal_and_new_for_each_batch():
    prepare = engines.BridgePrepareBatch(BridgeInferer(BrownianBridgeScheduler()))
    torch.manual_seed(0)
    first, second = (prepare(make_batch(size=64))[3]["noise"] for _ in range(2))
    assert first.mean().abs() < 0.03
    assert abs(first.std() - 1) < 0.03
    assert not torch.equal(first, second)


def test_the_target_contrast_goes_to_the_network_of_slabs_and_of_volumes():
    inferer = BridgeInferer(BrownianBridgeScheduler(), channels={"source": 2}, endpoint="mean_present")
    wanted = torch.tensor([2.0, 0.0, 1.0, 2.0])
    batch = {**make_batch(), "target_contrast": wanted, "presence": torch.ones(4, 2)}
    batch["source"] = torch.rand(4, 6, 8, 8)
    inputs, _, args, kwargs = engines.BridgePrepareBatch(inferer)(batch)
    told = []

    def network(x, timesteps, context=None, source=None, presence=None, target_contrast=None):
        told.append(target_contrast)
        return x

    inferer(inputs, network, *args, **kwargs)
    assert torch.equal(told[0], wanted)
    volumes = {
        "source": torch.rand(1, 3, 8, 8, 4),
        "target": torch.rand(1, 1, 8, 8, 4),
        "mask": torch.ones(1, 1, 8, 8, 4),
    }
    plain = engines.prepare_volumes(volumes)
    source, label, args, kwargs = engines.prepare_volumes({**volumes, "target_contrast": torch.tensor([2.0])})
    assert len(plain) == 2
    assert torch.equal(plain[0], source)
    assert torch.equal(plain[1], label)
    assert args == ()
    assert kwargs["target_contrast"].tolist() == [2]


def test_a_tenth_of_the_timesteps_lie_at_the_end():
    prepare = engines.BridgePrepareBatch(BridgeInferer(BrownianBridgeScheduler()), 0.1, 15)
    torch.manual_seed(0)
    timesteps = prepare._timesteps(torch.empty(200_000))
    counts = torch.bincount(timesteps, minlength=1000)
    assert len(counts) == 1000
    assert counts[985:].sum() / 200_000 == pytest.approx(0.1 + 0.9 * 0.015, rel=0.03)
    assert counts[:985].min() > 0.5 * 180
    assert counts[985:].min() > 0.8 * counts[985:].max()


def draws_of(**options):
    """How often each timestep is drawn from a million evenly spaced numbers in [0, 1)."""
    prepare = engines.DiffusionPrepareBatch(BridgeInferer(GaussianDiffusionScheduler()), **options)
    positions = (torch.arange(1_000_000, dtype=torch.float64) + 0.5) / 1_000_000
    return torch.bincount(prepare._anywhere(positions).long(), minlength=1000)


def test_linear_weights_draw_each_timestep_in_the_ratio_of_2t_minus_t():
    counts, expected = draws_of(timestep_weights="linear"), 2000.0 - torch.arange(1000)
    expected *= 1_000_000 / expected.sum()
    assert len(counts) == 1000
    assert (counts - expected).abs().max() <= 1
    shares = counts / counts.sum()
    assert shares[0] / shares[999] == pytest.approx(1.998, abs=2e-3)
    assert (shares * torch.arange(1000)).sum() == pytest.approx(443.96, abs=0.01)
    assert shares[:500].sum() == pytest.approx(0.5833, abs=1e-4)
    assert (draws_of() == 1000).all()


@pytest.mark.parametrize(("weights", "mean"), [("uniform", 499.5), ("linear", 443.96)])
def test_a_diffusion_draws_by_its_weights_alone(weights, mean):
    prepare = engines.DiffusionPrepareBatch(BridgeInferer(GaussianDiffusionScheduler()), timestep_weights=weights)
    torch.manual_seed(0)
    timesteps = prepare(make_batch(size=20_000))[3]["timesteps"]
    assert timesteps.shape == (20_000,)  # one for all slices of a slab
    assert timesteps.double().mean() == pytest.approx(mean, abs=3 * 289 / 20_000**0.5)
    with pytest.raises(ValueError, match="use one of uniform, linear"):
        engines.DiffusionPrepareBatch(prepare.inferer, timestep_weights="quadratic")


@pytest.mark.parametrize("dropout", [0.0, 0.3, 1.0])
def test_dropped_styles_are_zeros_and_the_others_whole(dropout):
    prepare = engines.BridgePrepareBatch(BridgeInferer(BrownianBridgeScheduler()), style_dropout=dropout)
    torch.manual_seed(0)
    batch = make_batch(size=2000)
    context = prepare(batch)[3]["context"]
    dropped = (context == 0).flatten(1).all(dim=1)
    assert dropped.float().mean() == pytest.approx(dropout, abs=0.04)
    torch.testing.assert_close(context[~dropped], batch["style_key"][~dropped])


def test_one_step_training_shows_the_network_what_one_step_sampling_does():
    scheduler = BrownianBridgeScheduler(prediction_type="sample")
    inferer = BridgeInferer(scheduler)
    batch = make_batch(size=6)
    inputs, label, args, kwargs = engines.OneStepPrepareBatch(inferer)(batch)
    trained, sampled = Recorder(), Recorder()
    inferer(inputs, trained, *args, **kwargs)
    volume = batch["source"][:, 1].permute(1, 2, 0)[None, None]  # the middle slices, as a volume of six
    ISTAInferer(scheduler, num_inference_steps=1)(volume, sampled)
    for recorder in (trained, sampled):
        ((noisy, timesteps, source),) = recorder.calls
        assert (timesteps == 999).all()
        torch.testing.assert_close(noisy, source, rtol=0, atol=1e-6)
    torch.testing.assert_close(label, PixelCodec().encode(batch["target"]))


def test_a_loss_that_weights_by_timestep_gets_the_timesteps():
    scheduler = BrownianBridgeScheduler(prediction_type="sample")
    inferer, batch = BridgeInferer(scheduler), make_batch()
    _, label, _, kwargs = engines.BridgePrepareBatch(inferer, label_timesteps=True)(batch)
    weights, prediction = elbo_weights(scheduler.source_weights), torch.zeros_like(batch["target"])
    errors = (prediction - PixelCodec().encode(batch["target"])).square().flatten(1).mean(1)
    expected = (weights[kwargs["timesteps"]] * errors).mean()
    torch.testing.assert_close(BridgeL2Loss(weights)(prediction, label), expected.float())


def test_the_average_follows_its_recurrence_and_holds_buffers():
    network = nn.BatchNorm1d(2)
    averaged = engines.averaged_model(network, decay=0.9)
    expected = None
    engine = Engine(lambda engine, batch: None)
    engines.AverageWeights(network, averaged).attach(engine)
    for step in range(4):
        with torch.no_grad():
            network.weight.fill_(step + 1.0)
            network.running_mean.fill_(10.0 * step)
        now = torch.tensor([step + 1.0, 10.0 * step])
        expected = now if expected is None else 0.9 * expected + 0.1 * now
        engine.run([0])
    torch.testing.assert_close(averaged.module.weight[0], expected[0])
    torch.testing.assert_close(averaged.module.running_mean[0], expected[1])


def test_saved_weights_load_into_the_network_itself(tmp_path):
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
    path = tmp_path / "new" / "model.pt"
    engines.save_weights(engines.averaged_model(network), path)
    assert [p.name for p in path.parent.iterdir()] == ["model.pt"]
    assert torch.load(path, weights_only=True)["0.weight"].dtype == torch.float16
    fresh = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4))
    load_weights(fresh, path)
    torch.testing.assert_close(fresh[0].weight, network[0].weight.contiguous(), rtol=1e-3, atol=1e-6)
    assert fresh[1].num_batches_tracked.dtype == torch.int64


def test_a_killed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "model.pt"
    averaged = engines.averaged_model(nn.Linear(2, 2))
    engines.save_weights(averaged, path)
    before = path.read_bytes()

    def killed(content, file):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        engines.save_weights(averaged, path)
    assert path.read_bytes() == before


def test_gradients_keep_their_direction_and_have_norm_one_at_most():
    network = nn.Linear(3, 2, bias=False)
    network.weight.grad = torch.full((2, 3), 10.0)
    clipper = engines.GradientClipper(network, max_norm=1.0)
    clipper()
    torch.testing.assert_close(network.weight.grad, torch.full((2, 3), 1 / math.sqrt(6)), atol=1e-4, rtol=0)
    network.weight.grad = torch.full((2, 3), 0.01)
    clipper()
    torch.testing.assert_close(network.weight.grad, torch.full((2, 3), 0.01))
    network.weight.grad[0, 0] = math.nan
    with pytest.raises(RuntimeError, match="non-finite"):
        clipper()


def test_draws_belong_to_seed_epoch_and_rank():
    def draw(seed, epoch, rank):
        engine = Engine(lambda engine, batch: None)
        engine.state = State(epoch=epoch)
        engines.SeedEpochs(seed, rank)(engine)
        return torch.rand(()).item()

    assert draw(0, 3, 1) == draw(0, 3, 1)
    assert len({draw(seed, epoch, rank) for seed in range(3) for epoch in range(4) for rank in range(4)}) == 48


def test_cosine_decay_rises_then_falls_to_zero():
    factor = engines.cosine_decay(total=110, warmup=10)
    assert factor(0) == pytest.approx(0.1)
    assert factor(10) == 1
    assert factor(60) == pytest.approx(0.5)
    assert factor(110) == factor(500) == pytest.approx(0, abs=1e-12)


def test_warmup_rises_then_stays():
    factor = engines.warmup(10)
    assert [factor(i) for i in (0, 4, 9, 10, 5000)] == pytest.approx([0.1, 0.5, 1, 1, 1])


def test_float16_is_refused():
    engines.check_training_dtype(torch.bfloat16)
    with pytest.raises(CaseError, match="bfloat16 or float32"):
        engines.check_training_dtype(torch.float16)


class Clock:
    """Seconds that pass when told."""

    now = 100.0

    def __call__(self):
        return self.now

    def spend(self, seconds):
        self.now += seconds


class Batches:
    """A loader that takes its time."""

    def __init__(self, clock):
        self.clock = clock

    def __iter__(self):
        for _ in range(4):
            self.clock.spend(2)
            yield 0


class Writer:
    """A summary writer that remembers."""

    def __init__(self):
        self.scalars, self.images = {}, []

    def add_scalar(self, tag, value, step):
        self.scalars[tag, step] = value

    def add_image(self, tag, image, step, dataformats):
        self.images.append((tag, image, step, dataformats))

    def flush(self):
        pass


def test_time_is_told_by_what_it_was_spent_on(caplog):
    clock, writer = Clock(), Writer()
    trainer, validator = (Engine(lambda engine, batch, s=s: clock.spend(s)) for s in (5, 7))
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: clock.spend(1))
    trainer.add_event_handler(Events.EPOCH_COMPLETED(every=2), lambda: validator.run([0]))
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: clock.spend(3))
    engines.Throughput(16, validator, writer, clock).attach(trainer)
    with caplog.at_level("INFO"):
        trainer.run(Batches(clock), max_epochs=2, epoch_length=4)
    assert writer.scalars["throughput/slabs_per_second", 1] == pytest.approx(4 * 16 / 32)
    shares = {
        tag.partition("share_")[2]: v for (tag, step), v in writer.scalars.items() if step == 2 and "share" in tag
    }
    assert shares == pytest.approx(
        {"waiting_for_data": 8 / 42, "computing": 24 / 42, "validation": 7 / 42, "saving": 3 / 42}
    )
    assert writer.scalars["throughput/share_validation", 1] == 0
    (summary,) = (message for message in caplog.messages if message.startswith("Trained"))
    assert "128 slabs in 1.3 minutes: 2.0 slabs/s; waiting for data 20.8 %, computing 62.3 %" in summary


def test_each_validation_shows_its_first_volume():
    writer = Writer()
    volumes = torch.rand(3, 3, 2, 4, 5, 6)
    outputs = [[{"image": v[0, :1], "pred": v[1, :1], "label": v[2]}] for v in volumes]
    evaluator = Engine(lambda engine, batch: outputs[batch])

    def draw(source, synthetic, real, affine):
        return torch.stack([source, synthetic, real]).mean((1, 3)).numpy()

    engines.ValidationPicture(writer, draw).attach(evaluator)
    for _ in range(2):
        evaluator.run([1, 0, 2])
    assert len(writer.images) == 2
    for tag, image, _, layout in writer.images:
        assert (tag, layout) == ("validation", "HW")
        torch.testing.assert_close(torch.from_numpy(image), volumes[1][:, 0].mean((1, 3)))


def test_the_first_contrast_that_is_there_is_shown():
    writer = Writer()
    image = torch.stack([torch.zeros(4, 5, 6), torch.full((4, 5, 6), 0.5), torch.ones(4, 5, 6)])
    output = [{"image": image, "pred": torch.zeros(1, 4, 5, 6), "label": torch.zeros(2, 4, 5, 6)}]
    evaluator = Engine(lambda engine, batch: output)
    engines.ValidationPicture(writer, lambda source, *others: source[0].numpy()).attach(evaluator)
    evaluator.run([0])
    assert (writer.images[0][1] == 0.5).all()


def test_a_checkpoint_without_its_end_is_passed_over(tmp_path):
    assert engines.latest_checkpoint(tmp_path / "nowhere") is None
    for epoch in (2, 9, 10):
        torch.save({"a": torch.rand(100)}, tmp_path / f"checkpoint_epoch={epoch}.pt")
    assert engines.latest_checkpoint(tmp_path).name == "checkpoint_epoch=10.pt"
    newest = tmp_path / "checkpoint_epoch=10.pt"
    newest.write_bytes(newest.read_bytes()[:-50])
    assert engines.latest_checkpoint(tmp_path).name == "checkpoint_epoch=9.pt"


def test_the_best_weights_stay_also_after_a_restart(tmp_path):
    network = nn.Linear(1, 1, bias=False)
    averaged = engines.averaged_model(network)
    path = tmp_path / "best.pt"

    def validate(keeper, weight, value):
        nn.init.constant_(averaged.module.weight, weight)
        engine = Engine(lambda engine, batch: None)
        engine.state = State(metrics={"psnr": value}, key_metric_name="psnr")
        keeper(engine)
        return torch.load(path, weights_only=True)["weight"].item()

    keeper = engines.KeepBest(averaged, path)
    assert validate(keeper, weight=1.0, value=20.0) == 1
    assert validate(keeper, weight=2.0, value=25.0) == 2
    restarted = engines.KeepBest(averaged, path)
    restarted.load_state_dict(keeper.state_dict())
    assert validate(restarted, weight=3.0, value=24.0) == 2
    assert validate(restarted, weight=4.0, value=26.0) == 4


class Slabs(torch.utils.data.Dataset):
    """Slabs that depend on the epoch, as those of the training do."""

    epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return {key: value[0] for key, value in make_batch(size=1, seed=100 * self.epoch + index).items()}


class TinyBridge(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(6, 3, 3, padding=1)

    def forward(self, x, timesteps=None, context=None, source=None):
        return self.conv(torch.cat([x, source], dim=1)) + context.mean() + timesteps[:, None, None, None] / 1000


def train(folder, max_epochs):
    """A training from nothing or from the folder's newest checkpoint; gives its weights, average and counts."""
    torch.manual_seed(7)  # the network's start
    network = TinyBridge()
    averaged = engines.averaged_model(network, decay=0.9)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, engines.cosine_decay(4 * 3))
    inferer, dataset = BridgeInferer(BrownianBridgeScheduler()), Slabs()
    objects = {"network": network, "averaged": averaged, "optimizer": optimizer, "lr_scheduler": schedule}
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=max_epochs,
        train_data_loader=torch.utils.data.DataLoader(dataset, batch_size=2, shuffle=True),
        network=network,
        optimizer=optimizer,
        loss_function=nn.L1Loss(),
        inferer=inferer,
        prepare_batch=engines.BridgePrepareBatch(inferer),
        decollate=False,
        train_handlers=[
            engines.SeedEpochs(0, dataset=dataset),
            engines.AverageWeights(network, averaged),
            engines.ResumableTraining(folder, objects),
        ],
    )
    done = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: done.append(e.state.iteration))
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: schedule.step())
    trainer.run()
    return network.state_dict(), averaged.state_dict(), done


def test_a_training_in_two_parts_is_the_training_in_one(tmp_path):
    network, averaged, done = train(tmp_path / "whole", max_epochs=4)
    assert done == list(range(1, 13))
    train(tmp_path / "parts", max_epochs=2)
    network_of_parts, averaged_of_parts, done = train(tmp_path / "parts", max_epochs=4)
    assert done == list(range(7, 13))
    torch.testing.assert_close(network_of_parts, network, rtol=0, atol=0)
    torch.testing.assert_close(averaged_of_parts, averaged, rtol=0, atol=0)
    names = sorted(p.name for p in (tmp_path / "parts").iterdir())
    assert names == ["checkpoint_epoch=3.pt", "checkpoint_epoch=4.pt"]


def test_a_codec_is_trained_on_every_image_that_there_is():
    batch = {"source": torch.rand(2, 6, 4, 4), "target": torch.rand(2, 3, 4, 4)}
    images, label = engines.AutoencoderPrepareBatch()(batch)
    assert images is label
    assert torch.equal(images[:, 0], torch.cat([batch["target"].flatten(0, 1), batch["source"].flatten(0, 1)]))
    batch["presence"] = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    images, _ = engines.AutoencoderPrepareBatch()(batch)
    present = [batch["source"][0, :3], batch["source"][1]]
    assert torch.equal(images[:, 0], torch.cat([batch["target"].flatten(0, 1), *present]))


def test_reconstructions_are_measured_on_each_contrast_that_there_is():
    batch = {name: torch.rand(2, 1, 4, 4, 3) for name in ("source", "target")}
    batch["source"][1] = 0
    batch["mask"] = torch.ones(2, 1, 4, 4, 3, dtype=torch.bool)
    images, label = engines.prepare_reconstructions(batch)
    expected = torch.cat([batch["target"][:1], batch["source"][:1], batch["target"][1:]])
    assert torch.equal(images, expected)
    assert torch.equal(label[:, :1], expected)
    assert label[:, 1].all()
