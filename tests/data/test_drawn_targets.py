"""Targets drawn among the contrasts of a head: what an item shows of them, and what it must not."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from scripts.conditioning.style_key import compute_style_key
from scripts.data import contrast_source_keys, contrast_style_keys
from scripts.data.augmentation import watery_lesion
from scripts.data.packed_volume import PackedVolume, build_volumes, pack_volume
from scripts.data.slab_dataset import SlabDataset
from scripts.errors import CaseError

CONTRASTS = ("T1", "T1ce", "T2", "FLAIR", "PD", "CT")
TARGETS = (0, 1, 2, 3, 4)
STRONG = {
    "source_contrast_spread": 0.08,
    "source_shading": 0.12,
    "source_noise": 0.03,
    "source_lesions": 0.5,
    "contrast_spread": 0.1,
    "contrast_dropout": 0.3,
}


def head(present=(0, 2, 3), renderings: int = 1, subject: str = "a", extras: int = 0) -> PackedVolume:
    """Noise in a box of 8 slices, all but the outer two of which hold brain, in some of the contrasts."""
    rng = np.random.default_rng(len(subject))
    sources = np.zeros((renderings, len(CONTRASTS), 8, 24, 32), np.uint8)
    for contrast in present:
        sources[:, contrast, 1:7, 5:20, 6:28] = rng.integers(60, 255, (renderings, 6, 15, 22))
    in_brain = np.repeat([(np.arange(8) > 0) & (np.arange(8) < 7)], renderings, axis=0)
    histograms = np.array([[np.histogram(c[c > 0] / 255, 4096, (0, 1))[0] for c in s] for s in sources])
    beside = rng.integers(0, 255, (extras, 8, 24, 32)).astype(np.uint8) if extras else None
    return PackedVolume(subject, sources[:0, 0], sources, histograms, in_brain, extras=beside)


def dataset(volumes, length=60, **more) -> SlabDataset:
    return SlabDataset(volumes, length, draw_target=True, targets=TARGETS, contrasts=CONTRASTS, **more)


def test_the_target_is_drawn_among_what_is_there_and_is_not_in_the_source():
    volume = head()
    seen = set()
    for item in dataset([volume], augment=False):
        drawn = int(item["target_contrast"])
        seen.add(drawn)
        assert item["target_contrast"].shape == ()
        expected = np.isin(np.arange(6), (0, 2, 3)) & (np.arange(6) != drawn)
        assert item["presence"].tolist() == expected.tolist()
        slabs = item["source"].unflatten(0, (6, 3))
        np.testing.assert_array_equal(slabs.flatten(1).any(dim=1), expected)
        # all are slices of one place
        images = torch.from_numpy(volume.sources[0]).float() / 255
        (centre,) = (z for z in range(8) if torch.allclose(images[drawn, z], item["target"][1], atol=1e-6))
        for contrast in np.flatnonzero(expected):
            torch.testing.assert_close(slabs[contrast, 1], images[contrast, centre], atol=1e-6, rtol=0)
        key = compute_style_key(volume.sources[0, drawn] / 255)
        assert np.abs(item["style_key"][0].numpy() - key[0]).sum() < 0.6  # of 10, for bytes in finer bins
    assert seen == {0, 2, 3}


def test_a_ct_is_never_a_target_and_one_source_always_stays():
    items = list(dataset([head((0, 5))], contrast_dropout=1.0))
    assert {int(item["target_contrast"]) for item in items} == {0}
    assert all(item["presence"].tolist() == [0, 0, 0, 0, 0, 1] for item in items)
    for item in dataset([head((0, 1, 2, 3))], contrast_dropout=0.9):
        assert item["presence"].sum() >= 1
        assert item["presence"][int(item["target_contrast"])] == 0


def test_nothing_but_the_target_and_its_key_depends_on_the_target():
    """The leak test: other values of the contrast that was drawn change nothing that the network is shown."""
    volume = head(renderings=2, extras=2)
    plain = dataset([volume], **STRONG, sparsity=(1, 3))
    changed = {}
    for contrast in (0, 2, 3):
        sources = volume.sources.copy()
        there = sources[:, contrast] > 0
        sources[:, contrast][there] = 255 - sources[:, contrast][there] // 2
        counts = volume.histograms.copy()
        counts[:, contrast] = np.roll(counts[:, contrast], 500, axis=1)
        changed[contrast] = dataset([replace(volume, sources=sources, histograms=counts)], **STRONG, sparsity=(1, 3))
    for index, before in enumerate(plain):
        after = changed[int(before["target_contrast"])][index]
        assert before.keys() == after.keys()
        for name in before.keys() - {"target", "style_key"}:
            torch.testing.assert_close(after[name], before[name], rtol=0, atol=0)
        assert not torch.equal(after["target"], before["target"])
        assert not torch.equal(after["style_key"], before["style_key"])


def test_fractions_are_those_of_a_contrast_that_stays():
    """T1 where it is there, else the first one; never the target's. Lesions come last."""
    volume = head((0, 2, 3), extras=19)
    for number, plane in enumerate(volume.extras):
        plane[:] = 10 * number
    chosen = set()
    for item in dataset([volume], augment=False, fractions=True, contrast_dropout=0.3, lesion_dropout=0.0):
        assert "extras" not in item
        assert item["fractions"].shape == (12, 24, 32)
        levels = (item["fractions"][::3, 0, 0] * 25.5).round().int().tolist()
        contrast = levels[0] // 3
        assert levels == [3 * contrast, 3 * contrast + 1, 3 * contrast + 2, 18]
        assert contrast != int(item["target_contrast"])
        assert contrast == int(item["presence"].argmax())  # here T1 is the first of all
        chosen.add(contrast)
    assert chosen == {0, 2, 3}
    with pytest.raises(ValueError, match="a has no tissue fractions of its contrasts"):
        dataset([head()], fractions=True)


