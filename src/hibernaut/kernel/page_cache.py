# SPDX-License-Identifier: GPL-2.0-or-later
"""The pages of a file that a kernel has in memory or swapped out: the page cache, and the content of tmpfs.

`struct address_space` has them in an XArray by page of the file. A value in it is, of tmpfs (`shmem_aops`), the swap
entry of a page (`swp_to_radix_entry`, include/linux/swapops.h); of any other file the trace of a page that was dropped
(mm/workingset.c), which is on disk only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from hibernaut.kernel.folios import frames_of_pages, pages_within_folios
from hibernaut.kernel.program import ask
from hibernaut.kernel.xarray import read_xarray
from hibernaut.memory.page import PAGE_SIZE

if TYPE_CHECKING:
    from typing import Any

    from hibernaut.kernel.kernel import Kernel
    from hibernaut.kernel.swapped_pages import SwappedPages
    from hibernaut.memory.page import Bytes

__all__ = ["FilePages", "file_pages"]

OFFSET_BITS = 58
"""`SWP_TYPE_SHIFT` (include/linux/swapops.h): bits of a slot's number in a swap entry outside page tables."""
MAX_FILE_PAGES = 1 << 40
ON_DISK = "it is only in the file on its disk"


@dataclass(frozen=True, eq=False)
class FilePages:
    """The pages of a file that the kernel has, in the order of their index in the file.

    Attributes:
        kernel: the kernel.
        is_tmpfs: whether the file has no other place: then a page that is absent is a hole.
        indices: int64, shape (n,): page of the file at which each entry begins.
        lengths: int64, shape (n,): pages of each.
        pfns: int64, shape (n,): its first page frame, -1 if it is swapped out.
        areas: int64, shape (n,): swap area, -1 if it is in memory.
        slots: int64, shape (n,): its first slot, -1 if it is in memory.
        missing: int64, shape (m, 2): pages of the file whose place is not in the memory: first, number.
    """

    kernel: Kernel
    is_tmpfs: bool
    indices: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    pfns: npt.NDArray[np.int64]
    areas: npt.NDArray[np.int64]
    slots: npt.NDArray[np.int64]
    missing: npt.NDArray[np.int64]

    @property
    def resident(self) -> int:
        """Number of pages in memory."""
        return int(self.lengths[self.pfns >= 0].sum())

    @property
    def swapped(self) -> int:
        """Number of pages swapped out."""
        return int(self.lengths[self.slots >= 0].sum())

    def read(self, pages: npt.NDArray[np.int64], swapped: SwappedPages | None, out: Bytes) -> list[str | None]:
        """Read pages of the file.

        Args:
            pages: their indices, int64, shape (n,).
            swapped: reads those that are swapped out.
            out: array for them, uint8, shape (n, 4096), C-contiguous.

        Returns:
            For each None, or the reason why it is nowhere; the bytes are zero then. A hole of tmpfs is zero and is
            no loss.
        """
        out[:] = 0
        reasons: list[str | None] = [None] * len(pages)
        row = np.searchsorted(self.indices, pages, side="right") - 1
        at = np.maximum(row, 0)
        within = pages - self.indices[at] if len(self.indices) else np.zeros_like(pages)
        is_there = (row >= 0) & (within < self.lengths[at]) if len(self.indices) else np.zeros(len(pages), np.bool_)
        in_memory = np.flatnonzero(is_there & (self.pfns[at] >= 0)) if len(self.indices) else np.empty(0, np.intp)
        if len(in_memory):
            found, is_read = self.kernel.memory.gather(self.pfns[at[in_memory]] + within[in_memory])
            out[in_memory] = found
            for number in in_memory[~is_read].tolist():
                reasons[number] = f"frame {int(self.pfns[at[number]] + within[number]):#x} is not in memory"
        on_disk = np.flatnonzero(is_there & (self.slots[at] >= 0)) if len(self.indices) else np.empty(0, np.intp)
        for area in np.unique(self.areas[at[on_disk]]).tolist():
            part = on_disk[self.areas[at[on_disk]] == area]
            slots = self.slots[at[part]] + within[part]
            room = np.zeros((len(part), PAGE_SIZE), dtype=np.uint8)
            told = swapped.read(area, slots, room) if swapped is not None else ["it is swapped out"] * len(part)
            out[part] = room
            for number, reason in zip(part.tolist(), told, strict=True):
                reasons[number] = reason
        for number in np.flatnonzero(~is_there).tolist():
            if self._is_missing(int(pages[number])):
                reasons[number] = "the kernel's record of its place is not in memory"
            elif not self.is_tmpfs:
                reasons[number] = ON_DISK
        return reasons

    def _is_missing(self, page: int) -> bool:
        return any(first <= page < first + count for first, count in self.missing.tolist())


def file_pages(kernel: Kernel, mapping: Any) -> FilePages:
    """Return the pages of a file.

    Args:
        kernel: the kernel.
        mapping: its `struct address_space *`, a drgn object.

    Raises:
        FormatError: its XArray is not in the memory, or damaged.
    """
    tree, operations = ask(kernel, "address_space", lambda: (int(mapping.i_pages.address_of_()), int(mapping.a_ops)))
    huge = kernel.symbols.get("hugetlbfs_aops")
    if huge is not None and huge.address == operations:
        raise kernel.damaged("files of hugetlbfs, which counts in huge pages, are not read")
    tmpfs = kernel.symbols.get("shmem_aops")
    is_tmpfs = tmpfs is not None and tmpfs.address == operations
    found = read_xarray(kernel, tree)
    is_value = found.entries & np.uint64(1) == 1
    kept = ~is_value | is_tmpfs
    entries, is_value = found.entries[kept], is_value[kept]
    values = entries >> np.uint64(1)
    pfns = np.where(is_value, -1, frames_of_pages(kernel, entries))
    indices = found.indices[kept].astype(np.int64)
    in_memory = pfns >= 0
    pfns[in_memory] += pages_within_folios(kernel, pfns[in_memory], indices[in_memory])
    slots = np.where(is_value, (values & np.uint64((1 << OFFSET_BITS) - 1)).astype(np.int64), -1)
    areas = np.where(is_value, (values >> np.uint64(OFFSET_BITS)).astype(np.int64), -1)
    if len(indices) and int(indices[-1]) >= MAX_FILE_PAGES:
        raise kernel.damaged(f"a file has page {int(indices[-1]):#x}", f"less than {MAX_FILE_PAGES:#x}")
    missing = np.minimum(found.missing, MAX_FILE_PAGES).astype(np.int64)
    lengths = found.lengths[kept].astype(np.int64)
    return FilePages(kernel, is_tmpfs, indices, lengths, pfns, areas, slots, missing)
