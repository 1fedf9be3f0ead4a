# SPDX-License-Identifier: GPL-2.0-or-later
"""Layouts of raw, LiME and ELF core files: which byte of the file is a header's, which one is a page frame's.

A layout has the place of every page before any page is read. The writers (`memory.writers`) put pages there as they
arrive; `DumpLayout.read` returns any part of the file, and reads the frames in that part only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hibernaut.errors import HibernautError
from hibernaut.memory import declarations as c
from hibernaut.memory.elf import Note
from hibernaut.memory.page import PAGE_SIZE

if TYPE_CHECKING:
    from hibernaut.memory.physical import PhysicalMemory
    from hibernaut.memory.ranges import FrameRanges

__all__ = ["DumpLayout", "DumpVolume", "elf_layout", "elf_places", "lime_layout", "raw_layout", "vmcoreinfo_note"]

NOTES_BYTES = 16 << 10
"""Room for the notes of a core before its first page: VMCOREINFO has at most 4096 bytes (`VMCOREINFO_BYTES`)."""
Places = NDArray[np.int64]
"""Bytes in a file, shape (n,)."""


@dataclass(frozen=True, eq=False)
class DumpLayout:
    """A file of headers, runs of page frames, and holes, which read as zeroes.

    Attributes:
        ranges: all page frames.
        at: byte in the file of each range's first page, ascending int64, shape (n,).
        size_bytes: length of the file.
        headers: all bytes that are not those of frames, header after header.
        header_at: byte in the file of each header, ascending int64, shape (m,).
        header_ends: one past the last byte of each in `headers`, ascending int64, shape (m,).
    """

    ranges: FrameRanges
    at: Places
    size_bytes: int
    headers: bytes
    header_at: Places
    header_ends: Places

    @cached_property
    def _ends(self) -> Places:
        """One past the last byte in the file of each range, shape (n,)."""
        return self.at + self.ranges.nr_pages * PAGE_SIZE

    @cached_property
    def _header_begins(self) -> Places:
        """First byte of each header in `headers`, shape (m,)."""
        return np.concatenate(([0], self.header_ends[:-1])).astype(np.int64)[: len(self.header_ends)]

    def parts(self) -> Iterator[tuple[int, memoryview]]:
        """Yield the headers with their places, the last one of the file first: the first makes a file complete."""
        data = memoryview(self.headers)
        places = zip(self.header_at.tolist(), self._header_begins.tolist(), self.header_ends.tolist(), strict=True)
        for at, begin, end in reversed(list(places)):
            yield at, data[begin:end]

    def read(self, memory: PhysicalMemory, offset: int, size_bytes: int) -> bytes:
        """Return bytes of the file: fewer than requested only at its end, none beyond it.

        Args:
            memory: memory with the frames of `ranges`; its `gather` is called once.
            offset: first byte.
            size_bytes: number of bytes.

        Raises:
            HibernautError, OSError: as `memory` raises where a frame cannot be read.
        """
        end = min(offset + max(size_bytes, 0), self.size_bytes)
        if end <= offset:
            return b""
        out = np.zeros(end - offset, dtype=np.uint8)
        self._put_headers(offset, out)
        self._put_pages(memory, offset, out)
        return out.tobytes()

    def _put_headers(self, offset: int, out: NDArray[np.uint8]) -> None:
        """Put the headers into a part of the file, which begins at `offset`."""
        stops = self.header_at + (self.header_ends - self._header_begins)
        first = int(np.searchsorted(stops, offset, side="right"))
        last = int(np.searchsorted(self.header_at, offset + len(out), side="left"))
        data = np.frombuffer(self.headers, dtype=np.uint8)
        for number in range(first, last):
            place, begin = int(self.header_at[number]) - offset, int(self._header_begins[number])
            length = min(int(stops[number]) - offset, len(out)) - max(place, 0)
            skipped = max(-place, 0)
            out[place + skipped :][:length] = data[begin + skipped :][:length]

    def _put_pages(self, memory: PhysicalMemory, offset: int, out: NDArray[np.uint8]) -> None:
        """Put the pages into a part of the file, which begins at `offset`."""
        first = int(np.searchsorted(self._ends, offset, side="right"))
        last = int(np.searchsorted(self.at, offset + len(out), side="left"))
        if first >= last:
            return
        if last == first + 1 and self._put_whole_pages(memory, first, offset, out):
            return
        at = self.at[first:last]
        low = np.maximum(offset - at, 0) // PAGE_SIZE
        high = -(-(np.minimum(self._ends[first:last], offset + len(out)) - at) // PAGE_SIZE)
        starts = self.ranges.starts[first:last]
        pfns = np.concatenate([np.arange(*some) for some in zip(starts + low, starts + high, strict=True)])
        data = memory.gather(pfns)[0].reshape(-1)
        done = 0
        for place, pages in zip((at + low * PAGE_SIZE - offset).tolist(), (high - low).tolist(), strict=True):
            skipped = max(-place, 0)
            piece = data[done * PAGE_SIZE + skipped : (done + pages) * PAGE_SIZE][: len(out) - place - skipped]
            out[place + skipped : place + skipped + len(piece)] = piece
            done += pages

    def _put_whole_pages(self, memory: PhysicalMemory, number: int, offset: int, out: NDArray[np.uint8]) -> bool:
        """Put the pages of one range into a part of the file without a copy; False if the part cuts a page."""
        at, end = int(self.at[number]), int(self._ends[number])
        begin, stop = max(at, offset), min(end, offset + len(out))
        if (begin - at) % PAGE_SIZE or (stop - at) % PAGE_SIZE:
            return False
        pfn = int(self.ranges.starts[number]) + (begin - at) // PAGE_SIZE
        pages = (stop - begin) // PAGE_SIZE
        memory.gather(np.arange(pfn, pfn + pages), out[begin - offset : stop - offset].reshape(-1, PAGE_SIZE))
        return True


class DumpVolume:
    """The file of a layout, as a volume that reads memory on demand. Safe to use from several threads.

    Args:
        layout: the layout.
        memory: memory with its frames; it stays open.
        name: name in messages.
    """

    def __init__(self, layout: DumpLayout, memory: PhysicalMemory, name: str) -> None:
        self.name = name
        self.size_bytes = layout.size_bytes
        self._layout = layout
        self._memory = memory

    def pread(self, offset: int, size_bytes: int) -> bytes:
        """See `volumes.volume.Volume`. Raises as `DumpLayout.read`."""
        return self._layout.read(self._memory, offset, size_bytes)

    def pread_into(self, offset: int, out: NDArray[np.uint8]) -> int:
        """See `volumes.volume.Volume`. Raises as `DumpLayout.read`."""
        data = self.pread(offset, len(out))
        out[: len(data)] = np.frombuffer(data, dtype=np.uint8)
        return len(data)


def raw_layout(ranges: FrameRanges) -> DumpLayout:
    """Return the layout of a raw file: frame n at byte 4096 n; frames that do not exist are holes."""
    none = np.empty(0, dtype=np.int64)
    return DumpLayout(ranges, ranges.starts * PAGE_SIZE, ranges.end * PAGE_SIZE, b"", none, none)


def lime_layout(ranges: FrameRanges) -> DumpLayout:
    """Return the layout of a LiME file, version 1: for each range, a header and its pages.

    Raises:
        HibernautError: more ranges than such a file is read with.
    """
    _refuse_more(ranges, c.MOST_LIME_RANGES, "a LiME file")
    headers = np.zeros(len(ranges), dtype=c.LIME_RANGE)
    headers["magic"], headers["version"] = c.LIME_MAGIC, c.LIME_VERSION
    headers["s_addr"] = ranges.starts * PAGE_SIZE
    headers["e_addr"] = (ranges.starts + ranges.nr_pages) * PAGE_SIZE - 1
    ends = np.arange(1, len(ranges) + 1, dtype=np.int64) * c.LIME_RANGE.itemsize
    at = _before(ranges) + ends
    size_bytes = headers.nbytes + ranges.total_pages * PAGE_SIZE
    return DumpLayout(ranges, at, size_bytes, headers.tobytes(), at - c.LIME_RANGE.itemsize, ends)


def elf_places(ranges: FrameRanges) -> Places:
    """Return the byte in an ELF core of each range's first page, whatever its notes are: int64, shape (n,).

    Raises:
        HibernautError: more ranges than a core is read with.
    """
    _refuse_more(ranges, c.MOST_ELF_HEADERS - 1, "a core")
    return -(-(_head_bytes(ranges) + NOTES_BYTES) // PAGE_SIZE) * PAGE_SIZE + _before(ranges)


def elf_layout(
    ranges: FrameRanges, notes: Sequence[Note] = (), *, vaddr_base: int | None = None, machine: int = c.EM_X86_64
) -> DumpLayout:
    """Return the layout of an ELF64 core: one PT_NOTE, first as `crash` requires, and one PT_LOAD per range.

    As in a kdump, the notes stand before the first page and `p_align` of a PT_LOAD is 0: crash reads no other core.
    Notes that do not fit there stand at the end of the file.

    Args:
        ranges: all page frames.
        notes: the notes.
        vaddr_base: virtual address of the direct map, for `p_vaddr`; if None, `p_vaddr` is 0.
        machine: number of its architecture, `e_machine`.

    Raises:
        HibernautError: more ranges than a core is read with.
    """
    at = elf_places(ranges)
    end = int(at[-1] + ranges.nr_pages[-1] * PAGE_SIZE) if len(ranges) else _head_bytes(ranges)
    packed = b"".join(packed_note(note) for note in notes)
    notes_at = _head_bytes(ranges) if len(packed) <= NOTES_BYTES else end
    headers = np.zeros(1 + len(ranges), dtype=c.PROGRAM_HEADER)
    headers[0] = (c.PT_NOTE, 0, notes_at, 0, 0, len(packed), 0, 4)
    loads = headers[1:]
    loads["p_type"], loads["p_flags"], loads["p_align"] = c.PT_LOAD, c.PF_RWX, 0
    loads["p_offset"] = at
    loads["p_paddr"] = ranges.starts * PAGE_SIZE
    loads["p_vaddr"] = 0 if vaddr_base is None else loads["p_paddr"] + np.uint64(vaddr_base)
    loads["p_filesz"] = loads["p_memsz"] = ranges.nr_pages * PAGE_SIZE
    head = elf_head(len(headers), machine) + headers.tobytes()
    return DumpLayout(
        ranges,
        at,
        max(end, notes_at + len(packed)),
        head + packed,
        np.array([0, notes_at], dtype=np.int64),
        np.array([len(head), len(head) + len(packed)], dtype=np.int64),
    )


def vmcoreinfo_note(text: bytes) -> Note:
    """Return the note by which `drgn` and `crash` recognize the core of a Linux kernel: VMCOREINFO's text, type 0."""
    return Note(c.VMCOREINFO_NOTE, 0, text)


