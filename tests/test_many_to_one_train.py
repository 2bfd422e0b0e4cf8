"""Training of one network for all contrasts, as its user starts it, on real sets and on simulated contrasts."""

import json
import sys

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.bundle import ConfigParser, ConfigWorkflow

from scripts.data import training_datalist
from scripts.errors import CaseError
from scripts.evaluation.many_to_one import restricted
from tests.phantoms import write_training_set

EDGE = 6.0
SHAPE = (22, 26, 24)
CONTRASTS = ["T1", "T1ce", "T2", "FLAIR", "PD", "CT"]
TRAINING = {
    **{"network_def#channels": [16, 16, 16], "network_def#norm_num_groups": 8, "network_def#num_head_channels": 8},
    **{"spacing": [EDGE] * 3, "slab_shape": [24, 32], "max_epochs": 1, "iterations_per_epoch": 3, "batch_size": 4},
    **{"warmup_iterations": 1, "num_workers": 0, "prepare_workers": 1, "dtype": "float32", "val_interval": 1},
    **{"device": "$torch.device('cpu')", "num_inference_steps": 2},
}


def write_contrasts(folder, subjects) -> dict:
    """A set of round heads: subject -> contrasts; each contrast is the head's texture or its complement."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1.05, 1.05, n) for n in SHAPE), indexing="ij"))
    mask = (grid**2).sum(0) < 1
    entries = {}
    for number, (subject, contrasts) in enumerate(subjects.items()):
        texture = np.random.default_rng(number).random(SHAPE)
        mri = {name: 300 * (1 + (texture if name < "T2" else 1 - texture)) * mask for name in CONTRASTS[:5]}
        images = {**mri, "CT": np.where(mask, 25 + 20 * texture, -1000)}
        volumes = {name: images[name] for name in contrasts}
        files = {name: f"{subject}_{name.lower()}.nii.gz" for name in volumes}
        for name, volume in {**volumes, "mask": mask}.items():
            image = nib.Nifti1Image(np.asarray(volume, np.float32), np.diag([EDGE] * 3 + [1]))
            nib.save(image, folder / files.get(name, f"{subject}_mask.nii.gz"))
        entries[subject] = {"subject": subject, "sources": files, "mask": f"{subject}_mask.nii.gz"}
    return entries


@pytest.fixture(scope="module")
def contrasts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("contrasts")
    people = {"a": ["T1", "T2", "CT"], "b": ["T1", "FLAIR"], "c": ["T1ce", "T2", "PD"], "v": ["T2", "FLAIR", "CT"]}
    entries = write_contrasts(folder, people)
    lists = {"training": [entries[name] for name in "abc"], "validation": [entries["v"]], "test": []}
    (folder / "datalist.json").write_text(json.dumps(lists))
    return folder


@pytest.fixture
def train(bundle_root, tmp_path, monkeypatch):
    """Run the training on a set; gives its losses, its output folder and the workflow's parser."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)

    def function(dataset, overlays=(), **overrides):
        names = ("train.json", "many_to_one_train.json", *overlays)
        workflow = ConfigWorkflow(
            config_file=[str(bundle_root / "configs" / name) for name in names],
            workflow_type="train",
            logging_file=False,
            **{**TRAINING, "dataset_dir": str(dataset), "output_dir": str(tmp_path / "out"), **overrides},
        )
        workflow.initialize()
        losses = []
        trainer = workflow.trainer
        trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: losses.append(e.state.output["loss"].item()))
        workflow.run()
        workflow.finalize()
        return losses, tmp_path / "out", workflow.parser

    return function


