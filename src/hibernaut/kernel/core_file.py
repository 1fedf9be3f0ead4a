# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory of any source written as a file that tools for a kernel's memory open: raw, LiME, an ELF core, or kdump."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from hibernaut.errors import HibernautError
from hibernaut.kernel.hibernating_cpu import hibernating_cpu_note
from hibernaut.kernel.own_vmcoreinfo import choose_vmcoreinfo, kernel_by_pointers
from hibernaut.memory import declarations as c
from hibernaut.memory.dump_layout import DumpLayout, elf_layout, elf_places, lime_layout, raw_layout, vmcoreinfo_note
from hibernaut.memory.kdump_writer import KdumpCompressor, write_kdump
from hibernaut.memory.page import PAGE_SIZE
from hibernaut.memory.vmcoreinfo import VmcoreinfoFinder, find_vmcoreinfos, stored_chunks_of
from hibernaut.memory.writers import Chunks, Feed, Put, write_elf, write_lime, write_raw
from hibernaut.volumes.output import bulk_workers, replacing

if TYPE_CHECKING:
    from hibernaut.memory.elf import Note
    from hibernaut.memory.page import Bytes, Pfns
    from hibernaut.sources import Source

__all__ = ["WITH_VMCOREINFO", "Converted", "CoreFormat", "LayoutFormat", "convert", "core_layout", "refuse_core"]

CoreFormat = Literal["raw", "elf", "lime", "kdump"]
LayoutFormat = Literal["raw", "elf", "lime"]
"""Formats in which the place of every page is known before any is read."""

WITH_VMCOREINFO = frozenset({"elf", "kdump"})
"""Formats that have a place for it."""


@dataclass(frozen=True)
class Converted:
    """A file of memory that was written.

    Attributes:
        format: its format.
        pages: page frames in it.
        ranges: ranges of neighbouring page frames.
        zero_pages: of the pages, those of a hibernation image that are zero and have no data in it.
        file_bytes: length of the file.
        vmcoreinfo: whether an ELF core or a kdump-compressed dump has VMCOREINFO, without which crash and drgn do not
            take it for a kernel's; None for other formats.
        compressor: compressor of the pages of a kdump-compressed dump; None for other formats.
    """

    format: CoreFormat
    pages: int
    ranges: int
    zero_pages: int
    file_bytes: int
    vmcoreinfo: bool | None
    compressor: KdumpCompressor | None = None


def convert(
    source: Source,
    out: str | os.PathLike[str],
    to: CoreFormat,
    *,
    vaddr_base: int | None = None,
    root: tuple[int, int] | None = None,
    compressor: KdumpCompressor = "zlib",
    progress: Callable[[int], None] | None = None,
) -> Converted:
    """Write all page frames of a source to a file, each at its place in the machine's memory.

    The file appears whole or not at all, with mode 0600. The CRC of an image is verified at the end.

    Args:
        source: the memory.
        out: the file; one that exists is replaced at the end.
        to: raw (frame n at byte 4096 n), elf (an ELF core, with the kernel's VMCOREINFO if it is found), lime, or kdump
            (makedumpfile's, with VMCOREINFO as before).
        vaddr_base: virtual address of page frame 0 in the direct map, for the program headers of an ELF core; None to
            leave virtual addresses out.
        root: CR3 and levels of its page tables, by which the text for an ELF core or kdump is chosen among the
            VMCOREINFO of several kernels in memory; None if unknown.
        compressor: compressor of the pages of kdump: zlib, lzo, zstd or none.
        progress: is called with a number of pages whenever so many are written.

    Raises:
        HibernautError: no such format, or an ELF core of a machine whose number is not known.
        CorruptImage: the source is a damaged image.
        OSError: the file cannot be written.
    """
    if to not in get_args(CoreFormat):
        raise HibernautError(f"no format {to!r}; expected {', '.join(get_args(CoreFormat))}")
    machine = _elf_machine(source) if to in WITH_VMCOREINFO else c.EM_X86_64
    if to == "kdump" and machine != c.EM_X86_64:
        raise HibernautError(
            f"{source.name}: a kdump file is written of x86-64 machines alone", advice="give --to elf, lime or raw"
        )
    known = _known_vmcoreinfo(source, root) if to in WITH_VMCOREINFO else None
    finder = VmcoreinfoFinder() if to in WITH_VMCOREINFO and known is None else None
    ranges = source.memory.ranges
    zero_pages = source.any_image.zero_frames.total_pages if source.any_image else 0
    not_fed = zero_pages if source.image else ranges.total_pages - source.memory.stored.total_pages

    def vmcoreinfo() -> bytes | None:
        return known or (choose_vmcoreinfo(source.memory, finder.texts(source.memory), root).text if finder else None)

    report = progress or (lambda _pages: None)
    if source.image is None:
        report(not_fed)
    with replacing(out) as fd:
        feed = _feed(source, report, finder)
        if to == "kdump":
            chunks = _chunks(source, report, finder)
            write_kdump(chunks, fd, ranges, zero_pages=not_fed, compressor=compressor, vmcoreinfo=vmcoreinfo)
        elif to == "raw":
            write_raw(feed, fd, ranges, zero_pages=not_fed)
        elif to == "lime":
            write_lime(feed, fd, ranges, zero_pages=not_fed)
        else:
            write_elf(
                feed,
                fd,
                ranges,
                zero_pages=not_fed,
                vaddr_base=vaddr_base,
                notes=lambda: _notes(source, vmcoreinfo()),
                machine=machine,
            )
    has_note = bool(vmcoreinfo()) if to in WITH_VMCOREINFO else None
    packed = compressor if to == "kdump" else None
    return Converted(to, ranges.total_pages, len(ranges), zero_pages, os.stat(out).st_size, has_note, packed)


