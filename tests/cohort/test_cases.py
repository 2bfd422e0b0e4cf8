"""A cohort: what runs beside what, failures of each phase, an interrupt; with stages that wait for each other."""

import json
import logging
import os
import threading
import time

import pytest
import torch
from ignite.engine import Events
from monai.engines import IterationEvents
from monai.transforms import Compose

from scripts.cohort import failures as failures_module
from scripts.cohort.cases import CaseEvaluator, pending_cases
from scripts.cohort.loading import CaseDataset, CaseLoader, Overlap
from scripts.errors import CaseError, MachineError
from scripts.outputs.saver import SaveSyntheticd

PATIENCE = 20  # seconds after which a stage that waits for another one gives up


class Stages:
    """Loading, sampling and saving of a tiny cohort, each a function of the case's number; `seen` is what happened."""

    def __init__(self, number, folder, overlap="all", load=None, sample=None, save=None, handlers=()):
        self.seen, self.load, self.sample, self.save = [], load, sample, save
        self.saver = SaveSyntheticd(output_dir=folder / "out")
        dataset = CaseDataset(
            [{"case": f"c{i}", "image": str(folder / f"c{i}.nii")} for i in range(number)],
            Compose([self._load, lambda item: {**item, "prepared": True}]),
        )
        self.evaluator = CaseEvaluator(
            saver=self.saver,
            num_cases=number,
            overlap=overlap,
            device="cpu",
            val_data_loader=CaseLoader(dataset, overlap=overlap, batch_size=1),
            network=torch.nn.Identity(),
            inferer=self._sample,
            postprocessing=Compose([self._save]),
            val_handlers=handlers,
        )

    def _stage(self, name, number, function):
        self.seen.append(f"{name} {number}")
        if function is not None:
            function(number)
        self.seen.append(f"{name} {number} ends")

    def _load(self, item):
        number = int(item["case"][1:])
        self._stage("load", number, self.load)
        return {**item, "image": torch.full((1, 2, 2, 2), float(number))}

    def _sample(self, image, network):
        self._stage("sample", int(image.max()), self.sample)
        return image + 0.5

    def _save(self, item):
        assert item["prepared"]
        number = int(item["case"][1:])
        assert item["pred"].shape == (1, 2, 2, 2)
        assert (item["pred"] == number + 0.5).all()
        self._stage("save", number, self.save)
        return {**item, "pred": item["pred"] * 0}

    def before(self, first, second):
        return self.seen.index(first) < self.seen.index(second)

    def failures(self):
        return json.loads((self.saver.output_dir / "failures.json").read_text())


def test_a_case_is_sampled_while_the_next_is_loaded_and_the_last_is_saved(tmp_path):
    """The three stages of neighbouring cases wait for each other: one at a time, none would ever go on."""
    meet = threading.Barrier(3)

    def at(number_of_meeting):
        return lambda number: meet.wait(PATIENCE) if number == number_of_meeting else None

    stages = Stages(4, tmp_path, load=at(2), sample=at(1), save=at(0))
    stages.evaluator.run()
    assert stages.evaluator.failures == []
    assert not meet.broken


def test_no_more_than_three_cases_are_held(tmp_path):
    """Loading does not run ahead of the sampling, nor sampling of the saving."""
    stages = Stages(5, tmp_path, save=lambda number: time.sleep(0.05))
    stages.evaluator.run()
    for i in range(2, 5):
        assert stages.before(f"sample {i - 2} ends", f"load {i}")
        assert stages.before(f"save {i - 2} ends", f"sample {i}")
    assert stages.seen[-1] == "save 4 ends"


def test_saving_alone_overlaps_the_loading_of_the_next_case(tmp_path):
    """The saving of a case and the loading of the next wait for each other; nothing runs beside the sampling."""
    meet = threading.Barrier(2)

    def load(number):
        if number > 0:
            meet.wait(PATIENCE)

    def save(number):
        if number < 3:
            meet.wait(PATIENCE)
        time.sleep(0.05)

    stages = Stages(4, tmp_path, "saving", load=load, save=save)
    stages.evaluator.run()
    assert stages.evaluator.failures == []
    for i in range(3):
        assert stages.before(f"sample {i} ends", f"load {i + 1}")
        assert stages.before(f"save {i} ends", f"sample {i + 1}")
    assert stages.seen[-1] == "save 3 ends"


def test_without_overlap_one_case_follows_the_other(tmp_path):
    stages = Stages(3, tmp_path, overlap="none")
    stages.evaluator.run()
    expected = [f"{name} {i}{end}" for i in range(3) for name in ("load", "sample", "save") for end in ("", " ends")]
    assert stages.seen == expected


