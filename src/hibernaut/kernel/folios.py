# SPDX-License-Identifier: GPL-2.0-or-later
"""Page frames of the kernel's `struct page`, and the pages of a folio.

The page cache and the swap cache name a folio by its first page. Whether that stands once for all indices of the folio
or once for each differs between kernels: linux-source-6.1 stores it for each slot (`add_to_swap_cache`), 6.12 once.
The page of an index is the same by both: a folio lies at a multiple of its size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from hibernaut.kernel.program import ask

if TYPE_CHECKING:
    from hibernaut.kernel.kernel import Kernel
    from hibernaut.memory.page import Pfns

__all__ = ["frames_of_pages", "pages_within_folios"]

Words = npt.NDArray[np.uint64]
MAX_FOLIO_PAGES = 1 << 18


def frames_of_pages(kernel: Kernel, pages: Words) -> Pfns:
    """Return the page frame of each `struct page`, -1 for an address that is none's.

    Args:
        kernel: the kernel.
        pages: virtual addresses, uint64, shape (n,).

    Raises:
        FormatError: the kernel does not say where its `struct page` are.
    """
    start = np.uint64(ask(kernel, "vmemmap", lambda: int(kernel["vmemmap"])))
    size = np.uint64(kernel.number("SIZE(page)"))
    within = pages - start
    is_page = (pages >= start) & (within % size == 0) & (within // size < np.uint64(1 << 40))
    return np.where(is_page, (within // size).astype(np.int64), -1)


def pages_within_folios(kernel: Kernel, pfns: Pfns, indices: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """Return the page within its folio that each index has; 0 for a page that is not a folio's first one.

    Args:
        kernel: the kernel.
        pfns: page frames as the kernel's trees have them, shape (n,), none of them negative.
        indices: slots or pages of a file, shape (n,).

    Raises:
        FormatError: a `struct page` is not in the memory, or a folio has an impossible size.
    """
    heads, where = np.unique(pfns, return_inverse=True)
    if not len(heads):
        return np.empty(0, dtype=np.int64)
    start, size = ask(kernel, "vmemmap", lambda: int(kernel["vmemmap"])), kernel.number("SIZE(page)")
    flags_at, bit = kernel.number("OFFSET(page.flags)"), ask(kernel, "PG_head", lambda: int(kernel["PG_head"]))
    addresses = np.uint64(start) + heads.astype(np.uint64) * np.uint64(size) + np.uint64(flags_at)
    records, is_read = kernel.read_records(addresses, 8)
    if not is_read.all():
        raise kernel.damaged(f"the struct page of frame {int(heads[~is_read][0]):#x} is not in memory")
    is_head = np.ascontiguousarray(records).view(np.uint64)[:, 0] >> np.uint64(bit) & np.uint64(1) == 1
    counts = np.ones(len(heads), dtype=np.int64)
    for row in np.flatnonzero(is_head).tolist():
        counts[row] = ask(kernel, "folio", _folio_pages, kernel, int(heads[row]))
    within: npt.NDArray[np.int64] = indices.astype(np.int64) & counts[where] - 1
    return within


def _folio_pages(kernel: Kernel, pfn: int) -> int:
    from drgn.helpers.linux.mm import compound_nr, pfn_to_page

    count = int(compound_nr(pfn_to_page(kernel.drgn(), pfn)))
    if count & count - 1 or not 0 < count <= MAX_FOLIO_PAGES:
        raise kernel.damaged(f"the folio of frame {pfn:#x} has {count} pages", "a power of two")
    return count
