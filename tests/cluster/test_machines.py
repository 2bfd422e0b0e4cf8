"""What is asked of a cluster, without one; test_ray.py has one."""

import sys

import pytest

from scripts import cluster
from scripts.cluster.machines import Machines, _room
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