def test_lesions_are_left_out_of_half_of_the_items_and_nothing_else_changes():
    volume = head((0, 2, 3), extras=19)
    volume.extras[:] = 200
    left_out = []
    for item, whole in zip(
        *(dataset([volume], length=80, fractions=True, lesion_dropout=share) for share in (0.5, 0.0)), strict=True
    ):
        assert whole["fractions"][9:].any()
        left_out.append(not item["fractions"][9:].any())
        if left_out[-1]:
            whole["fractions"][9:] = 0
        assert all(torch.equal(item[name], whole[name]) for name in whole)
    assert 0.3 < np.mean(left_out) < 0.7


def test_slices_that_a_contrast_does_not_reach_are_no_target():
    volume = head((0, 4))
    volume.sources[:, 4, :4] = 0  # a PD that ends above the lower half
    for item in dataset([volume], augment=False):
        if int(item["target_contrast"]) == 4:
            assert item["target"][1].any()


@pytest.mark.parametrize(
    ("volume", "said"),
    [
        (head((0,)), "beside another"),
        (head((3,)), "beside another"),
        (head((5,)), "no contrast that can be its target"),
    ],
)
def test_a_head_of_one_contrast_is_refused(volume, said):
    with pytest.raises(ValueError, match=said):
        dataset([volume])


def test_targets_of_their_own_and_drawn_ones_do_not_mix():
    own = PackedVolume("b", np.zeros((1, 4, 8, 8), np.uint8), head().sources, np.ones((1, 4096)), np.ones((1, 4), bool))
    with pytest.raises(ValueError, match="b has a target of its own, and draw_target is True"):
        dataset([own])
    with pytest.raises(ValueError, match="a has no target of its own"):
        SlabDataset([head()], 1)
    with pytest.raises(ValueError, match="3 numbers are given for 6 contrasts"):
        dataset([head()], source_noise=[0.1] * 3)


def test_water_is_bright_in_t2_flair_and_pd_and_dark_in_t1_and_ct_in_one_region():
    shape = (3, 40, 48)
    tissue = torch.zeros(shape)
    tissue[:, 4:36, 4:44] = 1
    tissue[:, 15:25, 20:28] = 0.25  # ventricles
    fluid = tissue == 0.25
    slabs = {"T1": 0.6 * tissue, "FLAIR": 0.5 * tissue, "PD": 0.5 * (tissue > 0), "CT": 0.4 * tissue}
    slabs["T2"] = torch.where(fluid, torch.tensor(0.9), 0.35 * (tissue > 0))
    for target in ("T2", "T1", "FLAIR"):
        sources = {name: slab for name, slab in slabs.items() if name != target}
        changed, wanted = watery_lesion(sources, slabs[target], target, np.random.default_rng(1))
        images = {**changed, target: wanted}
        differences = {name: images[name] - slabs[name] for name in images}
        for name, difference in differences.items():
            assert (difference >= 0).all() == (name in ("T2", "FLAIR", "PD"))
            assert (difference <= 0).all() == (name in ("T1", "CT"))
            assert not difference[fluid].any()
            assert not difference[tissue == 0].any()
            shapes = [one.abs() / one.abs().max() for one in (difference, differences["PD"])]
            torch.testing.assert_close(*shapes, atol=1e-4, rtol=0)
            assert 0.01 < (shapes[0] > 0.01).float().mean() < 0.4
            assert 0 <= images[name].min() <= images[name].max() <= 1
    unchanged, wanted = watery_lesion({"PD": slabs["PD"]}, slabs["T2"], "T2", np.random.default_rng(1))
    assert torch.equal(wanted, slabs["T2"])
    assert torch.equal(unchanged["PD"], slabs["PD"])