def _refuse_more(ranges: FrameRanges, most: int, of: str) -> None:
    """Raise HibernautError if there are more ranges than the reader of the same format takes."""
    if len(ranges) > most:
        raise HibernautError(
            f"{len(ranges)} separate ranges of frames, more than the {most} of {of}",
            advice="give --to raw or --to kdump",
        )


def packed_note(note: Note) -> bytes:
    """Return the bytes of a note in the file: header, name with NUL and description, each padded to 4 bytes."""
    name = note.name + b"\x00"
    header = np.array([(len(name), len(note.description), note.kind)], dtype=c.NOTE_HEADER).tobytes()
    return header + b"".join(part.ljust(-(-len(part) // 4) * 4, b"\x00") for part in (name, note.description))


def _head_bytes(ranges: FrameRanges) -> int:
    """Return the length of everything before the pages of a core."""
    segments = 1 + len(ranges)
    return len(elf_head(segments, c.EM_X86_64)) + segments * c.PROGRAM_HEADER.itemsize


def elf_head(segments: int, machine: int) -> bytes:
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


def _before(ranges: FrameRanges) -> Places:
    """Return the number of page bytes before each range, int64, shape (n,)."""
    return (np.cumsum(ranges.nr_pages) - ranges.nr_pages) * PAGE_SIZE