def test_real_contrasts_are_trained_on_and_validated(train, contrasts):
    losses, folder, parser = train(contrasts, max_epochs=2)
    assert np.isfinite(losses).all()
    assert len(losses) == 6
    weights = torch.load(folder / "model.pt")
    assert weights["class_embedding.target.weight"].shape[0] == len(CONTRASTS)
    assert (folder / "model_best.pt").is_file()
    keys = json.loads((folder / "style_keys.json").read_text())["keys"]
    assert set(keys) == {"a#T1", "a#T2", "a#CT", "b#T1", "b#FLAIR", "c#T1ce", "c#T2", "c#PD"}
    assert json.loads((folder / "source_keys.json").read_text())["keys"] == keys  # each is source and target in turn
    # v has no T1 and no T1ce: T2 is the first of the targets that it has
    (held_out,) = parser.get_parsed_content("validate#dataset")
    assert CONTRASTS[int(held_out["target_contrast"])] == "T2"
    assert held_out["source"].flatten(1).any(dim=1).tolist() == [False, False, False, True, False, True]
    losses, *_ = train(contrasts, max_epochs=3)  # goes on
    assert len(losses) == 3


@pytest.fixture(scope="module")
def identity(bundle_root, contrasts):
    """What a checkpoint keeps of a training with some settings."""

    def function(**settings):
        parser = ConfigParser()
        parser.read_config([str(bundle_root / "configs" / n) for n in ("train.json", "many_to_one_train.json")])
        parser.update({**TRAINING, "dataset_dir": str(contrasts), **settings})
        return parser.get_parsed_content("train#identity")

    return function


@pytest.mark.parametrize(
    ("name", "first", "other"),
    [("structure", "fractions", "labels"), ("endpoint", "mean_present", "first"), ("validation_target", None, "T2")],
)
def test_a_training_with_another_setting_does_not_go_on(identity, name, first, other):
    saved = identity(**{name: first}).state_dict()
    identity(**{name: first}).load_state_dict(saved)
    with pytest.raises(CaseError, match=f"are of another training .its {name} is another.; give another output_dir"):
        identity(**{name: other}).load_state_dict({**saved, "network": identity(**{name: other}).identity["network"]})


def test_the_network_is_told_the_target_in_training_and_validation(train, contrasts, monkeypatch):
    from scripts.networks import MultiContrastUNet

    told, forward = [], MultiContrastUNet.forward

    def noted(self, *args, **kwargs):
        told.append((self.training, kwargs["target_contrast"].tolist(), kwargs["presence"].tolist()))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(MultiContrastUNet, "forward", noted)
    train(contrasts, validation_target="FLAIR")
    for training, targets, presence in told:
        assert all(there[int(target)] == 0 for target, there in zip(targets * len(presence), presence, strict=False))
        if not training:
            assert targets == [3]
            assert all(there == [0, 0, 1, 0, 0, 1] for there in presence)
    assert {training for training, *_ in told} == {True, False}


@pytest.mark.slow
@pytest.mark.parametrize("structure", ["fractions", "labels"])
def test_the_network_is_given_the_structure_of_the_sources(train, contrasts, structure):
    losses, _, parser = train(contrasts, structure=structure)
    assert np.isfinite(losses).all()
    assert parser.get_parsed_content("network_def").slice_channels == (1, 6, 4)
    item = parser.get_parsed_content("train#dataset")[0]
    assert item["fractions"].shape == (12, 24, 32)
    (held_out,) = parser.get_parsed_content("validate#dataset")
    inside = held_out["source"][3] > 0
    torch.testing.assert_close(torch.as_tensor(held_out["fractions"][:3].sum(0)[inside]), torch.ones(int(inside.sum())))
    assert not held_out["fractions"][3].any()


def test_contrasts_are_simulated_for_a_set_of_t1(train, tmp_path):
    write_training_set(tmp_path, 1)
    losses, folder, parser = train(tmp_path, ["simulated_contrasts.json"], num_sources=2)
    assert np.isfinite(losses).all()
    (volume,) = parser.get_parsed_content("train#volumes")
    assert volume.sources.shape[:2] == (2, len(CONTRASTS))
    assert volume.presence().all()
    assert volume.draws_target
    (held_out,) = parser.get_parsed_content("validate#dataset")
    assert held_out["target_contrast"] == 0
    assert set(json.loads((folder / "style_keys.json").read_text())["keys"]) == {f"p0#{name}" for name in CONTRASTS}


