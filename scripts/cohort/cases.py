"""The cases of an inference run: each fails alone and is not done twice; saving overlaps other work."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from typing import Any

from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator
from monai.engines.utils import engine_apply_transform
from monai.transforms import Compose
from monai.utils import CommonKeys
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ..errors import CaseError, MachineError, machine_error, reason
from ..outputs.saver import SaveSyntheticd
from .failures import Failures
from .loading import STAMPS, Overlap, check_unchanged, timed
from .threads import worker_thread

__all__ = ["CaseEvaluator", "pending_case", "pending_cases"]

logger = logging.getLogger(__name__)


def pending_cases(cases: Sequence[dict[str, str]], saver: SaveSyntheticd, overwrite: bool) -> list[dict[str, str]]:
    """The cases that `saver` has not saved before with the same settings; all of them with `overwrite`.

    One whose files could not have their names is among them with the reason as its `failure`.
    """
    checked = (pending_case(item, saver, overwrite) for item in cases)
    pending = [item for item in checked if item is not None]
    if len(pending) < len(cases):
        logger.info(f"{len(cases) - len(pending)} of {len(cases)} cases are done already (overwrite does them again).")
    if replaced := 0 if overwrite else sum("failure" not in item and saver.has_record(item) for item in pending):
        logger.warning(
            f"{replaced} of {len(cases)} cases have a result of another source, other weights, settings or version, or "
            "not all of its files: it is replaced. To keep it, end this and give another output_dir."
        )
    return pending


def pending_case(item: dict[str, str], saver: SaveSyntheticd, overwrite: bool) -> dict[str, str] | None:
    """A case as it is among the `pending_cases`; None where it is not."""
    if why := saver.name_problem(item["case"]):
        item = {**item, "failure": why}
    return item if overwrite or not _is_done(item, saver) else None


def _is_done(item: dict[str, str], saver: SaveSyntheticd) -> bool:
    """Whether a case is done; one of which that cannot be told is translated, and fails by itself if it must."""
    try:
        return "failure" not in item and saver.is_done(item)
    except Exception as error:
        logger.warning(f"Whether {item['case']} is done cannot be told, so it is translated again: {reason(error)}")
        return False


class CaseEvaluator(SupervisedEvaluator):
    """MONAI's evaluator for cases that stand alone: one that fails is noted, and the others go on.

    The postprocessing, which ends with saving, runs in a thread. Handlers of an iteration therefore see the case as it
    was sampled; those of the epoch's end come after the last saving. With the overlap "none" they see the case
    postprocessed.

    Args:
        saver: where the outputs go, and `Failures`.
        num_cases: cases there are, those done before included; for the last line.
        overlap: see `Overlap`.
        section: of the cohort that these cases are, such as "3/16"; None where they are all.
        kwargs: of `SupervisedEvaluator`, with a `CaseLoader` of one `CaseDataset` item at a time.

    Raises:
        CaseError: another overlap; in `run`, an output folder that cannot be written, before the first case, or what
            the machine refuses every case, such as on a full disk.

    Attributes:
        seconds: taken so far by all cases: "loading", "preprocessing" (after loading), "sampling", "postprocessing",
            and "run" from the first to the last.
    """

    def __init__(
        self,
        saver: SaveSyntheticd,
        num_cases: int,
        overlap: str = Overlap.NONE,
        section: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.saver = saver
        self.num_cases = num_cases
        self.overlap = Overlap(overlap)
        self.cases = self.data_loader.dataset.data
        self.seconds = self.data_loader.dataset.seconds
        self._failures = Failures(saver.output_dir, section)
        self._lock = threading.Lock()
        self._waiting: Future | None = None

    def _register_postprocessing(self, posttrans: Compose) -> None:
        # before the handlers of the epoch's end, which are registered later
        self._postprocessing = posttrans
        self.add_event_handler(Events.EPOCH_COMPLETED, lambda _: self._wait())

    @property
    def failures(self) -> list[dict[str, str]]:
        """Case, file and reason of each case that failed, in the order of the cases."""
        return self._failures.listed

    def run(self, global_epoch: int = 1) -> None:
        """Translate every case of the loader; raises nothing for a single case."""
        self._failures.begin()
        self._waiting = None
        if len(self.data_loader) == 0:
            return
        with (
            logging_redirect_tqdm(),
            tqdm(total=len(self.data_loader), desc="cases", unit="case") as self._bar,
            _saving_thread() as self._thread,  # also after an interrupt, what is being saved is saved
            closing(self.data_loader),
            timed(self.seconds, "run"),
        ):
            super().run(global_epoch)

    def translate_case(self, item: dict[str, str]) -> dict[str, Any]:
        """Translate one case without the loader; `run` does the same to each of its cases.

        For an engine that hands out cases itself. It neither writes `failures.json` nor looks for files made before.

        Args:
            item: `{"case": CASE, "image": path}`, the path of a volume or the paths of a DICOM series.

        Returns:
            `case`, `seconds` taken, and `failure`, the reason in one sentence, where it failed.

        Raises:
            MachineError: what the machine refuses every case, such as on a full disk; nothing else.
        """
        start = time.perf_counter()
        try:
            batch, output = self._sample(self.data_loader.collate_fn([self.data_loader.dataset.prepare(item)]))
            with _saving_thread() as thread:
                thread.submit(self._postprocess, batch, output).result()
        except Exception as error:
            if (refused := machine_error(error)) is not None:
                raise refused from None
            failure = {"failure": reason(error)}
        else:
            failure = {}
        return {"case": item["case"], "seconds": time.perf_counter() - start, **failure}

    def _iteration(self, engine: Engine, batchdata: Mapping[str, Any]) -> Any:
        """One case: sample it and hand it over to be saved, or note why not."""
        self._bar.set_postfix_str(batchdata["case"][0])
        index = self.state.iteration - 1
        engine.state.output = {}
        if self.overlap == Overlap.SAVING:
            self._wait()
        try:
            batch, output = self._sample(batchdata)
        except MachineError:  # such as of a process that shared the sampling and is gone
            raise
        except Exception as error:
            self._close(index, reason(error))
        else:
            self._hand_over(index, batch, output)
        return engine.state.output

    def _sample(self, batchdata: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The case of a batch and what the network made of it.

        Raises:
            CaseError: the case has failed before.
        """
        if "failure" in batchdata:
            raise CaseError(batchdata["failure"][0])
        with timed(self.seconds, "sampling"):
            self.state.batch = batchdata
            super()._iteration(self, batchdata)
            (batch,), (output,) = self.state.batch, self.state.output
            # a copy from a GPU waits for it; the next case must not be queued there first
            output[CommonKeys.PRED] = output[CommonKeys.PRED].cpu()
        batch["batch_size_used"] = getattr(self.inferer, "batch_size_used", None)
        return batch, output

    def _hand_over(self, index: int, batch: dict[str, Any], output: dict[str, Any]) -> None:
        self._wait()
        if self.overlap == Overlap.NONE:  # in the thread too: rounding depends on the number of OpenMP threads
            self._thread.submit(self._finish, index, batch, output).result()
        else:
            self._waiting = self._thread.submit(self._finish, index, dict(batch), dict(output))

    def _wait(self) -> None:
        """Until the case handed over last is done; raises what is no single case's, such as a full disk."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.result()

    def _finish(self, index: int, batch: dict[str, Any], output: dict[str, Any]) -> None:
        """Postprocess and save a sampled case, or note why not; what is in every case's way ends the run."""
        try:
            self._postprocess(batch, output)
        except Exception as error:
            if (refused := machine_error(error)) is not None:
                with contextlib.suppress(OSError):  # it is to be written to the same disk
                    self._close(index, reason(error))
                raise refused from None
            self._close(index, reason(error))
        else:
            self._close(index)

    def _postprocess(self, batch: dict[str, Any], output: dict[str, Any]) -> None:
        """Take a sampled case back to its source's grid and save it.

        Raises:
            CaseError: see `check_unchanged`; what the postprocessing raises.
        """
        if STAMPS in batch:
            check_unchanged(batch[STAMPS], batch["case"])
        with timed(self.seconds, "postprocessing"):
            engine_apply_transform(batch, output, self._postprocessing)

    def _close(self, index: int, why: str | None = None) -> None:
        """Count a case; note it where it failed."""
        with self._lock:
            if why is not None:
                self._note(index, why)
            self._bar.update()

    def _note(self, index: int, why: str) -> None:
        item = self.cases[index]
        self._failures.note(index, item["case"], self.source_name(item), why)

    def source_name(self, item: dict[str, str]) -> str:
        """How records name the source of a case; empty where that cannot be told any more."""
        try:
            return self.saver.source_name(item["image"])
        except Exception:  # it may not be there any more
            return ""

    def finish(self) -> None:
        """Say where the outputs are; where cases failed, end the program with status 1 and a sentence."""
        self._failures.finish(self.num_cases)


def _saving_thread() -> AbstractContextManager[ThreadPoolExecutor]:
    """A thread for what comes after the sampling; at the end it has done what it was given.

    It has one OpenMP thread: a second team changes how those of the sampling wait for each other, which made it 15 %
    slower on two cores.
    """
    return worker_thread(1)
