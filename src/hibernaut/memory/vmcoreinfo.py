# SPDX-License-Identifier: GPL-2.0-or-later
"""VMCOREINFO: the text that describes a kernel to crash tools, found in the kernel's memory.

The kernel keeps it in two places: the ELF note for a crash dump, and the page that the note is filled from. The
text starts with `OSRELEASE=` and is followed by zeroes. Since Linux kernel commit 443cbaf9e2fd ("crash: split
vmcoreinfo exporting code out from crash_core.c") (in v6.9), its code is in kernel/vmcore_info.c.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from hibernaut.memory.declarations import CR3_FRAME, PADDR_LIMIT, START_KERNEL_MAP
from hibernaut.memory.page import CHUNK_PAGES, PAGE_SIZE, Bytes, Pfns
from hibernaut.memory.physical import PhysicalMemory

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "TEXT_BYTES",
    "VmcoreinfoFinder",
    "chunks_of",
    "find_vmcoreinfo",
    "find_vmcoreinfos",
    "is_vmcoreinfo",
    "page_table_root",
    "parse_vmcoreinfo",
    "sme_mask",
    "stored_chunks_of",
]

START = b"OSRELEASE="
MUST_HAVE = "SYMBOL(swapper_pg_dir)"
TEXT_BYTES = 4 * PAGE_SIZE
"""The kernel's limit is one page (VMCOREINFO_BYTES, include/linux/vmcore_info.h); this leaves room to grow."""
MOST_TEXTS = 64
"""Most texts kept, the longest: a machine has a few, of as many kernels."""
ALIGN_BYTES = 8
"""Both copies are aligned to 8 bytes: one is a page, the other follows the 24 bytes of a note's header."""

LINE = re.compile(r"[^\x00-\x1f=]+=[^\x00-\x1f]*")


def parse_vmcoreinfo(text: bytes) -> dict[str, str]:
    """Return the lines of VMCOREINFO as key -> value, in order; lines without `=` are left out.

    Bytes that are not UTF-8 become backslash escapes.
    """
    lines = text.split(b"\x00", 1)[0].decode("utf-8", "backslashreplace").split("\n")
    return dict(line.split("=", 1) for line in lines if "=" in line)


def is_vmcoreinfo(text: bytes) -> bool:
    """Return whether a text is a complete VMCOREINFO, not a fragment or a mention of one."""
    try:
        lines = text.decode("ascii").removesuffix("\n").split("\n")
    except UnicodeDecodeError:
        return False
    return (
        len(text) > len(START)
        and text.startswith(START)
        and all(LINE.fullmatch(line) for line in lines)
        and any(line.startswith(f"{MUST_HAVE}=") for line in lines)
    )


def page_table_root(facts: Mapping[str, str]) -> tuple[int | None, int | None]:
    """Return CR3 (the physical address of `swapper_pg_dir`) and paging levels by VMCOREINFO; None where unknown.

    A symbol of the kernel image at virtual address v is at v - __START_KERNEL_map + phys_base
    (`__phys_addr_nodebug`, arch/x86/include/asm/page_64.h); both include the offset of KASLR.
    Without `pgtable_l5_enabled` there are 4 levels. Read in linux-source-5.10 5.10.262-1 and later:
    `arch_crash_save_vmcoreinfo` (arch/x86/kernel) exports it.
    """
    try:
        cr3 = int(facts[MUST_HAVE], 16) - START_KERNEL_MAP + int(facts["NUMBER(phys_base)"])
        levels = 5 if int(facts.get("NUMBER(pgtable_l5_enabled)", "0")) else 4
    except (KeyError, ValueError):
        return None, None
    if not 0 < cr3 < PADDR_LIMIT or cr3 & ~CR3_FRAME:
        return None, None
    return cr3, levels


def sme_mask(facts: Mapping[str, str]) -> int:
    """Return the mask of the bit of encrypted memory by VMCOREINFO (`NUMBER(sme_mask)`); 0 if it names none."""
    try:
        mask = int(facts.get("NUMBER(sme_mask)", "0"))
    except ValueError:
        return 0
    return mask if mask > 0 and mask.bit_count() == 1 and not mask & ~CR3_FRAME else 0


