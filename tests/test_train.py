"""The training workflow as its user meets it: train.json and its overlays on tiny volumes."""

import builtins
import contextlib
import copy
import csv
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import types

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser, ConfigWorkflow
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scripts.conditioning.style_key import load_style_keys, save_style_keys, style_key_from_histogram
from scripts.engines import OneStepPrepareBatch, SeedEpochs, checkpoints, cosine_decay, latest_checkpoint, run_together
from scripts.engines.processes import check_shared, tell_lost_loader
from scripts.errors import TERMINATED, CaseError, machine_error, reason
from scripts.evaluation.metrics import psnr
from scripts.weights import load_weights
from tests.phantoms import TINY_TRAINING

TINY = {
    **TINY_TRAINING,
    "slab_shape": [32, 32],
    "max_epochs": 2,
    "iterations_per_epoch": 3,
    "warmup_iterations": 2,
    "prepare_workers": 1,
    "log_interval": 1,
    "val_interval": 0,
}


@pytest.fixture(scope="module")
def dataset_dir(tmp_path_factory):
    """A datalist of four heads whose CT tells the T1 voxel by voxel: T1 from 0.3 to 0.9 is CT from 26 to 38 HU."""
    folder = tmp_path_factory.mktemp("pairs")
    shape, affine = (30, 36, 28), np.diag([4.0, 4.0, 4.0, 1.0])
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    mask = (grid**2).sum(0) < 0.8
    items = []
    for number in range(4):
        t1 = (0.3 + 0.6 * np.random.default_rng(number).random(shape)) * mask
        volumes = {"target": 1000 * t1, "source": np.where(mask, 20 + 20 * t1, -1000), "mask": mask}
        entry = {"subject": f"head{number}"}
        for key, volume in volumes.items():
            entry[key] = f"head{number}_{key}.nii.gz"
            nib.save(nib.Nifti1Image(volume.astype(np.float32), affine), folder / entry[key])
        items.append(entry)
    datalist = {"training": items[:2], "validation": items[2:3], "test": items[2:]}
    (folder / "datalist.json").write_text(json.dumps(datalist))
    return folder


@pytest.fixture
def workflow(bundle_root, dataset_dir, tmp_path, monkeypatch):
    """Make a workflow of train.json, some overlays and overrides, initialised."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # the workflow changes it

    def make(*overlays, **overrides):
        made = ConfigWorkflow(
            config_file=[str(bundle_root / "configs" / name) for name in ("train.json", *overlays)],
            meta_file=str(bundle_root / "configs" / "metadata.json"),
            logging_file=str(bundle_root / "configs" / "logging.conf"),
            workflow_type="train",
            **{**TINY, "dataset_dir": str(dataset_dir), "output_dir": str(tmp_path / "out"), **overrides},
        )
        made.initialize()
        return made

    return make


def case_error_of(error):
    """The first error of its kind among an error and what caused it."""
    while not isinstance(error, CaseError):
        error = error.__cause__
    return error


def losses_of(workflow):
    """Run the training; gives the loss of each iteration."""
    losses = []
    trainer = workflow.trainer
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: losses.append(e.state.output["loss"].item()))
    workflow.run()
    workflow.finalize()
    return losses


def command(bundle_root, dataset_dir, output_dir, *overlays, **overrides):
    """The bundle's command line with tiny settings."""
    files = [str(bundle_root / "configs" / name) for name in ("train.json", *overlays)]
    settings = {**TINY, "dataset_dir": str(dataset_dir), "output_dir": str(output_dir), **overrides}
    options = [part for key, value in settings.items() for part in (f"--{key}", str(value))]
    return ["-m", "monai.bundle", "run", "--config_file", str(files), *options]


@pytest.fixture
def environment(bundle_root):
    return {**os.environ, "PYTHONPATH": str(bundle_root), "OMP_NUM_THREADS": "1"}


