# SPDX-License-Identifier: GPL-2.0-or-later
"""The audit: its predictions, compared with hibernation itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given

from hibernaut.errors import MachineFault
from hibernaut.hibernation import Fixmap, Remap, check_resumed, hibernate, resume
from hibernaut.hibernation.audit import Order, audit
from hibernaut.hibernation.saveable import saveable_pages
from hibernaut.hibernation.source_machine import machine_from_memory
from hibernaut.linux.build import build_machine
from hibernaut.linux.layout import Layout, hole_1g, hole_2m, hole_4k, no_table, none_entries
from hibernaut.paging.entries import Level
from hibernaut.paging.tables import PageTables
from hibernaut.studies.demo import demo_layout
from tests.linux.witness import (
    LOW2M_CR3,
    LOW2M_PAGES,
    LOW2M_PMD_TABLE,
    LOW2M_START,
    elf_memory,
    plain_image,
)
from tests.machines import GIB, RAM
from tests.strategies import machine_layouts

if TYPE_CHECKING:
    from tests.conftest import Golden


def test_one_row_a_class_with_its_pages() -> None:
    """Every kind of hole is a row of its own, present pages are one; together they are what would be saved."""
    holes = (hole_2m(0x1000, 2), hole_4k(0x801, 3), none_entries(0x905), no_table(0x1800))
    found = audit(build_machine(Layout(RAM, holes=holes)))
    rows = {one.name: list(one.frames) for one in found.classes if one.name != "present"}
    assert rows == {
        "not present, 4K": [(0x801, 3)],
        "not present, 2M": [(0x1000, 1024)],
        "no entry, in a table": [(0x905, 1)],
        "no table": [(0x1800, 512)],
    }
    assert sum(one.frames.total_pages for one in found.classes) == found.saveable_pages
    assert (found.safe_today, found.safe_by_fixmap) == (False, True)


@pytest.mark.parametrize(("tables", "order"), [("low", Order.BELOW), ("high", Order.ABOVE)])
def test_order_of_the_table_is_reported(tables: str, order: Order) -> None:
    """Whether the table of a large entry is copied before or after the entry is split."""
    found = audit(build_machine(Layout(RAM, holes=(hole_2m(0x1000, 2),), tables=tables)))
    assert [(split.start_pfn, split.order, split.allocations) for split in found.splits] == [
        (0x1000, order, 1),
        (0x1200, order, 1),
    ]


def test_a_1g_entry_takes_a_table_for_itself_and_for_each_block() -> None:
    """1 GiB as one entry: 513 allocations if all of it is saved, fewer if fewer blocks have pages to save."""
    layout = Layout(((0, 2 * GIB),), holes=(hole_1g(GIB),), largest=Level.PUD, tables=0x1000)
    assert audit(build_machine(layout)).allocations == 513
    few = Layout(
        ((0, 2 * GIB),), holes=(hole_1g(GIB),), largest=Level.PUD, tables=0x1000, nosave=((GIB + 513, GIB - 513),)
    )
    split = audit(build_machine(few)).splits[0]
    assert (split.allocations, split.nr_pages, split.level) == (3, 513, Level.PUD)


@given(machine_layouts())
def test_the_audit_predicts_the_outcome(layout: Layout) -> None:
    """Any layout: the allocations of Remap and the state of the image (whole, torn or missing) are as predicted."""
    machine = build_machine(layout)
    found = audit(machine)
    fixmap = hibernate(machine.fork(), Fixmap())
    assert check_resumed(machine, fixmap, resume(fixmap)) == ()
    assert found.safe_by_fixmap
    twin = machine.fork()
    deadly = {"no entry, in a table", "no table"} & {one.name for one in found.classes}
    try:
        snapshot = hibernate(twin, Remap())
    except MachineFault:
        assert deadly
        return
    assert not deadly
    assert len(snapshot.allocations) == found.allocations
    findings = check_resumed(machine, snapshot, resume(snapshot))
    torn = {violation.invariant for violation in findings}
    assert ("tables-closed" in torn) == any(split.order == Order.ABOVE for split in found.splits)
    if found.safe_today:
        # Of an entry that set_memory_np made not present, RW goes with it: set_direct_map_invalid_noflush clears both.
        assert torn <= {"same-direct-map"}
        assert all(violation.what.startswith("4K entry") for violation in findings)


def test_a_real_machine_that_the_kernel_tore(golden: Golden) -> None:
    """6.1 with a 2 MiB block out: one allocation, PMD table 0x4402 copied after the split, as in the kernel's image."""
    pfns, _, _ = plain_image(golden("swap-6.1-low2m.img"))
    machine = machine_from_memory(elf_memory(golden("ram-6.1-low2m.elf")), LOW2M_CR3, 4, pfns)
    found = audit(machine)
    split = found.splits[0]
    assert (split.start_pfn, split.nr_pages, split.table_pfn, split.order) == (
        LOW2M_START,
        LOW2M_PAGES,
        LOW2M_PMD_TABLE,
        Order.ABOVE,
    )
    assert (found.allocations, found.safe_today, found.safe_by_fixmap) == (1, False, True)


def test_a_real_machine_with_secret_memory(golden: Golden) -> None:
    """1 292 not-present 4K entries: no allocation; every page would be saved if the kernel hibernated."""
    machine = machine_from_memory(
        elf_memory(golden("ram-6.1-secretmem.elf")), int(golden.expected["ram-6.1-secretmem.elf"]["cr3"], 16)
    )
    found = audit(machine)
    assert {one.name: one.frames.total_pages for one in found.classes}["not present, 4K"] == 1292
    assert (found.allocations, found.safe_today) == (0, True)
    machine.secretmem_users = 1
    refused = audit(machine)
    assert (refused.safe_today, refused.safe_by_fixmap) == (False, False)


def test_a_page_table_of_zeroes_is_not_taken_for_a_free_frame() -> None:
    """A dump without a list of pages: every table is saved, though one is empty; a split takes a frame beside them."""
    snapshot = hibernate(build_machine(demo_layout()), Fixmap())
    machine = machine_from_memory(snapshot.memory, snapshot.cr3)
    tables = PageTables(snapshot.memory, snapshot.cr3).pfns()
    assert any(not snapshot.page(int(pfn)).any() for pfn in tables)
    assert saveable_pages(machine).pfns().tolist() == snapshot.pfns.tolist()
    free = machine.allocator.free_ranges()
    assert free.total_pages == 1
    assert not free.contains(snapshot.pfns).any()
    again = hibernate(machine.fork(), Fixmap())
    assert check_resumed(machine, again, resume(again)) == ()
