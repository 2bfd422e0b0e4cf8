"""Hints for missing slices: from whom they may come, where they lie, and what the record is told."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from scripts.errors import CaseError
from scripts.networks import PixelEncoder, SliceEncoder
from scripts.retrieval import ENCODER_NAME, KnowledgeBase, slerp
from scripts.transforms.references import ReferenceHints, RetrieveReferencesd
from scripts.volumes.brain_coordinates import slice_positions

SHAPE, SPACING, DEPTH = (16, 24), (3.0, 3.0, 3.0), 12
INSIDE = (np.stack(np.meshgrid(*(np.linspace(-1.1, 1.1, n) for n in (DEPTH, *SHAPE)), indexing="ij")) ** 2).sum(0) < 1


def heads(count: int) -> np.ndarray:
    """(count, 2, Z, H, W) uint8: source and target of heads of one shape."""
    rng = np.random.default_rng(0)
    return (rng.integers(60, 255, (count, 2, DEPTH, *SHAPE)) * INSIDE).astype(np.uint8)


HEADS = heads(3)


def write_base(folder, encoder="pixels", network=None, **record):
    rows = [(person, z) for person in range(3) for z in range(1, DEPTH - 1)]
    sources, targets = (torch.from_numpy(np.stack([HEADS[p, c, z] for p, z in rows])) for c in (0, 1))
    position = slice_positions(INSIDE.transpose(1, 2, 0), SPACING)
    settings = {
        **{"version": 1, "encoder": encoder, "source_contrast": "CT", "target_contrast": "T1", "secret": "00"},
        **{"spacing": list(SPACING), "slab_shape": list(SHAPE)},
    }
    base = KnowledgeBase(
        embeddings=(network or PixelEncoder())(sources[:, None] / 255).detach(),
        person=torch.tensor([person for person, _ in rows]),
        subject=torch.tensor([person for person, _ in rows]),
        slice_index=torch.tensor([z for _, z in rows]),
        position=torch.tensor([position[z] for _, z in rows]),
        sources=sources,
        targets=targets,
        record={**settings, **record},
    )
    base.save(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("base") / "kb")


def case(person=0, missing=(3, 4, 6), spacing=SPACING, margin=(0, 0)):
    """A sparse volume of a person of the base: source, and what is missing; the missing slices are the true ones."""
    source = np.pad(HEADS[person, 0] / 255, ((0, 0), (margin[0], 0), (margin[1], 2 * margin[1])))
    flags = np.zeros(source.shape)
    flags[list(missing)] = 0.25
    image = torch.from_numpy(np.stack([source, flags]).transpose(0, 2, 3, 1)).float()
    return {"image": MetaTensor(image, affine=torch.diag(torch.tensor([*spacing, 1.0]))), "other": "kept"}


def hints_of(result, count=2):
    """(Z, hints, H, W)."""
    return result["image"].as_tensor()[2 : 2 + count].movedim(-1, 0)


def test_missing_slices_have_the_most_similar_pair_and_given_ones_nothing(folder):
    """The true slice is in the base, so that it is what is found."""
    result = RetrieveReferencesd("image", folder)(case(1))
    hints = hints_of(result)
    for z in range(DEPTH):
        expected = torch.from_numpy(HEADS[1, :, z] / 255).float() * (z in (3, 4, 6))
        torch.testing.assert_close(hints[z], expected)
    assert result["image"].shape == (4, *SHAPE, DEPTH)
    assert torch.equal(result["image"].as_tensor()[:2], case(1)["image"].as_tensor())
    assert result["image"].meta["references"]["missing"] == 3
    assert result["image"].meta["references"]["found"] == 3
    assert result["other"] == "kept"


def test_a_head_elsewhere_in_the_plane_gets_its_hint_there(folder):
    moved = RetrieveReferencesd("image", folder)(case(1, margin=(5, 3)))
    there = hints_of(moved)
    assert torch.equal(there[..., 5:, 3:-6], hints_of(RetrieveReferencesd("image", folder)(case(1))))
    assert not there[..., :5, :].any()


def test_a_persons_own_slices_are_not_looked_at(tmp_path):
    folder = write_base(tmp_path / "kb")
    base = KnowledgeBase.load(folder)
    code = base.code_of("anna")
    object.__setattr__(base, "person", torch.where(base.person == 1, code, base.person))
    base.save(folder)
    find = RetrieveReferencesd("image", folder, threshold=-1)
    assert torch.equal(hints_of(find(case(1)))[3, 0], torch.from_numpy(HEADS[1, 0, 3] / 255).float())
    hints = hints_of(find({**case(1), "person": "anna"}))
    others = torch.from_numpy(HEADS[[0, 2]] / 255).float()
    assert any(torch.equal(hints[3], other[:, z]) for other in others for z in range(DEPTH))
    assert any(torch.equal(hints[3], other[:, 3]) for other in others)


def test_a_dense_volume_has_hints_of_zeros_and_one_contrast_may_be_enough(folder):
    result = RetrieveReferencesd("image", folder, hint=["target"])(case(missing=()))
    assert result["image"].shape[0] == 3
    assert not hints_of(result).any()
    assert result["image"].meta["references"]["missing"] == 0


def test_nothing_similar_enough_is_no_hint_or_a_filled_slice(folder):
    for fallback in (None, "slerp"):
        result = RetrieveReferencesd("image", folder, threshold=2.0, fallback=fallback)(case())
        hints, source = hints_of(result), case()["image"].as_tensor()[0].movedim(-1, 0)
        assert result["image"].meta["references"] == {"missing": 3, "found": 0, "threshold": 2.0}
        assert not hints[:, 1].any()
        assert not hints[[0, 1, 2, 5, 7]].any()
        expected = slerp(source[2], source[5], 1 / 3) if fallback else torch.zeros(SHAPE)
        torch.testing.assert_close(hints[3, 0], expected)


def test_oracle_and_random_rows(folder):
    data = case(0)
    data["truth"] = MetaTensor(torch.from_numpy(HEADS[2, 1].transpose(1, 2, 0)[None] / 255).float())
    oracle = hints_of(RetrieveReferencesd("image", folder, choice="oracle", target_key="truth")(data))
    torch.testing.assert_close(oracle[4, 1], torch.from_numpy(HEADS[2, 1, 4] / 255).float())
    drawn = [hints_of(RetrieveReferencesd("image", folder, choice="random", seed=seed)(data)) for seed in range(6)]
    assert len({hint.numpy().tobytes() for hint in drawn}) > 2
    assert all(hint[3].any() for hint in drawn)


def test_a_share_of_the_base(folder):
    assert len(RetrieveReferencesd("image", folder, share=0.34).hints.base) == DEPTH - 2


def test_hints_of_volumes_without_a_header_are_the_same(folder):
    images = [case(number)["image"].as_tensor() for number in (0, 2)]
    volumes, missing = (torch.stack([image[channel : channel + 1] for image in images]) for channel in (0, 1))
    hints = ReferenceHints(folder, hint=["target"])(volumes, missing)
    for hint, number in zip(hints, (0, 2), strict=True):
        expected = RetrieveReferencesd("image", folder, hint=["target"])(case(number))["image"].as_tensor()[2:]
        assert torch.equal(hint, expected)
        assert hint.any()


def test_the_encoder_of_the_base_is_kept_beside_it(tmp_path):
    torch.manual_seed(0)
    network = SliceEncoder(SHAPE).eval()
    (tmp_path / "kb").mkdir()
    torch.save(network.state_dict(), tmp_path / "kb" / ENCODER_NAME)
    folder = write_base(tmp_path / "kb", "vit", network)
    found = hints_of(RetrieveReferencesd("image", folder, threshold=0.99)(case(2)))
    torch.testing.assert_close(found[3], torch.from_numpy(HEADS[2, :, 3] / 255).float())


def test_what_does_not_fit_is_told_in_a_sentence(folder, tmp_path):
    with pytest.raises(CaseError, match="add --knowledge_base kb"):
        RetrieveReferencesd("image", None)
    with pytest.raises(CaseError, match="There is no knowledge base"):
        RetrieveReferencesd("image", tmp_path)
    with pytest.raises(CaseError, match="source contrast CT, and this is FLAIR"):
        RetrieveReferencesd("image", folder, wanted={"source_contrast": "FLAIR"})
    with pytest.raises(CaseError, match="spacing 3 x 3 x 3, and this is 3 x 3 x 2"):
        RetrieveReferencesd("image", folder)(case(spacing=(3.0, 3.0, 2.0)))