@pytest.mark.parametrize("structure", [None, "fractions"])
def test_the_target_on_disk_changes_nothing_of_the_source(bundle_root, contrasts, tmp_path, structure):
    """The leak test, from the files on: another image of the contrast that is held out."""
    images = []
    for factor in (1, 2):
        parser = ConfigParser()
        parser.read_config([str(bundle_root / "configs" / n) for n in ("train.json", "many_to_one_train.json")])
        parser["spacing"] = [EDGE] * 3
        parser["dataset_dir"] = str(contrasts)
        parser["structure"] = structure
        item = dict(training_datalist(str(contrasts), "validation", ["source", "mask"], CONTRASTS)[0])
        if factor == 2:
            image = nib.load(item["contrast_T2"])
            item["contrast_T2"] = str(tmp_path / "t2.nii.gz")
            nib.save(nib.Nifti1Image(image.get_fdata()[::-1] ** 2, image.affine), item["contrast_T2"])
        images.append(parser.get_parsed_content("held_out_load")(item))
    before, after = images
    for key in ["source", "mask"] + ["fractions"] * (structure is not None):
        assert torch.equal(torch.as_tensor(before[key]), torch.as_tensor(after[key]))
    assert not torch.allclose(torch.as_tensor(before["target"]), torch.as_tensor(after["target"]), atol=0.05)


def test_a_lesion_that_was_drawn_on_the_target_is_seen_in_training_alone(bundle_root, contrasts, tmp_path):
    parser = ConfigParser()
    names = ("train.json", "many_to_one_train.json", "evaluate_many_to_one.json")
    parser.read_config([str(bundle_root / "configs" / n) for n in names])
    parser.update({"spacing": [EDGE] * 3, "dataset_dir": str(contrasts), "structure": "fractions"})
    item = dict(training_datalist(str(contrasts), "validation", ["source", "mask"], CONTRASTS)[0])
    lesion = np.zeros(SHAPE, np.float32)
    lesion[8:14, 8:16, 8:14] = 1
    nib.save(nib.Nifti1Image(lesion, np.diag([EDGE] * 3 + [1])), tmp_path / "lesion.nii.gz")
    item["lesion"] = str(tmp_path / "lesion.nii.gz")
    assert parser.get_parsed_content("load")(dict(item))["extras"][-1].sum() == lesion.sum()
    held_out = parser.get_parsed_content("held_out_load")(dict(item))
    assert not held_out["fractions"][3].any()
    # nor in the tables, whatever a case has beside its contrasts
    pair = restricted({**held_out, "subject": "v", "lesion": lesion[None]}, CONTRASTS, "FLAIR", ["T2"])
    pair = parser.get_parsed_content("with_fractions")(pair)
    assert pair["source"].shape[0] == len(CONTRASTS) + 4
    assert pair["source"][-4:-1].any()
    assert not pair["source"][-1].any()


def test_the_ct_is_windowed_and_each_mri_scaled_by_its_own_brain(bundle_root, contrasts):
    parser = ConfigParser()
    parser.read_config([str(bundle_root / "configs" / n) for n in ("train.json", "many_to_one_train.json")])
    parser["spacing"] = [EDGE] * 3
    parser["dataset_dir"] = str(contrasts)
    item, *_ = training_datalist(str(contrasts), "training", ["source", "mask"], CONTRASTS)
    source = parser.get_parsed_content("load")(dict(item))["source"]
    assert source.flatten(1).any(dim=1).tolist() == [True, False, True, False, False, True]
    assert source[0].max() == source[2].max() == 1
    inside = source[5][source[0] > 0]
    assert 25 / 80 - 0.1 < inside.min() < inside.max() < 45 / 80 + 0.1
    assert not source[5][torch.as_tensor(source[0]) == 0].any()


@pytest.mark.parametrize(
    ("people", "said"),
    [({"x": ["FLAIR"]}, "Subject x of .* has FLAIR alone"), ({"x": ["CT"]}, "has CT alone"), ({"x": []}, "'source'")],
)
def test_a_subject_of_one_contrast_is_refused_in_a_sentence(tmp_path, people, said):
    entries = write_contrasts(tmp_path, people)
    (tmp_path / "datalist.json").write_text(json.dumps({"training": list(entries.values())}))
    with pytest.raises(CaseError, match=said):
        training_datalist(str(tmp_path), "training", ["source", "mask"], CONTRASTS, targets=CONTRASTS[:5])
