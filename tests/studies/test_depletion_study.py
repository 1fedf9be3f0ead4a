# SPDX-License-Identifier: GPL-2.0-or-later
"""The study of depletion: its number against two other counts, and against allocators that count otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hibernaut.exploration.families import Family
from hibernaut.exploration.layouts import RegionKind
from hibernaut.exploration.one_machine import explore_layout
from hibernaut.exploration.operations import operations_of
from hibernaut.exploration.plan import layouts
from hibernaut.exploration.run import Run
from hibernaut.hibernation.depletion import deplete_in_copy, served_pages
from hibernaut.kernel.reserves import CpuRefill, MemoryReserves, ZoneReserve
from hibernaut.linux.build import build_machine
from hibernaut.linux.environment import Environment, Kind, Replay
from hibernaut.linux.machine import Machine
from hibernaut.linux.mmzone import PCP_LIST, ZONE_NR_FREE_PAGES
from hibernaut.linux.page_alloc import BuddyAllocator
from hibernaut.memory.memo import Memo
from hibernaut.studies.claims import CLAIMS, Claim
from hibernaut.studies.questions import FEW_PAGES, MOST_SPLITS, STUDIES
from hibernaut.studies.trials import Trial, pages_served

STUDY = next(study for study in STUDIES if study.name == "depletion")
OURS = [claim for claim in CLAIMS if STUDY.name in claim.studies]
SMALL = replace(STUDY.sweep.family, regions=(1, 2), kinds=(RegionKind.BLOCK, RegionKind.GIB))


def zone_of(free: int, mark: int, batch: int) -> ZoneReserve:
    """Return a zone with these numbers, as `audit` would read them in a real kernel's memory."""
    return ZoneReserve(
        name="Normal",
        node=0,
        present_pages=1 << 20,
        spanned_pages=1 << 20,
        free_pages=free,
        min_pages=mark,
        boost_room_pages=0,
        unboosted_pages=free,
        protection_pages=0,
        for_others_pages=0,
        low_pages=mark,
        high_pages=mark,
        per_cpu_pages=0,
        refill=CpuRefill(batch),
        stat_threshold=0,
        serves_kernel=True,
    )


def zone_in(machine: Machine) -> ZoneReserve:
    """Return the zone of a simulated machine, by the bytes of its memory."""
    allocator = machine.allocator
    assert isinstance(allocator, BuddyAllocator)
    words = [allocator.places.zone + ZONE_NR_FREE_PAGES, allocator.places.wmark_min, allocator.places.pcps[0] + 8]
    free, mark, limits = (machine.memory.read_u64(paddr) or 0 for paddr in words)
    return zone_of(free, mark, limits >> 32)


@given(free=st.integers(0, 300), mark=st.integers(0, 310), batch=st.integers(1, 80))
def test_the_number_of_the_claims_is_that_of_audit(free: int, mark: int, batch: int) -> None:
    """`pages_served` divides, `served_pages` refills: the same number; so do pages taken one at a time."""
    left, listed, got = free, 0, 0
    while left > mark:
        if not listed:
            listed = min(batch, left)
            left -= listed
        listed, got = listed - 1, got + 1
    assert pages_served(free, mark, batch) == served_pages([zone_of(free, mark, batch)]) == got


def trials(claim: Claim, family: Family = SMALL) -> Iterator[Trial]:
    """Yield the trials of a claim on a family, executed now, without results from before."""
    sweep = replace(STUDY.sweep, family=family, ways=claim.ways)
    memo = Memo()
    for choices in layouts(family):
        record = explore_layout(sweep, choices, memo)
        chosen = family.choose(Replay(choices))
        for name, way in record.ways.items():
            yield Trial(chosen, name, way)


@pytest.mark.parametrize("claim", OURS, ids=lambda claim: claim.name)
def test_the_claims_hold_on_one_and_two_regions(claim: Claim) -> None:
    """Executed by today's code; every trial has one run, in which nothing is made to fail."""
    found = list(trials(claim))
    assert all(claim.holds(trial) for trial in found)
    assert {trial.way.runs for trial in found} == {1}


def test_the_grid_meets_its_edges() -> None:
    """Machines that serve none of their splits, some, exactly as many as there are, and all but one."""
    family = STUDY.sweep.family
    found = [Trial(family.choose(Replay(choices)), "remap", None) for choices in layouts(family)]  # type: ignore[arg-type]
    spare = {trial.served() - trial.splits for trial in found}
    assert {-1, 0, 1} <= spare
    assert {trial.served() for trial in found} == set(range(FEW_PAGES))
    assert max(trial.splits for trial in found) == MOST_SPLITS == FEW_PAGES - 1


