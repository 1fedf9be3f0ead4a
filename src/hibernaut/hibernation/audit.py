# SPDX-License-Identifier: GPL-2.0-or-later
"""Would hibernation save every page of this machine? Read off its tables, without copying anything."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from hibernaut.hibernation.saveable import saveable_pages
from hibernaut.linux.direct_map import FrameState, frames_in_state
from hibernaut.linux.machine import Machine
from hibernaut.memory.page import PAGE_SHIFT
from hibernaut.memory.ranges import FrameRanges
from hibernaut.paging.entries import Level
from hibernaut.paging.spans import Stop

__all__ = ["Audit", "Order", "PageClass", "Split", "audit"]


class Order(StrEnum):
    """When the page table that holds a large entry is copied, as the copy goes up through the frames."""

    BELOW = "below"
    """Before the entry is split: the image has the large entry, and is consistent."""
    ABOVE = "above"
    """After it: the image names the new table, which is not in it."""
    NOT_LISTED = "not listed"
    """Never: the table is not among the pages to save."""


@dataclass(frozen=True)
class Split:
    """A not-present large entry with a page to save: today's kernels split it in the middle of the copy.

    Attributes:
        start_pfn: first frame of the entry.
        level: PMD or PUD.
        first_pfn: its first frame to be saved, at which it is split.
        pages: how many of its frames are to be saved.
        table_pfn: the table that holds the entry.
        order: where that lies.
        allocations: pages for tables that the splits of it take, those of a PUD entry's parts among them.
    """

    start_pfn: int
    level: Level
    first_pfn: int
    pages: int
    table_pfn: int
    order: Order
    allocations: int


@dataclass(frozen=True, eq=False)
class PageClass:
    """Pages to save for which the direct map has the same thing.

    Attributes:
        name: what it has.
        frames: which.
        today: what mainline's way makes of them.
        fixmap: what a fixmap slot makes of them, with the NULL check.
        today_bad: whether that loses, tears or kills something.
        fixmap_bad: the same for the slot.
    """

    name: str
    frames: FrameRanges
    today: str
    fixmap: str
    today_bad: bool
    fixmap_bad: bool


@dataclass(frozen=True, eq=False)
class Audit:
    """The answer.

    Attributes:
        saveable_pages: how many pages would be saved.
        classes: all pages to save, by what the direct map has for them; without empty ones.
        splits: every large entry that would be split, ascending.
        refused: why hibernation is not even begun, or None.
    """

    saveable_pages: int
    classes: tuple[PageClass, ...]
    splits: tuple[Split, ...]
    refused: str | None

    @property
    def allocations(self) -> int:
        """Pages for tables that a copy would take today, in its middle."""
        return sum(split.allocations for split in self.splits)

    @property
    def safe_today(self) -> bool:
        """Whether today's kernels save all and change nothing, whatever fails."""
        return self.refused is None and not any(one.today_bad for one in self.classes)

    @property
    def safe_by_fixmap(self) -> bool:
        """The same through a fixmap slot."""
        return self.refused is None and not any(one.fixmap_bad for one in self.classes)


COPIED = "copied"


def audit(machine: Machine) -> Audit:
    """Look at every page that would be saved. Costs follow the number of regions of the direct map.

    Raises:
        MachineFault: counting the pages is fatal already (see `saveable_pages`).
        FormatError: the tables are hostile.
    """
    frames = saveable_pages(machine)
    splits = tuple(_splits(machine, frames))
    refused = None
    if machine.secretmem_users and machine.rules.checks_secretmem:
        refused = f"secret memory is in use ({machine.secretmem_users} open)"
    classes = tuple(one for one in _classes(machine, frames, splits) if len(one.frames))
    return Audit(frames.total_pages, classes, splits, refused)


def _classes(machine: Machine, frames: FrameRanges, splits: tuple[Split, ...]) -> Iterator[PageClass]:
    """The rows of the table, empty ones too."""

    def of(*states: FrameState) -> FrameRanges:
        return frames.within(frames_in_state(machine.direct_map, *states))

    yield PageClass("present", of(FrameState.PRESENT), COPIED, COPIED, False, False)
    yield PageClass(
        "not present, 4K", of(FrameState.NOT_PRESENT_4K), "mapped, copied, unmapped again", COPIED, False, False
    )
    for level in (Level.PMD, Level.PUD):
        mine = [split for split in splits if split.level == level]
        torn = sum(split.order != Order.BELOW for split in mine)
        yield PageClass(
            f"not present, {level.size}",
            frames.within(FrameRanges.of([(split.start_pfn, level.pages) for split in mine])),
            f"split in the copy, {torn} of {len(mine)} torn; page fault if an allocation fails",
            COPIED,
            True,
            False,
        )
    yield PageClass("no entry, in a table", of(FrameState.NONE_IN_TABLE), "page fault, no warning", COPIED, True, False)
    null = "NULL dereference" if not machine.rules.checks_null_pte else "page fault, no warning"
    yield PageClass("no table", of(FrameState.NONE_ABOVE), null, COPIED, True, False)
    yield PageClass(
        "table not in the source",
        of(FrameState.TABLE_MISSING),
        "whatever lies in the table's frame decides",
        COPIED,
        True,
        False,
    )
    other = "the frame that the entry names is saved in its place"
    yield PageClass("another frame's entry", of(FrameState.OTHER_FRAME), other, other, True, True)


def _splits(machine: Machine, frames: FrameRanges) -> Iterator[Split]:
    """Every not-present large entry with a page to save."""
    spans = machine.direct_map.spans
    large = (spans.state == Stop.NOT_PRESENT.code) & ((spans.level == Level.PMD) | (spans.level == Level.PUD))
    first = (spans.vaddr[large] >> np.uint64(PAGE_SHIFT)).astype(np.int64) - (machine.base >> PAGE_SHIFT)
    own = spans.pfn[large] == first
    for start, pages, code in zip(
        first[own].tolist(), spans.pages[large][own].tolist(), spans.level[large][own].tolist(), strict=True
    ):
        level = Level(code)
        inside = frames.within(FrameRanges.of([(start, pages)]))
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
    """First frames of the aligned blocks that a run of frames touches."""
    start, pages = run
    return range(start - start % level.pages, start + pages, level.pages)
