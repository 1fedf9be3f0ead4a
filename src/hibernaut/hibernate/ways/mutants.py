"""Ways with one step left out. Each must be caught by the check that its docstring names."""

from __future__ import annotations

from hibernaut.hibernate.ways.fixmap import Fixmap
from hibernaut.hibernate.ways.remap import Remap
from hibernaut.linux.machine import Machine

__all__ = ["FixmapNoClear", "FixmapNoFlush", "RemapNoUnmap"]


class FixmapNoFlush(Fixmap):
    """Forgets every invalidation: the second unmapped page is saved with the first one's bytes. Caught by same_data."""

    def hibernate_map_page(self, machine: Machine, pfn: int) -> int:
        """One PTE written, no invalidation."""
        return machine.fixmap.set_fixmap(pfn, flush=False)

    def hibernate_unmap_page(self, machine: Machine, pfn: int) -> None:
        """The PTE zero again, no invalidation."""
        del pfn
        machine.fixmap.clear_fixmap(flush=False)


class FixmapNoClear(Fixmap):
    """Leaves the last frame mapped in the slot. Caught by slot_empty."""

    def hibernate_unmap_page(self, machine: Machine, pfn: int) -> None:
        """Nothing."""


class RemapNoUnmap(Remap):
    """Leaves every page that it mapped present in the direct map. Caught by same_direct_map."""

    def hibernate_unmap_page(self, machine: Machine, pfn: int) -> None:
        """Nothing."""
