# SPDX-License-Identifier: GPL-2.0-or-later
"""The zone's min mark: an allocation finds nothing unless more pages are free, whatever the CPU's list holds."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hibernaut.errors import HibernautError, OutOfMemory
from hibernaut.linux.build import build_machine
from hibernaut.linux.environment import Environment, FailAllocations
from hibernaut.linux.layout import HoleKind, HoleSpec, Layout
from hibernaut.linux.mmzone import PCP_LIST
from hibernaut.linux.page_alloc import BuddyAllocator
from hibernaut.memory.memo import Memo
from tests.conftest import REPOSITORY
from tests.linux.test_page_alloc import ListModel
from tests.linux.tiny_machine import NR_FREE_PAGES, PCPS, WMARK_MIN, ZONE, built, pcp_lists

RECORDS = REPOSITORY / "tests" / "hibernation" / "depleted_guests.jsonl"
GUESTS = [
    record
    for record in map(json.loads, RECORDS.read_text().splitlines())
    if record["release"].startswith("6.1.") and all(zone["free_pages"] < 20000 for zone in record["in_copy"]["zones"])
]
"""Guests of 6.1, whose allocator is the modelled one, that were short of pages, or nearly: the zones as the copy
begins, and the number of splits that found a page."""

FREE = ((0x431, 0x17), (0x800, 0x10))
FREE_PAGES = 0x27


def served(allocator: BuddyAllocator, most: int = 1 << 20, cpu: int = 0) -> int:
    """Return the number of pages that a CPU gets one by one, at most so many."""
    for number in range(most):
        try:
            allocator.alloc_page(Environment(), "test", cpu)
        except OutOfMemory:
            return number
    return most


class MarkedModel(ListModel):
    """The naive allocator with a mark: the free pages are counted anew each time."""

    mark = 0

    def alloc(self, cpu: int, pick: int) -> int | None:
        """Return the frame that a CPU's allocation gets; None at the mark, with everything as it was."""
        free = sum(len(blocks) << order for order, blocks in enumerate(self.areas))
        return super().alloc(cpu, pick) if free > self.mark else None


STEPS = st.lists(
    st.tuples(st.sampled_from(["alloc", "alloc", "alloc", "free", "drain"]), st.integers(0, 1)), max_size=120
)


@given(mark=st.integers(0, FREE_PAGES + 1), batch=st.sampled_from([1, 3, 7, 63]), steps=STEPS)
def test_it_allocates_as_a_naive_allocator_with_a_mark(mark: int, batch: int, steps: list[tuple[str, int]]) -> None:
    """Two CPUs allocate, free and drain around the mark: the same pages, and the same failures."""
    machine, allocator = built(FREE, batch=batch, high=6 * batch, mark=mark)
    model = MarkedModel(FREE, batch, 6 * batch)
    model.mark = mark
    held: list[int] = []
    for do, cpu in steps:
        if do == "drain":
            allocator.drain_pages(cpu)
            model.drain(cpu)
        elif do == "free" and held:
            pfn = held.pop()
            allocator.free_page(pfn, cpu)
            model.free(pfn, cpu)
        elif do == "alloc":
            expected = model.alloc(cpu, 0)
            if expected is None:
                with pytest.raises(OutOfMemory) as caught:
                    allocator.alloc_page(Environment(), "test", cpu)
                assert caught.value.at_mark
                continue
            held.append(allocator.alloc_page(Environment(), "test", cpu))
            assert held[-1] == expected
    assert pcp_lists(machine) == model.pcps


def test_pages_on_the_cpus_list_are_of_no_use_at_the_mark() -> None:
    """A refill takes the zone to its mark: one page is served, six stay on the list, and another CPU gets none."""
    machine, allocator = built(FREE, mark=FREE_PAGES - 7)
    assert served(allocator) == 1
    assert [len(one) for one in pcp_lists(machine)] == [6, 0]
    assert machine.u64((ZONE << 12) + NR_FREE_PAGES) == FREE_PAGES - 7
    assert served(allocator, cpu=1) == 0


