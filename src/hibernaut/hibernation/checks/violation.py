# SPDX-License-Identifier: GPL-2.0-or-later
"""The violation: a finding of a check."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hibernaut.memory.page import Pfns

__all__ = ["Violation", "violations_at"]


@dataclass(frozen=True)
class Violation:
    """A run of page frames for which an invariant does not hold.

    Attributes:
        invariant: name of the invariant.
        what: the defect, a clause.
        start_pfn: page frame number of the first page concerned.
        nr_pages: number of pages concerned.
    """

    invariant: str
    what: str
    start_pfn: int
    nr_pages: int

    def __str__(self) -> str:
        extent = "1 page" if self.nr_pages == 1 else f"{self.nr_pages} pages"
        return f"{self.invariant}: {self.what}: {extent} from frame {self.start_pfn:#x}"


def violations_at(invariant: str, what: str, pfns: Pfns | Sequence[int]) -> tuple[Violation, ...]:
    """Return one violation for each run of neighbours among ascending page frame numbers."""
    found: list[Violation] = []
    start = end = 0
    for pfn in pfns.tolist() if isinstance(pfns, np.ndarray) else pfns:
        if pfn != end or start == end:
            if start != end:
                found.append(Violation(invariant, what, start, end - start))
            start = pfn
        end = pfn + 1
    if start != end:
        found.append(Violation(invariant, what, start, end - start))
    return tuple(found)