def test_the_bundle_has_what_monai_asks_of_a_training(workflow):
    made = workflow()
    assert not made.check_properties()
    optional = ["train_dataset_data", "train_handlers", "evaluator", "val_dataset", "val_dataset_data", "val_inferer"]
    assert all(getattr(made, name) is not None for name in optional)


def full_disk_for(monkeypatch, part):
    """Files with `part` in their names find the disk full, after a piece of them was written."""
    opened = io.open

    def opening(path, mode="r", *args, **kwargs):
        if not isinstance(path, int) and part in os.fsdecode(path) and not mode.startswith("r"):
            opened(path, "ab").close()
            return opened("/dev/full", mode, *args, **kwargs)
        return opened(path, mode, *args, **kwargs)

    monkeypatch.setattr(io, "open", opening)
    monkeypatch.setattr(builtins, "open", opening)


@pytest.mark.parametrize(
    "part",
    [
        "checkpoint_epoch=2",
        "events.out",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("model.pt", "model_best.pt", "style_k", "source_k")),
    ],
)
def test_a_full_disk_is_one_sentence_and_the_last_whole_checkpoint_stays(workflow, tmp_path, monkeypatch, caplog, part):
    made = workflow(val_interval=1, cache_dir=None)
    with monkeypatch.context() as patch:
        full_disk_for(patch, part)
        with pytest.raises(RuntimeError) as caught:
            made.run()
    assert reason(caught.value) == str(machine_error(caught.value))
    assert str(machine_error(caught.value)).startswith(f"The disk of {tmp_path / 'out'} is full (No space left")
    assert "Traceback" not in caplog.text
    files = [path for path in (tmp_path / "out").iterdir() if not path.name.startswith("events.out")]
    assert not [path.name for path in files if path.name.startswith(".") or part in path.name]
    assert all(torch.load(path, weights_only=False) for path in files if path.suffix == ".pt")
    assert (latest_checkpoint(tmp_path / "out") is not None) == (part in ("checkpoint_epoch=2", "style_k", "source_k"))
    again = workflow(val_interval=1, cache_dir=None)
    again.run()
    assert {path.name for path in (tmp_path / "out").glob("*.*s*")} >= {"style_keys.json", "source_keys.json"}
    assert latest_checkpoint(tmp_path / "out").name == "checkpoint_epoch=2.pt"


