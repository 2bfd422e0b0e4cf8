"""The command: what was typed becomes workers and cases, and the outcomes the files that one machine would leave."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ..cohort.failures import Failures
from ..files import remove_remains, temporary_folder, temporary_name
from ..options import config_files, whole_number
from ..outputs.record import SourceRecorder
from ..workflow import started_workflow
from .machines import Machines
from .store import Store, is_store
from .worker import main_steps

__all__ = ["cluster", "run"]

logger = logging.getLogger(__name__)


def cluster(
    config_file: str | Sequence[str],
    cluster: str = "auto",
    workers: int | None = None,
    cpus: int | None = None,
    gpus: float | None = None,
    retries: int = 3,
    **options: str,
) -> None:
    """Translate a cohort on the machines of a Ray cluster.

    The outputs, failures.json and the exit status are those of the main job, and so are its options, which may follow.

    Args:
        config_file: of the main job, as it takes them.
        cluster: auto for the cluster that this machine belongs to, HOST:PORT or ray://HOST:PORT for another one, or a
            number of workers on this machine alone.
        workers: workers at most; as many as the cluster has room for if not given.
        cpus: cores of a worker; by default 1 on a cluster, else an equal share of this machine's.
        gpus: of a worker, such as 0.5; by default 1 on a cluster that has some, else an equal share.
        retries: how often a case is given to another worker when its own was lost.
        options: of the main job, such as dataset_dir and output_dir.
    """
    run(config_file, options, cluster, workers=workers, cpus=cpus, gpus=gpus, retries=retries)


def run(
    config_file: str | Sequence[str],
    overrides: Mapping[str, Any] | None = None,
    cluster: str | int = "auto",
    *,
    workers: int | None = None,
    cpus: int | None = None,
    gpus: float | None = None,
    retries: int = 3,
) -> None:
    """The main job on a Ray cluster; see `cluster`.

    Args:
        config_file: paths of config files of the main job, later ones over earlier ones.
        overrides: settings by name, as text typed for them or as values.
        cluster: see there, and for the others.

    Raises:
        CaseError: Ray or the cluster is not there, or what would end the main job; where MONAI has wrapped it, it is
            the cause of a RuntimeError.
        SystemExit: cases failed.
    """
    machines = Machines(cluster, workers, cpus, gpus)
    machines.check()
    whole_number("retries", retries, least=0)
    options = {"config_file": config_files(config_file), **(overrides or {})}
    url = str(options.get("dataset_dir", ""))
    with temporary_folder() as folder:
        store = Store(url, str(folder)) if is_store(url) else None
        if store is not None:
            options["dataset_dir"] = store.list()
        Cohort(options, store).translate(machines, retries)


class Cohort:
    """The cases of the main job, handed to workers and counted here.

    Args:
        options: of the main job, its config files among them.
        store: where the files of the cases are, if that is no folder.

    Raises:
        CaseError: see `run`.
    """

    def __init__(self, options: Mapping[str, Any], store: Store | None = None) -> None:
        self.options = dict(options)
        self.store = store
        # whether a device is there is a question to the workers
        workflow = started_workflow(_words(self.options, "device"))
        main_steps(workflow.parser["run"])
        setting = workflow.parser.get_parsed_content
        self.cases = setting("own_cases")
        self.ct_window = setting("ct_window")  # of a prepared set; a worker has no list of its own
        self.sources = SourceRecorder(Path(str(setting("dataset_dir"))).expanduser(), setting("keep_names"))
        self.failures = Failures(Path(str(setting("output_dir"))).expanduser().absolute(), setting("section_of"))
        self.done_before = 0

    def translate(self, machines: Machines, retries: int) -> None:
        """Translate what is not done yet, and end as the main job does.

        Raises:
            CaseError: see `run`.
            SystemExit: cases failed.
        """
        self.failures.begin()
        try:
            with _mark(self.failures.folder) as mark, machines.pool(self._of_worker(mark), retries) as pool:
                self._count(pool.translate(self.cases), mark)
        finally:
            remove_remains(self.failures.folder)  # of workers that were killed
        if self.done_before:
            logger.info(f"{self.done_before} of {len(self.cases)} cases were done already (overwrite does them again).")
        self.failures.finish(len(self.cases))

    def _of_worker(self, mark: Path) -> tuple[Any, ...]:
        """The arguments of `CaseWorker`."""
        if self.store is None:
            return _words(self.options, "section_of"), os.getcwd(), str(mark), None
        store = Store(self.store.url, self.store.listed_at)  # without the open connection
        words = _words({**self.options, "ct_window": self.ct_window}, "section_of", "dataset_dir")
        return words, os.getcwd(), str(mark), store

    def _count(self, outcomes: Iterable[tuple[int, dict[str, Any] | None]], mark: Path) -> None:
        start, ends, at_work = time.perf_counter(), [], 0.0
        with logging_redirect_tqdm(), tqdm(total=len(self.cases), desc="cases", unit="case") as bar:
            for index, outcome in outcomes:
                ends.append(time.perf_counter() - start)
                at_work += (outcome or {}).get("seconds", 0.0)
                self._note(index, outcome)
                mark.touch()  # what is not touched for a day is taken for a dead program's
                bar.update()
        if ends:
            logger.info(
                f"The first case was done after {ends[0]:.1f} s, the last after {ends[-1]:.1f} s; the workers spent "
                f"{at_work:.1f} s on cases, {1000 * at_work / len(ends):.0f} ms on each."
            )

    def _note(self, index: int, outcome: Mapping[str, Any] | None) -> None:
        """Count what came of a case, and write it down where it failed."""
        item = self.cases[index]
        if outcome is None:
            self.done_before += 1
        elif "failure" in outcome:
            file = outcome["file"] if "file" in outcome else self._source_name(item)
            self.failures.note(index, item["case"], file, outcome["failure"])

    def _source_name(self, item: Mapping[str, Any]) -> str:
        """How records name the source of a case whose worker cannot tell any more."""
        try:
            return self.sources.name(item["image"])
        except Exception:
            return ""


@contextmanager
def _mark(folder: Path) -> Iterator[Path]:
    """Gives a file in the output folder, by which workers know that theirs is the same."""
    mark = temporary_name(folder / "cluster")
    mark.touch()
    try:
        yield mark
    finally:
        mark.unlink(missing_ok=True)


def _words(options: Mapping[str, Any], *without: str) -> list[str]:
    """The main job's command line, without some options."""
    return [f"--{name}={value}" for name, value in options.items() if name not in without]