def test_a_drained_list_raises_the_zone_above_its_mark_again() -> None:
    """The pages that were left on the list are free again, and are served."""
    _, allocator = built(FREE, mark=FREE_PAGES - 7)
    assert served(allocator) == 1
    allocator.drain_pages(0)
    assert served(allocator) == 1


def test_the_mark_is_a_word_of_the_zone() -> None:
    """The allocator reads it each time: another value in memory decides differently, 0 too."""
    machine, allocator = built(FREE, batch=1, high=6, mark=FREE_PAGES)
    assert served(allocator) == 0
    for mark in (FREE_PAGES - 2, 0):
        machine.memory.write_u64((ZONE << 12) + WMARK_MIN, mark)
        free = machine.u64((ZONE << 12) + NR_FREE_PAGES)
        assert served(allocator) == free - mark


def test_a_torn_count_below_0_reads_as_0() -> None:
    """`zone_page_state` clamps it: such a zone is never above its mark, though pages are on its lists."""
    machine, allocator = built(FREE, mark=0)
    machine.memory.write_u64((ZONE << 12) + NR_FREE_PAGES, (1 << 64) - 3)
    assert served(allocator) == 0


def test_without_a_mark_the_zone_is_not_read() -> None:
    """A page of the CPU's list is taken without a look at the zone; with a mark the zone is read, and nothing else."""
    read: list[set[Any]] = []
    for mark in (None, 0):
        machine, allocator = built(FREE, mark=mark)
        allocator.alloc_page(Environment(), "refills the list")
        with machine.memory.tracking() as (touched, _):
            allocator.alloc_page(Environment(), "test")
        read.append(set(touched))
    assert ZONE not in read[0]
    assert read[1] == read[0] | {ZONE}
    assert PCPS[0] in read[0]


def test_a_mark_is_one_word_of_a_machine() -> None:
    """Two machines of one layout, with and without a mark, differ in that word alone, and in what their places say."""
    layout = Layout(((0, 0x8000),), free_pages=9)
    plain, marked = build_machine(layout), build_machine(replace(layout, min_mark=5))
    assert isinstance(plain.allocator, BuddyAllocator)
    assert isinstance(marked.allocator, BuddyAllocator)
    assert plain.memory.written_frames == marked.memory.written_frames
    zone = marked.allocator.places.zone
    assert marked.allocator.places == replace(plain.allocator.places, wmark_min=zone + WMARK_MIN)
    for pfn in range(0x8000):
        old, new = plain.memory.page(pfn), marked.memory.page(pfn)
        assert old is not None
        assert new is not None
        differ = (old != new).nonzero()[0].tolist()
        assert differ == ([WMARK_MIN] if pfn == zone >> 12 else [])


def test_a_layout_names_its_own_refill() -> None:
    """`batch` decides how many pages leave the zone at once; without it the size of the zone does."""
    for batch, taken in ((None, 31), (1, 1), (5, 5)):
        machine = build_machine(Layout(((0, 0x20000),), batch=batch))
        machine.alloc_page("test")
        assert isinstance(machine.allocator, BuddyAllocator)
        assert machine.allocator.nr_free_pages == 64 - taken


def test_an_allocation_that_fails_by_itself_asks_nothing() -> None:
    """At the mark nothing is asked of the environment; log and error have the reason, injected failures theirs."""
    layout = Layout(((0, 0x8000),), free_pages=3, min_mark=2, batch=1)
    machine = build_machine(layout, FailAllocations(1))
    with pytest.raises(OutOfMemory, match=r"page allocation 1 failed \(injected\)"):
        machine.alloc_page("test")
    machine.alloc_page("test")
    asked = len(machine.environment.schedule)
    with pytest.raises(OutOfMemory, match=r"page allocation 3 failed \(the zone is not above its min mark\)") as caught:
        machine.alloc_page("test")
    assert (caught.value.injected, caught.value.at_mark) == (False, True)
    assert len(machine.environment.schedule) == asked
    assert [one.at_mark for one in machine.allocations] == [False, False, True]
    assert machine.log.lines[-1].endswith("allocation 3 fails: the zone is not above its min mark (test)")


