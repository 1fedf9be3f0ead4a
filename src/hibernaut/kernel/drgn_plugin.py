# SPDX-License-Identifier: GPL-2.0-or-later
"""A plug-in of drgn: a core of a kernel that drgn opens itself has symbols and types without debug packages.

drgn loads it by its entry point and calls `drgn_prog_set`. Its finders come last, so that debug information that is
loaded is asked first, and they read kallsyms and BTF only when they are asked. DRGN_DISABLE_PLUGINS=hibernaut switches
it off.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from hibernaut.kernel.btf_finders import BtfFinders

__all__ = ["drgn_prog_set"]

NAME = "hibernaut-core"
"""Name of its finders."""
MOST_WARNINGS = 8
"""Most different warnings about damage."""
OF_OUR_PROGRAMS = "hibernaut"
"""Name of the finders of a program of ours (`drgn_program`), which needs no others."""


def drgn_prog_set(prog: Any) -> None:
    """Register the finders for the core of an x86-64 kernel; nothing for any other program, or for the running one."""
    import drgn

    flags, platform = drgn.ProgramFlags, prog.platform
    if not prog.flags & flags.IS_LINUX_KERNEL or prog.flags & flags.IS_LIVE:
        return
    if platform is None or platform.arch != drgn.Architecture.X86_64:
        return
    if NAME in prog.registered_type_finders():  # the plug-in is loaded twice
        return
    finders = _Finders(prog)
    prog.register_type_finder(NAME, finders.find_type, enable_index=-1)
    prog.register_object_finder(NAME, finders.find_object, enable_index=-1)
    prog.register_symbol_finder(NAME, finders.find_symbols, enable_index=-1)


class _Finders:
    """Finders that read the kernel when they are first asked."""

    def __init__(self, program: Any) -> None:
        self._program = program
        self._lock = threading.RLock()
        self._is_reading = False
        self._btf: BtfFinders | None = None
        self._symbols: Any = None
        self._is_read = False
        self._warned: set[str] = set()

    def find_type(self, program: Any, kinds: Any, name: str, filename: str | None) -> Any:
        """See `BtfFinders.find_type`."""
        found = self._read()
        return self._answer(lambda: found.find_type(program, kinds, name, filename)) if found is not None else None

    def find_object(self, program: Any, name: str, flags: Any, filename: str | None) -> Any:
        """See `BtfFinders.find_object`."""
        found = self._read()
        return self._answer(lambda: found.find_object(program, name, flags, filename)) if found is not None else None

    def find_symbols(self, program: Any, name: str | None, address: int | None, one: bool) -> list[Any]:
        """See `symbol_finder`."""
        self._read()
        symbols = self._symbols
        found = self._answer(lambda: symbols(program, name, address, one)) if symbols is not None else None
        return [] if found is None else list(found)

    def _answer(self, question: Callable[[], Any]) -> Any:
        """Return the answer to a question; None, and a warning, if what it reads is damaged or not in the core."""
        from hibernaut.errors import HibernautError

        try:
            return question()
        except HibernautError as error:
            self._warn(error)
            return None

    def _warn(self, error: Exception) -> None:
        import logging

        line = str(error)
        if line not in self._warned and len(self._warned) < MOST_WARNINGS:
            self._warned.add(line)
            logging.getLogger("hibernaut").warning("symbols and types of the kernel cannot be read: %s", line)

    def _read(self) -> BtfFinders | None:
        """Return the finders of the kernel's BTF; None if it is not needed, cannot be read, or is being read."""
        if OF_OUR_PROGRAMS in self._program.registered_symbol_finders():
            return None
        with self._lock:
            if not self._is_read and not self._is_reading:
                self._is_reading = True
                try:
                    self._read_kernel()
                finally:
                    self._is_read, self._is_reading = True, False
            return self._btf

    def _read_kernel(self) -> None:
        import logging

        from hibernaut.errors import HibernautError
        from hibernaut.kernel.btf_finders import BtfFinders
        from hibernaut.kernel.program_memory import ProgramMemory
        from hibernaut.kernel.symbols import SymbolicKernel
        from hibernaut.kernel.symbols_for_drgn import symbol_finder

        try:
            text = self._program["VMCOREINFO"].string_()
            kernel = SymbolicKernel(ProgramMemory(self._program), text, "the core", on_demand=True)
            self._symbols = symbol_finder(kernel)
            if kernel.btf is not None:
                self._btf = BtfFinders(self._program, kernel, kernel.btf)
            else:
                logging.getLogger("hibernaut").warning("%s", kernel.btf_trouble)
        except (HibernautError, LookupError) as error:
            logging.getLogger("hibernaut").warning("no symbols and types of the kernel: %s", error)
