# SPDX-License-Identifier: GPL-2.0-or-later
"""The VMCOREINFO that a kernel's own variables point to, found without symbols and without reading all memory.

`vmcoreinfo_data`, `vmcoreinfo_size` and `vmcoreinfo_note` are declared one after the other, pointer, size and pointer,
and lie so in .bss, in this order or reversed (kernel/crash_core.c; kernel/vmcore_info.c; read in linux-source-6.1 and
6.12). Both pointers are of whole pages: of the text, and of the note that is filled from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from hibernaut.errors import FormatError
from hibernaut.kernel.layouts import KERNEL_IMAGE_BYTES
from hibernaut.memory.declarations import NOTE_HEADER, START_KERNEL_MAP, VMCOREINFO_NOTE
from hibernaut.memory.page import PAGE_SIZE
from hibernaut.memory.vmcoreinfo import TEXT_BYTES, is_vmcoreinfo
from hibernaut.paging.spans import Rights, Stop
from hibernaut.paging.tables import PageTables

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hibernaut.memory.page import Pfns
    from hibernaut.memory.physical import PhysicalMemory

__all__ = ["texts_by_pointers"]

PIECE_PAGES = 64
"""Pages that are searched at a time, the highest first: .bss is the last large part of a kernel image."""
MOST_PAGES = 1 << 15
"""Most pages that are searched (128 MiB)."""
MOST_CANDIDATES = 64
"""Most places whose pointers are followed."""
FEWEST_BYTES = 64
"""Least length of a text."""
TEXT_IN_NOTE = NOTE_HEADER.itemsize + -(-(len(VMCOREINFO_NOTE) + 1) // 4) * 4
"""Byte of the note at which the text begins: after the header, and the name with its NUL, padded to 4 bytes."""
_KERNEL_HALF = 0xFFFF_8000_0000_0000


def texts_by_pointers(memory: PhysicalMemory, cr3: int, levels: int) -> tuple[bytes, ...]:
    """Return the texts that the variables of the kernel with this root point to, each once, the longest first.

    Empty if they are not found: the kernel's data is not in memory, memory is encrypted, or the kernel keeps them
    otherwise.

    Args:
        memory: physical memory of the machine; frames may be absent, as in an image.
        cr3: physical address of the root of its page tables.
        levels: levels of paging.

    Raises:
        HibernautError, OSError: as `memory` raises where a frame cannot be read.
    """
    tables = PageTables(memory, cr3, levels)
    left = MOST_CANDIDATES
    for pfns in _pieces(tables):
        pages, _ = memory.gather(pfns)
        for pointers, size_bytes in _candidates(pages.view(np.uint64).reshape(-1)):
            texts = {text for pointer in pointers for text in _texts_at(tables, pointer, size_bytes)}
            if texts:
                return tuple(sorted(texts, key=lambda text: (-len(text), text)))
            left -= 1
            if not left:
                return ()
    return ()


def _pieces(tables: PageTables) -> Iterator[Pfns]:
    """Yield the frames of the data of the kernel image, by address from the highest on.

    A piece is ascending, and ends with the first page of the one before it: no variables are cut.
    """
    try:
        spans = tables.scan(START_KERNEL_MAP, START_KERNEL_MAP + KERNEL_IMAGE_BYTES).of_state(Stop.PRESENT)
    except FormatError:
        return
    data = (spans.rights & (Rights.RW | Rights.NX)) == Rights.RW | Rights.NX
    left = MOST_PAGES
    for pfn, pages in zip(spans.pfn[data][::-1].tolist(), spans.pages[data][::-1].tolist(), strict=True):
        for end in range(pages, 0, -PIECE_PAGES):
            if left <= 0:
                return
            first = max(0, end - PIECE_PAGES)
            left -= end - first
            yield np.arange(pfn + first, pfn + min(end + 1, pages), dtype=np.int64)


def _candidates(words: NDArray[np.uint64]) -> Iterator[tuple[tuple[int, int], int]]:
    """Yield what may be the three variables in a piece of data: both pointers, and the size between them."""
    pointers = (words >= _KERNEL_HALF) & (words < START_KERNEL_MAP) & (words % PAGE_SIZE == 0)
    sizes = (words >= FEWEST_BYTES) & (words <= TEXT_BYTES)
    for at in np.flatnonzero(pointers[:-2] & sizes[1:-1] & pointers[2:]).tolist():
        yield (int(words[at]), int(words[at + 2])), int(words[at + 1])


def _texts_at(tables: PageTables, pointer: int, size_bytes: int) -> Iterator[bytes]:
    """Yield the text of that length that a pointer leads to: at once, or in a note."""
    paddr = tables.walk(pointer).paddr
    if paddr is None:
        return
    for skipped in (0, TEXT_IN_NOTE):
        text = tables.memory.read(paddr + skipped, size_bytes)
        if text is not None and is_vmcoreinfo(text):
            yield text
