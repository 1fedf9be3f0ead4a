# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's own self-test of attribute changes (arch/x86/mm/pat/cpa-test.c), restated: random runs and back."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from hibernaut.linux.build import build_machine
from hibernaut.linux.change_page_attr import change_page_attr_set_clr
from hibernaut.linux.layout import Layout
from hibernaut.linux.machine import Machine
from hibernaut.linux.page_counts import direct_pages_count
from hibernaut.linux.pgtable import is_none, pfn_and_prot, pgprot_large_2_4k
from hibernaut.linux.rules import LINES, KernelRules
from hibernaut.paging.entries import Entry, Level
from tests.strategies import machine_layouts

LONGEST = 100
TEST_BIT = int(Entry.SOFTW1)


@dataclass
class Split:
    """Return the entries of a scan from frame 0 to max_pfn_mapped, one lookup for each entry."""

    entries: dict[Level, int]
    empty: int
    missed: int
    end: int
    flagged: set[int]

    @property
    def accounted(self) -> int:
        """Pages that the entries cover; `expected` in the kernel's test."""
        return self.missed + self.empty + sum(count * level.pages for level, count in self.entries.items())


def scan(machine: Machine) -> Split:
    """`print_split`; entries that are zero counted apart."""
    split = Split({Level.PTE: 0, Level.PMD: 0, Level.PUD: 0}, 0, 0, 0, set())
    while split.end < machine.end_pfn:
        found = machine.lookup_address(machine.vaddr(split.end))
        if found is None:
            split.missed += 1
            split.end += 1
            continue
        assert found.level == Level.PTE or bool(found.entry & Entry.PSE) == found.present
        if found.entry & TEST_BIT:
            split.flagged.add(split.end)
        if is_none(found.entry):
            split.empty += 1
        else:
            split.entries[found.level] += 1
        split.end += found.level.pages
    return split


def check_accounts(machine: Machine, split: Split) -> None:
    """Every page up to max_pfn_mapped is in exactly one entry or missing, and the kernel's counters say the same."""
    assert split.accounted == split.end == machine.end_pfn
    assert direct_pages_count(machine) == split.entries


def rights(machine: Machine, pfn: int) -> tuple[bool, int]:
    """Whether a frame is present in the direct map, and its protection as a 4K entry has it, without the test's bit."""
    found = machine.lookup_address(machine.vaddr(pfn))
    if found is None:
        return False, 0
    prot = pfn_and_prot(found.entry, found.level)[1]
    return found.present, (pgprot_large_2_4k(prot) if found.level > Level.PTE else prot) & ~TEST_BIT


def uniform_run(machine: Machine, pfn: int, pages: int, busy: set[int]) -> list[int]:
    """The frames from one on that are present with one protection and that no run before has."""
    run: list[int] = []
    first = rights(machine, pfn)
    for each in range(pfn, min(pfn + pages, machine.end_pfn)):
        present, prot = rights(machine, each)
        if not present or (present, prot) != first or each in busy:
            break
        run.append(each)
    return run


@settings(max_examples=20)
@given(
    machine_layouts(),
    st.sampled_from(LINES),
    st.lists(st.tuples(st.integers(0, (1 << 20) - 1), st.integers(1, LONGEST)), min_size=1, max_size=12),
)
def test_a_spare_bit_on_random_runs_forth_and_back(
    layout: Layout, rules: KernelRules, wanted: list[tuple[int, int]]
) -> None:
    """Each page of each run has the bit and a 4K entry, no other page has it; reverted, none has; all pages account."""
    machine = build_machine(replace(layout, free_pages=256), rules=rules)
    before = scan(machine)
    check_accounts(machine, before)
    runs: list[list[int]] = []
    busy: set[int] = set()
    protection = {}
    for place, pages in wanted:
        run = uniform_run(machine, place % machine.end_pfn, pages, busy)
        if not run:
            continue
        protection.update({pfn: rights(machine, pfn) for pfn in run})
        change_page_attr_set_clr(machine, machine.vaddr(run[0]), len(run), set_=TEST_BIT)
        runs.append(run)
        busy.update(run)
        for pfn in run:
            found = machine.lookup_address(machine.vaddr(pfn))
            assert found is not None
            assert (found.level, bool(found.entry & TEST_BIT)) == (Level.PTE, True)
    between = scan(machine)
    check_accounts(machine, between)
    assert between.flagged == busy
    for run in runs:
        change_page_attr_set_clr(machine, machine.vaddr(run[0]), len(run), clear=TEST_BIT)
    after = scan(machine)
    check_accounts(machine, after)
    assert after.flagged == set()
    assert after.entries == between.entries
    assert {pfn: rights(machine, pfn) for pfn in busy} == protection


def test_gigabyte_pages_account_too() -> None:
    """A run across two 1G pages splits both, to 4K where it lies and to 2M around it: four tables, all accounted."""
    machine = build_machine(Layout(((0, 3 << 18),), largest=Level.PUD))
    assert direct_pages_count(machine) == {Level.PTE: 0, Level.PMD: 0, Level.PUD: 3}
    start = (1 << 18) - 50
    change_page_attr_set_clr(machine, machine.vaddr(start), LONGEST, set_=TEST_BIT)
    between = scan(machine)
    check_accounts(machine, between)
    assert between.entries == {Level.PTE: 2 * 512, Level.PMD: 2 * 511, Level.PUD: 1}
    assert between.flagged == set(range(start, start + LONGEST))
    assert len(machine.allocations) == 4
