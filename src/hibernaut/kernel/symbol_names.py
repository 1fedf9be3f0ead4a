# SPDX-License-Identifier: GPL-2.0-or-later
"""The names of a kernel's symbols: enough to tell what a kernel has, without addresses and without drgn.

They come from kallsyms in the kernel's memory or in its bzImage, from /proc/kallsyms of the running kernel, or from a
System.map.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hibernaut.errors import FormatError
from hibernaut.kernel.bzimage import bzimage_release, unpack_bzimage
from hibernaut.kernel.kallsyms import names_in_image
from hibernaut.kernel.kallsyms_in_memory import kallsyms_places
from hibernaut.kernel.kernel_memory import KernelMemory
from hibernaut.kernel.symbol_table import names_of
from hibernaut.memory.physical import PhysicalMemory
from hibernaut.volumes.files import read_at_most

__all__ = ["SymbolNames", "names_in_memory", "names_of_running", "names_of_system_map", "names_of_vmlinuz"]

MAX_MAP_BYTES = 256 << 20
FEWEST_SYMBOLS = 1 << 10
"""Debian's System.map has one line, which says where the real one is."""
MAP_LINE = re.compile(rb"^[0-9a-f]+ ([A-Za-z?]) (\S+)$", re.MULTILINE)
"""A symbol of the kernel itself: a module's has the module's name after it."""
DATA_TYPES = frozenset(b"bBdD")


@dataclass(frozen=True)
class SymbolNames:
    """A kernel as `kernel_line.ProbedKernel` asks it, by its symbols' names.

    Attributes:
        names: the names; of those that the compiler split or specialised (`name.cold`, `name.isra.0`) the plain ones.
        has_data_symbols: whether variables are among them (CONFIG_KALLSYMS_ALL).
    """

    names: frozenset[str]
    has_data_symbols: bool

    @staticmethod
    def of(symbols: Iterable[bytes]) -> SymbolNames:
        """Make it of symbols as kallsyms has them: the letter of the type, then the name."""
        chosen = list(symbols)
        names = frozenset(symbol[1:].split(b".", 1)[0].decode("utf-8", "backslashreplace") for symbol in chosen)
        return SymbolNames(names, any(symbol[0] in DATA_TYPES for symbol in chosen))

    def has_function(self, name: str) -> bool:
        """Tell whether there is a function of that name."""
        return name in self.names

    def has_data(self, name: str) -> bool | None:
        """Tell whether there is a variable of that name; None if variables are not listed."""
        return name in self.names if self.has_data_symbols else None

    def has_member(self, type_name: str, member: str) -> bool | None:  # noqa: ARG002
        """Return None: symbols have no types."""
        return None


def names_in_memory(memory: PhysicalMemory, vmcoreinfo: bytes | None = None, *, name: str | None = None) -> SymbolNames:
    """Return the names of the kernel in a memory, a dump's or an image's, from its kallsyms.

    Args:
        memory: physical memory of the machine; frames may be absent, as in an image.
        vmcoreinfo: text of VMCOREINFO; searched for in the memory if None.
        name: name of the source in messages.

    Raises:
        FormatError: as for `KernelMemory`; or kallsyms is damaged or absent.
    """
    kernel = KernelMemory(memory, vmcoreinfo, name)
    return SymbolNames.of(names_of(kernel, kallsyms_places(kernel)).split(b"\0")[1:])


def names_of_vmlinuz(path: Path) -> SymbolNames:
    """Return the names of a kernel that is not running: from its bzImage, else from the System.map beside it.

    Raises:
        FormatError: not a bzImage; or its payload cannot be read and there is no System.map.
        OSError: a file cannot be read.
    """
    release = bzimage_release(path)
    try:
        return SymbolNames.of(names_in_image(unpack_bzimage(path), str(path)))
    except FormatError as error:
        beside = path.with_name(f"System.map-{release}")
        if not beside.exists():
            raise error from None
        return names_of_system_map(beside)


def names_of_system_map(path: Path) -> SymbolNames:
    """Return the names in a System.map, or in a file like /proc/kallsyms.

    Raises:
        FormatError: it is not one, or has too few symbols: Debian's only names the package that has the real one.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        content = read_at_most(file, MAX_MAP_BYTES)
    symbols = [kind + name for kind, name in MAP_LINE.findall(content)]
    if len(symbols) < FEWEST_SYMBOLS:
        raise FormatError(f"{len(symbols)} symbols in it", source=str(path), expected=f"at least {FEWEST_SYMBOLS}")
    return SymbolNames.of(symbols)


def names_of_running(root: Path = Path("/")) -> SymbolNames:
    """Return the names of the running kernel: /proc/kallsyms has them for everyone, whatever its addresses say.

    Args:
        root: folder that has proc.

    Raises:
        FormatError, OSError: as `names_of_system_map`.
    """
    return names_of_system_map(root / "proc/kallsyms")
