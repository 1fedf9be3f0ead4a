# SPDX-License-Identifier: GPL-2.0-or-later
"""The audit: whether hibernation saves every page of a machine, predicted from its page tables without a copy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from hibernaut.hibernation.reach import AS_IT_IS, BY_FIXMAP, COPIED, NO_SLOT, TODAY, Reach
from hibernaut.hibernation.saveable import saveable_pages
from hibernaut.linux.direct_map import FrameState, frame_states, frames_in_state, writable_holes
from hibernaut.linux.machine import Machine
from hibernaut.linux.owners import NextAct, OwnedPages
from hibernaut.memory.page import PAGE_SHIFT
from hibernaut.memory.ranges import FrameRanges
from hibernaut.notebook import html_table
from hibernaut.paging.entries import Level

__all__ = ["TABLE_NOT_THERE", "Audit", "Order", "PageClass", "Split", "audit"]


class Order(StrEnum):
    """When the page table that holds a large entry is copied: the copy ascends through the page frames."""

    BELOW = "below"
    """Before the entry is split: the image has the large entry, and is consistent."""
    ABOVE = "above"
    """After the split: the image refers to the new table and does not contain it."""
    NOT_LISTED = "not listed"
    """Never: the table is not in the list of pages to save."""


@dataclass(frozen=True)
class Split:
    """A not-present large entry with a page to save: mainline kernels split it during the copy.

    Attributes:
        start_pfn: page frame number of the first page that the entry maps.
        level: PMD or PUD.
        first_pfn: page frame number of its first page to save, at which the kernel splits it.
        nr_pages: number of its pages to save.
        table_pfn: page frame number of the table that holds the entry.
        order: when that table is copied.
        allocations: number of pages that its splits allocate for tables; for a PUD entry, those of its parts included.
    """

    start_pfn: int
    level: Level
    first_pfn: int
    nr_pages: int
    table_pfn: int
    order: Order
    allocations: int


@dataclass(frozen=True, eq=False)
class PageClass:
    """Pages to save with the same kind of direct-map entry.

    Attributes:
        name: the kind of entry.
        frames: the page frames.
        today: outcome by mainline's way.
        fixmap: outcome by a fixmap slot, with the NULL check.
        today_bad: whether mainline's way crashes, loses a page or tears a table.
        fixmap_bad: whether a fixmap slot does.
    """

    name: str
    frames: FrameRanges
    today: str
    fixmap: str
    today_bad: bool
    fixmap_bad: bool


@dataclass(frozen=True, eq=False)
class Audit:
    """The outcome that hibernation has on a machine.

    Attributes:
        saveable_pages: number of pages to save.
        classes: all pages to save, by kind of direct-map entry; empty classes are left out.
        splits: every large entry that the copy splits, ascending.
        refused: reason why hibernation does not begin; None if it does.
    """

    saveable_pages: int
    classes: tuple[PageClass, ...]
    splits: tuple[Split, ...]
    refused: str | None

    @property
    def allocations(self) -> int:
        """Number of pages for tables that mainline's way allocates during the copy."""
        return sum(split.allocations for split in self.splits)

    @property
    def safe_today(self) -> bool:
        """Whether mainline's way saves all pages and changes nothing, whatever allocation fails."""
        return self.refused is None and not any(one.today_bad for one in self.classes)

    @property
    def safe_by_fixmap(self) -> bool:
        """Whether a fixmap slot saves all pages and changes nothing."""
        return self.refused is None and not any(one.fixmap_bad for one in self.classes)

    def _repr_html_(self) -> str:
        saved = "every page is saved" if self.safe_today else "not every page is certain to be saved"
        rows = [(one.frames.total_pages, one.name, one.today, one.fixmap) for one in self.classes]
        head = ("pages", "direct map has", "today", "through a fixmap slot")
        caption = f"{self.saveable_pages} pages to save; today: {self.refused or saved}"
        return html_table(caption, head, rows, row_header=1)


TABLE_NOT_THERE = "table not in the source"

_NAMES = {
    FrameState.PRESENT: "present",
    FrameState.NOT_PRESENT_4K: "not present, 4K",
    FrameState.NOT_PRESENT_PLAIN: "not present, 4K, plain",
    FrameState.NOT_PRESENT_LARGE_PLAIN: "not present, large, plain",
    FrameState.NOT_PRESENT_OTHER: "not present, another frame's",
    FrameState.NOT_PRESENT_ABOVE: "not present, above 1G",
    FrameState.NONE_IN_TABLE: "no entry, in a table",
    FrameState.NONE_ABOVE: "no table",
    FrameState.TABLE_MISSING: TABLE_NOT_THERE,
    FrameState.NOT_FOLLOWED: "taken for a table",
    FrameState.OTHER_FRAME: "another frame's entry",
    FrameState.RESERVED_BITS: "reserved bits set",
}
"""The classes with one state each, in the order of the report; those of a split have one for each size."""


