"""What failed in a run: failures.json in its output folder, and the program's last words."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

from ..files import check_folder, write_whole, writing_into
from ..outputs.saver import remove_old_working_folders
from .sections import Section

__all__ = ["Failures"]

logger = logging.getLogger(__name__)

OF_ONE_RUN = "failures.json"
OF_SECTIONS = "failures_*_of_*.json"


class Failures:
    """The cases that failed, written down while the run goes on; there is no file where none did.

    A run of all cases writes `failures.json`, one of a section `failures_3_of_16.json`: sections that are at work in
    one folder at once do not touch each other's.

    Args:
        folder: the output folder.
        section: such as "3/16"; None for a run of all cases.
    """

    def __init__(self, folder: Path, section: Any = None) -> None:
        self.folder = folder
        self.section = Section.typed(section)
        self._listed: dict[int, dict[str, str]] = {}

    @property
    def file(self) -> Path:
        """Where they are written."""
        return self.folder / (OF_ONE_RUN if self.section is None else f"failures_{self.section}.json")

    @property
    def listed(self) -> list[dict[str, str]]:
        """Case, file and reason of each case that failed, in the order of the cases."""
        return [self._listed[index] for index in sorted(self._listed)]

    def begin(self) -> None:
        """Forget those of an earlier run, in the folder too; other sections of as many keep theirs.

        What killed runs left in the folder is removed.

        Raises:
            MachineError: the folder cannot be made or written.
        """
        self._listed.clear()
        check_folder(self.folder)
        remove_old_working_folders(self.folder)
        with writing_into(self.folder):
            for file in (self.folder / OF_ONE_RUN, *self.folder.glob(OF_SECTIONS)):
                if self.section is None or file == self.file or not file.stem.endswith(f"_of_{self.section.total}"):
                    file.unlink(missing_ok=True)

    def note(self, index: int, case: str, file: str, why: str) -> None:
        """Write down why a case failed.

        Args:
            index: its place among the cases.
            case: CASE.
            file: how records name its source.
            why: the reason, in one sentence.
        """
        self._listed[index] = {"case": case, "file": file, "reason": why}
        self._write()
        logger.error(f"{case} failed: {why}")

    def _write(self) -> None:
        write_whole(self.file, json.dumps(self.listed, indent=2) + "\n")

    def finish(self, num_cases: int) -> None:
        """Say where the outputs are; where cases failed, end the program with status 1 and a sentence."""
        folder = self.folder.resolve()
        logger.info(f"Translated {num_cases - len(self._listed)} of {num_cases}; the outputs are in {folder}")
        if self._listed:
            if not self.file.is_file():  # another run that began in this folder meanwhile took it for an old one
                self._write()
            sys.exit(f"{len(self._listed)} of {num_cases} cases failed; {folder / self.file.name} tells why.")