@pytest.mark.parametrize("overlap", list(Overlap))
def test_each_phase_fails_for_its_case_alone(tmp_path, overlap, caplog):
    def fail(*numbers):
        def function(number):
            if number in numbers:
                raise CaseError(f"case {number} is bad.")

        return function

    stages = Stages(6, tmp_path, overlap, load=fail(1), sample=fail(2), save=fail(0, 5))
    with caplog.at_level(logging.INFO):
        stages.evaluator.run()
        with pytest.raises(SystemExit, match="4 of 6 cases failed"):
            stages.evaluator.finish()
    expected = [{"case": f"c{i}", "file": f"c{i}.nii", "reason": f"case {i} is bad."} for i in (0, 1, 2, 5)]
    assert stages.failures() == expected
    assert stages.evaluator.failures == expected
    assert {"save 3 ends", "save 4 ends"} <= set(stages.seen)
    assert sorted(r.getMessage() for r in caplog.records if "failed" in r.getMessage()) == [
        f"c{i} failed: case {i} is bad." for i in (0, 1, 2, 5)
    ]
    assert "Translated 2 of 6" in caplog.text
    assert stages.evaluator._bar.n == 6


def test_an_unknown_overlap_is_refused(tmp_path):
    with pytest.raises(CaseError, match="overlap is some; use one of none, saving, all"):
        Stages(1, tmp_path, "some")


def test_failures_stand_in_the_order_of_the_cases(tmp_path):
    """Also where a later case failed first: the saving of the first waits until the loading of the second failed."""
    noted = threading.Event()

    def load(number):
        if number == 1:
            raise CaseError("not loaded")

    def sample(number):
        if number == 2 and [f["case"] for f in stages.failures()] == ["c1"]:
            noted.set()

    def save(number):
        if number == 0:
            assert noted.wait(PATIENCE)
            raise CaseError("not saved")

    stages = Stages(3, tmp_path, load=load, sample=sample, save=save)
    stages.evaluator.run()
    assert [(f["case"], f["reason"]) for f in stages.failures()] == [("c0", "not saved"), ("c1", "not loaded")]


def test_what_is_no_case_s_own_ends_the_run(tmp_path, monkeypatch):
    """failures.json cannot be written, in the thread that saves."""

    def full(index, why):
        raise OSError("disk full")

    def save(number):
        raise CaseError("not saved")

    stages = Stages(3, tmp_path, save=save)
    monkeypatch.setattr(stages.evaluator, "_note", full)
    with pytest.raises(OSError, match="disk full"):
        stages.evaluator.run()


def test_a_full_disk_ends_the_run_and_the_case_is_named(tmp_path):
    """Every next case would be computed for nothing."""

    def save(number):
        if number == 1:
            raise MachineError("The disk is full; free space.")

    stages = Stages(4, tmp_path, "none", save=save)
    with pytest.raises(MachineError, match="disk is full"):
        stages.evaluator.run()
    assert "save 0 ends" in stages.seen
    assert "load 2" not in stages.seen
    assert stages.failures() == [{"case": "c1", "file": "c1.nii", "reason": "The disk is full; free space."}]


def test_a_machine_that_fails_while_a_case_is_sampled_ends_the_run(tmp_path):
    def sample(number):
        raise MachineError("Another process ended.")

    stages = Stages(3, tmp_path, "none", sample=sample)
    with pytest.raises(MachineError, match="Another process"):
        stages.evaluator.run()
    assert "load 1" not in stages.seen


def test_a_full_disk_on_which_not_even_failures_json_fits_is_told_all_the_same(tmp_path, monkeypatch):
    def save(number):
        raise MachineError("The disk is full; free space.")

    def full(path, content):
        raise MachineError("no room for failures.json")

    monkeypatch.setattr(failures_module, "write_whole", full)
    with pytest.raises(MachineError, match="The disk is full; free space"):
        Stages(2, tmp_path, save=save).evaluator.run()


def test_an_output_folder_that_cannot_be_written_is_told_before_the_first_case(tmp_path):
    stages = Stages(2, tmp_path)
    stages.saver.output_dir.write_text("a file")
    with pytest.raises(MachineError, match="give another folder"):
        stages.evaluator.run()
    assert stages.seen == []


def test_what_makes_one_case_s_record_unreadable_is_that_case_s_alone(tmp_path, monkeypatch):
    """Whether it is done cannot be told; the others are not asked to pay for it."""
    saver = SaveSyntheticd(output_dir=tmp_path)
    cases = [{"case": name, "image": str(tmp_path / f"{name}.nii")} for name in ("a", "b", "c")]

    def is_done(item):
        if item["case"] == "b":
            raise PermissionError(13, "Permission denied")
        return item["case"] == "a"

    monkeypatch.setattr(saver, "is_done", is_done)
    assert [item["case"] for item in pending_cases(cases, saver, overwrite=False)] == ["b", "c"]
    assert pending_cases(cases, saver, overwrite=True) == cases


def test_a_result_of_something_else_is_replaced_with_a_word(tmp_path, caplog):
    """As where two data sets have the same CASE names: the second would take the place of the first."""
    saver = SaveSyntheticd(output_dir=tmp_path)
    cases = [{"case": name, "image": str(tmp_path / f"{name}.nii")} for name in ("a", "b")]
    (tmp_path / "b_t1.json").write_text('{"source": {"file": "b.nii", "sha256": "of another"}}')
    assert pending_cases(cases, saver, overwrite=False) == cases
    assert "1 of 2 cases have a result of another source" in caplog.text
    caplog.clear()
    assert pending_cases(cases, saver, overwrite=True) == cases
    assert pending_cases(cases[:1], saver, overwrite=False) == cases[:1]
    assert caplog.text == ""