def chunks_of(memory: PhysicalMemory) -> Iterator[tuple[Pfns, Bytes]]:
    """Yield all of a memory, ascending: page frame numbers, int64 (n,), and their pages, uint8 (n, 4096)."""
    for first, pages in memory.blocks():
        yield np.arange(first, first + len(pages), dtype=np.int64), pages


def stored_chunks_of(memory: PhysicalMemory) -> Iterator[tuple[Pfns, Bytes]]:
    """Yield the `stored` frames of a memory as `chunks_of` does."""
    for first, pages in memory.stored_blocks():
        yield np.arange(first, first + len(pages), dtype=np.int64), pages


def find_vmcoreinfo(memory: PhysicalMemory) -> bytes | None:
    """Return the longest VMCOREINFO in a memory; None if there is none. Reads all pages.

    Of several kernels' texts it may be another's: see `kernel.own_vmcoreinfo`.
    """
    return next(iter(find_vmcoreinfos(memory)), None)


def find_vmcoreinfos(memory: PhysicalMemory) -> tuple[bytes, ...]:
    """Return every VMCOREINFO in a memory, each once, the longest first, at most `MOST_TEXTS`.

    Reads all `stored` pages.
    """
    finder = VmcoreinfoFinder()
    for pfns in memory.stored.chunks(CHUNK_PAGES):
        finder.feed(pfns, memory.gather(pfns)[0])
    return finder.texts(memory)


class VmcoreinfoFinder:
    """A search for VMCOREINFO in memory that comes in chunks, in any order and from any thread."""

    def __init__(self) -> None:
        self._texts: set[bytes] = set()
        self._cut: list[int] = []
        """Physical addresses of texts that start in a chunk and end behind it."""
        self._lock = threading.Lock()

    def feed(self, pfns: Pfns, pages: Bytes) -> None:
        """Search one chunk.

        Args:
            pfns: page frame numbers, ascending int64, shape (n,).
            pages: their bytes, uint8, shape (n, 4096), C-contiguous.
        """
        data = pages.reshape(-1)
        for start in _candidates(data):
            first, within = divmod(start, PAGE_SIZE)
            # Neighbours in the chunk are neighbours in memory as long as page frame numbers ascend by one.
            steps = np.diff(pfns[first : first + TEXT_BYTES // PAGE_SIZE + 1]) == 1
            end = first + 1 + int(np.argmin(np.append(steps, False)))
            window = data[start : min(end * PAGE_SIZE, start + TEXT_BYTES)].tobytes()
            if b"\x00" not in window and len(window) < TEXT_BYTES:
                with self._lock:
                    self._cut.append(int(pfns[first]) * PAGE_SIZE + within)
            else:
                self._consider(window)

    def found(self, memory: PhysicalMemory) -> bytes | None:
        """Return the longest text found, without its final NUL; None if there is none. Arguments as for `texts`."""
        return next(iter(self.texts(memory)), None)

    def texts(self, memory: PhysicalMemory) -> tuple[bytes, ...]:
        """Return all texts found, without their final NULs, each once, the longest first.

        Args:
            memory: the memory that the chunks came from, for texts that cross a chunk's end.
        """
        for paddr in self._cut:
            first, within = divmod(paddr, PAGE_SIZE)
            pages, present = memory.gather(np.arange(first, first + 1 + TEXT_BYTES // PAGE_SIZE))
            there = len(present) if present.all() else int(np.argmin(present))
            self._consider(pages[:there].reshape(-1)[within : within + TEXT_BYTES].tobytes())
        self._cut.clear()
        return tuple(sorted(self._texts, key=lambda text: (-len(text), text)))

    def _consider(self, window: bytes) -> None:
        text, nul, _ = window.partition(b"\x00")
        with self._lock:
            if nul and text not in self._texts and is_vmcoreinfo(text):
                self._texts.add(text)
                if len(self._texts) > MOST_TEXTS:
                    self._texts.remove(min(self._texts, key=lambda one: (len(one), one)))


def _candidates(data: Bytes) -> list[int]:
    """Return the positions of the first 8 bytes of `START`, multiples of 8: a text may start there."""
    words: NDArray[np.uint64] = data.view(np.uint64)
    hits = np.flatnonzero(words == np.uint64(int.from_bytes(START[:ALIGN_BYTES], "little")))
    return [at * ALIGN_BYTES for at in hits.tolist()]
