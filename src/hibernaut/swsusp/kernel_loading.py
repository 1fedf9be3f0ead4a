# SPDX-License-Identifier: GPL-2.0-or-later
"""The loading of an image's pages by a kernel: how many it takes, which it takes for lists of frames, and how it ends.

The kernel trusts the counts of the info page (`load_header`) and any order of listed frames (`unpack_orig_pfns`,
`snapshot_write_next`, `get_buffer` in kernel/power/snapshot.c). It ends when it has as many pages as the counts say, so
that an image that contradicts itself can be loaded, refused, or crash the kernel. Read in linux-source-6.1 6.1.192-2,
-6.12 6.12.118-1 and -7.3 7.3.4-1~bpo13+1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hibernaut.memory.ranges import FrameRanges
from hibernaut.swsusp.checks import Answer
from hibernaut.swsusp.declarations import END_OF_PFNS, MAX_PFN, ZERO_PAGE_FLAG

__all__ = ["FAILED", "LoadingEnd", "SnapshotLoading"]

FAILED = "PM: hibernation: Failed to load image, recovering."
"""Message of `load_image_and_restore` (kernel/power/hibernate.c) after every failure in it; some have no other."""
COUNTS = 1 << 32
"""Values of `unsigned int`, which counts of pages have."""
MERGED_WORDS = 1 << 20
"""Listed frames that are kept before those that are listed twice are left out."""


@dataclass(frozen=True)
class LoadingEnd:
    """The end of a kernel's loading of an image.

    Attributes:
        answer: ok if the image is loaded; would refuse, would crash, or depends on the machine.
        check: name of the check that it belongs to, see `Verdict`.
        where: function and file of the kernel.
        message: message of the kernel.
        remark: explanation.
        unit: unit that it happens in, or, not compressed, the group of 32 rows.
        crc32: CRC of the units read; None if not all of them are.
        lists_read: whether the list of frames was read to its end before.
    """

    answer: Answer
    check: str = ""
    where: str = ""
    message: str | None = None
    remark: str | None = None
    unit: int = 0
    crc32: int | None = None
    lists_read: bool = False


class SnapshotLoading:
    """The state in which a kernel loads an image, page by page (`struct snapshot_handle`).

    Args:
        pages: `pages` of the info page.
        image_pages: its `image_pages`.
        has_zero_pages: whether the highest bit of a listed frame means a page without data, see `ImageRules`.
        frames: frames of the machine's zones; None if they are not known, and every frame is taken for one of them.
        long_bytes: size of the kernel's `unsigned long`.
    """

    def __init__(
        self, pages: int, image_pages: int, *, has_zero_pages: bool, frames: FrameRanges | None, long_bytes: int = 8
    ) -> None:
        self._total = (pages - 1) % COUNTS
        self._data = image_pages % COUNTS
        self._meta = (pages - image_pages - 1) % COUNTS
        self._has_zero_pages = has_zero_pages
        self._frames = frames
        self._long_bytes = long_bytes
        self._rows = 0
        self._flagged = 0
        self._listed: list[NDArray[np.uint64]] = []
        self._listed_words = 0
        self._distinct_words = 0
        self._end: tuple[int, LoadingEnd] | None = None

    @property
    def lists_read(self) -> bool:
        """Whether the list of frames was read to its end."""
        return self._end is not None

    @property
    def end(self) -> tuple[int, LoadingEnd] | None:
        """The page that ends the loading, and how; None before the list of frames was read."""
        return self._end

    def start(self) -> LoadingEnd | None:
        """Return the end that the counts bring before any page is read; None if they do not.

        Since Linux kernel commit 005e8dddd497 ("PM: hibernate: don't store zero pages in the image file") (in v6.6),
        the kernel looks for the frame of the first page of data as soon as the list is over: at once, if the counts
        leave no page for it. Guests of 7.3 stopped at that BUG_ON.
        """
        if not self._has_zero_pages or (self._meta + 1) % COUNTS > 1:
            return None
        where = "memory_bm_test_bit, kernel/power/snapshot.c"
        remark = "the counts of the info page leave no page for the list of frames: the kernel stops at a BUG_ON"
        return LoadingEnd(Answer.CRASHES, "frames", where, remark=remark)

    def take(self, rows: NDArray[np.uint8]) -> LoadingEnd | None:
        """Load the next pages, shape (n, bytes of a page), and return the ending if they bring it."""
        first = self._rows
        for row in rows:
            if self._end is not None:
                break
            if ending := self._take_list(row):
                return ending
            self._rows += 1
        self._rows = first + len(rows)
        if self._end is not None and self._end[0] < self._rows:
            return self._end[1]
        return None

    def _take_list(self, row: NDArray[np.uint8]) -> LoadingEnd | None:
        """Take a page before the first one of the data."""
        current = self._rows + 2  # handle->cur, when `snapshot_write_next` is called after this page
        if current > (self._total + self._flagged) % COUNTS:
            # It says that all pages are loaded; what is recycled then has never been made.
            return LoadingEnd(
                Answer.CRASHES,
                "frames",
                "memory_bm_recycle, kernel/power/snapshot.c",
                remark="the counts of the info page leave no page of data: the kernel follows a null pointer",
            )
        if current > (self._meta + 1) % COUNTS:
            return LoadingEnd(
                Answer.CRASHES,
                "frames",
                "memory_bm_next_pfn, kernel/power/snapshot.c",
                remark="the counts of the info page leave no page for the list of frames: the kernel follows a null "
                "pointer",
            )
        if ending := self._unpack(row):
            return ending
        if current == (self._meta + 1) % COUNTS:
            self._prepare()
        return None

    def _unpack(self, row: NDArray[np.uint8]) -> LoadingEnd | None:
        """Take a page for one of the list (`unpack_orig_pfns`)."""
        words = row.view(f"<u{self._long_bytes}")
        shift = 64 - 8 * self._long_bytes
        ends = np.flatnonzero(words == END_OF_PFNS >> shift)
        words = words[: int(ends[0])] if len(ends) else words
        flag = words.dtype.type(ZERO_PAGE_FLAG >> shift if self._has_zero_pages else 0)
        frames = (words & ~flag).astype(np.uint64)
        most = np.uint64(MAX_PFN)
        known = frames <= most
        if self._frames is not None:
            known &= self._frames.contains(np.minimum(frames, most).astype(np.int64))
        if not known.all():
            entry = int(np.flatnonzero(~known)[0])
            return LoadingEnd(
                Answer.REFUSES,
                "frames",
                "unpack_orig_pfns, kernel/power/snapshot.c",
                FAILED,
                f"frame {int(frames[entry]):#x} in entry {self._rows * len(row) // self._long_bytes + entry} of the "
                "list is not one of the machine's",
            )
        flagged = (words & flag) != 0
        self._flagged += int(np.count_nonzero(flagged))
        self._listed.append(frames << np.uint64(1) | flagged)
        self._listed_words += len(frames)
        if self._listed_words - self._distinct_words > max(MERGED_WORDS, self._distinct_words):
            self._merge()
        return None

    def _merge(self) -> None:
        if self._listed:
            self._listed = [np.unique(np.concatenate(self._listed))]
            self._listed_words = self._distinct_words = len(self._listed[0])

    def _prepare(self) -> None:
        """Find the page that ends the loading: frames are walked upwards, each once (`prepare_image`, `get_buffer`)."""
        self._merge()
        words = self._listed.pop() if self._listed else np.empty(0, dtype=np.uint64)
        frames = words >> np.uint64(1)
        last = np.ones(len(frames), dtype=np.bool_)
        last[:-1] = frames[1:] != frames[:-1]  # of a frame listed with the flag and without, that with it
        zero = (words[last] & np.uint64(1)) != 0
        needed = self._data + self._flagged
        if needed < COUNTS <= self._meta + needed:  # the comparison of counts wraps, but memory is sought for all
            where = "prepare_image, kernel/power/snapshot.c"
            remark = f"the kernel seeks memory for {needed} pages"
            self._end = self._rows, LoadingEnd(Answer.REFUSES, "frames", where, FAILED, remark, lists_read=True)
            return
        # The first frame is sought before the counts are compared; they can have wrapped by the flags of the last page.
        listed, wanted = len(zero), needed if needed < COUNTS else max(1, needed - COUNTS)
        rows = int(np.count_nonzero(~zero[: min(listed, wanted)]))
        where = "get_buffer, kernel/power/snapshot.c"
        ending = LoadingEnd(Answer.OK, lists_read=True)
        if listed < wanted:
            remark = f"{wanted} pages for a list of {listed} different frames"
            ending = LoadingEnd(Answer.REFUSES, "frames", where, FAILED, remark, lists_read=True)
        elif not self._data:
            where = "snapshot_image_loaded, kernel/power/snapshot.c"
            ending = LoadingEnd(Answer.REFUSES, "units", where, FAILED, "no data pages", lists_read=True)
        elif listed > wanted:
            where = "prepare_image, kernel/power/snapshot.c"
            remark = (
                f"{wanted} pages for a list of {listed} different frames: refused if more than {wanted} of these "
                "frames are free in the resuming machine and the kernel comes upon them, else loaded without the rest"
            )
            ending = LoadingEnd(Answer.DEPENDS, "frames", where, FAILED, remark, lists_read=True)
        self._end = self._rows + rows, ending
