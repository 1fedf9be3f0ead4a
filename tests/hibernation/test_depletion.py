# SPDX-License-Identifier: GPL-2.0-or-later
"""The splits that a kernel has pages for: against a naive allocator, and against what real kernels did."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hibernaut.errors import HibernautError
from hibernaut.hibernation.depletion import (
    Depletion,
    deplete_before,
    deplete_in_copy,
    metadata_pages,
    served_pages,
)
from hibernaut.kernel.reserves import CpuRefill, MemoryReserves, ZoneReserve
from hibernaut.swsusp.declarations import PAGES_FOR_IO
from tests.conftest import REPOSITORY

RECORDS = [json.loads(line) for line in (Path(__file__).parent / "depleted_guests.jsonl").read_text().splitlines()]
"""Guests of `hibernaut lab depletion`: the counts in their memory, and what their kernels did and printed."""
NAMES = [f"{one['release']}, {one['blocks']} blocks, {one['drivers_pages']} for drivers" for one in RECORDS]


def reserves_of(found: dict[str, Any]) -> MemoryReserves:
    """Return the counts of a record."""
    zones = tuple(ZoneReserve(**{**zone, "refill": CpuRefill(**zone["refill"])}) for zone in found["zones"])
    return MemoryReserves(**{**found, "zones": zones})


def fits(found: Depletion, served: int, blocks: int, unknown: int = 0) -> bool:
    """Return whether a prediction allows that so many of the splits were served."""
    return min(found.least - unknown, blocks) <= served <= min(found.most + unknown, blocks)


def predictions(record: dict[str, Any]) -> tuple[Depletion, Depletion]:
    """Return what is predicted at the copy, and before the guest hibernated."""
    before = deplete_before(
        reserves_of(record["before"]),
        offline_pages=record["offline_pages"],
        bitmaps=record["bitmaps"],
        drivers_pages=record["drivers_pages"],
    )
    return deplete_in_copy(reserves_of(record["in_copy"])), before


@pytest.mark.parametrize("record", RECORDS, ids=NAMES)
def test_kernels_are_served_as_many_pages_as_predicted(record: dict[str, Any]) -> None:
    """Guests of 6.1, 6.12 and 7.3 with 64 to 1000 blocks; what is in use by then is known afterwards."""
    copy, before = predictions(record)
    assert fits(copy, record["served"], record["blocks"])
    unknown = 2 * abs(before.image_pages - record["kernels_image_pages"])
    assert fits(before, record["served"], record["blocks"], unknown)


@pytest.mark.parametrize("record", RECORDS, ids=NAMES)
def test_free_pages_are_those_that_the_kernel_prints(record: dict[str, Any]) -> None:
    """The message with "available pages:" counts them right before the copy, as its CPU sees them."""
    found = reserves_of(record["in_copy"])
    assert abs(found.free_pages - record["kernels_free_pages"]) <= 2 * sum(one.stat_threshold for one in found.zones)


def test_the_records_have_kernels_that_were_served_all_and_some_that_were_not() -> None:
    """Three kernels each of both kinds: a prediction that is never met cannot pass."""
    short = {one["release"] for one in RECORDS if one["served"] < one["blocks"]}
    whole = {one["release"] for one in RECORDS if one["served"] == one["blocks"]}
    assert len(short) >= 3
    assert len(whole) >= 3


def without_lists(zones: Sequence[ZoneReserve]) -> int:
    """A mutant: the pages above the marks, as if a CPU had no list."""
    return sum(zone.free_pages - zone.kept_pages for zone in zones)


def without_marks(zones: Sequence[ZoneReserve]) -> int:
    """A mutant: all free pages."""
    return sum(zone.free_pages for zone in zones)


def never_doubled(zones: Sequence[ZoneReserve]) -> int:
    """A mutant whose kernels always refill by one batch."""
    return served_pages([dataclasses.replace(zone, refill=CpuRefill(zone.refill.batch)) for zone in zones])


@pytest.mark.parametrize("mutant", [without_lists, without_marks, never_doubled])
def test_a_model_that_leaves_something_out_is_refuted_by_a_kernel(mutant: Any) -> None:
    """Each mutant says of some guest what its kernel did not do."""
    wrong = []
    for record in RECORDS:
        zones = reserves_of(record["in_copy"]).zones
        slack = 2 * sum(one.stat_threshold for one in zones)
        said, served, blocks = mutant(zones), record["served"], record["blocks"]
        wrong.append(not min(said - slack, blocks) <= served <= min(said + slack, blocks))
    assert any(wrong)


class OneByOne:
    """A second implementation: one request after the other, each looking at all zones again."""

    def __init__(self, zones: Sequence[ZoneReserve]) -> None:
        order = {"Normal": 0, "DMA32": 1, "DMA": 2}
        self.zones = sorted((one for one in zones if one.serves_kernel), key=lambda one: (one.node, order[one.name]))
        self.free = [zone.free_pages for zone in self.zones]
        self.listed = [0] * len(self.zones)
        self.shift = [zone.refill.doublings for zone in self.zones]
        self.high = [zone.refill.high for zone in self.zones]

    def request(self) -> bool:
        """Take one page; return False if no zone is above its mark."""
        for mark in ("low_pages", "min_pages"):
            for at, zone in enumerate(self.zones):
                if self.free[at] > getattr(zone, mark) + zone.protection_pages + zone.for_others_pages:
                    if not self.listed[at]:
                        self.refill(at)
                    self.listed[at] -= 1
                    return True
        return False

    def refill(self, at: int) -> None:
        """Move pages to the CPU's list."""
        zone, refill, shift = self.zones[at], self.zones[at].refill, self.shift[at]
        count = max(1, refill.batch)
        if shift is not None:
            self.high[at] = sorted((refill.high_min, self.high[at], refill.high_max))[1]
            count = 1
            if self.high[at] >= refill.batch:
                wanted = refill.batch * 2**shift
                if refill.high_min != refill.high_max and self.free[at] > zone.high_pages:
                    self.high[at] = min(self.high[at] + wanted, refill.high_max)
                room = max(self.high[at] - refill.batch, refill.batch)
                self.shift[at] = shift + (wanted <= room and shift < 5)
                count = max(1, min(wanted, room))
        moved = min(count, self.free[at])
        self.free[at] -= moved
        self.listed[at] = moved


