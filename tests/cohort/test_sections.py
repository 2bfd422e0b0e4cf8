"""Sections of a cohort: which cases are theirs, and what several of them write into one folder."""

import json
import logging
import os

import pytest

from scripts.cohort.failures import Failures
from scripts.cohort.sections import Section, cases_of_section
from scripts.errors import CaseError
from scripts.report.cases import list_failures


def cases_named(names):
    return [{"case": name, "image": f"{name}.nii"} for name in names]


@pytest.mark.parametrize("total", [1, 3, 16])
def test_sections_are_disjoint_complete_and_about_equal(total):
    cases = cases_named(f"sub-{number}" for number in range(800))
    sections = [cases_of_section(cases, f"{number}/{total}") for number in range(1, total + 1)]
    assert sorted(item["case"] for own in sections for item in own) == sorted(item["case"] for item in cases)
    expected = 800 / total
    assert all(abs(len(own) - expected) < 4.5 * expected**0.5 for own in sections)


def test_a_case_stays_in_its_section_whoever_arrives_and_in_whatever_order():
    early, late = cases_named("abcdefgh"), cases_named(["0", *"hgfedcba", "\u00fc", "caf\udce9", "zz"])
    for number in (1, 2, 3):
        of_early = [item["case"] for item in cases_of_section(early, f"{number}/3")]
        of_late = [item["case"] for item in cases_of_section(late, f"{number}/3")]
        assert [case for case in reversed(of_late) if case in "abcdefgh"] == of_early


def test_no_section_is_all_cases():
    assert cases_of_section(cases_named("abc")) == cases_named("abc")


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "3/", "a/b", "-1/3", "1/0", 3, "1/2/3"])
def test_a_section_that_is_not_there_is_refused(text):
    with pytest.raises(CaseError, match=f"section_of is {text}; use K/N with K from 1 to N"):
        cases_of_section([], text)


def test_what_is_logged_says_how_many_are_left_to_others(caplog):
    with caplog.at_level(logging.INFO):
        own = cases_of_section(cases_named("abcdef"), "2/3")
    assert f"Section 2 of 3: {len(own)} of 6 cases." in caplog.text


def test_sections_at_work_in_one_folder_leave_each_other_s_failures_alone(tmp_path):
    """The report shows those of all; one that begins again forgets its own."""
    first, second, third = (Failures(tmp_path, f"{number}/3") for number in (1, 2, 3))
    for failures in (first, second, third):
        failures.begin()
    first.note(4, "d", "d.nii", "not read")
    second.note(1, "b", "b.nii", "not saved")
    first.note(0, "a", "a.nii", "empty")
    assert [failure["case"] for failure in list_failures(tmp_path)] == ["a", "d", "b"]
    with pytest.raises(SystemExit, match=r"^2 of 9 cases failed; .*failures_1_of_3\.json tells why"):
        first.finish(9)
    third.finish(9)
    Failures(tmp_path, "1/3").begin()
    assert [failure["case"] for failure in list_failures(tmp_path)] == ["b"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["failures_2_of_3.json"]


def test_failures_are_those_of_the_latest_run(tmp_path):
    """A run of all cases forgets its sections', sections a run of all, and those of another number of sections."""
    Failures(tmp_path, "1/3").note(0, "a", "", "of three")
    Failures(tmp_path, "2/2").begin()
    assert list_failures(tmp_path) == []
    Failures(tmp_path, "1/2").note(0, "a", "", "of two")
    Failures(tmp_path).begin()
    assert list_failures(tmp_path) == []
    Failures(tmp_path).note(0, "a", "", "of all")
    assert json.loads((tmp_path / "failures.json").read_text())[0]["reason"] == "of all"
    Failures(tmp_path, "1/3").begin()
    assert list_failures(tmp_path) == []


def test_a_run_that_begins_in_the_same_folder_does_not_take_away_what_failed_in_another(tmp_path):
    """Its last words say where the reasons stand."""
    first, second = Failures(tmp_path), Failures(tmp_path)
    first.begin()
    first.note(0, "a", "a.nii", "It is cut off.")
    second.begin()
    second.finish(3)
    with pytest.raises(SystemExit, match=r"1 of 2 cases failed; .*failures\.json tells why"):
        first.finish(2)
    assert list_failures(tmp_path) == first.listed


def test_names_of_sections():
    assert str(Section.typed("3/16")) == "3_of_16"


def test_what_killed_runs_of_older_versions_left_is_removed_a_day_later(tmp_path):
    """Their folders do not say whose they are: a fresh one may be at work, and others' are none of ours."""
    for name in (".case_t1.partial", ".case_flair.partial", ".fresh_t1.partial", ".others.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "case_t1.nii.gz").touch()
        os.utime(tmp_path / name, None if "fresh" in name else (0, 0))
    Failures(tmp_path).begin()
    assert sorted(os.listdir(tmp_path)) == [".fresh_t1.partial", ".others.partial"]
