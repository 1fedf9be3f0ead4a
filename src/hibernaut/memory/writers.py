# SPDX-License-Identifier: GPL-2.0-or-later
"""Writers of raw, LiME and ELF core files, in one pass and bounded memory.

All take the frames as `ranges` beforehand, so that the place of every page in the file is known when the page arrives,
in any order and from any thread. The descriptor is that of a new, empty file (see
`hibernaut.volumes.output.replacing`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hibernaut.errors import HibernautError
from hibernaut.memory import declarations as c
from hibernaut.memory.elf import Note
from hibernaut.memory.page import PAGE_SIZE
from hibernaut.memory.ranges import FrameRanges
from hibernaut.volumes.output import Writeback, write_all, write_vector

if TYPE_CHECKING:
    from hibernaut.memory.page import Bytes, Pfns

__all__ = ["Chunks", "Feed", "Put", "vmcoreinfo_note", "write_elf", "write_lime", "write_raw"]

Chunks = Iterable[tuple["Pfns", "Bytes"]]
"""Page frame numbers, ascending int64 (n,), with their pages, uint8 (n, 4096)."""

Put = Callable[["Pfns", "Bytes"], None]
"""Function that writes one chunk. Several threads may call it at once; it keeps no reference to the arrays."""

Feed = Callable[[Put], None]
"""Function that calls its argument for every chunk, in any order."""


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
    os.ftruncate(fd, ranges.end * PAGE_SIZE)
    _write_all_of(chunks, fd, ranges, ranges.starts * PAGE_SIZE, zero_pages)


def write_lime(chunks: Chunks | Feed, fd: int, ranges: FrameRanges, *, zero_pages: int = 0) -> None:
    """Write LiME, version 1: for each range, a header and its pages. Arguments and errors are those of `write_raw`.

    Raises:
        HibernautError: more ranges than such a file is read with.
    """
    _refuse_more(ranges, c.MOST_LIME_RANGES, "a LiME file")
    headers = np.zeros(len(ranges), dtype=c.LIME_RANGE)
    headers["magic"], headers["version"] = c.LIME_MAGIC, c.LIME_VERSION
    headers["s_addr"] = ranges.starts * PAGE_SIZE
    headers["e_addr"] = (ranges.starts + ranges.nr_pages) * PAGE_SIZE - 1
    at = _after(ranges) + np.arange(1, len(ranges) + 1) * c.LIME_RANGE.itemsize
    raw = memoryview(headers.tobytes())
    size_bytes = c.LIME_RANGE.itemsize
    for number, place in enumerate((at - size_bytes).tolist()):
        write_all(fd, raw[number * size_bytes : (number + 1) * size_bytes], place)
    os.ftruncate(fd, raw.nbytes + ranges.total_pages * PAGE_SIZE)
    _write_all_of(chunks, fd, ranges, at, zero_pages)


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

    The notes stand at the end of the file. They are requested after the last page, since their text may come from the
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
    _refuse_more(ranges, c.MOST_ELF_HEADERS - 1, "a core")
    headers = np.zeros(1 + len(ranges), dtype=c.PROGRAM_HEADER)
    head_bytes = len(_elf_head(len(headers), machine)) + headers.nbytes
    at = -(-head_bytes // PAGE_SIZE) * PAGE_SIZE + _after(ranges)
    _write_all_of(chunks, fd, ranges, at, zero_pages)
    end = int(at[-1] + ranges.nr_pages[-1] * PAGE_SIZE) if len(ranges) else head_bytes
    packed = b"".join(_packed(note) for note in notes())
    os.ftruncate(fd, end + len(packed))
    write_all(fd, memoryview(packed), end)
    headers[0] = (c.PT_NOTE, 0, end, 0, 0, len(packed), 0, 4)
    loads = headers[1:]
    loads["p_type"], loads["p_flags"], loads["p_align"] = c.PT_LOAD, c.PF_RWX, PAGE_SIZE
    loads["p_offset"] = at
    loads["p_paddr"] = ranges.starts * PAGE_SIZE
    loads["p_vaddr"] = 0 if vaddr_base is None else loads["p_paddr"] + np.uint64(vaddr_base)
    loads["p_filesz"] = loads["p_memsz"] = ranges.nr_pages * PAGE_SIZE
    write_all(fd, memoryview(_elf_head(len(headers), machine) + headers.tobytes()), 0)


def _refuse_more(ranges: FrameRanges, most: int, of: str) -> None:
    """Raise HibernautError if there are more ranges than the reader of the same format takes."""
    if len(ranges) > most:
        raise HibernautError(
            f"{len(ranges)} separate ranges of frames, more than the {most} of {of}",
            advice="give --to raw or --to kdump",
        )


def vmcoreinfo_note(text: bytes) -> Note:
    """Return the note by which `drgn` and `crash` recognize the core of a Linux kernel: VMCOREINFO's text, type 0."""
    return Note(c.VMCOREINFO_NOTE, 0, text)