@st.composite
def zone_reserves(draw: st.DrawFn, name: str) -> ZoneReserve:
    """Return a zone with any marks, free pages and refill."""
    least = draw(st.integers(0, 300))
    low = least + draw(st.integers(0, 100))
    high_min = draw(st.integers(1, 400))
    refill = CpuRefill(draw(st.integers(1, 63)))
    if draw(st.booleans()):
        high_max = high_min + draw(st.sampled_from([0, 50, 4000]))
        refill = dataclasses.replace(
            refill,
            doublings=draw(st.integers(0, 5)),
            high=draw(st.integers(0, 5000)),
            high_min=high_min,
            high_max=high_max,
        )
    return ZoneReserve(
        name=name,
        node=0,
        present_pages=1 << 20,
        spanned_pages=1 << 20,
        free_pages=draw(st.integers(0, 3000)),
        min_pages=least,
        boost_room_pages=draw(st.integers(0, 2000)),
        unboosted_pages=draw(st.integers(0, 3000)),
        protection_pages=draw(st.sampled_from([0, 100])),
        for_others_pages=draw(st.sampled_from([0, 7])),
        low_pages=low,
        high_pages=low + draw(st.integers(0, 100)),
        per_cpu_pages=draw(st.integers(0, 500)),
        refill=refill,
        stat_threshold=draw(st.integers(1, 125)),
        serves_kernel=draw(st.sampled_from([True, True, True, False])),
    )


ZONES = st.tuples(zone_reserves("DMA"), zone_reserves("DMA32"), zone_reserves("Normal"))


@given(ZONES)
def test_pages_are_served_as_one_request_after_the_other_is(zones: tuple[ZoneReserve, ...]) -> None:
    """The sum over whole refills is that of single requests."""
    naive, count = OneByOne(zones), 0
    while naive.request():
        count += 1
    assert served_pages(zones) == count


@pytest.mark.parametrize("mutant", [without_lists, without_marks, never_doubled])
def test_the_comparison_finds_what_a_mutant_leaves_out(mutant: Any) -> None:
    """A zone at which each mutant differs from single requests."""
    refill = CpuRefill(63, doublings=2, high=500, high_min=100, high_max=5000)
    plain = ZoneReserve("DMA32", 0, 9999, 9999, 400, 100, 0, 0, 0, 0, 200, 300, 0, refill, 4, True)
    lower = dataclasses.replace(plain, name="DMA", free_pages=260)
    naive, count = OneByOne([plain, lower]), 0
    while naive.request():
        count += 1
    assert mutant([plain, lower]) != count


@given(st.integers(0, 1 << 28))
def test_metadata_are_two_trees_of_bitmaps(spanned: int) -> None:
    """Leaves of 32768 frames, their descriptions of 24 bytes, inner pages of 512 children, counted by level."""
    leaves = (spanned + 32767) // 32768
    pages, level = leaves + (leaves + 169) // 170, leaves
    while level > 1:
        level = (level + 511) // 512
        pages += level
    assert metadata_pages(spanned) == 2 * pages


RESERVES = MemoryReserves(
    zones=(
        ZoneReserve(
            name="DMA32",
            node=0,
            present_pages=200_000,
            spanned_pages=200_000,
            free_pages=120_000,
            min_pages=5000,
            boost_room_pages=9000,
            unboosted_pages=0,
            protection_pages=0,
            for_others_pages=0,
            low_pages=6250,
            high_pages=7500,
            per_cpu_pages=100,
            refill=CpuRefill(63),
            stat_threshold=8,
            serves_kernel=True,
        ),
    ),
    totalreserve_pages=7500,
    image_size=1 << 40,
    reserved_size=1 << 20,
    image_pages=0,
    reclaimable_pages=60_000,
    cached_pages=30_000,
)


