# SPDX-License-Identifier: GPL-2.0-or-later
"""Writers of raw, LiME and ELF core files, in one pass and bounded memory.

All take the frames as `ranges` beforehand, so that the place of every page in the file is known when the page arrives,
in any order and from any thread. The descriptor is that of a new, empty file (see
`hibernaut.volumes.output.replacing`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hibernaut.memory import declarations as c
from hibernaut.memory.dump_layout import DumpLayout, elf_layout, elf_places, lime_layout, raw_layout
from hibernaut.memory.page import PAGE_SIZE
from hibernaut.memory.ranges import FrameRanges
from hibernaut.volumes.output import BulkOutput, set_size, write_all

if TYPE_CHECKING:
    from hibernaut.memory.elf import Note
    from hibernaut.memory.page import BoolArray, Bytes, Pfns

__all__ = ["HOLE_PAGES", "Chunks", "Feed", "Put", "write_elf", "write_lime", "write_raw"]

Chunks = Iterable[tuple["Pfns", "Bytes"]]
"""Page frame numbers, ascending int64 (n,), with their pages, uint8 (n, 4096)."""

Put = Callable[["Pfns", "Bytes"], None]
"""Function that writes one chunk. Several threads may call it at once; it keeps no reference to the arrays."""

Feed = Callable[[Put], None]
"""Function that calls its argument for every chunk, in any order."""

HOLE_PAGES = 16
"""Pages of zeroes in a row that are not written: a shorter run would only cut a large write in two."""


def write_raw(chunks: Chunks | Feed, fd: int, ranges: FrameRanges, *, zero_pages: int = 0) -> None:
    """Write frame n at byte 4096 n; frames that do not exist are holes, which read as zeroes.

    Args:
        chunks: the pages of `ranges`, each once: an iterable, or a function that passes them on (`Feed`).
        fd: descriptor of a new file, open for writing.
        ranges: all page frames.
        zero_pages: number of frames of `ranges` that are not in `chunks` since they are zero; they become holes.

    Raises:
        ValueError: a chunk holds a frame that is not in `ranges`, or the number of pages does not match.
        OSError: writing fails.
    """
    _write(chunks, fd, raw_layout(ranges), zero_pages)


def write_lime(chunks: Chunks | Feed, fd: int, ranges: FrameRanges, *, zero_pages: int = 0) -> None:
    """Write LiME, version 1: for each range, a header and its pages. Arguments and errors are those of `write_raw`.

    Raises:
        HibernautError: more ranges than such a file is read with.
    """
    _write(chunks, fd, lime_layout(ranges), zero_pages)


def write_elf(
    chunks: Chunks | Feed,
    fd: int,
    ranges: FrameRanges,
    *,
    zero_pages: int = 0,
    vaddr_base: int | None = None,
    notes: Callable[[], Sequence[Note]] = tuple,
    machine: int = c.EM_X86_64,
) -> None:
    """Write an ELF64 core of a machine: one PT_NOTE, first as `crash` requires, and one PT_LOAD per range.

    The notes stand before the first page. They are requested after the last page, since their text may come from the
    memory itself. Headers are written last: an unfinished file is not an ELF file.

    Args:
        chunks: as for `write_raw`.
        fd: as for `write_raw`.
        ranges: as for `write_raw`.
        zero_pages: as for `write_raw`.
        vaddr_base: virtual address of the direct map, for `p_vaddr`; if None, `p_vaddr` is 0.
        notes: function that returns the notes, called once.
        machine: number of its architecture, `e_machine`.

    Raises:
        HibernautError: more ranges than a core is read with.
        ValueError: as for `write_raw`.
        OSError: writing fails.
    """
    _write_all_of(chunks, fd, ranges, elf_places(ranges), zero_pages)
    _write_headers(fd, elf_layout(ranges, notes(), vaddr_base=vaddr_base, machine=machine))


def _write(chunks: Chunks | Feed, fd: int, layout: DumpLayout, zero_pages: int) -> None:
    """Write a file whose headers are known before its pages."""
    _write_headers(fd, layout)
    _write_all_of(chunks, fd, layout.ranges, layout.at, zero_pages)


def _write_headers(fd: int, layout: DumpLayout) -> None:
    """Write all of a file but its pages, which stay holes where they are not written; the first header last."""
    set_size(fd, layout.size_bytes)
    for place, data in layout.parts():
        write_all(fd, data, place)


def _write_all_of(chunks: Chunks | Feed, fd: int, ranges: FrameRanges, at: NDArray[np.int64], zero_pages: int) -> None:
    """Write every chunk to its place; `at` is the byte in the file of each range's first page."""
    lock = threading.Lock()
    seen_pages = 0

    def put(pfns: Pfns, pages: Bytes) -> None:
        nonlocal seen_pages
        _write_batch(output, _placed(pfns, pages, ranges, at))
        with lock:
            seen_pages += len(pfns)

    with BulkOutput(fd, ranges.total_pages * PAGE_SIZE) as output:
        if callable(chunks):
            chunks(put)
        else:
            for pfns, pages in chunks:
                put(pfns, pages)
    announced = ranges.total_pages - zero_pages
    if seen_pages != announced:
        raise ValueError(f"wrong number of pages: expected {announced}, found {seen_pages}")


