# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel's banner, `Linux version ...`, in its own memory, found without symbols.

`linux_banner` (init/version-timestamp.c) lies in the kernel image, as does the buffer of the log that prints it first.
The image is physically contiguous, so that one address in it, translated, leads to all of it.
"""

from __future__ import annotations

import re

import numpy as np

from hibernaut.memory.page import PAGE_SHIFT, PAGE_SIZE
from hibernaut.memory.physical import PhysicalMemory
from hibernaut.paging.tables import PageTables

__all__ = ["find_banner"]

BANNER = re.compile(rb"Linux version [0-9][ -~]{1,400}#[0-9][ -~]{1,200}(?=\n)")
"""With the number of the build: a placeholder without it (init/version.c) may lie before it."""
BEFORE_BYTES, AFTER_BYTES = 32 << 20, 64 << 20
"""Part of memory around an address of the kernel's text that is searched."""
PIECE_PAGES = 512
LEVELS = (4, 5)


def find_banner(memory: PhysicalMemory, root: int, text: int, encryption: int = 0) -> str | None:
    """Return the banner of a kernel, without its newline; None if it is not found.

    Args:
        memory: physical memory of the machine; frames may be absent, as in an image.
        root: physical address of its page tables; their levels are tried.
        text: a virtual address in the kernel's text, such as the one that an image's info page restores to.
        encryption: mask of the bit of encrypted memory in page-table entries.
    """
    for levels in LEVELS:
        paddr = PageTables(memory, root, levels, encryption).walk(text).paddr
        if paddr is not None:
            found = _search(memory, paddr)
            if found is not None:
                return found
    return None


def _search(memory: PhysicalMemory, paddr: int) -> str | None:
    """Return the banner nearest to the start of the memory around an address."""
    first = max(0, paddr - BEFORE_BYTES) >> PAGE_SHIFT
    tail = b""
    for start in range(first, paddr + AFTER_BYTES >> PAGE_SHIFT, PIECE_PAGES):
        pages, present = memory.gather(np.arange(start, start + PIECE_PAGES, dtype=np.int64))
        if not present.any():
            tail = b""
            continue
        piece = tail + pages.tobytes()
        match = BANNER.search(piece)
        if match is not None:
            return match[0].decode()
        tail = piece[-PAGE_SIZE:]
    return None
