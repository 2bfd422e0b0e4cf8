"""The command that makes a knowledge base of what `prepare` wrote."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch

from scripts.errors import CaseError
from scripts.knowledge_base import knowledge_base
from scripts.networks import SliceEncoder
from scripts.retrieval import ENCODER_NAME, KnowledgeBase
from scripts.transforms.references import load_base

SHAPE, EDGE = (20, 24, 18), 6.0


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Three scans of two people in the training list, one in another."""
    folder = tmp_path_factory.mktemp("pairs")
    grid = np.stack(np.meshgrid(*(np.linspace(-1.1, 1.1, n) for n in SHAPE), indexing="ij"))
    mask = (grid**2).sum(0) < 1
    entries = []
    for number in range(4):
        noise = np.random.default_rng(number).random(SHAPE)
        volumes = {"source": np.where(mask, 20 + 30 * noise, -1000), "target": 500 * (1 + noise) * mask, "mask": mask}
        entries.append({"subject": f"scan{number}", "person": ["DoeJane", "DoeJane", "RoeJohn", "PoeAnn"][number]})
        for name, volume in volumes.items():
            entries[-1][name] = f"scan{number}_{name}.nii.gz"
            image = nib.Nifti1Image(volume.astype(np.float32), np.diag([EDGE] * 3 + [1]))
            nib.save(image, folder / entries[-1][name])
    (folder / "datalist.json").write_text(json.dumps({"training": entries[:3], "validation": entries[3:], "test": []}))
    return folder


@pytest.fixture
def build(bundle_root, pairs, tmp_path):
    (tmp_path / "tiny.json").write_text(json.dumps({"spacing": [EDGE] * 3, "slab_shape": [24, 32]}))
    configs = [str(bundle_root / "configs" / "train.json"), str(tmp_path / "tiny.json")]

    def function(output=tmp_path / "kb", **options):
        return knowledge_base("build", str(pairs), str(output), config_file=configs, **options)

    return function


def test_it_makes_a_base_of_the_training_list(build, tmp_path):
    said = build()
    base = KnowledgeBase.load(tmp_path / "kb")
    assert f"{len(base)} slices of 2 people" in said
    assert (tmp_path / "kb").stat().st_mode & 0o777 == 0o700
    assert (base.record["source_contrast"], base.record["spacing"], base.record["slab_shape"]) == (
        *("CT", [EDGE] * 3, [24, 32]),
    )
    assert 40 < len(base) < 3 * SHAPE[2]
    assert base.code_of("DoeJane") in base.person
    content = (tmp_path / "kb" / "knowledge_base.npz").read_bytes()
    assert not any(name in content for name in (b"Doe", b"Roe", b"scan", str(tmp_path).encode()))
    assert build(share=0.5).startswith(str(tmp_path / "kb"))
    assert len(KnowledgeBase.load(tmp_path / "kb").person.unique()) == 1


def test_a_trained_encoder_is_kept_beside_it(build, tmp_path):
    torch.manual_seed(0)
    torch.save(SliceEncoder((24, 32)).state_dict(), tmp_path / "encoder_weights.pt")
    build(encoder=str(tmp_path / "encoder_weights.pt"))
    base, encoder = load_base(tmp_path / "kb")
    vectors = encoder(base.sources[:, None] / 255)
    torch.testing.assert_close(vectors, base.embeddings)
    assert (tmp_path / "kb" / ENCODER_NAME).stat().st_mode & 0o777 == 0o600
    (tmp_path / "kb" / ENCODER_NAME).write_bytes(b"another")
    with pytest.raises(CaseError, match="not the encoder that this knowledge base was built with"):
        KnowledgeBase.load(tmp_path / "kb")
    build()
    assert not (tmp_path / "kb" / ENCODER_NAME).exists()


def test_what_is_wrong_is_told_in_a_sentence(build, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    mode = (tmp_path / "full").stat().st_mode
    for options, sentence in (
        ({"output": tmp_path / "full"}, "holds other files"),
        ({"encoder": "vgg"}, "encoder is vgg, which is no file; give pixels"),
        ({"share": 2}, "share is 2; use a number from 0 to 1"),
        ({"output": ""}, "--output is missing"),
    ):
        with pytest.raises(CaseError, match=sentence):
            build(**options)
    with pytest.raises(CaseError, match="action is remove; use one of build"):
        knowledge_base("remove")
    assert (tmp_path / "full").stat().st_mode == mode
