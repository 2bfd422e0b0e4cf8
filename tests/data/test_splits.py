"""Nobody is on two sides, and sides do not change when people join."""

from collections import Counter

import pytest

from scripts.data.splits import one_person_each, split_people

CROWD = {f"person{number}": None for number in range(2000)}


def test_fractions_hold_on_average_and_the_seed_draws_anew():
    first, second = (split_people(CROWD, 0.1, 0.2, seed) for seed in (0, 1))
    for sections in (first, second):
        count = Counter(sections.values())
        assert count["test"] / len(CROWD) == pytest.approx(0.2, abs=0.03)
        assert count["validation"] / len(CROWD) == pytest.approx(0.1, abs=0.02)
    assert sum(first[name] == "test" == second[name] for name in CROWD) < 0.06 * len(CROWD)


def test_nobody_changes_sides_when_people_join():
    half = dict(list(CROWD.items())[::2])
    before, after = split_people(half), split_people(CROWD)
    assert all(before[name] == after[name] for name in half)


@pytest.mark.parametrize("count", range(3, 12))
@pytest.mark.parametrize("seed", range(5))
def test_small_sets_have_somebody_in_every_section_that_is_wanted(count, seed):
    people = {f"p{number}": None for number in range(count)}
    assert set(split_people(people, 0.1, 0.2, seed).values()) == {"training", "validation", "test"}
    assert set(split_people(people, 0.0, 0.3, seed).values()) == {"training", "test"}
    assert set(split_people(people, 0.0, 0.0, seed).values()) == {"training"}


@pytest.mark.parametrize("seed", range(20))
def test_given_sides_are_kept(seed):
    people = {"anna": "test", "bert": "training", "cleo": "training", "dora": None}
    sections = split_people(people, 0.1, 0.2, seed)
    assert {name: sections[name] for name in ("anna", "bert", "cleo")} == {
        "anna": "test",
        "bert": "training",
        "cleo": "training",
    }
    # dora alone can be moved, and the validation is what nobody else is in
    assert sections["dora"] == "validation"


def test_one_or_two_people_are_the_training():
    for seed in range(10):
        assert split_people({"anna": None, "bert": "test"}, 0.1, 0.8, seed) == {"anna": "training", "bert": "test"}


def test_all_given_stays_as_it_is():
    people = dict.fromkeys(("anna", "bert", "cleo"), "training")
    assert split_people(people, 0.1, 0.2) == people


def test_equal_data_make_one_person_also_through_others():
    subjects = {
        "a": ("anna", ["ct1", "t1"]),
        "b": ("bert", ["ct2", "t2"]),
        "c": ("cleo", ["ct2", "t1"]),
        "d": ("dora", ["ct4", "t4"]),
        "d2": ("dora", ["ct5", "t5"]),
    }
    assert one_person_each(subjects) == {"a": "anna", "b": "anna", "c": "anna", "d": "dora", "d2": "dora"}
