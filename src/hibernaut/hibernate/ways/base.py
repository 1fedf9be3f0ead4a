"""The interface of a way to save a page that the direct map does not show."""

from __future__ import annotations

from abc import ABC, abstractmethod

from hibernaut.errors import MachineFault
from hibernaut.linux.machine import Machine
from hibernaut.linux.set_memory import kernel_page_present
from hibernaut.memory.physical import Bytes

__all__ = ["Way"]


class Way(ABC):
    """How `safe_copy_page` (kernel/power/snapshot.c) gets at one page.

    The three steps are the kernel's: ask whether the page is present, map it if not, unmap it after the copy. Ways have
    no state of their own: everything is the machine's.
    """

    @property
    def name(self) -> str:
        """What people call it."""
        return type(self).__name__

    def page_present(self, machine: Machine, pfn: int) -> bool:
        """Whether the page can be read at its direct-map address. Raises MachineFault if asking is fatal."""
        return kernel_page_present(machine, pfn)

    @abstractmethod
    def hibernate_map_page(self, machine: Machine, pfn: int) -> int:
        """Make a page readable that is not; the address to read it from. Raises MachineFault."""

    @abstractmethod
    def hibernate_unmap_page(self, machine: Machine, pfn: int) -> None:
        """Undo it."""

    def safe_copy_page(self, machine: Machine, pfn: int) -> Bytes:
        """The bytes that the kernel would put in the image for a frame, a copy, shape (4096,).

        Raises:
            MachineFault: the modelled machine dies of it.
        """
        doing = f"copying frame {pfn:#x} in swsusp_save"
        try:
            if self.page_present(machine, pfn):
                return machine.read_page(machine.vaddr(pfn), doing).copy()
            page = machine.read_page(self.hibernate_map_page(machine, pfn), doing).copy()
            self.hibernate_unmap_page(machine, pfn)
        except MachineFault as fault:
            fault.pfn = pfn if fault.pfn is None else fault.pfn
            fault.log = machine.log.kernel_lines
            raise
        return page
