# SPDX-License-Identifier: GPL-2.0-or-later
"""The tables of kallsyms in a kernel's memory: located by VMCOREINFO, else found there.

Since Linux kernel commit 5fd8fea935a1 ("vmcoreinfo: include kallsyms symbols") (in v6.0), VMCOREINFO has its location.
The tables of an older kernel are searched for in its image. From Linux kernel commit 2213e9a66bb8 ("kallsyms: add
support for relative offsets in kallsyms address table") (in v4.6) on they lie in the order offsets, relative base,
number, names (`write_src`, scripts/kallsyms.c, read in linux-source-6.1).
"""

from __future__ import annotations

import struct

import numpy as np

from hibernaut.errors import FormatError
from hibernaut.kernel.kallsyms import KallsymsTables, tables_in_image
from hibernaut.kernel.kernel_memory import KernelMemory
from hibernaut.memory.page import PAGE_SHIFT

__all__ = ["kallsyms_places"]

SEARCHED_BYTES = 64 << 20
"""Length of the kernel image that is searched, from `_stext` on: text and read-only data."""
NAMES = ("num_syms", "names", "token_table", "token_index")
ADDRESSES = ("offsets", "relative_base")
"""Tables of addresses: 7.2 has no base."""
FIRST_SYMBOL = b"T_stext"


def kallsyms_places(kernel: KernelMemory) -> dict[str, int]:
    """Return the virtual address of each table by its name without `kallsyms_`, as VMCOREINFO says or as found.

    Those of the names are there always, those of the addresses if VMCOREINFO has them or they were found.

    Raises:
        FormatError: VMCOREINFO does not have them, and they are not in the kernel's image, or are damaged; or it has
            some of those of the names only.
    """
    lines = {name: f"SYMBOL(kallsyms_{name})" for name in NAMES}
    if any(line in kernel.facts for line in lines.values()):
        placed = {name: kernel.number(line, 16) for name, line in lines.items()}
        others = {name: f"SYMBOL(kallsyms_{name})" for name in ADDRESSES}
        return placed | {name: kernel.number(line, 16) for name, line in others.items() if line in kernel.facts}
    start = kernel.number("SYMBOL(_stext)", 16)
    first = kernel.image_paddr(start) >> PAGE_SHIFT
    pages, _ = kernel.memory.gather(np.arange(first, first + (SEARCHED_BYTES >> PAGE_SHIFT), dtype=np.int64))
    image = pages.tobytes()
    try:
        found = tables_in_image(image, kernel.name)
    except FormatError:
        raise kernel.damaged("VMCOREINFO does not say where kallsyms is, and the kernel's image has none") from None
    base = start & ~((1 << PAGE_SHIFT) - 1)
    relative_base = found.num_syms - 8
    offsets = relative_base - (4 * len(found.symbols) + 7 & ~7)
    if start not in _addresses(image, found, FIRST_SYMBOL, offsets, relative_base):
        raise kernel.damaged("the addresses of kallsyms are not before its names", f"_stext at {start:#x}")
    places = (found.num_syms, found.names, found.token_table, found.token_index, offsets, relative_base)
    return {name: base + place for name, place in zip(NAMES + ADDRESSES, places, strict=True)}


def _addresses(image: bytes, found: KallsymsTables, symbol: bytes, offsets: int, relative_base: int) -> set[int]:
    """Return the addresses of a symbol as a table of offsets has them; empty if table or symbol are not there.

    With per-CPU symbols an offset from the base is stored as its complement (CONFIG_KALLSYMS_ABSOLUTE_PERCPU).
    """
    if offsets < 0 or symbol not in found.symbols:
        return set()
    (offset,) = struct.unpack_from("<i", image, offsets + 4 * found.symbols.index(symbol))
    (base,) = struct.unpack_from("<Q", image, relative_base)
    return {base - 1 - offset if offset < 0 else base + offset}
