"""The main job as a process of its own, which never outlives the node.

Run as a module (`python -m scripts.dicom_node.job DESCRIPTOR run ...`) it is `python -m monai.bundle run ...` that ends
when the other end of the pipe DESCRIPTOR is closed: whoever started it then is no more, and a new node may translate
the same study.
"""

from __future__ import annotations

import json
import os
import re
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import TERMINATED, CaseError
from ..workflow import bundle_root
from . import StoppedError

GRACE_S = 10.0


@dataclass(frozen=True)
class MainJob:
    """`python -m monai.bundle run` on a study.

    Attributes:
        config_files: names in the bundle's folder, or absolute paths.
        options: settings that follow on the command line.
        timeout_s: after so many seconds it is ended, and the study has failed.
        stop: ends it too.
    """

    config_files: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    timeout_s: float = 7200.0
    stop: threading.Event = field(default_factory=threading.Event)

    def arguments(self, **folders: Path) -> list[str]:
        """What stands after `python -m monai.bundle`."""
        words = ["run", "--config_file", str(list(self.config_files))]
        for name, value in {**self.options, **folders}.items():
            words += [f"--{name}", str(value)]
        return words

    def __call__(self, study: Path, working: Path) -> list[Path]:
        """Translate a study.

        Args:
            study: folder of DICOM files.
            working: an empty folder.

        Returns:
            The folders of the DICOM series that came of it, in `working`.

        Raises:
            CaseError: none came; the main job's last sentence tells why.
            StoppedError: `stop` was set; the translation has been ended.
        """
        output, log = working / "output", working / "log.txt"
        status = self._run(self.arguments(dataset_dir=study, output_dir=output), log)
        if status is None:
            raise CaseError(f"The translation took more than {self.timeout_s:g} s and was ended; raise timeout_s.")
        if status != 0:
            raise CaseError(_why(output / "failures.json", log, status))
        series = _series_of(output)
        if not series:
            raise CaseError("The main job left no DICOM series; add configs/dicom.json to config_file.")
        return series

    def _run(self, arguments: list[str], log: Path) -> int | None:
        """Exit status of the main job, None where the time was over; its output goes into a file."""
        lifeline, held = os.pipe()
        command = [sys.executable, "-m", "scripts.dicom_node.job", str(lifeline), *arguments]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([bundle_root(), os.environ.get("PYTHONPATH", "")])}
        try:
            with open(log, "wb") as file:
                process = subprocess.Popen(
                    command,
                    cwd=bundle_root(),
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    pass_fds=[lifeline],
                    start_new_session=True,  # a group that can be ended with all its children; Ctrl-C is the node's
                    umask=0o077,
                )
            return self._wait(process)
        finally:
            os.close(lifeline)
            os.close(held)

    def _wait(self, process: subprocess.Popen) -> int | None:
        deadline = time.monotonic() + self.timeout_s
        try:
            while time.monotonic() < deadline:
                if self.stop.is_set():
                    raise StoppedError
                try:
                    return process.wait(0.1)
                except subprocess.TimeoutExpired:
                    continue
            return None
        finally:
            _end(process)


def _end(process: subprocess.Popen) -> None:
    """End a process and its children where it still runs."""
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, signal_number)
            try:
                process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                continue


def _series_of(output: Path) -> list[Path]:
    """The DICOM series that the JSON files of an output folder speak of, whatever contrast they have."""
    records = {path: json.loads(path.read_text(encoding="utf-8")) for path in sorted(output.glob("*.json"))}
    folders = [path.with_name(f"{path.stem}_dicom") for path, record in records.items() if "dicom" in record]
    return [folder for folder in folders if any(folder.glob("*.dcm"))]


def _why(failures: Path, log: Path, status: int) -> str:
    """Why the main job failed, without a foreign message: those may quote names."""
    if failures.exists():
        return " ".join(failure["reason"] for failure in json.loads(failures.read_text(encoding="utf-8")))
    if status < 0 or status == TERMINATED:
        ended_by = signal.SIGTERM if status == TERMINATED else signal.Signals(-status)
        memory = "; the memory may have run out" if ended_by == signal.SIGKILL else ""
        return f"The translation was ended by {ended_by.name}{memory}."
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    if not lines:
        return f"The main job ended with status {status} and said nothing; run it on the study to see more."
    if any(line.startswith("Traceback (most recent call last)") for line in lines):
        kind = re.match(r"[\w.]+", lines[-1])
        return f"Unforeseen {kind.group() if kind else 'error'} in the main job; run that on the study to see more."
    return lines[-1]


def _end_with_node(lifeline: int) -> None:
    """Wait until the pipe is closed, then end this process and its children."""
    os.read(lifeline, 1)
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    threading.Thread(target=_end_with_node, args=(int(sys.argv.pop(1)),), daemon=True).start()
    runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
