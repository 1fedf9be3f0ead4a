# SPDX-License-Identifier: GPL-2.0-or-later
"""`Kernel`: the kernel in a dump or an image, with its symbols, its types and its objects."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from hibernaut.errors import FormatError
from hibernaut.kernel.own_vmcoreinfo import kernel_by_pointers, with_own_vmcoreinfo
from hibernaut.kernel.program import drgn_program
from hibernaut.kernel.symbols import SymbolicKernel

if TYPE_CHECKING:
    from typing import Any

    from hibernaut.sources import Source

__all__ = ["Kernel"]


class Kernel(SymbolicKernel):
    """The kernel of a machine, read in place from the machine's memory, without debug packages.

    Its symbols come from kallsyms and its types from BTF, both in that memory. Objects are drgn's:
    `kernel["init_task"]` is a `drgn.Object`, and drgn's helpers take `kernel.drgn()`. Symbols and types are read when
    they are asked for; where they are damaged, that question raises FormatError.

    Attributes:
        symbols: its symbols by name, as `kernel.symbols["init_task"].address`.
        btf: its types; None if it has none, for the reason in `btf_trouble`.
        release: its release, as `uname -r` prints it.
        vmcoreinfo: text of its VMCOREINFO.
    """

    @staticmethod
    def of(source: Source) -> Kernel:
        """Return the kernel of an open source (`open_memory`), which stays open as long as the kernel is used.

        Raises:
            FormatError: there is no kernel of x86-64 in it, or its VMCOREINFO or kallsyms is absent or damaged.
        """
        source.require_x86_64()
        pointed = kernel_by_pointers(source) if source.vmcoreinfo is None else None
        if pointed is not None:
            return Kernel(source.memory, pointed.text, source.name, on_demand=True)
        own, found = with_own_vmcoreinfo(source, None if source.cr3 is None else (source.cr3, source.levels))
        if not found.text:
            reason = "no VMCOREINFO in memory: not a Linux kernel, or built without CONFIG_VMCORE_INFO"
            if source.salvaged is not None and not source.salvaged.complete:
                reason = "no VMCOREINFO in what is left of the image: it is lost, or this is not a Linux kernel"
            raise FormatError(found.remark or reason, source=source.name)
        return Kernel(own.memory, found.text, source.name, on_demand=True)

    def drgn(self) -> Any:
        """Return drgn's `Program` on this kernel; always the same one.

        Raises:
            HibernautError: drgn is not installed.
        """
        return self._program

    def __getitem__(self, name: str) -> Any:
        """Return a variable, function or constant by name, a `drgn.Object`.

        Raises:
            KeyError: there is none, or its type is unknown.
            HibernautError: drgn is not installed.
        """
        return self._program[name]

    def __contains__(self, name: str) -> bool:
        """Return whether there is a variable, function or constant of that name whose type is known."""
        return name in self._program

    def object(self, type_name: str, address: int) -> Any:
        """Return the object of a type at an address, such as `kernel.object("struct page", 0xffffea0000000000)`.

        Raises:
            LookupError: there is no such type.
            SyntaxError: not a type's name.
            HibernautError: drgn is not installed.
        """
        import drgn

        return drgn.Object(self._program, type_name, address=address)

    @cached_property
    def _program(self) -> Any:
        return drgn_program(self)
