"""The container: what docs/containers.md promises of the Dockerfile, .dockerignore and the manifest."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hatchling.builders.wheel import WheelBuilder

BASE = re.compile(r"FROM python:\$\{PYTHON\}( AS \w+)?")


@pytest.fixture(scope="module")
def dockerfile(bundle_root):
    return (bundle_root / "Dockerfile").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(bundle_root):
    return (bundle_root / "docs" / "containers.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def job(page):
    (manifest,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    return yaml.safe_load(manifest)


def test_hadolint_has_no_remark(bundle_root):
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.is_file():
        pytest.skip("hadolint is not installed")
    found = subprocess.run([hadolint, bundle_root / "Dockerfile"], capture_output=True, text=True, check=False)
    assert found.stdout + found.stderr == ""


def test_every_stage_has_the_pinned_base(dockerfile, page):
    (tag,) = re.findall(r"^ARG PYTHON=(.+)$", dockerfile, re.MULTILINE)
    assert re.fullmatch(r"3\.11\.\d+-slim-\w+", tag)
    assert f"`{tag}`" in page
    stages = re.findall(r"^FROM .*$", dockerfile, re.MULTILINE)
    assert len(stages) == 3
    assert all(BASE.fullmatch(stage) for stage in stages)


def test_it_runs_the_command_as_a_user_that_is_not_root(dockerfile, job):
    last = dockerfile.rpartition("FROM ")[2]
    (user,) = re.findall(r"^USER (\d+):\d+$", last, re.MULTILINE)
    assert int(user) == job["spec"]["template"]["spec"]["securityContext"]["runAsUser"] > 0
    assert 'ENTRYPOINT ["brain-ct-to-mri"]' in last
    assert "pip " not in last  # what builds it stays behind


def test_pytorch_is_of_the_tested_version(bundle_root, dockerfile):
    """What the Dockerfile greps is there once, and a constraint for all that is installed after it."""
    found = re.findall(r"^torch==[0-9.]*", (bundle_root / "requirements.txt").read_text(), re.MULTILINE)
    assert len(found) == 1
    assert "'^torch==[0-9.]*' /constraints.txt" in dockerfile
    assert "COPY requirements.txt /constraints.txt" in dockerfile


def test_all_that_the_wheel_is_built_from_gets_into_the_image_and_nothing_else(bundle_root, pyproject):
    lines = (bundle_root / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if not line.startswith("#")]
    assert rules[0] == "*"
    kept = {rule[1:].split("/")[0] for rule in rules if rule.startswith("!")}
    wheel = pyproject.get("tool", {}).get("hatch", {}).get("build", {}).get("targets", {}).get("wheel", {})
    wanted = {*wheel.get("only-include", ["configs", "docs", "models", "scripts"]), *wheel.get("force-include", {})}
    assert {name for name in wanted if not name.startswith("requirements")} <= kept
    assert "requirements*.txt" in kept
    assert not kept & {"output", "runs", "dist", "eval", "tests", ".git"}
    assert {"**/*.nii*", "**/*.dcm"} <= set(rules)  # scans, wherever in those folders they lie


def test_what_lies_beside_the_bundles_files_does_not_get_into_the_wheel_and_so_not_into_the_image(bundle_root):
    """Neither a scan of any name nor a result nor weights, wherever in the folders of the wheel.

    A page, a config and a program beside the bundle's own get in, and what has the name of a file of the bundle.
    """
    wheel = WheelBuilder(str(bundle_root)).config
    strangers = [
        *("docs/ct.nii.gz", "docs/CT.NII.GZ", "docs/sample/ct.nii.gz", "docs/ct.mgz", "docs/ct.nrrd", "docs/ct.mha"),
        *("docs/IM0001", "docs/study/1.2.840.1", "docs/study/ct.DCM", "scripts/IM0001", "scripts/report/IM0001"),
        *("docs/ct_t1.png", "docs/ct_t1.json", "models/ct_t1.json", "brain_ct_to_mri/ct_t1.json", "scripts/ct_t1.json"),
        *("models/mine.pt", "models/runs/model.pt", "scripts/runs/model.pt", "configs/IM0001", "scripts/.env"),
        *("models/my_style_keys.json", "models/anna_source_keys.json", "models/my_uncertainty.json"),
        *("scripts/report/niivue/ct.nii.gz", "scripts/report/templates/IM0001", "scripts/report/templates/anna.html"),
        *("scripts/runs/x.py", "docs/study/notes.md"),
    ]
    assert [path for path in strangers if not wheel.path_is_excluded(path)] == []


def test_all_of_the_bundles_own_files_get_into_the_wheel(bundle_root):
    git = ["git", "ls-files", "-z", "brain_ct_to_mri", "configs", "docs", "models", "scripts"]
    listed = subprocess.run(git, cwd=bundle_root, capture_output=True, text=True, check=False)
    if not listed.stdout:
        pytest.skip("this is no git checkout")
    wheel = WheelBuilder(str(bundle_root)).config
    assert [path for path in listed.stdout.split("\0") if path and wheel.path_is_excluded(path)] == []


def test_the_job_fails_for_good_only_by_its_own_exit_status(job):
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    pod = job["spec"]["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # as a podFailurePolicy asks for
    fails, ignored = job["spec"]["podFailurePolicy"]["rules"]
    assert fails["onExitCodes"]["containerName"] == pod["containers"][0]["name"]
    assert 1 in fails["onExitCodes"]["values"]
    assert 137 not in fails["onExitCodes"]["values"]  # killed, for memory say, and worth another try
    assert ignored["action"] == "Ignore"
    assert ignored["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]  # required before 1.35


def test_the_job_cannot_write_but_where_it_should(job):
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert [*container["args"], "/tmp"] == list(mounts)
    assert mounts["/in"]["readOnly"] is True
    assert {mount["name"] for mount in mounts.values()} == {volume["name"] for volume in pod["volumes"]}


def test_the_job_asks_for_what_it_may_use(job):
    (container,) = job["spec"]["template"]["spec"]["containers"]
    resources = container["resources"]
    assert resources["requests"]["cpu"] == resources["limits"]["cpu"]
    (threads,) = container["env"]
    assert threads["name"] == "OMP_NUM_THREADS"
    assert threads["valueFrom"]["resourceFieldRef"]["resource"] == "limits.cpu"
