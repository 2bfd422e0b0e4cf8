"""A worker: the main job's own workflow on one case at a time, with the network loaded once."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from ..cohort.cases import pending_case
from ..errors import CaseError, machine_error, reason
from ..workflow import started_workflow
from .store import Store, StoredCases

__all__ = ["CaseWorker", "main_steps"]


class CaseWorker:
    """What a worker of the cluster does; Ray makes an actor of it.

    Args:
        words: the command line of the main job, without `dataset_dir` where that is a store, but with
            what follows from its files.
        folder: where it was typed.
        mark: a file in the output folder by which a worker knows that it is the same on its machine.
        stored: the cases of a store, where `dataset_dir` is one.
    """

    def __init__(self, words: Sequence[str], folder: str, mark: str, stored: Store | None = None) -> None:
        self.words = list(words)
        self.folder = folder
        self.mark = Path(mark)
        self.stored = None if stored is None else StoredCases(stored)

    def load(self) -> None:
        """Make the parts of the workflow, the network with its weights among them.

        Raises:
            CaseError: what would end the main job before its first case.
        """
        try:
            self._load()
        except Exception as error:
            # the error of a cause does not reach the other side
            raise machine_error(error) or CaseError(reason(error)) from None

    def _load(self) -> None:
        if not (Path(self.folder).is_dir() and self.mark.is_file()):
            raise CaseError(
                f"The machine {socket.gethostname()} does not see {self.mark.parent} of this one; put the bundle, "
                "dataset_dir and output_dir on a disk that all machines share, under the same path."
            )
        os.chdir(self.folder)
        more = [] if self.stored is None else [f"--dataset_dir={self.stored.dataset_dir}"]
        workflow = started_workflow([*self.words, *more], **{"cases": [], "inferer#inferer#progress": False})
        for step in main_steps(workflow.parser["run"])[1:]:
            workflow.parser.get_parsed_content(f"run#{step}")
        self.evaluator = workflow.parser.get_parsed_content("evaluator")
        self.overwrite = workflow.parser.get_parsed_content("overwrite")

    def translate(self, item: dict[str, Any]) -> dict[str, Any] | None:
        """Translate a case, unless it is done.

        Args:
            item: `{"case": CASE, "image": path}` and more, as the config's `cases` has it.

        Returns:
            See `CaseEvaluator.translate_case`, and how records name the source as `file`; None where it was done.

        Raises:
            MachineError: what the machine refuses every case.
        """
        with nullcontext(item) if self.stored is None else self.stored.at_hand(item) as here:
            pending = pending_case(here, self.evaluator.saver, self.overwrite)
            if pending is None:
                return None
            return {**self.evaluator.translate_case(pending), "file": self.evaluator.source_name(here)}

    def close(self) -> None:
        """Remove what is left of downloads."""
        if self.stored is not None:
            self.stored.close()


def main_steps(run: Any) -> range:
    """The steps of the main job that come before the cases, by their places in `run` of the config.

    Raises:
        CaseError: the config files are not those of the main job, or have steps after the cases.
    """
    if isinstance(run, list) and "$@evaluator.run()" in run[:-1]:
        after = run[run.index("$@evaluator.run()") + 1 :]
        names = ", ".join(str(step.get("_target_", step) if isinstance(step, Mapping) else step) for step in after)
        raise CaseError(
            f"The config files have steps after the cases ({names}), which a cluster does not do: leave them out here "
            "(as configs/bids.json), then type the main job with them, which does not translate finished cases again."
        )
    if not isinstance(run, list) or run[-1:] != ["$@evaluator.run()"]:
        raise CaseError("config_file is not the main job, whose cases can be shared out; give configs/inference.json.")
    return range(len(run) - 1)
