# SPDX-License-Identifier: GPL-2.0-or-later
"""Sweeps: every machine by every way, added up."""

from __future__ import annotations

from pathlib import Path

from hibernaut.exploration.families import Family
from hibernaut.exploration.layouts import RegionKind, Side
from hibernaut.exploration.plan import Sweep
from hibernaut.exploration.run import Outcome
from hibernaut.exploration.search import Bounds
from hibernaut.exploration.sweep import run_sweep
from hibernaut.exploration.tally import Tally


def test_remap_and_fixmap_on_the_smallest_family(whole: tuple[Path, dict[str, Tally]]) -> None:
    """A 2 MiB region: Remap crashes if the allocation fails, else tears the image (table above) or leaks (below)."""
    remap, fixmap = whole[1]["remap"], whole[1]["fixmap"]
    assert (remap.machines, remap.runs, fixmap.machines, fixmap.runs) == (5, 7, 5, 5)
    found = {
        (outcome.status, outcome.warned, outcome.violated[:1]): best.regions
        for outcome, (_, _, best) in remap.endings.items()
    }
    assert found == {
        ("saved", False, ()): (),
        ("saved", False, ("tables-closed",)): ("2m:above",),
        ("saved", False, ("allocator-sound",)): ("2m:below",),
        ("died", True, ("no-fault",)): ("2m:above",),
        ("died", False, ("no-fault",)): ("none:above",),
    }
    assert set(fixmap.endings) == {Outcome("saved")}


def test_bounds_are_part_of_what_comes_out() -> None:
    """Without failing allocations Remap does not crash; a search that is cut reports it."""
    family = Family(regions=(1,), kinds=(RegionKind.BLOCK,), tables=(Side.BELOW,))
    calm = run_sweep(Sweep(family, ("remap",), bounds=Bounds(failures=0)), processes=1)["remap"]
    assert {outcome.status for outcome in calm.endings} == {"saved"}
    assert (calm.cut, calm.where) == (0, None)
    cut = run_sweep(Sweep(family, ("remap",), bounds=Bounds(states=3)), processes=1)["remap"]
    assert cut.cut == 1
    assert cut.where is not None
    assert cut.where.startswith("after 3 states")
