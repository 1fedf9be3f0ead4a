# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut save SOURCE OUT --via WAY`: hibernate a machine's memory into an image."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from hibernaut.cli.manifest import ManifestOption
from hibernaut.cli.options import (
    ContentOptions,
    LikeOptions,
    MemoryOptions,
    OutputOptions,
    RulesOption,
    SourceArgument,
    among,
    number,
    refuse_same_file,
)
from hibernaut.cli.progress import page_progress
from hibernaut.cli.terminal import say
from hibernaut.errors import HibernationRefused, HibernautError, MachineFault
from hibernaut.hibernation import WAYS, Way, hibernate, way_named
from hibernaut.hibernation.machine_in_source import machine_in
from hibernaut.linux import Environment, FailAllocations, Machine
from hibernaut.report.images import failed_save_document, save_document, saved_text
from hibernaut.report.manifest import area_document
from hibernaut.report.text import crashed_text
from hibernaut.swsusp.info import ImageInfo
from hibernaut.swsusp.writer import ExistingArea, NewArea, write_image

__all__ = ["save"]

KNOWN_WAYS = ", ".join(WAYS)
"""Names of the ways, the mutants last."""


def save(
    source: SourceArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Swap area to make; it appears whole or not at all.")],
    via: Annotated[
        str,
        typer.Option(
            "--via",
            metavar="WAY",
            help=f"Way to copy pages that are not present: {KNOWN_WAYS}. Required.",
            autocompletion=among(WAYS),
        ),
    ],
    options: MemoryOptions,
    like: LikeOptions,
    content: ContentOptions,
    manifest: ManifestOption,
    output: OutputOptions,
    rules: RulesOption = None,
    fail_allocation: Annotated[
        list[int] | None,
        typer.Option(
            "--fail-allocation",
            min=1,
            metavar="N",
            help="Fail the N-th allocation of the copy; repeatable. Default: none.",
        ),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option("--size", parser=number, metavar="BYTES", help="Size of a new swap area. Default: as needed."),
    ] = None,
) -> None:
    """Hibernate a dump (or an image) into an image, as the kernel does it or as the fixmap patch would.

    The image is one that the machine's own kernel resumes from if the list of pages is known: that of --like, of an
    image as SOURCE, or of the kernel in a dump, if it was stopped in swsusp_save. Else all pages of the
    direct map are saved, for analysis only.

    The exit status is 1 if the modelled kernel crashes or refuses to hibernate; nothing is written then.
    """
    way = _way(via)
    refuse_same_file(out, source, like.like)
    if size is not None and like.like is not None:
        raise typer.BadParameter("--like keeps the size of its area; give either", param_hint="--size")
    with ExitStack() as stack:
        made = stack.enter_context(manifest.begun(source, out, output.quiet))
        opened = stack.enter_context(options.open_memory(source, output.quiet))
        template = like.open_like(stack)
        existing = template or opened.image
        found = machine_in(
            opened,
            pages_from=template,
            cr3=options.cr3,
            levels=options.levels,
            rules=rules,
            environment=FailAllocations(*fail_allocation) if fail_allocation else Environment(),
            secretmem=False,  # an analyst can use an image that the kernel refuses to make
        )
        for remark in found.remarks:
            say(remark, output.quiet)
        if found.pages.info is None:
            say("image is not resumable (for analysis only): no kernel lists its pages", output.quiet)
        machine = found.machine
        try:
            snapshot = hibernate(machine, way)
        except (MachineFault, HibernationRefused) as error:
            text = crashed_text(error, machine.log.lines)
            output.answer(failed_save_document(error, via, machine.log.lines, found.rules), lambda _: text)
            raise typer.Exit(1) from None
        with page_progress(f"writing {out}", len(snapshot.pfns), output.quiet) as advance:
            written = write_image(
                out,
                snapshot.memory,
                snapshot.pfns,
                found.pages.info or _blank_info(machine),
                ExistingArea(template) if template else NewArea(size),
                compressor=content.compressor_for(existing),
                zero_pages=content.zero_pages_for(existing),
                progress=advance,
            )
        document = save_document(snapshot, written, via, found.pages.pages_from, found.rules)
        if made is not None:
            document["manifest"] = made.write(out, area_document(opened, compared=False))
    output.answer(document, lambda _: saved_text(str(out), snapshot, written, via))


def _way(name: str) -> Way:
    try:
        return way_named(name)
    except HibernautError as error:
        raise typer.BadParameter(error.statement, param_hint="--via") from None


def _blank_info(machine: Machine) -> ImageInfo:
    return ImageInfo.blank(cr3=machine.cr3 & ~0xFFF, physical_pages=machine.memory.ranges.total_pages)
