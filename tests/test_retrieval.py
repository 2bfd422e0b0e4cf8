"""The knowledge base: what a search may return, what lies between slices, and files that are none."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional

from scripts import retrieval
from scripts.errors import CaseError
from scripts.retrieval import FILE_NAME, VERSION, KnowledgeBase, fill_slices, new_secret, person_code, slerp, threshold

PEOPLE, SLICES, SIZE = 4, 12, 16


def unit(*shape, seed=0):
    return functional.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def base(people=PEOPLE, slices=SLICES, seed=0, **record) -> KnowledgeBase:
    count = people * slices
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (2, count, 6, 8), generator=generator, dtype=torch.uint8)
    return KnowledgeBase(
        embeddings=unit(count, SIZE, seed=seed),
        person=torch.arange(people).repeat_interleave(slices),
        subject=torch.arange(people).repeat_interleave(slices),
        slice_index=torch.arange(slices).repeat(people),
        position=-torch.linspace(0, 0.9, slices).repeat(people),
        sources=images[0],
        targets=images[1],
        record={"version": 1, "source_contrast": "CT", "spacing": [1.5, 1.5, 1.5], "secret": "ab", **record},
    )


class TestSearch:
    def test_a_slice_finds_itself_unless_its_person_is_left_out(self):
        held = base()
        rows, similarity = held.search(held.embeddings, held.position)
        assert rows.tolist() == list(range(len(held)))
        torch.testing.assert_close(similarity, torch.ones(len(held)))
        rows, _ = held.search(held.embeddings, held.position, exclude=held.person)
        assert (held.person[rows] != held.person).all()
        rows, _ = held.search(held.embeddings, held.position, exclude=2)
        assert 2 not in held.person[rows]

    def test_it_is_the_best_of_those_at_the_same_height(self):
        held, queries, heights = base(), unit(30, SIZE, seed=3), -torch.linspace(0, 0.9, 30)
        rows, similarity = held.search(queries, heights, tolerance=0.1, exclude=1)
        for query, height, row, found in zip(queries, heights, rows, similarity, strict=True):
            near = [i for i in range(len(held)) if abs(held.position[i] - height) <= 0.1 and int(held.person[i]) != 1]
            best = max(near, key=lambda i: float(query @ held.embeddings[i]))
            assert (int(row), float(found)) == (best, pytest.approx(float(query @ held.embeddings[best]), abs=1e-6))

    def test_nothing_near_enough_is_minus_one(self):
        rows, similarity = base().search(unit(2, SIZE), torch.tensor([0.5, -3.0]), tolerance=0.05)
        assert rows.tolist() == [-1, -1]
        assert (similarity == -torch.inf).all()
        assert not base().images(rows).any()

    @pytest.mark.parametrize("library", ["faiss", "hnswlib"])
    def test_a_library_searches_a_large_base_and_changes_nothing(self, monkeypatch, library):
        held, asked = base(6, 40), []

        class Index:  # the calls of both libraries, exact
            def __init__(self, *arguments):
                pass

            def add(self, vectors):
                self.vectors = vectors

            add_items = add
            init_index = set_ef = lambda self, number: None

            def search(self, queries, count):
                asked.append(len(queries))
                return None, (-queries @ self.vectors.T).argsort(axis=1)[:, :count]

            def knn_query(self, queries, count):
                return self.search(queries, count)[1], None

        expected = held.search(held.embeddings, held.position, exclude=held.person)
        others = {"faiss", "hnswlib"} - {library}
        monkeypatch.setattr(retrieval, "LARGE", 100)
        monkeypatch.setattr(retrieval, "_CANDIDATES", 30)
        monkeypatch.setitem(sys.modules, library, SimpleNamespace(IndexFlatIP=Index, Index=Index))
        for name in others:
            monkeypatch.setitem(sys.modules, name, None)
        found = base(6, 40).search(held.embeddings, held.position, exclude=held.person)
        assert asked == [240]
        assert torch.equal(found[0], expected[0])
        torch.testing.assert_close(found[1], expected[1])

    def test_a_large_base_without_a_library_is_searched_whole_and_says_so(self, monkeypatch, caplog):
        held = base(6, 40)
        monkeypatch.setattr(retrieval, "LARGE", 100)
        for name in ("faiss", "hnswlib"):
            monkeypatch.setitem(sys.modules, name, None)
        rows, _ = held.search(held.embeddings, held.position)
        assert rows.tolist() == list(range(240))
        assert "faiss-cpu or hnswlib" in caplog.text


class TestThreshold:
    @staticmethod
    def _sorted_pairs(held):
        similarity = held.embeddings @ held.embeddings.T
        apart = held.person[:, None] < held.person
        return sorted(similarity[apart].double().tolist())

    def test_readings_against_all_pairs_sorted(self):
        held = base(seed=5)
        pairs = self._sorted_pairs(held)
        assert held.threshold("percentile") == pytest.approx(np.percentile(pairs, 95), abs=1e-6)
        highest = pairs[-int(len(pairs) * 0.05) :]
        assert held.threshold("top_mean") == pytest.approx(np.mean(highest), abs=1e-6)
        best = (held.embeddings @ held.embeddings.T).masked_fill(held.person[:, None] == held.person, -1).amax(1)
        highest = sorted(best.tolist())[-int(len(best) * 0.05) :]
        assert held.threshold("best_mean") == pytest.approx(np.mean(highest), abs=1e-6)
        assert held.threshold(0.7) == 0.7

    @pytest.mark.parametrize("percent", [1, 5, 20, 60])
    def test_the_mean_is_never_below_the_percentile(self, percent):
        for seed in range(8):
            held = base(people=2 + seed % 3, slices=3 + seed, seed=seed)
            mean, percentile = (held.threshold(reading, percent) for reading in ("top_mean", "percentile"))
            assert mean >= percentile

    def test_drawn_pairs_come_near_all_pairs(self):
        held = base(people=8, slices=40)
        drawn = threshold(held.embeddings, held.person, pairs=20_000)
        assert drawn == pytest.approx(threshold(held.embeddings, held.person, pairs=10**9), abs=0.02)

    def test_one_person_has_no_pairs(self):
        with pytest.raises(ValueError, match="one person"):
            threshold(unit(3, SIZE), torch.zeros(3))
        assert base(people=1).threshold() == -1


class TestSlerp:
    def test_ends_are_the_inputs_and_unit_vectors_stay_on_the_sphere(self):
        a, b = unit(2, 30).reshape(2, 1, 5, 6).double()
        torch.testing.assert_close(slerp(a, b, 0.0), a, rtol=0, atol=1e-12)
        torch.testing.assert_close(slerp(a, b, 1.0), b, rtol=0, atol=1e-12)
        a, b = (functional.normalize(x.flatten(), dim=0).reshape(1, 5, 6) for x in (a, b))
        middle = slerp(a, b, 0.3)
        assert float(middle.norm()) == pytest.approx(1)
        theta = torch.acos((a * b).sum())
        assert float(torch.acos((a * middle).sum()) / theta) == pytest.approx(0.3)

    def test_where_the_angle_is_undefined_it_is_the_straight_line(self):
        a = torch.rand(5, 6)
        torch.testing.assert_close(slerp(a, a, 0.4), a)
        torch.testing.assert_close(slerp(a, torch.zeros(5, 6), 0.25), 0.75 * a)
        torch.testing.assert_close(slerp(a, -a, 0.25), 0.5 * a)
        assert torch.isfinite(slerp(torch.zeros(5, 6), torch.zeros(5, 6), 0.5)).all()


class TestFill:
    GIVEN = torch.tensor([False, True, False, False, True, False, True, True, False])

    def test_linear_fill_is_exact_where_a_volume_is_linear_and_repeats_its_ends(self):
        exact = torch.arange(9.0)[:, None, None, None] * torch.rand(1, 2, 4, 5)
        filled = fill_slices(torch.where(self.GIVEN[:, None, None, None], exact, torch.nan), self.GIVEN)
        torch.testing.assert_close(filled[1:8], exact[1:8])
        assert torch.equal(filled[0], exact[1])
        assert torch.equal(filled[8], exact[7])

    @pytest.mark.parametrize("fill", ["linear", "slerp", "nearest"])
    def test_given_slices_are_untouched_and_all_given_is_the_volume(self, fill):
        volume = torch.rand(9, 4, 5)
        assert torch.equal(fill_slices(volume, self.GIVEN, fill)[self.GIVEN], volume[self.GIVEN])
        assert torch.equal(fill_slices(volume, torch.ones(9, dtype=torch.bool), fill), volume)

    def test_slerp_and_nearest_between_two_slices(self):
        volume, given = torch.rand(4, 4, 5), torch.tensor([True, False, False, True])
        curved = fill_slices(volume, given, "slerp")
        torch.testing.assert_close(curved[1], slerp(volume[0], volume[3], 1 / 3))
        nearest = fill_slices(volume, given, "nearest")
        assert torch.equal(nearest, volume[[0, 0, 3, 3]])

    def test_an_unknown_fill_is_refused(self):
        with pytest.raises(ValueError, match="cubic"):
            fill_slices(torch.rand(9, 4, 5), self.GIVEN, "cubic")


class TestShare:
    def test_a_share_of_the_people_or_of_the_slices(self):
        held = base(people=10)
        assert len(held.shared(1.0)) == len(held)
        for share in (0.7, 0.5, 0.3):
            assert len(held.shared(share).person.unique()) == 10 * share
            assert len(held.shared(share, of="slices")) == round(120 * share)
        kept = set(held.shared(0.7).person.tolist())
        assert set(held.shared(0.3).person.tolist()) < kept
        assert len(held.shared(0.01).person.unique()) == 1

    @pytest.mark.parametrize(("share", "of"), [(0, "people"), (1.5, "people"), (0.5, "heads")])
    def test_another_share_is_refused(self, share, of):
        with pytest.raises(CaseError, match="above 0, at most 1, of people or slices"):
            base().shared(share, of)


class TestFile:
    def test_it_comes_back_whole_and_is_the_owners_alone(self, tmp_path):
        held, folder = base(), tmp_path / "kb"
        path = held.save(folder)
        assert (folder.stat().st_mode & 0o777, path.stat().st_mode & 0o777) == (0o700, 0o600)
        loaded = KnowledgeBase.load(folder)
        for name in ("embeddings", "person", "slice_index", "position", "sources", "targets"):
            assert torch.equal(getattr(loaded, name), getattr(held, name))
        assert loaded.record == held.record

    def test_a_folder_that_others_can_open_is_told(self, tmp_path, caplog):
        base().save(tmp_path / "kb")
        KnowledgeBase.load(tmp_path / "kb")
        assert not caplog.text
        (tmp_path / "kb").chmod(0o755)
        KnowledgeBase.load(tmp_path / "kb")
        assert "others can open it: chmod 700" in caplog.text

    def test_no_name_stands_in_it(self, tmp_path):
        secret = new_secret()
        held = base(secret=secret)
        assert held.code_of("Doe^Jane") == person_code("Doe^Jane", secret) != person_code("Doe^Jane", new_secret())
        held.save(tmp_path / "kb")
        with np.load(tmp_path / "kb" / FILE_NAME, allow_pickle=False) as file:
            assert all(file[name].dtype.kind in "iuf" for name in file.files if name != "record")

    def test_a_slice_that_is_there_keeps_its_gray_values(self):
        held = base()
        images = held.images(torch.tensor([3, -1]), ("target", "source"))
        torch.testing.assert_close(images[0] * 255, torch.stack([held.targets[3], held.sources[3]]).float())
        assert not images[1].any()

    def test_what_is_no_base_is_told_in_one_sentence(self, tmp_path):
        def refused(folder):
            with pytest.raises(CaseError) as error:
                KnowledgeBase.load(folder)
            assert "\n" not in str(error.value)
            return str(error.value)

        assert "knowledge_base build --dataset_dir MY_PAIRS" in refused(tmp_path)
        path = base().save(tmp_path / "kb")
        content = path.read_bytes()
        for torn in (content[:100], content[: len(content) // 2], b"", b"something else", content[:-40]):
            path.write_bytes(torn)
            assert "torn or damaged" in refused(tmp_path / "kb")
        base(version=99).save(tmp_path / "kb")
        assert "has version 99, not 1" in refused(tmp_path / "kb")
        arrays = {name: getattr(base(), name).numpy()[:0] for name in retrieval._COLUMNS}
        np.savez(path, record=np.array('{"version": 1}'), **arrays)
        assert "is empty" in refused(tmp_path / "kb")
        base(encoder_sha256="00").save(tmp_path / "kb")
        assert "encoder.pt" in refused(tmp_path / "kb")

    def test_a_base_of_other_images_is_refused(self):
        held = base()
        held.check(source_contrast="CT", spacing=(1.5, 1.5, 1.5))
        with pytest.raises(CaseError, match="source contrast CT, and this is FLAIR"):
            held.check(source_contrast="FLAIR")
        with pytest.raises(CaseError, match=r"spacing 1\.5 x 1\.5 x 1\.5, and this is 2 x 2 x 2"):
            held.check(spacing=np.array([2.0, 2.0, 2.0]))


@pytest.mark.parametrize(
    "change",
    [
        {"embeddings": np.full((4, 2), np.nan, np.float32)},
        {"position": np.zeros(3, np.float32)},
        {"sources": np.zeros((4, 2, 2), np.uint16)},
        {"record": np.array("[]")},
    ],
    ids=["not finite", "of another length", "of another type", "a list for a record"],
)
def test_columns_that_do_not_belong_together_are_a_damaged_base(tmp_path, change):
    columns = {
        "embeddings": np.eye(4, 2, dtype=np.float32),
        **{name: np.arange(4) for name in ("person", "subject", "slice_index")},
        "position": np.zeros(4, np.float32),
        **{name: np.zeros((4, 2, 2), np.uint8) for name in ("sources", "targets")},
        "record": np.array(json.dumps({"version": VERSION, "encoder": "pixels"})),
    }
    np.savez(tmp_path / FILE_NAME, **columns)
    assert len(KnowledgeBase.load(tmp_path)) == 4
    np.savez(tmp_path / FILE_NAME, **{**columns, **change})
    with pytest.raises(CaseError, match="torn or damaged"):
        KnowledgeBase.load(tmp_path)
