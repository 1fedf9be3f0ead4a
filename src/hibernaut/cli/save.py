# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut save SOURCE OUT --via WAY`: hibernate a machine's memory into an image."""

from __future__ import annotations

from contextlib import ExitStack
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
    RulesOption,
    SourceArgument,
    console,
    number,
    paging_of,
    print_json,
    progress_bar,
    refuse_same_file,
    rules_of,
    say,
)
from hibernaut.errors import FormatError, HibernationRefused, HibernautError, MachineFault
from hibernaut.hibernation import WAYS, Snapshot, Way, hibernate, way_named
from hibernaut.hibernation.source_machine import machine_from_memory
from hibernaut.kernel.suspend import PagesToSave, pages_to_save
from hibernaut.kernel_line import Probed
from hibernaut.linux import Environment, FailAllocations, Machine
from hibernaut.linux.rules import KernelRules
from hibernaut.memory.page import PAGE_SHIFT
from hibernaut.report.images import failed_save_document, save_document
from hibernaut.report.text import crashed_text, size_text
from hibernaut.sources import Source, open_memory
from hibernaut.swsusp import Image, open_image
from hibernaut.swsusp.codecs import CompressorName
from hibernaut.swsusp.info import ImageInfo
from hibernaut.swsusp.writer import ExistingArea, NewArea, WrittenImage, write_image

__all__ = ["save"]


def _way(name: str) -> Way:
    try:
        return way_named(name)
    except HibernautError as error:
        raise typer.BadParameter(str(error), param_hint="--via") from None


class Compressor(StrEnum):
    """What an image can be compressed with."""

    LZO = "lzo"
    LZ4 = "lz4"
    NONE = "none"


KNOWN = ", ".join(WAYS)
"""The ways' names, the mutants' last."""


class YesNo(StrEnum):
    """A choice that also has a default of its own."""

    YES = "yes"
    NO = "no"