def test_training_on_real_pairs_learns_and_leaves_weights(workflow, tmp_path):
    made = workflow(max_epochs=3, iterations_per_epoch=20, learning_rate=3e-3, val_interval=2, ema_decay=0.8)
    losses = losses_of(made)
    assert np.mean(losses[-20:]) < 0.7 * np.mean(losses[:5])
    assert "average" in load_style_keys(tmp_path / "out" / "style_keys.json")
    assert load_style_keys(tmp_path / "out" / "source_keys.json").keys() <= load_style_keys(
        tmp_path / "out" / "style_keys.json"
    ).keys() - {"average"}
    weights = {name: tmp_path / "out" / name for name in ("model.pt", "model_best.pt")}
    for path in weights.values():
        load_weights(made.network_def, path)
    averaged = made.parser.get_parsed_content("averaged").module.state_dict()
    saved = torch.load(weights["model.pt"], weights_only=True)
    torch.testing.assert_close(
        saved["conv_in.1.conv.weight"].float(), averaged["conv_in.1.conv.weight"], rtol=1e-2, atol=1e-4
    )
    assert made.evaluator.state.metrics.keys() == {"psnr_brain", "ssim_brain"}
    assert [p.name for p in checkpoints(tmp_path / "out")] == ["checkpoint_epoch=3.pt", "checkpoint_epoch=2.pt"]
    events = EventAccumulator(str(tmp_path / "out"), size_guidance={"scalars": 0}).Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 61))
    assert [event.step for event in events.Scalars("psnr_brain")] == [2]
    assert [event.step for event in events.Scalars("throughput/slabs_per_second")] == [1, 2, 3]
    (picture,) = events.Images("validation")
    assert (picture.step, picture.width) == (2, 3 * 320)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_training_is_the_plain_loop_it_stands_for(workflow, dtype, tolerance):
    """Three steps of the whole machinery against a loop in float32 with PyTorch's own layers: losses and average."""
    # with its usual epsilon, Adam gives weights whose gradient is all rounding a whole step
    made = workflow(dtype=dtype, max_epochs=1, ema_decay=0.5, **{"optimizer#eps": 1e-2})
    trainer, averaged = made.trainer, made.parser.get_parsed_content("averaged").module
    network = copy.deepcopy(made.network_def).to(memory_format=torch.contiguous_format)  # so laid out, the plain layers
    optimizer = torch.optim.AdamW(network.parameters(), eps=1e-2)
    initial = copy.deepcopy(network.state_dict())
    rate = cosine_decay(3, TINY["warmup_iterations"])
    losses = losses_of(made)

    average, expected = None, []
    SeedEpochs(dataset=made.train_dataset)(types.SimpleNamespace(state=types.SimpleNamespace(epoch=1)))
    for step, batch in enumerate(trainer.data_loader):
        x0, label, _, bridge = trainer.prepare_batch(batch)
        y = bridge["source"]
        torch.testing.assert_close(x0, 2 * batch["target"] - 1)
        torch.testing.assert_close(y, 2 * batch["source"] - 1)
        noisy = made.parser.get_parsed_content("scheduler").add_noise(x0, bridge["noise"], bridge["timesteps"], y)
        difference = network(noisy, bridge["timesteps"], bridge["context"], y, missing=bridge["missing"]) - label
        steps = difference[..., 1:, :] - difference[..., :-1, :], difference[..., 1:] - difference[..., :-1]
        loss = sum(one.abs().mean() for one in (difference, *steps))
        optimizer.param_groups[0]["lr"] = 4e-4 * rate(step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        expected.append(loss.item())
        now = {name: value.clone() for name, value in network.state_dict().items()}
        average = now if average is None else {name: 0.5 * average[name] + 0.5 * now[name] for name in now}
    assert losses == pytest.approx(expected, rel=tolerance)
    for name, value in averaged.state_dict().items():
        assert (value - average[name]).norm() <= tolerance * (average[name] - initial[name]).norm() + 1e-7, name


def test_a_second_start_finds_its_volumes_prepared(workflow, tmp_path, capsys):
    first = workflow(val_interval=1)
    before = [*first.train_dataset_data, *first.val_dataset_data]
    assert len(list((tmp_path / "out" / "cache").glob("*.npz"))) == 3
    assert "come prepared" not in capsys.readouterr().out
    second = workflow(val_interval=1)
    after = [*second.train_dataset_data, *second.val_dataset_data]
    log = capsys.readouterr().out
    assert "2 of 2 subjects come prepared" in log
    assert "1 of 1 subjects come prepared" in log
    for old, new in zip(before[:2], after[:2], strict=True):
        assert (old.subject, old.weight) == (new.subject, new.weight)
        np.testing.assert_array_equal(old.targets, new.targets)
        np.testing.assert_array_equal(old.sources, new.sources)
        np.testing.assert_array_equal(old.style_key(), new.style_key())
    for key in ("source", "target", "mask"):
        torch.testing.assert_close(before[2][key].as_tensor(), after[2][key].as_tensor(), rtol=0, atol=0)
        torch.testing.assert_close(before[2][key].affine, after[2][key].affine, rtol=0, atol=0)
    assert workflow(packed_bits=16).train_dataset_data[0].targets.dtype == np.uint16


@pytest.mark.parametrize(
    "overlays", [("train_gpu.json",), ("one_step.json", "train_cpu_2mm.json"), ("loss_paper.json",)], ids="/".join
)
def test_the_overlays_train(workflow, overlays):
    made = workflow(*overlays, max_epochs=1, iterations_per_epoch=2)
    losses = losses_of(made)
    assert len(losses) == 2
    assert np.isfinite(losses).all()


def test_the_recipes_fit_the_network(bundle_root):
    for name in ("train.json", "train_gpu.json", "train_cpu_2mm.json"):
        recipe = json.loads((bundle_root / "configs" / name).read_text())
        assert all(size % 8 == 0 for size in recipe["slab_shape"])  # MONAI's levels and the space-to-depth stem
        # a brain of 160 x 192 mm is in the slab
        assert all(n * s >= mm for n, s, mm in zip(recipe["slab_shape"], recipe["spacing"], (150, 190), strict=False))


def test_mlflow_logs_what_tensorboard_does(workflow, tmp_path):
    mlflow = pytest.importorskip("mlflow")
    losses = losses_of(workflow("mlflow.json", max_epochs=1, val_interval=1))
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'out' / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("brain_ct_to_mri").experiment_id])
    assert run.info.run_name == "out"
    logged = client.get_metric_history(run.info.run_id, "loss")
    assert [metric.value for metric in logged] == pytest.approx(losses)
    assert "psnr_brain" in run.data.metrics
    assert run.data.params["batch_size"] == "2"