def _placed(pfns: Pfns, pages: Bytes, ranges: FrameRanges, at: NDArray[np.int64]) -> list[tuple[int, memoryview]]:
    """Return a chunk as (byte in the file, bytes) pairs, one for each run that is contiguous in the file."""
    if not len(pfns):
        return []
    index = np.maximum(np.searchsorted(ranges.starts, pfns, side="right") - 1, 0)
    within = pfns - ranges.starts[index] if len(ranges) else np.full(len(pfns), -1)
    if not len(ranges) or ((within < 0) | (within >= ranges.nr_pages[index])).any():
        raise ValueError("chunk holds a frame that was not announced")
    places = at[index] + within * PAGE_SIZE
    pages = np.ascontiguousarray(pages)
    data = pages.reshape(-1).data
    splits = np.diff(places) != PAGE_SIZE
    left_out = _holes(pages)
    if left_out is not None:
        splits |= left_out[1:] != left_out[:-1]
    firsts = [0, *(np.flatnonzero(splits) + 1).tolist()]
    lasts = [*firsts[1:], len(pfns)]
    return [
        (place, data[first * PAGE_SIZE : last * PAGE_SIZE])
        for place, first, last in zip(places[firsts].tolist(), firsts, lasts, strict=True)
        if left_out is None or not left_out[first]
    ]


def _holes(pages: Bytes) -> BoolArray | None:
    """Return which pages are of a long run of zeroes, and stay a hole of the new file; None if there is none."""
    words = pages.view(np.uint64) if pages.ctypes.data % 8 == 0 else None
    if words is None:
        return None
    zero = (words[:, 0] | words[:, 200] | words[:, 511]) == 0  # nearly all pages with data have some of it here
    which = np.flatnonzero(zero)
    if len(which) < HOLE_PAGES:
        return None
    zero[which[words[which].any(axis=1)]] = False
    edges = np.flatnonzero(np.diff(zero, prepend=False, append=False))
    found = np.zeros(len(pages), dtype=np.bool_)
    for first, last in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        if last - first >= HOLE_PAGES:
            found[first:last] = True
    return found if found.any() else None


def _write_batch(output: BulkOutput, batch: list[tuple[int, memoryview]]) -> None:
    """Write runs; those that are neighbours in the file are written at once."""
    start = 0
    while start < len(batch):
        place, first = batch[start]
        end, stop = place + len(first), start + 1
        while stop < len(batch) and batch[stop][0] == end:
            end += len(batch[stop][1])
            stop += 1
        output.write([data for _, data in batch[start:stop]], place)
        start = stop