def audit(machine: Machine) -> Audit:
    """Return the outcome of hibernation for every page to save. Cost follows the number of regions of the direct map.

    Raises:
        MachineFault: counting the pages crashes the machine (see `saveable_pages`).
        FormatError: the page tables are damaged or hostile.
    """
    frames = saveable_pages(machine)
    splits = tuple(_splits(machine, frames))
    refused = None
    if machine.secretmem_users and machine.rules.checks_secretmem:
        refused = f"secret memory is in use ({machine.secretmem_users} open)"
    classes = tuple(one for one in _classes(machine, frames, splits) if len(one.frames))
    return Audit(frames.total_pages, classes, splits, refused)


def _classes(machine: Machine, frames: FrameRanges, splits: tuple[Split, ...]) -> Iterator[PageClass]:
    """Yield all classes, empty ones too: every page is in one of them."""
    for state, name in _NAMES.items():
        pages = frames.within(frames_in_state(machine.direct_map, state))
        if state == FrameState.NOT_PRESENT_4K:
            relying = _relying(machine).within(pages)
            yield _page_class(machine, name, pages.without(relying), state)
            lost = Reach("the same, and RW is lost: page fault if its owner restores PRESENT alone")
            yield _page_class(machine, f"{name}, with RW", relying, state, lost)
        else:
            yield _page_class(machine, name, pages, state)
        if state == FrameState.NOT_PRESENT_LARGE_PLAIN:
            yield from _split_classes(machine, frames, splits)


def _split_classes(machine: Machine, frames: FrameRanges, splits: tuple[Split, ...]) -> Iterator[PageClass]:
    for level in (Level.PMD, Level.PUD):
        mine = [split for split in splits if split.level == level]
        torn = sum(split.order != Order.BELOW for split in mine)
        pages = frames.within(FrameRanges.of([(split.start_pfn, level.pages) for split in mine]))
        today = Reach(f"split in the copy, {torn} of {len(mine)} torn; page fault if an allocation fails")
        yield _page_class(machine, f"not present, {level.size}", pages, FrameState.NOT_PRESENT_LARGE, today)


def _page_class(
    machine: Machine, name: str, frames: FrameRanges, state: FrameState, today: Reach | None = None
) -> PageClass:
    """Return the class of pages in one state, with what its ways come to; `today` replaces the outcome of its state."""
    if today is None:
        null = state == FrameState.NONE_ABOVE and machine.rules.checks_null_pte
        today = TODAY[FrameState.NONE_IN_TABLE if null else state]
    fixmap = BY_FIXMAP[state]
    if fixmap == COPIED and state not in AS_IT_IS and len(frames) and not machine.has_fixmap:
        fixmap = NO_SLOT
    return PageClass(name, frames, today.outcome, fixmap.outcome, not today.certain, not fixmap.certain)


def _relying(machine: Machine) -> FrameRanges:
    """Return the frames whose 4K entry has RW that its owner relies on; known owners that rewrite it do not."""
    rewritten = [span for owned in machine.owners if not _needs_rw(owned) for span in owned.frames]
    return writable_holes(machine.direct_map).without(FrameRanges.of(rewritten))


def _needs_rw(owned: OwnedPages) -> bool:
    return owned.owner.next_act == NextAct.RESTORES_PRESENT


def _splits(machine: Machine, frames: FrameRanges) -> Iterator[Split]:
    """Yield every not-present large entry with a page to save."""
    spans = machine.direct_map.everything
    large = spans.select(frame_states(spans, machine.base, machine.encryption) == FrameState.NOT_PRESENT_LARGE)
    for start, nr_pages, code in zip(large.pfn.tolist(), large.pages.tolist(), large.level.tolist(), strict=True):
        level = Level(code)
        inside = frames.within(FrameRanges.of([(start, nr_pages)]))
        for block in sorted({at for run in inside for at in _blocks(run, level)}):
            listed = inside.within(FrameRanges.of([(block, level.pages)]))
            found = machine.lookup_address(machine.vaddr(block))
            if found is None or not len(listed):
                continue
            table = found.paddr >> PAGE_SHIFT
            at = int(listed.starts[0])
            order = Order.BELOW if table < at else Order.ABOVE
            if not frames.contains([table])[0]:
                order = Order.NOT_LISTED
            parts = len({part for run in listed for part in _blocks(run, Level.PMD)})
            needed = 1 if level == Level.PMD else 1 + parts
            yield Split(block, level, at, listed.total_pages, table, order, needed)


def _blocks(run: tuple[int, int], level: Level) -> range:
    """Return the first page frame numbers of the aligned blocks that a run of frames touches."""
    start, nr_pages = run
    return range(start - start % level.pages, start + nr_pages, level.pages)
