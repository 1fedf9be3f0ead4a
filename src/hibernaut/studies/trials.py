# SPDX-License-Identifier: GPL-2.0-or-later
"""The trials that claims are about: one machine of a study, by one way; and predicates of their outcomes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hibernaut.exploration.families import ChosenMachine
from hibernaut.exploration.layouts import RegionKind, Side, Structure
from hibernaut.exploration.records import WayResult
from hibernaut.exploration.run import Outcome
from hibernaut.linux.page_alloc import zone_batchsize

__all__ = [
    "Trial",
    "cleared_hidden_page",
    "crashed",
    "crashed_in_owner",
    "crashed_in_reset",
    "crashed_on_lists",
    "is_clean",
    "is_torn",
    "loses",
    "met_another_frame",
    "met_null_in_pcplist",
    "pages_served",
    "refused_for_the_reserve",
    "skipped",
    "tore_lists",
]

SPLITS = {RegionKind.BLOCK: 1, RegionKind.GIB: 3, RegionKind.VMALLOC: 1, RegionKind.UNMAPPED: 2}
"""The number of tables that it takes to map the saved pages of a region: those of a GiB lie in two blocks."""


@dataclass(frozen=True)
class Trial:
    """One machine of a study, by one way: the subject of a claim.

    Attributes:
        machine: the machine.
        name: the name of the way.
        way: its runs.
    """

    machine: ChosenMachine
    name: str
    way: WayResult

    def ends(self, which: Callable[[Outcome], bool]) -> bool:
        """Return whether any of its runs has such an outcome."""
        return any(which(ending.outcome) for ending in self.way.endings)

    def has(self, *kinds: RegionKind) -> bool:
        """Return whether the machine has a region of one of these kinds."""
        return any(region.kind in kinds for region in self.machine.regions)

    @property
    def splits(self) -> int:
        """The number of tables that it takes to map its saved pages one by one."""
        return sum(SPLITS.get(region.kind, 0) for region in self.machine.regions)

    @property
    def split_above(self) -> bool:
        """Whether a large entry that has to be split lies in a table above its region."""
        return any(region.kind in SPLITS and region.tables == Side.ABOVE for region in self.machine.regions)

    def tables_below(self, kind: RegionKind) -> bool:
        """Return whether it has regions of a kind, and all their tables lie below the regions."""
        tables = {region.tables for region in self.machine.regions if region.kind == kind}
        return tables == {Side.BELOW}

    @property
    def first_without_entry(self) -> RegionKind | None:
        """The kind of the first region that has no entry, or no table."""
        kinds = (region.kind for region in self.machine.regions)
        return next((kind for kind in kinds if kind in (RegionKind.NONE, RegionKind.NO_TABLE)), None)

    @property
    def pool_above(self) -> bool:
        """Whether the PTE table of a KFENCE pool that is saved lies above it: it is copied after the pool."""
        return any(region.kind == RegionKind.KFENCE and region.tables == Side.ABOVE for region in self.machine.regions)

    def below(self, structure: Structure) -> bool:
        """Return whether a structure lies below all regions."""
        return self.machine.where[structure] == Side.BELOW

    def below_if_any(self, structure: Structure) -> bool:
        """Return whether a structure lies below all regions, or the machine has none."""
        return self.machine.where.get(structure, Side.BELOW) == Side.BELOW

    def served(self, taken: int = 0) -> int:
        """Return how many pages GFP_KERNEL gets one by one, of its free pages less those taken, with empty CPU lists.

        Without a min mark these are all of them.
        """
        layout = self.machine.layout
        free = layout.free_pages - taken
        if layout.min_mark is None:
            return free
        batch = layout.batch or max(1, zone_batchsize(sum(pages for _, pages in layout.ram)))
        return pages_served(free, layout.min_mark, batch)

    @property
    def reserve(self) -> int:
        """The number of pages that `reserved:N` reserves."""
        return int(self.name.partition(":")[2])


def pages_served(free: int, mark: int, batch: int) -> int:
    """Return how many pages a CPU gets one by one from a zone, until it is not above its mark; nothing is reclaimed.

    While more than `mark` pages are free, a request takes a page of the CPU's list, which is empty at first. Each
    refill takes `batch` pages off the free ones at once, so the zone is at its mark after `-(-(free - mark) // batch)`
    refills. The pages of all of them but the last are served, and of the last one page: that of the request that
    refilled. The others stay on the list.

    Args:
        free: pages on the free lists.
        mark: the min mark.
        batch: pages of a refill.
    """
    if free <= mark:
        return 0
    refills = -(-(free - mark) // batch)
    return (refills - 1) * batch + 1


def is_clean(outcome: Outcome) -> bool:
    """Return whether a run broke no invariant."""
    return not outcome.violated


def loses(outcome: Outcome) -> bool:
    """Return whether a run lost or broke more than leaves a trace."""
    return outcome.loses


def crashed(outcome: Outcome) -> bool:
    """Return whether the machine crashed, in the copy or once resumed."""
    return outcome.status == "died"


def refused_for_the_reserve(outcome: Outcome) -> bool:
    """Return whether the kernel found no pages to reserve, and continues without an image."""
    return outcome.status == "refused"


def is_torn(outcome: Outcome) -> bool:
    """Return whether the image lacks a page table of its own."""
    return "tables-closed" in outcome.violated


def skipped(outcome: Outcome) -> bool:
    """Return whether an image was saved that lacks a listed page."""
    return outcome.status == "saved" and "every-listed-page" in outcome.violated


def tore_lists(outcome: Outcome) -> bool:
    """Return whether the resumed allocator's lists are torn."""
    return "lists-whole" in outcome.violated


def met_null_in_pcplist(outcome: Outcome) -> bool:
    """Return whether the machine crashed of a NULL link on a CPU's own list."""
    return "NULL" in outcome.crash and "__rmqueue_pcplist" in outcome.crash


def crashed_on_lists(outcome: Outcome) -> bool:
    """Return whether a resumed machine crashed of torn lists."""
    return crashed(outcome) and tore_lists(outcome)


def crashed_in_owner(outcome: Outcome, when: str = "") -> bool:
    """Return whether KFENCE's write to its page crashed the machine; `when` is a clause of `hibernation.owners`."""
    return crashed(outcome) and "__kfence_alloc" in outcome.crash and outcome.crash.endswith(when)


def crashed_in_reset(outcome: Outcome, when: str) -> bool:
    """Return whether a page that an owner of whole blocks reset and freed crashed its next user; `when` as above."""
    return crashed(outcome) and "clear_page, by the next user" in outcome.crash and outcome.crash.endswith(when)


def cleared_hidden_page(outcome: Outcome) -> bool:
    """Return whether a resumed machine crashed at a page that it allocated and that its direct map does not show."""
    return crashed(outcome) and "just allocated (clear_page)" in outcome.crash


def met_another_frame(outcome: Outcome) -> bool:
    """Return whether the copy crashed at an entry that was made present with another frame, beyond the CPU's."""
    return crashed(outcome) and "reserved bit violation" in outcome.crash and "copying" in outcome.crash
