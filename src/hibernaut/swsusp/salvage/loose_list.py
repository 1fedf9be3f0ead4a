# SPDX-License-Identifier: GPL-2.0-or-later
"""The list of frames of a damaged image: its meta pages that are left, and the row of the data of each frame on them.

Entry i of the list has its data in the row behind the meta pages that has as many stored frames before it. Where meta
pages are lost that number is not known from the front, since zero pages have an entry and no data
(`ENCODED_PFN_ZERO_FLAG` in kernel/power/snapshot.c); it is known from the back, where the list ends with the data.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hibernaut.memory.page import BoolArray, Bytes, Pfns
from hibernaut.memory.ranges import FrameRanges
from hibernaut.swsusp.declarations import END_OF_PFNS, MAX_PFN, PFNS_PER_META_PAGE, ZERO_PAGE_FLAG

__all__ = ["LooseList", "contradicting_groups", "list_end", "list_is_credible", "read_loose_list"]

Words = NDArray[np.uint64]
END = np.uint64(END_OF_PFNS)
FRAME = np.uint64(ZERO_PAGE_FLAG - 1)
FLAG = np.uint64(ZERO_PAGE_FLAG)


@dataclass(frozen=True, eq=False)
class LooseList:
    """Frames of an image as far as its list is known.

    Attributes:
        pfns: frames whose entry is known, ascending, int64, shape (n,).
        zero: which of them are zero pages without data, shape (n,).
        row: row of the stream with the data of each, int64, shape (n,); -1 for a zero page, and where it is not known.
        listed: number of all frames on the list; None if it is not known.
        lost_pages: number of meta pages that are lost.
        uncertain: frames that can be on those, since neither the last before it nor the first after it excludes them.
    """

    pfns: Pfns
    zero: BoolArray
    row: NDArray[np.int64]
    listed: int | None
    lost_pages: int
    uncertain: FrameRanges


def list_is_credible(words: Words, *, last: bool) -> bool:
    """Return whether neighbouring meta pages hold ascending frames, and end the list only if they are the last.

    Args:
        words: their words, shape (512 n,).
        last: whether the last meta page is among them.
    """
    ends = np.flatnonzero(words == END)
    if len(ends) and (not last or len(words) - int(ends[0]) > PFNS_PER_META_PAGE):
        return False
    frames = (words[: int(ends[0])] if len(ends) else words) & FRAME
    return bool((frames <= np.uint64(MAX_PFN)).all() and (frames[1:] > frames[:-1]).all())


def list_end(units: Iterable[Bytes]) -> tuple[int, int] | None:
    """Return the number of meta pages and of frames with data by a list alone; None if its end is not found.

    A list whose last page is full has no end mark: there the frames end where they no longer ascend.

    Args:
        units: units of the stream from the first on, shape (at most 32, 4096), up to the first that is lost.
    """
    meta = stored = 0
    last = -1
    for unit in units:
        for page in unit.reshape(len(unit), -1).view("<u8"):
            ends = np.flatnonzero(page == END)
            words = page[: int(ends[0])] if len(ends) else page
            frames = words & FRAME
            if not list_is_credible(page, last=True) or (len(frames) and int(frames[0]) <= last):
                return (meta, stored) if meta else None
            meta += 1
            stored += int(((words & FLAG) == 0).sum())
            if len(ends):
                return meta, stored
            last = int(frames[-1])
    return None


def contradicting_groups(pages: Words, known: BoolArray, group: int) -> list[int]:
    """Return the groups of meta pages whose frames do not ascend from one to the next: which is wrong is not known.

    Args:
        pages: meta pages from the first on, shape (m, 512).
        known: which of them are known, and ascend inside their group, shape (m,).
        group: meta pages that are known together: 32 of a unit, or 1.
    """
    wrong: set[int] = set()
    left = [first for first in range(0, len(pages), group) if known[first]]
    for one, following in itertools.pairwise(left):
        end = one + group
        lost = (following - end) * PFNS_PER_META_PAGE
        if int(pages[following, 0] & FRAME) <= int(pages[end - 1, -1] & FRAME) + lost:
            wrong |= {one // group, following // group}
    return sorted(wrong)


def read_loose_list(pages: Words, known: BoolArray, count: int, image_pages: int | None) -> LooseList:
    """Return the frames on the meta pages that are known.

    Args:
        pages: meta pages from the first to the last that is known, shape (m, 512).
        known: which of them are known, shape (m,); their frames ascend.
        count: number of all meta pages.
        image_pages: number of data pages; None if it is not known.
    """
    flat = np.where(known[:, None], pages, END).reshape(-1)
    listed: int | None = None
    if len(pages) == count and count and known[-1]:
        ends = np.flatnonzero(pages[-1] == END)
        listed = (count - 1) * PFNS_PER_META_PAGE + (int(ends[0]) if len(ends) else PFNS_PER_META_PAGE)
    stop = len(flat) if listed is None else listed
    words = flat[:stop]
    entry_known = np.repeat(known, PFNS_PER_META_PAGE)[:stop]
    zero = entry_known & ((words & FLAG) != 0)
    row = count + np.cumsum(~zero) - 1  # right where every lost entry before it has data
    certain = np.zeros(stop, dtype=np.bool_)
    first_lost = int(np.argmin(entry_known)) if stop and not entry_known.all() else stop
    certain[:first_lost] = True
    if listed is not None and image_pages is not None and first_lost < stop:
        if listed - int(zero.sum()) == image_pages:
            certain[:] = True
        else:
            last_lost = stop - 1 - int(np.argmin(entry_known[::-1]))
            behind = ~zero[last_lost + 1 :]
            row[last_lost + 1 :] = count + image_pages - int(behind.sum()) + np.cumsum(behind) - 1
            certain[last_lost + 1 :] = True
    row = np.where(zero | ~certain, -1, row)
    frames = (words & FRAME).astype(np.int64)
    return LooseList(
        frames[entry_known],
        zero[entry_known],
        row[entry_known],
        listed,
        count - int(known.sum()),
        _between(frames, entry_known, is_whole=listed is not None),
    )


def _between(frames: Pfns, known: BoolArray, *, is_whole: bool) -> FrameRanges:
    """Return the frames that entries that are lost can name: the list ascends.

    Args:
        frames: frame of each entry, shape (n,).
        known: whether the entry is known, shape (n,).
        is_whole: whether the last of them is the last entry of the list.
    """
    is_lost = np.concatenate(([False], ~known, [not is_whole]))
    edges = np.flatnonzero(np.diff(np.append(is_lost, False).astype(np.int8)))
    bounds = np.concatenate(([-1], frames, [MAX_PFN + 1]))
    before, after = edges[::2], np.minimum(edges[1::2] + 1, len(bounds) - 1)
    starts, ends = bounds[before] + 1, bounds[after]
    return FrameRanges.of([(start, end - start) for start, end in zip(starts.tolist(), ends.tolist(), strict=True)])
