# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut convert SOURCE OUT --to FORMAT`: memory from any source into a file that other tools open."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from hibernaut.cli.common import (
    BaseOption,
    Cr3Option,
    JsonOption,
    LevelsOption,
    OffsetOption,
    PartitionOption,
    QuietOption,
    SourceArgument,
    console,
    direct_map_of,
    print_json,
    progress_bar,
    refuse_same_file,
    say,
)
from hibernaut.errors import FormatError
from hibernaut.memory.elf import Note
from hibernaut.memory.page import Bytes, Pfns
from hibernaut.memory.vmcoreinfo import VmcoreinfoFinder, chunks_of
from hibernaut.memory.writers import Feed, Put, vmcoreinfo_note, write_elf, write_lime, write_raw
from hibernaut.report.documents import ConvertDocument
from hibernaut.report.text import hex_or_none, size_text
from hibernaut.sources import Source, open_memory
from hibernaut.swsusp.image import Progress
from hibernaut.volumes.output import replacing

__all__ = ["Format", "convert"]


class Format(StrEnum):
    """What can be written."""

    RAW = "raw"
    ELF = "elf"
    LIME = "lime"


def convert(
    source: SourceArgument,
    out: Annotated[Path, typer.Argument(help="The file to make; it appears whole or not at all.")],
    to: Annotated[Format, typer.Option("--to", help="raw (frame n at byte 4096 n), elf (for crash, drgn) or lime.")],
    cr3: Cr3Option = None,
    levels: LevelsOption = None,
    offset: OffsetOption = 0,
    partition: PartitionOption = None,
    base: BaseOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Convert a dump or an image: all its frames, each where it was in the machine's memory."""
    refuse_same_file(out, source)
    with open_memory(source, offset=offset, partition=partition, base=base) as opened:
        vaddr_base = _direct_map_base(opened, cr3, levels, quiet) if to is Format.ELF else None
        finder = VmcoreinfoFinder()
        ranges = opened.memory.ranges
        zero_pages = int(np.count_nonzero(opened.image.zero)) if opened.image else 0

        def vmcoreinfo() -> bytes | None:
            return opened.vmcoreinfo or finder.found(opened.memory)

        def notes() -> list[Note]:
            text = vmcoreinfo()
            return [vmcoreinfo_note(text)] if text else []

        with progress_bar(f"writing {out}", ranges.total_pages, quiet) as advance, replacing(out) as fd:
            feed = _feed(opened, advance, finder if to is Format.ELF and not opened.vmcoreinfo else None)
            if to is Format.RAW:
                write_raw(feed, fd, ranges, zero_pages=zero_pages)
            elif to is Format.LIME:
                write_lime(feed, fd, ranges, zero_pages=zero_pages)
            else:
                write_elf(feed, fd, ranges, zero_pages=zero_pages, vaddr_base=vaddr_base, notes=notes)
        has_notes = bool(vmcoreinfo()) if to is Format.ELF else None
        document: ConvertDocument = {
            "source": opened.kind,
            "format": str(to),
            "pages": ranges.total_pages,
            "ranges": len(ranges),
            "zero_pages": zero_pages,
            "file_bytes": os.stat(out).st_size,
            "direct_map_base": hex_or_none(vaddr_base),
            "vmcoreinfo": has_notes,
        }
    if has_notes is False:
        say(
            "the kernel's VMCOREINFO is not in this memory: crash and drgn will not take the core for a kernel's", quiet
        )
    if json:
        print_json(document)
    elif not quiet:
        console().print(
            f"{out}: {to} of {document['pages']} pages ({size_text(ranges.total_pages * 4096)}) in {len(ranges)} ranges"
        )


def _direct_map_base(source: Source, cr3: int | None, levels: int | None, quiet: bool) -> int | None:
    """Where the direct map starts; None, with a remark, where that is not to be found."""
    try:
        return direct_map_of(source, cr3, levels).base
    except FormatError as error:
        if cr3 is not None:
            raise
        say(f"virtual addresses are left out of the core: {error}", quiet)
        return None


def _feed(source: Source, advance: Progress, finder: VmcoreinfoFinder | None) -> Feed:
    """Hands over all pages that are stored, each looked at by `finder`; an image's CRC is checked at the end."""

    def feed(put: Put) -> None:
        def look_and_put(pfns: Pfns, pages: Bytes) -> None:
            if finder is not None:
                finder.feed(pfns, pages)
            put(pfns, pages)

        if source.image is not None:
            source.image.for_each(look_and_put, advance)
            return
        for pfns, pages in chunks_of(source.memory):
            look_and_put(pfns, pages)
            advance(len(pages))

    return feed
