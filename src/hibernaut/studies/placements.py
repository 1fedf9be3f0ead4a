# SPDX-License-Identifier: GPL-2.0-or-later
"""The placements of the allocator's own pages, and what `remap` comes to in each: the table of the 6.13-rc question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from hibernaut.exploration.layouts import Side, Structure
from hibernaut.studies.judge import Studied
from hibernaut.studies.trials import crashed_on_lists, is_torn, tore_lists

__all__ = ["ALLOCATOR", "Placement", "placements"]

ALLOCATOR = (Structure.MEM_MAP, Structure.ZONE, Structure.PCP, Structure.FREE)
"""The structures that are the allocator's own."""


@dataclass
class Placement:
    """The machines with a large entry to split that have the allocator's own pages on the same sides, by `remap`.

    Attributes:
        machines: their number.
        table_lost: how many of them lose a page table in some run.
        lists_torn: how many have torn free lists in some run.
        crashes: how many crash of these once resumed, by the reason.
    """

    machines: int = 0
    table_lost: int = 0
    lists_torn: int = 0
    crashes: dict[str, int] = field(default_factory=dict)


def placements(studied: Sequence[Studied]) -> dict[tuple[Side, ...], Placement]:
    """Return the placements in the study "6.13-rc", by the sides of the structures in `ALLOCATOR`."""
    found: dict[tuple[Side, ...], Placement] = {}
    for one in studied:
        if one.study.name != "6.13-rc":
            continue
        for trial in one.trials():
            if trial.name != "remap" or not trial.splits:
                continue
            row = found.setdefault(tuple(trial.machine.where[each] for each in ALLOCATOR), Placement())
            row.machines += 1
            row.table_lost += trial.ends(is_torn)
            row.lists_torn += trial.ends(tore_lists)
            for crash in {ending.outcome.crash for ending in trial.way.endings if crashed_on_lists(ending.outcome)}:
                row.crashes[crash] = row.crashes.get(crash, 0) + 1
    return found
