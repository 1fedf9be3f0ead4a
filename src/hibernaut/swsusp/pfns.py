# SPDX-License-Identifier: GPL-2.0-or-later
"""The list of frames in meta pages (`pack_pfns`, `unpack_orig_pfns` in kernel/power/snapshot.c)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from hibernaut.errors import CorruptImage
from hibernaut.memory.page import PAGE_SIZE, BoolArray, Bytes, Pfns
from hibernaut.swsusp.declarations import END_OF_PFNS, MAX_PFN, PFNS_PER_META_PAGE, ZERO_PAGE_FLAG

__all__ = ["begins_a_list", "pack_pfns", "unpack_pfns"]


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
    """Return whether a page can be the first of the list: frames, ascending, to its end or to the end mark."""
    words = np.frombuffer(page, dtype="<u8")
    ends = np.flatnonzero(words == np.uint64(END_OF_PFNS))
    frames = words[: int(ends[0])] if len(ends) else words
    frames = frames & np.uint64(ZERO_PAGE_FLAG - 1)
    return len(frames) > 0 and frames[-1] <= np.uint64(MAX_PFN) and bool((frames[1:] > frames[:-1]).all())


def unpack_pfns(meta: Bytes, source: str) -> tuple[Pfns, BoolArray]:
    """Return frames, int64, shape (n,), and which are flagged as zero pages.

    Args:
        meta: meta pages, shape (m, 4096).
        source: name of the image in the message.

    Raises:
        CorruptImage: the list ends before the last meta page, or frames are out of order, repeated, or beyond the
            physical address space of x86-64.
    """
    raw = np.ascontiguousarray(meta).reshape(-1).view("<u8")
    ends = np.flatnonzero(raw == np.uint64(END_OF_PFNS))
    count = int(ends[0]) if len(ends) else len(raw)
    if -(-count // PFNS_PER_META_PAGE) != len(meta):
        raise CorruptImage(
            f"list of frames ends at entry {count}",
            source=source,
            expected=f"an end in the last of {len(meta)} meta pages",
        )
    zero = (raw[:count] & np.uint64(ZERO_PAGE_FLAG)) != 0
    frames = raw[:count] & np.uint64(ZERO_PAGE_FLAG - 1)
    beyond = np.flatnonzero(frames > np.uint64(MAX_PFN))
    if len(beyond):
        raise CorruptImage(
            f"frame {int(frames[beyond[0]]):#x} in entry {int(beyond[0])} of the list is beyond any RAM",
            source=source,
            expected=f"at most {MAX_PFN:#x}",
        )
    pfns = frames.astype(np.int64)
    wrong = np.flatnonzero(pfns[1:] <= pfns[:-1])
    if len(wrong):
        entry = int(wrong[0]) + 1
        how = "repeated" if pfns[entry] == pfns[entry - 1] else "out of order"
        raise CorruptImage(
            f"frame {int(pfns[entry]):#x} in entry {entry} of the list is {how}",
            source=source,
            expected=f"above {int(pfns[entry - 1]):#x}",
        )
    return pfns, zero