def test_many_allocations_end_at_the_mark_known_from_before_or_not() -> None:
    """`alloc_pages` has the same frames, record and log when its result is known; another mark has its own."""
    memo = Memo()
    found = []
    for mark in (40, 40, 41, None):
        machine = build_machine(Layout(((0, 0x8000),), min_mark=mark, batch=3), memo=memo)
        got: list[int] = []
        with pytest.raises(OutOfMemory) as caught:
            got.extend(machine.alloc_pages("test", 100))
        assert caught.value.at_mark == (mark is not None)
        found.append((got, machine.allocations, machine.log.lines))
    assert found[0] == found[1]
    # 24 pages above 40: eight refills of three, of the last of which one page is served. 23 above 41: as many refills.
    assert [len(got) for got, _, _ in found] == [22, 22, 22, 64]
    assert found[2][0] == found[0][0]
    assert found[3][1][-1].line().endswith("fails: no free frame (test)")


def test_marks_and_refills_that_no_machine_has() -> None:
    """A negative mark, no page at a time, a mark beside unmapped pageblocks: refused with what is expected."""
    ram = ((0, 0x8000),)
    for fields, what in (
        ({"min_mark": -1}, "min mark -1: expected 0 or more pages"),
        ({"batch": 0}, "takes 0 pages at a time: expected 1-2048"),
        ({"batch": 5000}, "takes 5000 pages at a time: expected 1-2048"),
        (
            {"min_mark": 1, "holes": (HoleSpec(0x1000, 512, HoleKind.INVALID_FOLIO),), "unmapped": (0x1000,)},
            "no free unmapped pageblocks beside it",
        ),
    ):
        with pytest.raises(HibernautError, match=what):
            Layout(ram, **fields).check()


def zones_serve(record: dict[str, Any], error: int) -> int:
    """Return how many splits simulated zones like a guest's serve, each count of free pages being off by so much.

    Args:
        record: the guest.
        error: -1, 0, 1: times the number of pages that a CPU may hold back from the count.
    """
    total = 0
    for zone in record["in_copy"]["zones"]:
        free = zone["free_pages"] + error * zone["stat_threshold"]
        mark = zone["min_pages"] + zone["protection_pages"] + zone["for_others_pages"]
        layout = Layout(((0, 0x10000),), free_pages=free, min_mark=mark, batch=zone["refill"]["batch"])
        machine = build_machine(layout)
        assert zone["serves_kernel"]
        assert isinstance(machine.allocator, BuddyAllocator)
        total += served(machine.allocator, record["blocks"])
    return min(total, int(record["blocks"]))


def agrees(record: dict[str, Any]) -> bool:
    """Return whether simulated zones serve as many splits as a guest's kernel did, within the error of its counts."""
    numbers = [zones_serve(record, error) for error in (-1, 0, 1)]
    return min(numbers) <= int(record["served"]) <= max(numbers)


@pytest.mark.parametrize(
    "record", GUESTS, ids=lambda one: f"{one['blocks']} blocks, {one['drivers_pages']} for drivers"
)
def test_it_serves_what_kernels_served(record: dict[str, Any]) -> None:
    """Guests of 6.1 that ran out of pages in the copy, with nothing injected: zones like theirs run out as they did."""
    assert agrees(record)


def ignored(self: BuddyAllocator) -> bool:
    """A mutant: no mark."""
    del self
    return True


def after_the_list(self: BuddyAllocator) -> bool:
    """A mutant: the mark counts only where the CPU's list is empty."""
    head = self._pcp(0) + PCP_LIST
    return self._kernel.load(head, "test") != head or ZONE_WATERMARK_OK(self)


ZONE_WATERMARK_OK = BuddyAllocator._zone_watermark_ok


@pytest.mark.parametrize("mutant", [ignored, after_the_list])
def test_a_kernel_refutes_an_allocator_that_takes_the_mark_otherwise(
    mutant: Callable[[BuddyAllocator], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some guest served fewer splits than an allocator without the mark, or one that looks at the list first."""
    monkeypatch.setattr(BuddyAllocator, "_zone_watermark_ok", mutant)
    assert not all(agrees(record) for record in GUESTS)