def test_audits_arithmetic_says_what_the_simulated_machine_does() -> None:
    """`deplete_in_copy`, asked of the zone as the copy begins, says for every machine how many splits find a page."""
    for choices in layouts(SMALL):
        chosen = SMALL.choose(Replay(choices))
        machine = build_machine(chosen.layout)
        found = deplete_in_copy(
            MemoryReserves((zone_in(machine),), 0, 0, 0, image_pages=1, reclaimable_pages=0, cached_pages=0)
        )
        run = Run(machine, operations_of(chosen, "remap"))
        run.finish()
        splits = Trial(chosen, "remap", None).splits  # type: ignore[arg-type]
        got = sum(one.pfn is not None for one in run.machine.allocations)
        assert found.least == found.most
        assert got == min(found.most, splits)
        assert found.suffices_for(splits) == (run.status == "saved")


def ignored(self: BuddyAllocator) -> bool:
    """No mark."""
    del self
    return True


def after_the_list(self: BuddyAllocator) -> bool:
    """The mark counts only where the CPU's list is empty."""
    head = self._pcp(0) + PCP_LIST
    return self._kernel.load(head, "test") != head or WATERMARK_OK(self)


def one_page_more(self: BuddyAllocator) -> bool:
    """The last page above the mark is served and the one at the mark too: `>=` in place of `>`."""
    mark = self._kernel.load(self._machine.base + self.places.wmark_min, "test")
    return mark <= self.nr_free_pages


def with_the_list(self: BuddyAllocator) -> bool:
    """Pages on the CPU's list count as free."""
    mark = self._kernel.load(self._machine.base + self.places.wmark_min, "test")
    return mark < self.nr_free_pages + (self._kernel.load(self._pcp(0), "test") >> 32)


def one_by_one(self: BuddyAllocator, count: int, head: int) -> tuple[int, int]:
    """A refill takes one page, whatever the batch."""
    return RMQUEUE_BULK(self, min(count, 1), head)


def not_drained(self: BuddyAllocator, cpu: int | None = None) -> None:
    """Nothing returns to the free lists."""
    del self, cpu


WATERMARK_OK = BuddyAllocator._zone_watermark_ok
RMQUEUE_BULK = BuddyAllocator._rmqueue_bulk
REMAP, ABORT, NO_SPLIT, RESERVE = (claim.name for claim in OURS)


@pytest.mark.parametrize(
    ("method", "mutant", "caught_by"),
    [
        ("_zone_watermark_ok", ignored, {REMAP, ABORT, RESERVE}),
        ("_zone_watermark_ok", after_the_list, {REMAP, ABORT, RESERVE}),
        ("_zone_watermark_ok", one_page_more, {REMAP, ABORT, RESERVE}),
        ("_zone_watermark_ok", with_the_list, {REMAP, ABORT, RESERVE}),
        ("_rmqueue_bulk", one_by_one, {REMAP, ABORT, RESERVE}),
        ("drain_pages", not_drained, {RESERVE}),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_an_allocator_that_counts_otherwise_is_caught(
    method: str, mutant: Callable[..., Any], caught_by: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each mutant of the allocator contradicts exactly the claims that depend on what it changes."""
    monkeypatch.setattr(BuddyAllocator, method, mutant)
    family = replace(SMALL, regions=(2,), kinds=(RegionKind.GIB,))
    caught = {claim.name for claim in OURS if not all(claim.holds(trial) for trial in trials(claim, family))}
    assert caught == caught_by


def test_a_way_that_splits_at_the_mark_is_caught() -> None:
    """The claim of ways that split nothing does not hold for one that does."""
    claim = next(one for one in OURS if one.name == NO_SPLIT)
    family = replace(SMALL, regions=(1,))
    assert not all(claim.holds(trial) for trial in trials(replace(claim, ways=("remap",)), family))


def test_machines_that_share_a_memo_do_not_share_their_marks() -> None:
    """The records of machines with a mark of 0, others and none are the same with one memo as each with its own."""
    families = [replace(SMALL, regions=(2,), batch=(63,), min_mark=marks) for marks in ((0, 9), (), (0,))]
    records: list[list[Any]] = []
    for shared in (Memo(), None):
        records.append([])
        for family in families:
            sweep = replace(STUDY.sweep, family=family, ways=("remap", "reserved:3"))
            records[-1] += [
                explore_layout(sweep, choices, Memo() if shared is None else shared) for choices in layouts(family)
            ]
    assert records[0] == records[1]
    assert len({record.ways["remap"] for record in records[0]}) > 2


def test_nothing_is_asked_at_the_mark() -> None:
    """At the mark the one allocation fails without a question, so that no run is counted twice."""
    family = replace(SMALL, regions=(1,), kinds=(RegionKind.BLOCK,), min_mark=(FEW_PAGES,), batch=(1,))
    chosen = family.choose(Replay([]))
    run = Run(build_machine(chosen.layout, Environment()), operations_of(chosen, "remap"))
    run.finish()
    assert [one.at_mark for one in run.machine.allocations] == [True]
    assert not [one for one in run.machine.environment.schedule if one.kind == Kind.ALLOCATION_FAILS]
    assert run.status == "died"