def test_training_on_simulated_pairs(workflow, dataset_dir, tmp_path):
    datalist = json.loads((dataset_dir / "datalist.json").read_text())
    alone = [{key: str(dataset_dir / item[key]) for key in ("target", "mask")} for item in datalist["training"]]
    sections = {"training": [{"subject": str(n), **item} for n, item in enumerate(alone)], "validation": []}
    (tmp_path / "datalist.json").write_text(json.dumps(sections))
    made = workflow("simulated_ct.json", dataset_dir=str(tmp_path), num_sources=2, max_epochs=1)
    assert np.isfinite(losses_of(made)).all()
    volumes = made.train_dataset_data
    assert [len(volume.sources) for volume in volumes] == [2, 2]
    assert not np.array_equal(*volumes[0].sources)
    assert (tmp_path / "out" / "model.pt").is_file()


def test_one_step_overlay_trains_and_samples_in_one_step(workflow):
    made = workflow("one_step.json", max_epochs=1)
    prepare = made.trainer.prepare_batch
    assert isinstance(prepare, OneStepPrepareBatch)
    calls = []
    made.val_inferer(torch.rand(1, 1, 8, 8, 3), lambda x, t, **kwargs: calls.append((x, t, kwargs["source"])) or x)
    assert all((t == 999).all() and torch.equal(x, y) for x, t, y in calls)
    assert np.isfinite(losses_of(made)).all()


def test_training_starts_from_given_weights(workflow, tmp_path):
    first = workflow(max_epochs=1)
    losses_of(first)
    path = tmp_path / "out" / "model.pt"
    fork = workflow(init_weights=str(path), output_dir=str(tmp_path / "fork"))
    for name, value in torch.load(path, weights_only=True).items():
        torch.testing.assert_close(fork.network_def.state_dict()[name].half(), value)
    with pytest.raises(RuntimeError) as caught:
        workflow(init_weights=str(path), **{"network_def#channels": [8, 16]})
    assert "do not fit the network" in str(case_error_of(caught.value))


