"""What is asked of a cluster, without one; test_ray.py has one."""

import sys
import time

import pytest

from scripts import cluster
from scripts.cluster.machines import Machines, _lacking, _room
from scripts.cluster.worker import main_steps
from scripts.errors import CaseError


def test_without_ray_one_sentence_says_what_to_install(monkeypatch, bundle_root):
    monkeypatch.setitem(sys.modules, "ray", None)
    said = r"^Ray is not installed here; pip install 'brain-ct-to-mri\[cluster\]' or -r requirements-ray\.txt$"
    with pytest.raises(CaseError, match=said):
        cluster.run(str(bundle_root / "configs" / "inference.json"), {}, 2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cluster": 0}, "cluster is 0; use a whole number"),
        ({"workers": 0}, "workers is 0; use a whole number"),
        ({"cpus": 0.5}, "cpus is 0.5; use a whole number"),
        ({"gpus": 1.5}, "gpus is 1.5; use a part of one GPU"),
        ({"gpus": -1}, "gpus is -1; use a number of at least 0"),
    ],
)
def test_numbers_that_cannot_be_are_refused(options, said):
    with pytest.raises(CaseError, match=said):
        Machines(**options).check()


def test_cores_and_gpus_of_a_worker():
    """On one machine they are shared out; on a cluster a worker has one of each, where there are GPUs."""
    assert Machines(4)._share({"CPU": 16.0, "GPU": 2.0}) == (4, 0.5)
    assert Machines("4")._share({"CPU": 16.0}) == (4, 0.0)
    assert Machines("auto")._share({"CPU": 64.0, "GPU": 8.0}) == (1, 1.0)
    assert Machines("auto", cpus=2, gpus=0.25)._share({"CPU": 64.0, "GPU": 8.0}) == (2, 0.25)


def test_room_is_counted_machine_by_machine():
    """Two halves of a GPU on different machines are none; a machine that is gone has no room."""
    nodes = [
        {"Alive": True, "Resources": {"CPU": 7.0, "GPU": 1.0}},
        {"Alive": True, "Resources": {"CPU": 8.0}},
        {"Alive": False, "Resources": {"CPU": 8.0, "GPU": 8.0}},
    ]
    assert _room(nodes, 2, 0.0) == 3 + 4
    assert _room(nodes, 2, 0.3) == 3
    assert _room(nodes, 2, 1.0) == 1
    assert _room(nodes, 16, 0.0) == 0


def test_config_files_of_another_job_are_refused():
    assert list(main_steps(["start", "@load_weights", "$@evaluator.run()"])) == [0, 1]
    with pytest.raises(CaseError, match="config_file is not the main job"):
        main_steps(["$@train#trainer.run()"])
    with pytest.raises(CaseError, match=r"steps after the cases \(scripts\.write\), which a cluster does not do"):
        main_steps(["start", "@load_weights", "$@evaluator.run()", {"_target_": "scripts.write"}])


NODES = [{"Alive": True, "Resources": {"CPU": 7.0}}, {"Alive": False, "Resources": {"CPU": 8.0, "GPU": 8.0}}]


@pytest.mark.ray
def test_a_worker_that_fits_on_no_machine_is_told_and_not_waited_for_long(caplog):
    """At once in the log where another machine may join, after a while as the end."""
    from scripts.cluster.pool import Pool

    for joining_s in (0.0, 0.05):
        pool = Pool(None, lambda: _room(NODES, 2, 1.0), 3, lacking=lambda: _lacking(NODES, 2, 1.0), joining_s=joining_s)
        if joining_s:
            pool._check_room()
            assert "the largest has 7 cores and 0 GPUs; waiting 0.05 s for another machine to join" in caplog.text
            time.sleep(joining_s)
        with pytest.raises(CaseError, match=r"^A worker of 2 cores and 1 GPUs fits on no machine .* add a machine"):
            pool._check_room()