def test_a_name_that_no_file_can_have_fails_before_it_is_computed(tmp_path):
    saver = SaveSyntheticd(output_dir=tmp_path / "not" / "there")
    fits = "a" * (os.pathconf(tmp_path, "PC_NAME_MAX") - len("_t1_uncertainty.nii.gz"))
    cases = [{"case": case, "image": "x.nii"} for case in (fits, fits + "a", "\u00e9" * 200, "short")]
    failing = [item.get("failure") for item in pending_cases(cases, saver, overwrite=False)]
    assert [bool(why) for why in failing] == [False, True, True, False]
    assert "shorten these names" in failing[1]


def test_a_case_whose_source_cannot_be_named_any_more_is_noted(tmp_path, monkeypatch):
    def load(number):
        raise CaseError("gone")

    stages = Stages(2, tmp_path, load=load)
    monkeypatch.setattr(stages.saver, "source_name", lambda source: 1 / 0)
    stages.evaluator.run()
    assert [failure["file"] for failure in stages.failures()] == ["", ""]


def test_an_interrupt_stops_loading_and_lets_saving_end(tmp_path):
    """The user interrupts while one case is saved, one sampled and one loaded."""
    under_way, interrupted = threading.Barrier(3), threading.Event()

    def load(number):
        if number == 2:
            until = time.monotonic() + PATIENCE
            try:
                under_way.wait(PATIENCE)
                while time.monotonic() < until:
                    time.sleep(0.01)
            except KeyboardInterrupt:
                interrupted.set()
                raise

    def sample(number):
        if number == 1:
            under_way.wait(PATIENCE)
            raise KeyboardInterrupt

    def save(number):
        under_way.wait(PATIENCE)
        assert interrupted.wait(PATIENCE)

    stages = Stages(4, tmp_path, load=load, sample=sample, save=save)
    with pytest.raises(KeyboardInterrupt):
        stages.evaluator.run()
    assert "save 0 ends" in stages.seen
    assert not {"load 3", "save 1"} & set(stages.seen)
    assert stages.evaluator.failures == []


class Watch:
    """A handler that keeps what it sees at the end of an iteration, and whether all was saved at the epoch's."""

    def __init__(self):
        self.cases, self.predictions, self.events, self.saved = [], [], [], None

    def attach(self, engine):
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.look)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.end)
        for event in (IterationEvents.FORWARD_COMPLETED, IterationEvents.MODEL_COMPLETED, Events.COMPLETED):
            engine.add_event_handler(event, lambda _, name=event.name: self.events.append(name))

    def look(self, engine):
        self.cases.append(engine.state.batch[0]["case"])
        self.predictions.append(float(engine.state.output[0]["pred"].max()))

    def end(self, engine):
        self.saved = engine.seen.count("save 2 ends")


@pytest.mark.parametrize("overlap", Overlap)
def test_an_error_before_the_first_case_is_the_one_that_is_told(tmp_path, overlap):
    class Broken:
        def attach(self, engine):
            engine.add_event_handler(Events.STARTED, self)

        def __call__(self, engine):
            raise ValueError("no server")

    with pytest.raises(ValueError, match="no server"):
        Stages(2, tmp_path, overlap=overlap, handlers=[Broken()]).evaluator.run()


def test_threads_that_are_started_later_have_the_cores_they_had(tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        Stages(2, tmp_path).evaluator.run()
        found = []
        thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert found == [torch.get_num_threads()] == [2]
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("overlap", "predictions"), [("all", [0.5, 1.5, 2.5]), ("saving", [0.5, 1.5, 2.5]), ("none", [0, 0, 0])]
)
def test_handlers_see_each_case_and_the_end_after_the_last_saving(tmp_path, overlap, predictions):
    watch = Watch()
    stages = Stages(3, tmp_path, overlap, save=lambda number: time.sleep(0.05), handlers=[watch])
    stages.evaluator.seen = stages.seen
    stages.evaluator.run()
    assert watch.cases == ["c0", "c1", "c2"]
    assert watch.predictions == predictions
    assert watch.saved == 1
    assert watch.events == 3 * ["FORWARD_COMPLETED", "MODEL_COMPLETED"] + ["COMPLETED"]


def test_seconds_of_each_phase(tmp_path):
    """Each stage sleeps for another time; the run is at least the sampling, and at most all of them."""
    slow = {name: (lambda number, t=t: time.sleep(t)) for name, t in (("load", 0.02), ("sample", 0.03), ("save", 0.05))}
    stages = Stages(3, tmp_path, **slow)
    stages.evaluator.run()
    seconds = stages.evaluator.seconds
    assert set(seconds) == {"loading", "preprocessing", "sampling", "postprocessing", "run"}
    assert seconds["loading"] >= 0.06
    assert seconds["sampling"] >= 0.09
    assert seconds["postprocessing"] >= 0.15
    assert seconds["run"] >= seconds["sampling"]
