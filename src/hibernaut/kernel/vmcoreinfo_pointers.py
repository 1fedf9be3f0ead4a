# SPDX-License-Identifier: GPL-2.0-or-later
"""The VMCOREINFO that a kernel's own variables point to, found without symbols and without reading all memory.

`vmcoreinfo_data`, `vmcoreinfo_size` and `vmcoreinfo_note` are declared one after the other, pointer, size and pointer,
and lie so in .bss, in this order or reversed (kernel/crash_core.c; kernel/vmcore_info.c; read in linux-source-6.1 and
6.12). Both pointers are of whole pages: of the text, and of the note that is filled from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hibernaut.errors import FormatError
from hibernaut.kernel.layouts import KERNEL_IMAGE_BYTES
from hibernaut.memory.declarations import NOTE_HEADER, START_KERNEL_MAP, VMCOREINFO_NOTE
from hibernaut.memory.page import PAGE_SHIFT, PAGE_SIZE
from hibernaut.memory.vmcoreinfo import TEXT_BYTES, is_vmcoreinfo
from hibernaut.paging.spans import Rights, Stop
from hibernaut.paging.tables import PageTables

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hibernaut.memory.page import Pfns
    from hibernaut.memory.physical import PhysicalMemory

__all__ = ["PointedText", "text_by_pointers"]

PIECE_PAGES = 32
"""Pages that are searched at a time, the highest first: .bss is the last large part of a kernel image."""
NEAR_BYTES = 4 << 20
"""Bytes below a given address that are searched before all others."""
MOST_PAGES = 1 << 15
"""Most pages that are searched (128 MiB)."""
MOST_CANDIDATES = 64
"""Most places whose pointers are followed."""
FEWEST_BYTES = 64
"""Least length of a text."""
ROUND_BYTES = 256
"""Sizes that are multiples of it are those of buffers and tables, and of a text by chance only: they are tried last."""
TEXT_IN_NOTE = NOTE_HEADER.itemsize + -(-(len(VMCOREINFO_NOTE) + 1) // 4) * 4
"""Byte of the note at which the text begins: after the header, and the name with its NUL, padded to 4 bytes."""
GIB = 1 << 30


@dataclass(frozen=True)
class PointedText:
    """The VMCOREINFO that a kernel's variables point to.

    Attributes:
        text: the text.
        direct_map_base: address of page frame 0 in the direct map, which both pointers state: the allocator returns
            direct-map addresses (`__va`, arch/x86/include/asm/page.h). None if they contradict each other.
    """

    text: bytes
    direct_map_base: int | None


def text_by_pointers(memory: PhysicalMemory, cr3: int, levels: int, below: int | None = None) -> PointedText | None:
    """Return the text that the variables of the kernel with this root point to.

    None if they are not found: the kernel's data is not in memory, memory is encrypted, or the kernel keeps them
    otherwise.

    Args:
        memory: physical memory of the machine; frames may be absent, as in an image.
        cr3: physical address of the root of its page tables.
        levels: levels of paging.
        below: virtual address below which the search begins. Given that of `saved_context` it is short: arch/x86/power
            is linked after the rest of the kernel but drivers (arch/x86/Makefile), and so is its .bss. From there down
            to the three variables it is 209 pages in 6.1.192, and 255 in 6.12.107.

    Raises:
        HibernautError, OSError: as `memory` raises where a frame cannot be read.
    """
    tables = PageTables(memory, cr3, levels)
    round_ones: list[tuple[tuple[int, int], int]] = []
    left = MOST_CANDIDATES
    for pfns in _pieces(tables, below):
        pages, _ = memory.gather(pfns)
        for pointers, size_bytes in _candidates(pages.view(np.uint64).reshape(-1), _kernel_half(levels)):
            if size_bytes % ROUND_BYTES == 0:
                round_ones += [(pointers, size_bytes)][: MOST_CANDIDATES - len(round_ones)]
                continue
            text = _text_at(tables, pointers, size_bytes)
            if text is not None:
                return PointedText(text, _base(tables, pointers))
            left -= 1
            if not left:
                return None
    for pointers, size_bytes in round_ones:
        text = _text_at(tables, pointers, size_bytes)
        if text is not None:
            return PointedText(text, _base(tables, pointers))
    return None


def _pieces(tables: PageTables, below: int | None) -> Iterator[Pfns]:
    """Yield the frames of the data of the kernel image, by address from the highest on, those just below one first.

    A piece is ascending, and ends with the first page of the one before it: no variables are cut.
    """
    left = MOST_PAGES
    for start, end in _windows(below):
        try:
            spans = tables.scan(start, end).of_state(Stop.PRESENT)
        except FormatError:
            return
        data = (spans.rights & (Rights.RW | Rights.NX)) == Rights.RW | Rights.NX
        for pfn, pages in zip(spans.pfn[data][::-1].tolist(), spans.pages[data][::-1].tolist(), strict=True):
            for stop in range(pages, 0, -PIECE_PAGES):
                if left <= 0:
                    return
                first = max(0, stop - PIECE_PAGES)
                left -= stop - first
                yield np.arange(pfn + first, pfn + min(stop + 1, pages), dtype=np.int64)


def _windows(below: int | None) -> list[tuple[int, int]]:
    """Return the ranges of addresses to search, in order: those just below an address, then the whole kernel image."""
    image = START_KERNEL_MAP, START_KERNEL_MAP + KERNEL_IMAGE_BYTES
    if below is None:
        return [image]
    end = (below & -PAGE_SIZE) + PAGE_SIZE
    return [(max(image[0], end - NEAR_BYTES), end), image]


def _candidates(words: NDArray[np.uint64], lowest: int) -> Iterator[tuple[tuple[int, int], int]]:
    """Yield what may be the three variables in a piece of data: both pointers, `lowest` or above, and the size."""
    pointers = (words >= lowest) & (words < START_KERNEL_MAP) & (words % PAGE_SIZE == 0)
    sizes = (words >= FEWEST_BYTES) & (words <= TEXT_BYTES)
    for at in np.flatnonzero(pointers[:-2] & sizes[1:-1] & pointers[2:]).tolist():
        yield (int(words[at]), int(words[at + 2])), int(words[at + 1])


def _kernel_half(levels: int) -> int:
    """Return the first address of the kernel half."""
    return (1 << 64) - (1 << (11 + 9 * levels))


def _base(tables: PageTables, pointers: tuple[int, int]) -> int | None:
    """Return the address of frame 0 in the direct map in which two pointers lie; None if they lie in no such map.

    A direct map begins at a multiple of 1 GiB, and has the root of the tables where it has every other frame.
    """
    paddrs = [tables.walk(pointer).paddr for pointer in pointers]
    bases = {pointer - paddr for pointer, paddr in zip(pointers, paddrs, strict=True) if paddr is not None}
    if None in paddrs or len(bases) != 1:
        return None
    (base,) = bases
    if base % GIB or not _kernel_half(tables.levels) <= base < START_KERNEL_MAP:
        return None
    root = tables.root_pfn << PAGE_SHIFT
    return base if tables.walk(base + root).paddr == root else None


def _text_at(tables: PageTables, pointers: tuple[int, int], size_bytes: int) -> bytes | None:
    """Return the text of that length that one of two pointers leads to, else the one in a note; None without any.

    The second pointer is followed first: `vmcoreinfo_data` lies there in 6.1 and 6.12.
    """
    for skipped in (0, TEXT_IN_NOTE):
        for pointer in reversed(pointers):
            paddr = tables.walk(pointer).paddr
            text = None if paddr is None else tables.memory.read(paddr + skipped, size_bytes)
            if text is not None and is_vmcoreinfo(text):
                return text
    return None
