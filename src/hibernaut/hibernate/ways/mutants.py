"""Ways with one step left out. Each must be caught by the check that its docstring names."""

from __future__ import annotations

from hibernaut.hibernate.ways.fixmap import Fixmap
from hibernaut.hibernate.ways.remap import Remap
from hibernaut.linux.machine import Machine
from hibernaut.linux.set_memory import set_direct_map_invalid

__all__ = ["FixmapNoClear", "FixmapNoFlush", "RemapNoFlush", "RemapNoUnmap"]


class FixmapNoFlush(Fixmap):
    """Forgets every invalidation: the second unmapped page is saved with the first one's bytes. Caught by same-data."""

    def hibernate_map_page(self, machine: Machine, pfn: int) -> int:
        """One PTE written, no invalidation."""
        return machine.fixmap.set_fixmap(pfn, flush=False)

    def hibernate_unmap_page(self, machine: Machine, pfn: int) -> None:
        """The PTE zero again, no invalidation."""
        del pfn
        machine.fixmap.clear_fixmap(flush=False)

    def copy_run(self, machine: Machine, pfn: int, pages: int) -> int:
        """Always one by one: what the slot shows depends on what it showed before."""
        del machine, pfn, pages
        return 0


class FixmapNoClear(Fixmap):
    """Leaves the last frame mapped in the slot. Caught by slot-empty."""

    def hibernate_unmap_page(self, machine: Machine, pfn: int) -> None:
        """Nothing."""

    def copy_run(self, machine: Machine, pfn: int, pages: int) -> int:
        """Always one by one: the slot stays in use."""
        del machine, pfn, pages
        return 0


class RemapNoUnmap(Remap):
    """Leaves every page that it mapped present in the direct map. Caught by same-direct-map."""

    def hibernate_unmap_page(self, machine: Machine, pfn: int) -> None:
        """Nothing."""

    def copy_run(self, machine: Machine, pfn: int, pages: int) -> int:
        """Always one by one."""
        del machine, pfn, pages
        return 0


class RemapNoFlush(Remap):
    """Unmaps a page and lets the CPU remember it. Caught by nothing-stale."""

    def hibernate_unmap_page(self, machine: Machine, pfn: int) -> None:
        """set_direct_map_invalid_noflush, and no flush after it."""
        set_direct_map_invalid(machine, pfn)

    def copy_run(self, machine: Machine, pfn: int, pages: int) -> int:
        """Always one by one."""
        del machine, pfn, pages
        return 0