def load(item: dict) -> dict:
    """Two of three contrasts of a head."""
    mask = torch.zeros(1, 20, 24, 6)
    mask[:, 4:14, 6:20, 1:5] = 1
    image = mask * torch.rand(mask.shape, generator=torch.Generator().manual_seed(item["number"]))
    return {"mask": mask, "source": torch.cat([image, torch.zeros_like(image), 1 - image]) * mask}


def test_packing_keeps_each_contrast_once_with_its_histogram(tmp_path):
    made, read = (build_volumes([{"subject": "s"}], load, size=(16, 24), cache_dir=tmp_path)[0] for _ in "ab")
    for name in ("targets", "sources", "in_brain", "histograms"):
        np.testing.assert_array_equal(getattr(read, name), getattr(made, name))
    assert made.draws_target
    assert made.targets.nbytes == 0
    assert made.sources.shape == (1, 3, 6, 16, 24)
    assert made.histograms.shape == (1, 3, 4096)
    assert made.histograms[0, 0].sum() == made.histograms[0, 2].sum() == 10 * 14 * 4
    keys = contrast_style_keys([made], ("T1", "T2", "PD"))
    assert list(keys) == ["s#T1", "s#PD"]
    assert np.abs(keys["s#T1"][0] - compute_style_key(load({"number": 0})["source"][0])[0]).sum() < 0.5


def test_renderings_of_contrasts_bring_their_own_brain():
    class Moving:
        def set_random_state(self, seed: int) -> None:
            self.number = 0

        def __call__(self, data: dict) -> dict:
            self.number += 1
            return {key: data[key].roll(self.number, dims=3) for key in ("source", "mask")}

    def with_target(item):
        data = load(item)
        return {**data, "target": data["source"][:1]}

    packed = pack_volume({"number": 0}, with_target, Moving(), 2, (16, 24), seed=0)
    assert packed.targets.shape == (0, 6, 16, 24)
    assert [np.flatnonzero(slices).tolist() for slices in packed.in_brain] == [[2, 3, 4, 5], [0, 3, 4, 5]]
    assert packed.presence().tolist() == [[True, False, True]] * 2
    # a style key is of all renderings; as sources they differ, and each has its own
    keys = contrast_source_keys([replace(packed, subject="s")], ("T1", "T2", "PD"))
    assert list(keys) == ["s#0#T1", "s#0#PD", "s#1#T1", "s#1#PD"]


def test_without_targets_each_contrast_needs_a_histogram():
    volume = head()
    with pytest.raises(ValueError, match="a histogram for each contrast"):
        replace(volume, histograms=volume.histograms[0])


def test_a_held_out_subject_gives_its_first_target(tmp_path):
    from scripts.data import HoldOutContrastd

    source = torch.zeros(6, 4, 4, 4)
    source[2], source[3] = 0.2, 0.3
    split = HoldOutContrastd(CONTRASTS, ["T1", "FLAIR", "T2"])({"source": source, "mask": source[:1]})
    assert (split["target"] == 0.3).all()
    assert split["target"].shape == (1, 4, 4, 4)
    assert split["target_contrast"] == 3
    assert [float(one.max()) for one in split["source"]] == pytest.approx([0, 0, 0.2, 0, 0, 0])
    assert source[3].any()
    source[2] = 0
    with pytest.raises(CaseError, match="Subject x has no T1 or FLAIR beside another contrast"):
        HoldOutContrastd(CONTRASTS, ["T1", "FLAIR"])({"source": source, "subject": "x"})
    with pytest.raises(CaseError, match="target contrast CT is none of the contrasts T1, T2"):
        HoldOutContrastd(["T1", "T2"], ["CT"])
