"""Knowledge bases of packed volumes, and references as training sees them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from scripts.data import PackedVolume, SlabDataset
from scripts.data.references import (
    HintedSlabs,
    NeighbourSlices,
    build_base,
    hinted_volumes,
    reference_table,
    retrieval_figures,
)
from scripts.errors import CaseError
from scripts.networks import PixelEncoder

SPACING = (3.0, 3.0, 3.0)
DEPTH = 14


def volume(number: int, **options) -> PackedVolume:
    """A head of the same shape for everybody, with a texture of the person's own."""
    rng = np.random.default_rng(number)
    grid = np.stack(np.meshgrid(*(np.linspace(-1.1, 1.1, n) for n in (DEPTH, 16, 20)), indexing="ij"))
    inside = (grid**2).sum(0) < 1
    images = (rng.integers(120, 255, (2, DEPTH, 16, 20)) * inside).astype(np.uint8)
    return PackedVolume(
        subject=f"s{number}",
        targets=images[:1],
        sources=images[None, 1:],
        histograms=np.histogram(images[0][inside] / 255, bins=4096, range=(0, 1))[0][None],
        in_brain=inside.any(axis=(1, 2))[None],
        **options,
    )


@pytest.fixture(scope="module")
def volumes():
    return [volume(number) for number in range(4)]


@pytest.fixture(scope="module")
def people():
    """The first two scans are of one person."""
    return ["anna", "anna", "bert", "carl"]


@pytest.fixture(scope="module")
def base(volumes, people):
    return build_base(volumes, people, PixelEncoder(1), SPACING, {"encoder": "pixels"})


def test_a_base_has_the_slices_with_brain_and_no_names(base, volumes):
    assert len(base) == sum(int(v.in_brain.sum()) for v in volumes)
    assert len(base.person.unique()) == 3
    for row in (0, 30):
        v, z = volumes[base.subject[row]], base.slice_index[row]
        assert np.array_equal(base.sources[row], v.sources[0, 0, z])
        assert np.array_equal(base.targets[row], v.targets[0, z])
    assert base.record["slab_shape"] == [16, 20]
    assert "anna" not in str(base.record)
    heights = base.position[base.subject == 0]
    assert heights.diff().gt(0).all()
    assert (heights <= 0.1).all()


def test_every_slice_has_the_most_similar_one_of_another_person_at_its_height(base, volumes, people):
    table = reference_table(volumes, PixelEncoder(1), base, (2,), people, tolerance=0.1, threshold=-1)
    assert len(table) == 4 * DEPTH
    person = [base.code_of(name) for name in people]
    for number, v in enumerate(volumes):
        for z in np.flatnonzero(v.in_brain[0]):
            source = torch.from_numpy(v.sources[0, 0] / 255)
            low, high = max(z - 1, 0), min(z + 1, DEPTH - 1)
            query = ((source[low] + source[high]) / 2).flatten()
            height = base.position[(base.subject == number) & (base.slice_index == int(z))]
            allowed = [
                i
                for i in range(len(base))
                if abs(base.position[i] - height) <= 0.1 and int(base.person[i]) != person[number]
            ]
            cosines = {
                i: float(torch.cosine_similarity(query, base.sources[i].flatten() / 255, dim=0)) for i in allowed
            }
            row, similarity = table[v.subject, int(z)]
            assert similarity == pytest.approx(max(cosines.values()), abs=1e-5)
            assert cosines[row] == pytest.approx(similarity, abs=1e-5)


def test_below_the_threshold_there_is_none(base, volumes, people):
    table = reference_table(volumes, PixelEncoder(1), base, (2, [3, 5]), people, threshold=1.01)
    assert all(row == -1 for row, _ in table.values())
    hinted = hinted_volumes(volumes, table, base)
    assert not any(v.extras.any() for v in hinted)


def test_oracle_and_random_choices(base, volumes, people):
    def error(choice):
        table = reference_table(volumes, PixelEncoder(1), base, (2,), people, threshold=-1, choice=choice)
        pairs = [(v.targets[0, z], base.targets[table[v.subject, z][0]]) for v in volumes for z in range(3, 11)]
        return np.mean([np.square(a / 255 - b.numpy() / 255).mean() for a, b in pairs])

    assert error("oracle") < min(error("similar"), error("random"))