def core_layout(
    source: Source, to: LayoutFormat, *, vaddr_base: int | None = None, root: tuple[int, int] | None = None
) -> DumpLayout:
    """Return the layout of the file that `convert` writes. No page is read for raw and LiME.

    For an ELF core VMCOREINFO is found as `convert` finds it: all memory is read only if neither the source has it nor
    the kernel's own variables lead to it.

    Args:
        source: the memory.
        to: raw, elf or lime.
        vaddr_base: as for `convert`.
        root: as for `convert`.

    Raises:
        HibernautError: an ELF core of a machine whose number is not known, or more ranges than the format takes.
        CorruptImage: the source is a damaged image.
        OSError: the source cannot be read.
    """
    ranges = source.memory.ranges
    if to == "raw":
        return raw_layout(ranges)
    if to == "lime":
        return lime_layout(ranges)
    refuse_core(source)
    text = _known_vmcoreinfo(source, root)
    if text is None:
        text = choose_vmcoreinfo(source.memory, find_vmcoreinfos(source.memory), root).text
    return elf_layout(ranges, _notes(source, text), vaddr_base=vaddr_base, machine=_elf_machine(source))


def refuse_core(source: Source) -> None:
    """Raise HibernautError if there can be no ELF core of a source; see `core_layout`. Reads no page."""
    _elf_machine(source)
    elf_places(source.memory.ranges)


def _known_vmcoreinfo(source: Source, root: tuple[int, int] | None) -> bytes | None:
    """Return the text that the source has, or that the kernel's variables point to; None if memory must be searched.

    Raises:
        CorruptImage: the source is a damaged image.
    """
    if source.vmcoreinfo:
        return source.vmcoreinfo
    if root is None or source.foreign is not None:
        return None
    found = kernel_by_pointers(source, root)
    return None if found is None else found.text


def _notes(source: Source, text: bytes | None) -> list[Note]:
    """Return the notes of a core: VMCOREINFO, then the registers of the CPU that hibernates."""
    cpu = hibernating_cpu_note(source, text)
    return ([vmcoreinfo_note(text)] if text else []) + ([cpu] if cpu is not None else [])


def _chunks(source: Source, progress: Callable[[int], None], finder: VmcoreinfoFinder | None) -> Chunks:
    """Yield all stored pages in order; `finder` looks at each of them."""
    chunks = source.image.chunks() if source.image is not None else stored_chunks_of(source.memory)
    for pfns, pages in chunks:
        if finder is not None:
            finder.feed(pfns, pages)
        yield pfns, pages
        progress(len(pages))


def _elf_machine(source: Source) -> int:
    """Return the machine that an ELF core of a source names. Raises HibernautError if it is not known."""
    if source.foreign is None:
        return c.EM_X86_64
    if source.foreign.elf_machine is None:
        raise HibernautError(
            f"{source.name}: a core names its machine, and the number for {source.foreign.name} is not known",
            advice="give --to lime or --to raw",
        )
    return source.foreign.elf_machine


def _feed(source: Source, progress: Callable[[int], None], finder: VmcoreinfoFinder | None) -> Feed:
    """Return the function that hands over all stored pages; `finder` looks at each of them."""
    workers = bulk_workers(source.memory.ranges.total_pages * PAGE_SIZE)

    def feed(put: Put) -> None:
        def look_and_put(pfns: Pfns, pages: Bytes) -> None:
            if finder is not None:
                finder.feed(pfns, pages)
            put(pfns, pages)

        if source.image is not None:
            source.image.for_each(look_and_put, progress, workers=workers)
            return
        for pfns, pages in stored_chunks_of(source.memory):
            look_and_put(pfns, pages)
            progress(len(pages))

    return feed
