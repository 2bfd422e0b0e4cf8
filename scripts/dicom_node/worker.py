"""The side of the node that translates: one finished study at a time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from ..dicom.headers import read_headers
from ..dicom.identities import patients
from ..errors import CaseError
from . import StoppedError
from .arrivals import Arrivals
from .instance import read_uids
from .spool import Spool

logger = logging.getLogger(__name__)

Translate = Callable[[Path, Path], list[Path]]
"""(folder of a study, an empty folder to work in) -> folders with one series of DICOM files each; see `MainJob`."""


class Worker:
    """Translates the studies that have arrived.

    Args:
        spool: where studies are, and where results go.
        arrivals: tells which study is finished.
        translate: see `Translate`; raises CaseError where a study cannot be translated, StoppedError when it is
            stopped.
    """

    def __init__(self, spool: Spool, arrivals: Arrivals, translate: Translate) -> None:
        self.spool = spool
        self.arrivals = arrivals
        self.translate = translate
        for study in spool.due():
            arrivals.note(study)

    def step(self) -> bool:
        """Translate one finished study; False where there is none."""
        study = self.arrivals.take_finished()
        if study is None:
            return False
        try:
            self._translate(study)
        except StoppedError:
            raise
        except Exception:
            self.arrivals.note(study)  # such as a full disk
            raise
        return True

    def _translate(self, study: str) -> None:
        if self.spool.settled(study):  # its last instance was noted after a translation had seen it
            return
        folder, state = self.spool.received(study), self.spool.state(study)
        instances = sorted(folder.glob("*.dcm"))
        study_uid = read_uids(instances[0]).study_uid
        logger.info(f"Study {study} ({study_uid}), {len(instances)} instances: translating.")
        start, why = time.monotonic(), None
        try:
            self._refuse_remains(study)
            _refuse_several_patients(instances)
            series = self.translate(folder, self.spool.begin(study))
        except CaseError as error:
            why = str(error)
        if self.spool.state(study) != state:  # which the main job takes for a failure where an instance came again
            logger.info(f"Study {study}: more of it came meanwhile; it will be translated again.")
            self.spool.end(study)
            return
        if why is not None:
            self.spool.fail(study, state, study_uid, why)
            logger.error(f"Study {study} failed: {why}")
            return
        made = [read_uids(file).instance_uid for folder in series for file in sorted(folder.iterdir())]
        self.spool.finish(study, state, series, made)
        logger.info(f"Study {study}: translated in {time.monotonic() - start:.0f} s, {len(made)} instances to deliver.")

    def _refuse_remains(self, study: str) -> None:
        if missing := self.spool.missing(study):
            raise CaseError(
                f"More of the study came after its result had been delivered and {missing} of its instances had been "
                "removed; send the whole study again."
            )


def _refuse_several_patients(instances: Iterable[Path]) -> None:
    """Nothing may come of a study that an archive would file under somebody else."""
    if (count := len(patients(read_headers(instances)))) > 1:
        raise CaseError(
            f"The images of the study name {count} patients; correct them at the sender, and send the study of each "
            "under a UID of its own."
        )