def test_a_killed_training_goes_on_from_its_last_checkpoint(workflow, bundle_root, dataset_dir, environment, tmp_path):
    arguments = command(bundle_root, dataset_dir, tmp_path / "out", max_epochs=100_000, learning_rate=1e-4)
    process = subprocess.Popen([sys.executable, *arguments], env=environment, stdout=subprocess.DEVNULL)
    try:
        waited = time.monotonic()
        while not (tmp_path / "out" / "model.pt").is_file() or latest_checkpoint(tmp_path / "out") is None:
            assert process.poll() is None
            assert time.monotonic() - waited < 240
            time.sleep(0.1)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    last = int(latest_checkpoint(tmp_path / "out").stem.rpartition("=")[2])

    resumed = workflow(max_epochs=last + 2, learning_rate=1e-4)
    seen = []
    resumed.trainer.add_event_handler(Events.ITERATION_STARTED, lambda e: seen.append(e.state.iteration))
    assert len(losses_of(resumed)) == 2 * 3
    assert seen == list(range(3 * last + 1, 3 * last + 7))
    load_weights(resumed.network_def, tmp_path / "out" / "model.pt")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "killpg"), reason="there are no groups of processes")
def test_sigterm_to_a_training_and_its_loading_processes_ends_it_in_order_and_it_goes_on(
    workflow, bundle_root, dataset_dir, environment, tmp_path
):
    """As SLURM ends a task: all its processes are told. The weights are those of a training that was not ended."""
    torch.save(workflow().network_def.state_dict(), tmp_path / "start.pt")  # a network starts at random

    def start(name):
        settings = {"max_epochs": 20, "num_workers": 2, "init_weights": tmp_path / "start.pt"}
        arguments = [sys.executable, *command(bundle_root, dataset_dir, tmp_path / name, **settings)]
        with (tmp_path / f"{name}.log").open("w") as log:
            return subprocess.Popen(arguments, env=environment, stdout=log, stderr=log, start_new_session=True)

    process = start("ended")
    try:
        wait_until(lambda: (tmp_path / "ended" / "checkpoint_epoch=2.pt").is_file(), [process])
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(60) == TERMINATED
        log = (tmp_path / "ended.log").read_text()
        assert (log.count("Interrupted; "), log.count("Traceback")) == (1, 0)
        assert not list((tmp_path / "ended").rglob(".*"))
        assert latest_checkpoint(tmp_path / "ended").name != "checkpoint_epoch=20.pt"
        for name in ("ended", "whole"):
            process = start(name)
            assert process.wait(240) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    weights = [torch.load(tmp_path / name / "model.pt", weights_only=True) for name in ("ended", "whole")]
    torch.testing.assert_close(*weights, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["train", "autoencoder", "rebrain_retrieval"])
def test_several_processes_do_all_that_one_does(bundle_root, name):
    """Their overlay takes the place of the first step of `run`, the training, and of no other."""
    steps = []
    for names in (("train", name), ("train", name, "multi_gpu_train")):
        parser = ConfigParser()
        parser.read_config([str(bundle_root / "configs" / f"{each}.json") for each in names])
        steps.append(parser["run"])
    assert steps[0][0] == "$@train#trainer.run()"
    assert steps[1] == ["$engines.run_together(@train#trainer)", *steps[0][1:]]