def _packed(note: Note) -> bytes:
    """Return the bytes of a note in the file: header, name with NUL and description, each padded to 4 bytes."""
    name = note.name + b"\x00"
    header = np.array([(len(name), len(note.description), note.kind)], dtype=c.NOTE_HEADER).tobytes()
    return header + b"".join(part.ljust(-(-len(part) // 4) * 4, b"\x00") for part in (name, note.description))


def _elf_head(segments: int, machine: int) -> bytes:
    """Return the bytes before the program headers: the ELF header, and section header 0 if it holds their number."""
    header = np.zeros(1, dtype=c.ELF_HEADER)[0]
    ident = c.ELF_MAGIC + bytes([c.ELFCLASS64, c.ELFDATA2LSB, c.EV_CURRENT])
    header["e_ident"][: len(ident)] = np.frombuffer(ident, dtype=np.uint8)
    header["e_type"], header["e_machine"], header["e_version"] = c.ET_CORE, machine, c.EV_CURRENT
    header["e_ehsize"], header["e_phentsize"] = c.ELF_HEADER.itemsize, c.PROGRAM_HEADER.itemsize
    if segments < c.PN_XNUM:
        header["e_phoff"], header["e_phnum"] = c.ELF_HEADER.itemsize, segments
        return bytes(header.tobytes())
    section = np.zeros(1, dtype=c.SECTION_HEADER)
    section["sh_info"] = segments
    header["e_phoff"], header["e_phnum"] = c.ELF_HEADER.itemsize + section.itemsize, c.PN_XNUM
    header["e_shoff"], header["e_shentsize"], header["e_shnum"] = c.ELF_HEADER.itemsize, section.itemsize, 1
    return bytes(header.tobytes() + section.tobytes())


def _after(ranges: FrameRanges) -> NDArray[np.int64]:
    """Return the number of page bytes before each range, int64, shape (n,)."""
    return (np.cumsum(ranges.nr_pages) - ranges.nr_pages) * PAGE_SIZE


def _write_all_of(chunks: Chunks | Feed, fd: int, ranges: FrameRanges, at: NDArray[np.int64], zero_pages: int) -> None:
    """Write every chunk to its place; `at` is the byte in the file of each range's first page."""
    writeback = Writeback(fd)
    lock = threading.Lock()
    seen_pages = 0

    def put(pfns: Pfns, pages: Bytes) -> None:
        nonlocal seen_pages
        batch = _placed(pfns, pages, ranges, at)
        _write_batch(fd, batch)
        writeback.wrote(pages.nbytes)
        with lock:
            seen_pages += len(pfns)

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
    breaks = np.flatnonzero(np.diff(places) != PAGE_SIZE) + 1
    data = np.ascontiguousarray(pages).reshape(-1).data
    firsts = [0, *breaks.tolist()]
    lasts = [*firsts[1:], len(pfns)]
    return [
        (place, data[first * PAGE_SIZE : last * PAGE_SIZE])
        for place, first, last in zip(places[firsts].tolist(), firsts, lasts, strict=True)
    ]


def _write_batch(fd: int, batch: list[tuple[int, memoryview]]) -> None:
    """Write runs; those that are neighbours in the file are written at once."""
    start = 0
    while start < len(batch):
        place, first = batch[start]
        end, stop = place + len(first), start + 1
        while stop < len(batch) and batch[stop][0] == end:
            end += len(batch[stop][1])
            stop += 1
        write_vector(fd, [data for _, data in batch[start:stop]], place)
        start = stop