def test_how_near_references_come(volumes, people):
    """The held-out scan is a copy of one in the base, so that the search of a dense scan is exact."""
    copy = replace(volumes[3], subject="new")
    figures = retrieval_figures(volumes, people, [copy], {"x": PixelEncoder(1)}, SPACING, (1,))
    assert figures["x"] == {"position_error": 0, "target_rmse": 0, "above_tau": 1}
    assert figures["oracle"]["target_rmse"] == 0
    assert figures["random"]["target_rmse"] > 0.05
    assert 0 <= figures["random"]["position_error"] <= 0.05


def test_a_base_of_another_size_is_refused(base):
    other = PackedVolume(
        "x",
        np.ones((1, 4, 8, 8), np.uint8),
        np.ones((1, 1, 4, 8, 8), np.uint8),
        np.ones((1, 4096)),
        np.ones((1, 4), bool),
    )
    with pytest.raises(CaseError, match="slab shape 16 x 20, and this is 8 x 8"):
        reference_table([other], PixelEncoder(1), base)


class TestHintedSlabs:
    @pytest.fixture
    def slabs(self, base, volumes, people):
        table = reference_table(volumes, PixelEncoder(1), base, (4,), people, threshold=-1)

        def make(augment=False, **options):
            data = hinted_volumes(volumes, table, base)
            dataset = SlabDataset(data, length=40, num_bins=8, augment=augment, sparsity=(4,), seed=3)
            return HintedSlabs(dataset, **options)

        return make

    def test_missing_slices_have_the_references_and_given_ones_nothing(self, slabs, base):
        known = {image.numpy().tobytes() for image in base.targets}
        hints = 0
        for item in slabs(dropout=0):
            source, target = item["hint"].unflatten(0, (2, 3))
            for k in range(3):
                if item["missing"][k].any() and target[k].any():
                    hints += 1
                    assert (target[k] * 255).round().byte().numpy().tobytes() in known
                    assert not torch.equal(target[k], item["target"][k])
                elif not item["missing"][k].any():
                    assert not source[k].any()
                    assert not target[k].any()
            assert "extras" not in item
        assert hints > 20

    def test_the_papers_target_is_the_references(self, slabs):
        own, retrieved = slabs(dropout=0), slabs(dropout=0, target="retrieved")
        for index in range(20):
            item, other = retrieved[index], own[index]
            there = (item["missing"] > 0) & item["hint"][3:].amax((1, 2), keepdim=True).gt(0)
            assert torch.equal(item["target"], torch.where(there, item["hint"][3:], other["target"]))
        with pytest.raises(ValueError, match="own or retrieved"):
            slabs(target="none")

    def test_items_depend_on_seed_epoch_and_index_alone(self, slabs):
        first, second = slabs(augment=True), slabs(augment=True)
        second.set_epoch(1)
        moved = second[7]
        second.set_epoch(0)
        _ = second[3]
        for name, value in first[7].items():
            assert torch.equal(second[7][name], value)
        assert not torch.equal(moved["target"], second[7]["target"])

    def test_some_slabs_are_left_without_a_hint(self, slabs):
        without = sum(not item["hint"].any() for item in slabs(dropout=0.5))
        always = sum(not item["hint"].any() for item in slabs(dropout=0))
        assert 8 < without - always < 32

    def test_extras_are_not_overwritten(self, base, volumes):
        full = [volume(0, extras=np.zeros((1, DEPTH, 16, 20), np.uint8))]
        with pytest.raises(ValueError, match="extras already"):
            hinted_volumes(full, {}, base)


def test_neighbouring_slices_of_one_scan(volumes):
    dataset = NeighbourSlices(volumes, length=30, spacing=SPACING, offsets=2, seed=1)
    mirrored = 0
    for item in dataset:
        assert item["index"].diff().tolist() == [1, 1]
        assert len(set(item["scan"].tolist())) == 1
        v = volumes[item["scan"][0]]
        slices = torch.from_numpy(v.sources[0, 0][item["index"]]).float() / 255
        mirrored += torch.equal(item["slices"], slices.flip(1))
        assert torch.equal(item["slices"], slices) or torch.equal(item["slices"], slices.flip(1))
        assert item["position"].diff().gt(0).all()
    assert 5 < mirrored < 25
    assert all(torch.equal(a, b) for a, b in zip(dataset[4].values(), dataset[4].values(), strict=True))
    dataset.set_epoch(1)
    with pytest.raises(ValueError, match="slice and its neighbours"):
        NeighbourSlices(volumes, 3, SPACING, offsets=DEPTH)