def save(
    source: SourceArgument,
    out: Annotated[Path, typer.Argument(help="The swap area to make; it appears whole or not at all.")],
    via: Annotated[
        str, typer.Option("--via", metavar="WAY", help=f"How pages that are not present are copied: {KNOWN}.")
    ],
    rules: RulesOption = None,
    like: Annotated[
        Path | None,
        typer.Option(
            "--like", help="An image of the same machine: its list of pages, info page, area and blocks are used."
        ),
    ] = None,
    fail_allocation: Annotated[
        list[int] | None,
        typer.Option(
            "--fail-allocation", min=1, metavar="N", help="The N-th allocation of the copy fails; repeatable."
        ),
    ] = None,
    compressor: Annotated[
        Compressor | None, typer.Option("--compressor", help="Default: as --like or an image as SOURCE; else lzo.")
    ] = None,
    zero_pages: Annotated[
        YesNo | None,
        typer.Option(
            "--zero-pages",
            help="Leave out zero pages (read by Linux 6.6 and later). Default: as --like or an image SOURCE; else no.",
        ),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            "--size", parser=number, metavar="BYTES", help="Size of a new swap area. Default: what is needed."
        ),
    ] = None,
    cr3: Cr3Option = None,
    levels: LevelsOption = None,
    offset: OffsetOption = 0,
    partition: PartitionOption = None,
    base: BaseOption = None,
    like_offset: Annotated[int, typer.Option("--like-offset", min=0, metavar="PAGES", help="--offset for --like.")] = 0,
    like_partition: Annotated[
        int | None, typer.Option("--like-partition", min=1, metavar="N", help="--partition for --like.")
    ] = None,
    like_base: Annotated[
        int | None, typer.Option("--like-base", parser=number, metavar="BYTES", help="--base for --like.")
    ] = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Hibernate a dump (or an image) as the kernel would, or as it would with the fixmap patch, into an image.

    With --like the result is an image that the machine's own kernel resumes from. Without it the pages go to a new swap
    area: those that an image lists; those that the kernel in a dump lists, if it was stopped in swsusp_save (needs
    drgn), which it resumes from too; else every frame that the dump's direct map speaks of, for reading only.
    """
    way = _way(via)
    refuse_same_file(out, source, like)
    if size is not None and like is not None:
        raise typer.BadParameter("--size is for a new swap area; --like keeps the old one's", param_hint="--size")
    with ExitStack() as stack:
        opened = stack.enter_context(open_memory(source, offset=offset, partition=partition, base=base))
        template: Image | None = None
        if like is not None:
            template = stack.enter_context(
                open_image(like, offset=like_offset, partition=like_partition, base=like_base)
            )
            _refuse_other_machine(opened, template)
        known = template or opened.image
        pages = PagesToSave("image", template.pfns, template.info) if template else pages_to_save(opened)
        found = rules_of(rules, opened, quiet, told=pages.reason)
        machine = _machine(opened, known, pages, found.rules, cr3, levels, fail_allocation or [], quiet)
        try:
            snapshot = hibernate(machine, way)
        except (MachineFault, HibernationRefused) as fault:
            _died(fault, machine, via, json, quiet, found)
            raise typer.Exit(1) from None
        with progress_bar(f"writing {out}", len(snapshot.pfns), quiet) as advance:
            written = write_image(
                out,
                snapshot.memory,
                snapshot.pfns,
                pages.info or _info_without_kernel(machine),
                ExistingArea(template) if template else NewArea(size),
                compressor=_compressor(compressor, known),
                zero_pages=zero_pages is YesNo.YES if zero_pages else bool(known and known.zero.any()),
                progress=advance,
            )
    if json:
        print_json(save_document(snapshot, written, via, pages.pages_from, found))
    elif not quiet:
        _tell(out, snapshot, written, via)


def _refuse_other_machine(source: Source, template: Image) -> None:
    """The kernel's code must be the same in both: the page at the restore entry, which never changes after boot.

    Raises:
        FormatError: it is not.
    """
    pfn = template.info.jump_address_phys >> PAGE_SHIFT
    theirs, ours = template.memory().page(pfn), source.memory.page(pfn)
    if theirs is not None and ours is not None and not np.array_equal(theirs, ours):
        raise FormatError(
            f"not an image of the machine in {source.name}: the kernel's code in frame {pfn:#x} differs",
            source=template.name,
        )


def _machine(
    source: Source,
    known: Image | None,
    pages: PagesToSave,
    rules: KernelRules,
    cr3: int | None,
    levels: int | None,
    failing: list[int],
    quiet: bool,
) -> Machine:
    kernel = pages.kernel
    root: int
    known_levels: int | None
    if kernel is not None and cr3 is None and source.cr3 is None:
        root, known_levels = kernel.info.cr3, levels or kernel.levels
    else:
        root, known_levels = paging_of(source, cr3, levels)
    name = known.name if known else source.name
    if pages.info is not None and pages.info.cr3 != root & ~0xFFF:
        say(f"CR3 is {root:#x} in {source.name} but {pages.info.cr3:#x} in {name}: the same machine?", quiet)
    if kernel is not None:
        say(f"the list of {len(kernel.pfns)} pages is that of the kernel in {name}, {kernel.release}", quiet)
    if pages.reason is not None:
        say(f"no kernel resumes from this image, it is for reading: {pages.reason}", quiet)
    environment = FailAllocations(*failing) if failing else Environment()
    return machine_from_memory(
        source.memory,
        root,
        known_levels,
        saveable=pages.pfns,
        environment=environment,
        rules=rules,
    )


def _info_without_kernel(machine: Machine) -> ImageInfo:
    return ImageInfo.blank(cr3=machine.cr3 & ~0xFFF, physical_pages=machine.memory.ranges.total_pages)


def _compressor(wanted: Compressor | None, known: Image | None) -> CompressorName:
    if wanted is not None:
        return wanted.value
    return known.compressor if known else "lzo"


def _died(
    error: MachineFault | HibernationRefused,
    machine: Machine,
    via: str,
    json: bool,
    quiet: bool,
    found: Probed[KernelRules],
) -> None:
    """The modelled kernel's last words; nothing was written."""
    if json:
        print_json(failed_save_document(error, via, machine.log.lines, found))
    elif not quiet:
        console().print(crashed_text(error, machine.log.lines))


def _tell(out: Path, snapshot: Snapshot, written: WrittenImage, via: str) -> None:
    lines = list(snapshot.log)
    made = sum(one.pfn is not None for one in snapshot.allocations)
    outside = np.array([one.pfn for one in snapshot.allocations if one.pfn is not None], dtype=np.int64)
    lost = int((~np.isin(outside, snapshot.pfns)).sum())
    lines.append(
        f"{out}: {written.saved_pages} pages saved via {via}, {written.stored_pages} stored"
        f" ({size_text(written.blocks * 4096)} in the swap area), {made} allocations during the copy"
    )
    if len(snapshot.skipped):
        lines.append(f"{len(snapshot.skipped)} pages could not be mapped and were SKIPPED: the image has other bytes")
    if lost:
        lines.append(f"{lost} page tables were made during the copy and are not on the list of pages: look at the map")
    console().print("\n".join(lines))