@pytest.mark.slow
def test_two_processes_train_one_network(bundle_root, dataset_dir, environment, tmp_path):
    arguments = command(bundle_root, dataset_dir, tmp_path, "multi_gpu_train.json", max_epochs=1, val_interval=1)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--no-python", sys.executable]
    done = subprocess.run([sys.executable, *launch, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    state = torch.load(tmp_path / "checkpoint_epoch=1.pt", weights_only=True)
    assert state["trainer"]["iteration"] == 3
    assert not any(name.startswith("module.") for name in state["network"])
    assert (done.stdout + done.stderr).count("Iter: 3/3") == 1  # one of the two speaks
    assert (done.stdout + done.stderr).count("slabs/s") == 2  # of the epoch and of the whole
    assert (tmp_path / "model_best.pt").is_file()


def agent(arguments, environment, number, port, log):
    """One of two nodes, started by torchrun with one process; the first is where they meet."""
    launch = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1", "--rdzv_backend", "c10d"]
    launch += ["--rdzv_endpoint", f"localhost:{port}", "--rdzv_id", "tiny"]
    launch += ["--rdzv_conf", f"is_host={number == 0}"]  # as the host's name says where there are two
    command = [sys.executable, *launch, "--no-python", sys.executable, *arguments]
    with log.open("a") as file:
        return subprocess.Popen(command, env=environment, stdout=file, stderr=file)


def lose(node):
    """End an agent and its process at once, as where a machine fails."""
    with open(f"/proc/{node.pid}/task/{node.pid}/children") as file:
        pids = [node.pid, *map(int, file.read().split())]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    node.wait()


def wait_until(condition, nodes, seconds=240):
    """Wait for a condition; fails where a node ended before."""
    end = time.monotonic() + seconds
    while not condition():
        assert all(node.poll() is None for node in nodes), "a node ended"
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_lost_node_ends_the_others_and_started_again_the_weights_are_those_without_the_loss(
    workflow, bundle_root, dataset_dir, environment, tmp_path
):
    torch.save(workflow().network_def.state_dict(), tmp_path / "start.pt")  # a network starts at random
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]

    def start(name, node):
        settings = {"max_epochs": 12, "init_weights": tmp_path / "start.pt"}
        arguments = command(bundle_root, dataset_dir, tmp_path / name, "multi_gpu_train.json", **settings)
        return agent(arguments, environment, node, port, tmp_path / f"{name}_{node}.log")

    nodes = [start("lost", node) for node in (0, 1)]
    try:
        wait_until(lambda: (tmp_path / "lost" / "checkpoint_epoch=2.pt").is_file(), nodes)
        lose(nodes[1])
        assert nodes[0].wait(240) == 1
        assert "Another process of this training ended" in (tmp_path / "lost_0.log").read_text()
        assert latest_checkpoint(tmp_path / "lost").name != "checkpoint_epoch=12.pt"
        nodes = [start("lost", node) for node in (0, 1)]
        assert [node.wait(240) for node in nodes] == [0, 0]
        nodes = [start("whole", node) for node in (0, 1)]
        assert [node.wait(240) for node in nodes] == [0, 0]
    finally:
        for node in nodes:
            if node.poll() is None:
                lose(node)
    weights = [torch.load(tmp_path / name / "model.pt", weights_only=True) for name in ("lost", "whole")]
    torch.testing.assert_close(*weights, rtol=0, atol=0)


@pytest.mark.parametrize(("theirs", "refused"), [("checkpoint_epoch=1.pt", True), ("checkpoint_epoch=3.pt", False)])
def test_nodes_that_see_different_checkpoints_are_refused(monkeypatch, tmp_path, theirs, refused):
    def gather(found, mine):
        found[:] = [mine, theirs]

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    sentence = "on a disk that all of them share"
    with pytest.raises(CaseError, match=sentence) if refused else contextlib.nullcontext():
        check_shared(tmp_path, tmp_path / "checkpoint_epoch=3.pt")


@pytest.mark.parametrize(
    ("words", "kind"), [("[pair.cc] Connection reset by peer", CaseError), ("sizes", RuntimeError)]
)
def test_a_lost_process_is_one_sentence_and_other_errors_stay(words, kind):
    def fail():
        raise RuntimeError(words)

    with pytest.raises(RuntimeError if kind is RuntimeError else CaseError) as caught:
        run_together(types.SimpleNamespace(run=fail))
    assert type(caught.value) is kind
    assert kind is RuntimeError or "goes on from its last checkpoint" in str(caught.value)


class Killed(torch.utils.data.Dataset):
    """Slabs of which one kills the process that loads it, as the system does for want of memory."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        if index == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.dataset[index]


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_killed_loading_process_is_one_sentence_with_what_to_do(workflow, caplog):
    made = workflow(num_workers=1)
    trainer = made.trainer
    trainer.data_loader = torch.utils.data.DataLoader(Killed(made.train_dataset), batch_size=2, num_workers=1)
    with pytest.raises(RuntimeError) as caught:
        made.run()
    sentence = reason(caught.value)
    assert sentence.startswith("A process that loaded slabs was killed (DataLoader worker (pid")
    assert "lower num_workers" in sentence
    assert "Traceback" not in caplog.text


def from_loader(error):
    """An error as it is raised within PyTorch's loader."""
    code = compile("raise error", "dataloader.py", "exec")
    try:
        exec(code, {"__name__": "torch.utils.data.dataloader", "error": error})
    except Exception as caught:
        return caught


def test_only_what_a_lost_loading_process_leaves_is_told_as_such():
    trainer = Engine(lambda engine, batch: None)
    tell_lost_loader(trainer)
    lost = [RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), from_loader(EOFError("closed"))]
    others = [RuntimeError("sizes differ"), ConnectionResetError("of MLflow"), from_loader(ValueError("of a slab"))]
    for error in lost:
        with pytest.raises(CaseError, match="goes on from its last checkpoint"):
            trainer._fire_event(Events.EXCEPTION_RAISED, error)
    for error in others:
        with pytest.raises(type(error)) as caught:
            trainer._fire_event(Events.EXCEPTION_RAISED, error)
        assert caught.value is error


