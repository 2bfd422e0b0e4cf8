"""Sections of a cohort: each of several runs, such as the jobs of an array, does its own cases."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import CaseError

__all__ = ["Section", "cases_of_section"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Section:
    """One of several sections of a cohort.

    Attributes:
        number: from 1 to `total`.
        total: sections there are.
    """

    number: int
    total: int

    @classmethod
    def typed(cls, text: Any) -> Section | None:
        """The section of a text such as "3/16"; None for None.

        Raises:
            CaseError: it is no such text, or there is no section of that number.
        """
        if text is None:
            return None
        found = re.fullmatch(r"(\d+)/(\d+)", str(text).strip())
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise CaseError(f"section_of is {text}; use K/N with K from 1 to N, for example 3/16.")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.number}_of_{self.total}"

    def has(self, case: str) -> bool:
        """Whether a case is of this section, told by the digest of CASE.

        A case stays in its section whatever other cases there are: jobs of an array begin at different times, and
        scans that arrive meanwhile would shift the places in a list.
        """
        digest = hashlib.sha256(case.encode("utf-8", "surrogateescape")).digest()
        return int.from_bytes(digest, "big") % self.total == self.number - 1


def cases_of_section(cases: Sequence[dict[str, Any]], section: Any = None) -> list[dict[str, Any]]:
    """The cases (`{"case": CASE, ...}`) of a section such as "3/16", in their order; all of them for None.

    Raises:
        CaseError: see `Section.typed`.
    """
    wanted = Section.typed(section)
    if wanted is None:
        return list(cases)
    own = [item for item in cases if wanted.has(item["case"])]
    logger.info(f"Section {wanted.number} of {wanted.total}: {len(own)} of {len(cases)} cases.")
    return own
