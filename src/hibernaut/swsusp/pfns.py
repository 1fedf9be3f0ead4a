# SPDX-License-Identifier: GPL-2.0-or-later
"""The list of frames in meta pages (`pack_pfns`, `unpack_orig_pfns` in kernel/power/snapshot.c)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hibernaut.errors import CorruptImage
from hibernaut.memory.page import PAGE_SIZE, BoolArray, Bytes, Pfns
from hibernaut.memory.ranges import FrameRanges
from hibernaut.swsusp.declarations import END_OF_PFNS, MAX_PFN, PFNS_PER_META_PAGE, ZERO_PAGE_FLAG

__all__ = ["begins_a_list", "frames_of_pages", "pack_pfns", "unpack_pfns"]


def pack_pfns(pfns: ArrayLike, zero: BoolArray) -> Bytes:
    """Return meta pages, shape (ceil(n / 512), 4096): frames, zero pages flagged, with an end mark if it fits.

    Args:
        pfns: frames, ascending, shape (n,).
        zero: which of them are zero pages without a data page, shape (n,).
    """
    frames = np.asarray(pfns, dtype=np.uint64) | np.where(zero, np.uint64(ZERO_PAGE_FLAG), np.uint64(0))
    pages = np.zeros(-(-len(frames) // PFNS_PER_META_PAGE) * PFNS_PER_META_PAGE, dtype="<u8")
    pages[: len(frames)] = frames
    if len(frames) < len(pages):
        pages[len(frames)] = END_OF_PFNS
    return pages.view(np.uint8).reshape(-1, PAGE_SIZE)


def begins_a_list(page: bytes) -> bool:
    """Return whether a page can be the first of the list: frames, ascending, to its end or to the end mark.

    The frames are of 64 bits or of 32. A compressed unit begins with its length and zeroes, which do not ascend.
    """
    return any(_ascends(np.frombuffer(page, dtype=word)) for word in ("<u8", "<u4"))


def _ascends(words: NDArray[np.uint64] | NDArray[np.uint32]) -> bool:
    end, zero = _marks(words)
    ends = np.flatnonzero(words == end)
    frames = words[: int(ends[0])] if len(ends) else words
    frames = frames & ~zero
    return len(frames) > 0 and int(frames[-1]) <= MAX_PFN and bool((frames[1:] > frames[:-1]).all())


def _marks(words: NDArray[np.uint64] | NDArray[np.uint32]) -> tuple[np.uint64 | np.uint32, np.uint64 | np.uint32]:
    """Return the end mark and the flag of zero pages, all bits and the highest one of `unsigned long`."""
    if words.dtype.itemsize == 8:
        return np.uint64(END_OF_PFNS), np.uint64(ZERO_PAGE_FLAG)
    return np.uint32(END_OF_PFNS >> 32), np.uint32(ZERO_PAGE_FLAG >> 32)


def unpack_pfns(
    meta: Bytes,
    source: str,
    *,
    page_size: int = PAGE_SIZE,
    long_bytes: int = 8,
    first_page: int = 0,
    meta_pages: int | None = None,
    before: int = -1,
) -> tuple[Pfns, BoolArray]:
    """Return the listed pages as the kernel numbers them, int64, shape (n,), and which are flagged as zero pages.

    Args:
        meta: meta pages, or some neighbouring ones of them, shape (m * page_size / 4096, 4096).
        source: name of the image in the message.
        page_size: size of a page of the machine.
        long_bytes: size of its `unsigned long`.
        first_page: number of the first of these meta pages.
        meta_pages: number of all meta pages; m by default.
        before: page in the entry before the first one; -1 if there is none.

    Raises:
        CorruptImage: the list ends before the last meta page, or frames are out of order, repeated, or beyond the
            physical address space of x86-64, which is as large as those of the others.
    """
    raw = np.ascontiguousarray(meta).reshape(-1).view(f"<u{long_bytes}")
    end, flag = _marks(raw)
    ends = np.flatnonzero(raw == end)
    count = int(ends[0]) if len(ends) else len(raw)
    here, entries = meta.size // page_size, page_size // long_bytes
    total = here if meta_pages is None else meta_pages
    first_entry = first_page * entries
    if -(-count // entries) != here or (len(ends) and first_page + here < total):
        raise CorruptImage(
            f"list of frames ends at entry {first_entry + count}",
            source=source,
            expected=f"an end in the last of {total} meta pages",
        )
    zero = (raw[:count] & flag) != 0
    frames = (raw[:count] & ~flag).astype(np.uint64)
    most = MAX_PFN // (page_size // PAGE_SIZE)
    beyond = np.flatnonzero(frames > np.uint64(most))
    if len(beyond):
        raise CorruptImage(
            f"frame {int(frames[beyond[0]]):#x} in entry {first_entry + int(beyond[0])} of the list is beyond any RAM",
            source=source,
            expected=f"at most {most:#x}",
        )
    pfns = frames.astype(np.int64)
    wrong = np.flatnonzero(np.diff(pfns, prepend=before) <= 0)
    if len(wrong):
        entry = int(wrong[0])
        after = int(pfns[entry - 1]) if entry else before
        how = "repeated" if pfns[entry] == after else "out of order"
        raise CorruptImage(
            f"frame {int(pfns[entry]):#x} in entry {first_entry + entry} of the list is {how}",
            source=source,
            expected=f"above {after:#x}",
        )
    return pfns, zero


def frames_of_pages(pages: FrameRanges, frames_per_page: int) -> FrameRanges:
    """Return the page frames of 4096 bytes that pages of a machine consist of."""
    if frames_per_page == 1:
        return pages
    return FrameRanges(pages.starts * frames_per_page, pages.nr_pages * frames_per_page)
