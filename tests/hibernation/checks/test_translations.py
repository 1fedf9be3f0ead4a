# SPDX-License-Identifier: GPL-2.0-or-later
"""`same_frames` against the walk of every single page."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from hibernaut.hibernation.checks.translations import same_frames
from hibernaut.linux.build import build_machine
from hibernaut.linux.layout import Layout, hole_2m, hole_4k
from hibernaut.linux.machine import Machine
from hibernaut.linux.pgtable import PRESENT, PSE, pfn_entry
from hibernaut.paging.entries import Entry
from hibernaut.paging.tables import Stop, Walk

LAYOUT = Layout(((0, 0xA0), (0x100, 0x700)), holes=(hole_2m(0x400), hole_4k(0x201, 3)), free_pages=8)
BITS = int(Entry.RW | Entry.USER | Entry.ACCESSED | Entry.GLOBAL | Entry.NX)

entries = st.builds(
    lambda pfn, flags, bits: pfn_entry(pfn, flags | bits & BITS) if flags else bits & int(Entry.ACCESSED),
    st.sampled_from([0, 0x180, 0x200, 0x400, 0x401, 0x600, 1 << 30]),
    st.sampled_from([0, PRESENT, PRESENT | PSE, PSE, int(Entry.RW)]),
    st.integers(0, (1 << 64) - 1),
)


def said(walk: Walk) -> tuple[object, ...]:
    """Return the parts of a page's translation that the check compares, the rights last."""
    if walk.stop not in (Stop.PRESENT, Stop.NOT_PRESENT):
        return walk.stop, None, None
    return walk.stop, walk.pfn, (walk.rw, walk.nx, walk.user)


def by_pages(before: Machine, after: Machine) -> tuple[set[int], set[int]]:
    """The frames of the two findings, page by page."""
    translations, rights = set(), set()
    for pfn in range(before.end_pfn):
        old, new = (said(machine.tables.walk(machine.vaddr(pfn))) for machine in (before, after))
        if old[:2] != new[:2] or (old != new and old[0] == Stop.PRESENT):
            translations.add(pfn)
        elif old != new:
            rights.add(pfn)
    return translations, rights


changes = st.tuples(st.integers(0, 3), st.integers(0, 0x6FF), entries, st.integers(0, BITS), st.booleans())


@settings(max_examples=60)
@given(st.lists(changes, min_size=1, max_size=5))
def test_pages_mapped_otherwise_are_found_one_by_one(writes: list[tuple[int, int, int, int, bool]]) -> None:
    """Any entries in any tables, or other rights in those that are there: loops and 1G leaves, too. The same frames."""
    before = build_machine(LAYOUT)
    after = before.fork()
    for depth, pfn, entry, bits, only_rights in writes:
        step = before.tables.walk(before.vaddr(pfn)).steps[-1 - depth :][0]
        after.write_entry(step.paddr, step.entry ^ (bits & BITS) if only_rights else entry)
    found: dict[str, set[int]] = {"same-translations": set(), "same-rights": set()}
    for violation in same_frames(before, after):
        found[violation.invariant] |= set(range(violation.start_pfn, violation.start_pfn + violation.nr_pages))
    translations, rights = by_pages(before, after)
    assert found == {"same-translations": translations, "same-rights": rights}
    assert same_frames(before, before.fork()) == ()