def with_free(pages: int, **changes: Any) -> MemoryReserves:
    """Return `RESERVES` with other free pages."""
    zone = dataclasses.replace(RESERVES.zones[0], free_pages=pages)
    return dataclasses.replace(RESERVES, zones=(zone,), **changes)


def test_a_full_machine_keeps_what_the_reserves_promise() -> None:
    """With half of memory in use or more, marks, metadata, PAGES_FOR_IO and four times reserved_size are left."""
    found = deplete_before(with_free(30_000))
    metadata = metadata_pages(RESERVES.zones[0].spanned_pages)
    promised = 7500 - 5000 + metadata + PAGES_FOR_IO + 4 * 256
    assert found.floor_pages is not None
    assert found.floor_pages - promised in (0, 1)  # the kernel halves an odd number
    assert found.free_pages - found.kept_pages - found.floor_pages == RESERVES.per_cpu_pages


def test_an_empty_machine_has_the_pages_that_the_image_leaves() -> None:
    """The image takes one page for each page in use, if it is not larger than wished."""
    found = deplete_before(with_free(150_000))
    made = 3 * metadata_pages(RESERVES.zones[0].spanned_pages) // 2
    assert found.image_pages == 50_000 + made
    assert found.free_pages == 150_000 - made - found.image_pages + 100


@given(st.integers(20_000, 190_000), st.integers(0, 40_000))
def test_pages_of_drivers_take_their_copies_with_them(free: int, drivers: int) -> None:
    """The pages that were allocated for the CPUs' lists serve first; then each page takes two."""
    none, some = deplete_before(with_free(free)), deplete_before(with_free(free), drivers_pages=drivers)
    taken = drivers + max(0, drivers - 100)
    assert some.free_pages == max(0, none.free_pages - taken)
    assert some.most <= none.most
    assert some.least <= none.least


@given(st.integers(15_000, 199_000))
def test_the_least_is_never_above_the_most(free: int) -> None:
    """For any number of free pages."""
    found = deplete_before(with_free(free))
    assert 0 <= found.least <= found.most


def test_fragments_of_other_blocks_raise_the_mark() -> None:
    """Pages on lists of unmovable pages need no boost; others may raise the mark as far as it goes."""
    few = with_free(6000, image_pages=1)
    zone = few.zones[0]
    sure = dataclasses.replace(few, zones=(dataclasses.replace(zone, unboosted_pages=1000),))
    assert deplete_in_copy(few).least == 0
    assert deplete_in_copy(sure).least > 900
    assert deplete_in_copy(few).most == deplete_in_copy(sure).most


def test_an_answer_has_a_doubt_where_there_is_one() -> None:
    """Fewer splits than the least: yes; more than the most: no; between: not known."""
    found = Depletion("copy", 1, 100, 0, 10, 20, None, 0)
    assert [found.suffices_for(splits) for splits in (10, 11, 20, 21)] == [True, None, None, False]


def test_a_kernel_that_does_not_hibernate_is_not_in_the_copy() -> None:
    """Nor is a machine without room for an image."""
    with pytest.raises(HibernautError, match="no page for an image"):
        deplete_in_copy(RESERVES)
    with pytest.raises(HibernautError, match="no room for an image"):
        deplete_before(dataclasses.replace(RESERVES, totalreserve_pages=210_000))


def test_a_kernel_that_writes_its_image_is_not_predicted() -> None:
    """The pages of the image would count as in use: nothing is said of the next one."""
    with pytest.raises(HibernautError, match="7 pages are allocated for an image"):
        deplete_before(with_free(150_000, image_pages=7))


PAGE = REPOSITORY / "docs" / "unmapped.md"
HEAD = (
    "| kernel | RAM, MiB | blocks | files, MiB | for drivers, pages | free at the copy | predicted before "
    "| at the copy | served | then |",
    "|---|---|---|---|---|---|---|---|---|---|",
)


def told(record: dict[str, Any]) -> str:
    """Return the outcome of a guest, in the words of the page."""
    if record["outcome"] == "died":
        return "reclaim, then dead" if record["interrupts"] else "allocation fails, dead"
    if record["outcome"] == "refused":
        return "copied; no page is left to write the image"
    resumed = record["resumed"]
    if record["interrupts"]:
        return "reclaim; the resumed machine crashes" if resumed and "crashed" in resumed else "reclaim"
    return "comes back whole" if resumed and "as they were" in resumed else "image made"


def table() -> str:
    """Return the table of the page: one row a record."""
    rows = []
    for record in RECORDS:
        copy, before = predictions(record)
        unknown = 2 * abs(before.image_pages - record["kernels_image_pages"])
        spans = [f"{before.least} to {before.most} ± {unknown}", f"{copy.least} to {copy.most}"]
        release = record["release"].split("+")[0].removesuffix("-amd64")
        cells = [release, record["memory_mib"], record["blocks"], record["cached_mib"], record["drivers_pages"]]
        cells += [record["kernels_free_pages"], *spans, f"{record['served']} of {record['blocks']}", told(record)]
        rows.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join([*HEAD, *rows])


def test_the_page_has_the_numbers_of_the_records() -> None:
    """The table of docs/unmapped.md, row by row."""
    assert table() in PAGE.read_text()
