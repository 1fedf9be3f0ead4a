# SPDX-License-Identifier: GPL-2.0-or-later
"""Cases of runs that the explorer found, arranged in a guest: its kernel must do what the model did."""

from __future__ import annotations

from pathlib import Path

from hibernaut.exploration.families import Family
from hibernaut.exploration.layouts import RegionKind, Side
from hibernaut.exploration.operations import hibernation
from hibernaut.exploration.plan import layouts
from hibernaut.exploration.play import FamilyMachine, Written, play
from hibernaut.lab.cases.case import CaseFailed
from hibernaut.lab.confirm import confirm
from hibernaut.lab.laboratory import Lab
from hibernaut.lab.prediction import predict
from hibernaut.linux.rules import LINES

__all__ = ["as_explored", "with_allocator"]


def as_explored(region: RegionKind, tables: Side, choices: tuple[int, ...], lab: Lab, folder: Path) -> str:
    """Confirm one of the explorer's counterexamples."""
    return _confirmed(Family(regions=(1,), kinds=(region,), tables=(tables,)), choices, lab, folder)


def with_allocator(pages: Side, lists: Side, lab: Lab, folder: Path) -> str:
    """Confirm a run with the allocator's own pages elsewhere, and pages allocated on the resumed machine."""
    family = Family(
        regions=(1,),
        kinds=(RegionKind.BLOCK,),
        tables=(Side.BELOW,),
        mem_map=(pages,),
        zone=(pages,),
        free=(pages,),
        pcp=(lists,),
    )
    return _confirmed(family, (), lab, folder, allocations_after=family.free_pages)


def _confirmed(family: Family, choices: tuple[int, ...], lab: Lab, folder: Path, *, allocations_after: int = 0) -> str:
    """Save the only machine of a family by Remap, and confirm the run on a guest arranged like it."""
    (unit,) = layouts(family)
    operations = hibernation("remap", allocations_after)
    played = play(Written(FamilyMachine(family, unit), LINES[0].line, operations, choices))
    found = confirm(lab, predict(played), folder)
    if not found.agrees:
        raise CaseFailed(f"the model's outcome is {played.outcome}; {found.seen}")
    return found.seen
