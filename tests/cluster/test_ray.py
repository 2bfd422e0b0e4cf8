"""A cohort on a Ray cluster of two machines, which this test starts: what is lost is made again, as if it had not been.

In the environment of requirements-ray.txt (with pytest and pytest-xdist): python -m pytest -n 0 -m ray tests/cluster
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
import torch
from monai.bundle import run as run_bundle

from scripts import cluster
from scripts.errors import CaseError
from tests.cohort.test_killed import write_case
from tests.killing import contents

pytestmark = pytest.mark.ray
NUMBER = 12
DEADLY = "c007"
PATIENCE = 400  # seconds; the machine may be busy


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """A folder of small heads, of which one is bad and one in a subfolder."""
    folder = tmp_path_factory.mktemp("cases")
    (folder / "sub").mkdir()
    for number in range(NUMBER):
        write_case(folder / ("sub" if number == NUMBER - 1 else "") / f"c{number:03d}.nii.gz", number)
    return folder


@pytest.fixture(scope="module")
def settings(cases, tmp_path_factory):
    """The main job's options for a network that returns the source."""
    torch.save({}, weights := tmp_path_factory.mktemp("weights") / "echo.pt")
    return {
        "dataset_dir": str(cases),
        "network_def": {"_target_": "tests.phantoms.EchoNetwork", "slab_size": 3},
        "weights": str(weights),
        "style_key": "none",
        **{"spacing": [12.0] * 3, "size_multiple": 1, "num_inference_steps": 2, "detail": 1.0, "sampler": "ancestral"},
        **{"dtype": "float32", "skull_strip": "none", "check_hounsfield": False, "lesion_watch": False},
        **{"device": "cpu"},
    }


@pytest.fixture(scope="module")
def config(bundle_root):
    return str(bundle_root / "configs" / "inference.json")


@pytest.fixture(scope="module")
def of_one_machine(config, settings, tmp_path_factory):
    """What the main job writes."""
    out = tmp_path_factory.mktemp("one") / "out"
    hook = sys.excepthook
    with pytest.raises(SystemExit) as ended:
        run_bundle(config_file=config, logging_file=False, **settings, output_dir=str(out))
    sys.excepthook = hook
    assert ended.value.code.startswith(f"1 of {NUMBER} cases failed")
    return contents(out)


@pytest.fixture(scope="module")
def two_machines():
    """A cluster of two machines with a core each."""
    environment = {"RAY_worker_niceness": "0", "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        from ray.cluster_utils import Cluster

        machines = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        machines.add_node(num_cpus=1)
        yield machines
        machines.shutdown()


@pytest.fixture
def translate(config, settings, two_machines, tmp_path, monkeypatch):
    """The main job on the cluster; gives its last words, None where all went well."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    (tmp_path / "processes").mkdir()

    def function(deadly=None, retries=3, **more):
        load = {"_target_": "tests.cluster.parts.WatchedLoad", "keys": "image", "folder": str(tmp_path / "processes")}
        options = {**settings, "output_dir": str(tmp_path / "out"), "load": {**load, "deadly": deadly}, **more}
        try:
            cluster.run(config, options, two_machines.address, retries=retries)
        except SystemExit as end:
            return end.code
        return None

    return function


def when_done(folder, number):
    """Wait until so many cases are done."""
    until = time.monotonic() + PATIENCE
    while len(list(folder.glob("*_t1.json"))) < number and time.monotonic() < until:
        time.sleep(0.02)


def kill_a_worker(folder, number):
    """Kill one that is at work, once so many cases are done."""
    when_done(folder / "out", number)
    for path in (folder / "processes").iterdir():
        try:
            os.kill(int(path.name), signal.SIGKILL)
        except ProcessLookupError:
            continue
        return


def in_background(function, *arguments):
    thread = threading.Thread(target=function, args=arguments, daemon=True)
    thread.start()
    return thread


def test_a_killed_worker_costs_nothing_and_a_deadly_case_itself(translate, tmp_path, of_one_machine):
    """The other files are bit for bit those of one machine, failures.json is with the deadly case in its place."""
    killing = in_background(kill_a_worker, tmp_path, 2)
    said = translate(deadly=DEADLY, retries=1)
    killing.join()
    assert said == f"2 of {NUMBER} cases failed; {tmp_path / 'out' / 'failures.json'} tells why."
    made = contents(tmp_path / "out")
    failures = json.loads(made.pop("failures.json"))
    assert made == {n: b for n, b in of_one_machine.items() if n != "failures.json" and not n.startswith(DEADLY)}
    assert [failures[0]] == json.loads(of_one_machine["failures.json"])
    assert failures[1] == {
        "case": DEADLY,
        "file": f"{DEADLY}.nii.gz",
        "reason": "Its worker was lost 2 times, as when the memory runs out; translate it with fewer workers at a "
        "time (workers), or on one machine.",
    }
    assert len(list((tmp_path / "processes").iterdir())) >= 4  # two at first, one for each that was lost


def test_a_driver_that_is_killed_goes_on_where_it_was(
    translate, config, settings, two_machines, tmp_path, of_one_machine
):
    """Nothing is made twice."""
    options = [f"--{name}={value}" for name, value in {**settings, "output_dir": tmp_path / "out"}.items()]
    command = [sys.executable, "-m", "scripts", "cluster", "--config_file", config, "--cluster", two_machines.address]
    with open(tmp_path / "log", "w") as log:
        root = Path(config).parents[1]
        driver = subprocess.Popen([*command, *options], stdout=log, stderr=log, cwd=root, start_new_session=True)
    when_done(tmp_path / "out", 3)
    driver.kill()
    driver.wait()
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*_t1.json")}
    assert 3 <= len(made) < NUMBER - 1, (tmp_path / "log").read_text()
    assert translate().startswith(f"1 of {NUMBER} cases failed")
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert contents(tmp_path / "out") == of_one_machine


def test_scans_of_a_store_are_downloaded_and_removed(translate, cases, tmp_path, of_one_machine):
    assert translate(dataset_dir=f"file://{cases}").startswith(f"1 of {NUMBER} cases failed")
    assert contents(tmp_path / "out") == of_one_machine
    assert list(Path(tempfile.gettempdir()).glob(".*.partial.brain_ct_to_mri_store")) == []


def test_what_would_end_the_main_job_ends_this_one_with_the_same_sentence(translate):
    with pytest.raises(CaseError, match=r"nowhere\.pt"):
        translate(weights="nowhere.pt")


def test_a_machine_that_is_lost_takes_no_case_with_it(translate, two_machines, tmp_path, of_one_machine):
    """The last test: one machine is left."""

    def lose_a_machine():
        when_done(tmp_path / "out", 3)
        two_machines.remove_node(next(iter(two_machines.worker_nodes)))

    losing = in_background(lose_a_machine)
    assert translate().startswith(f"1 of {NUMBER} cases failed")
    losing.join()
    assert contents(tmp_path / "out") == of_one_machine