def test_two_processes_share_an_epoch_without_overlap(workflow):
    indices = [
        list(workflow(rank=rank, num_processes=2).parser.get_parsed_content("train#dataloader").batch_sampler)
        for rank in (0, 1)
    ]
    assert sorted(index for batches in indices for batch in batches for index in batch) == list(range(2 * 3 * 2))


def test_evaluation_writes_a_row_for_each_subject(workflow, dataset_dir, tmp_path):
    trained = workflow(max_epochs=1)
    losses_of(trained)
    keys = tmp_path / "style_keys.json"
    save_style_keys({"average": style_key_from_histogram(np.ones(128))}, keys)
    made = workflow(
        "evaluate.json",
        weights=str(tmp_path / "out" / "model.pt"),
        style_keys_file=str(keys),
        output_dir=str(tmp_path / "eval"),
    )
    made.run()
    with open(tmp_path / "eval" / "subjects.csv", newline="") as file:
        rows = {row["subject"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["head2", "head3", "mean", "std"]
    item = made.val_dataset[0]
    pred = made.val_inferer(item["source"][None], made.network_def.eval())[0] * item["mask"]
    expected = psnr(pred[0], item["target"][0], item["mask"][0]).item()
    assert float(rows["head2"]["psnr_brain"]) == pytest.approx(expected, abs=1e-3)
    assert float(rows["head2"]["psnr"]) > float(rows["head2"]["psnr_brain"])  # both are background outside


@pytest.mark.parametrize(
    ("datalist", "sentence"),
    [
        (None, "There is no .*datalist.json; training reads its subjects from there"),
        ("{", "is not valid JSON"),
        ('{"training": []}', "The list 'training' of .* is empty"),
        ('{"training": [{"subject": "a", "target": "a.nii"}]}', "Subject a of .* has no 'source'"),
        (
            '{"training": [{"subject": "a", "target": "a.nii", "source": "b.nii"}]}',
            "The source of subject a, .*b.nii, is",
        ),
    ],
)
def test_a_bad_datalist_is_refused_in_one_sentence(workflow, tmp_path, datalist, sentence):
    if datalist is not None:
        (tmp_path / "datalist.json").write_text(datalist)
    with pytest.raises(RuntimeError) as caught:
        workflow(dataset_dir=str(tmp_path)).run()
    assert re.search(sentence, str(case_error_of(caught.value)))


def test_another_task_does_not_go_on_from_the_checkpoints(workflow):
    workflow(max_epochs=1).run()
    again = workflow(max_epochs=2, source_contrast="FLAIR")
    with pytest.raises(RuntimeError) as error:
        again.run()
    assert "of another training (its source_contrast" in reason(error.value)
