# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut inspect IMAGE`: the contents of a hibernation image, and whether it is intact."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hibernaut.cli.failure import BAD_NEWS, UNUSABLE
from hibernaut.cli.options import (
    AreaOptions,
    ImageArgument,
    OutputOptions,
    among,
    base_option,
    gap_option,
    gaps_of,
    offset_option,
    partition_option,
)
from hibernaut.cli.progress import page_progress
from hibernaut.cli.salvage_options import SalvageOptions
from hibernaut.errors import FormatError, HibernautError
from hibernaut.kernel.identity import read_identity
from hibernaut.kernel.kernel import Kernel
from hibernaut.kernel.processes import read_processes
from hibernaut.kernel.reading import FactReader
from hibernaut.kernel.resuming_machine import resuming_machine
from hibernaut.kernel.swapped_pages import SwappedPages, slot_files
from hibernaut.kernel_line import RulesFrom
from hibernaut.linux.source_tables import with_gaps
from hibernaut.memory.gaps import MemoryGap
from hibernaut.report.documents import InspectDocument
from hibernaut.report.identity import inspection_with_machine_text, machine_document
from hibernaut.report.images import digests_of, inspect_document, verdict_document
from hibernaut.report.redaction import redacted_inspect_document
from hibernaut.report.remains import remains_document, remains_text
from hibernaut.report.salvage import salvaged_inspect_document, salvaged_inspection_text
from hibernaut.report.text import of_another_architecture
from hibernaut.sources import source_of_image
from hibernaut.swsusp import Image, inspect_image
from hibernaut.swsusp.area import locate_area
from hibernaut.swsusp.rules import ImageRules, image_rules_for_release, image_rules_probed
from hibernaut.swsusp.salvage import scan_area
from hibernaut.swsusp.verdict import ResumingMachine, verdict_on
from hibernaut.volumes.volume import close_volume

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hibernaut.kernel.swap_areas import SwapAreaInUse
    from hibernaut.sources import Source

__all__ = ["inspect"]

VERDICT_SECTION = "Verdict"
MACHINE_SECTION = "Machine in the image"


def inspect(
    image: ImageArgument,
    options: AreaOptions,
    salvage: SalvageOptions,
    output: OutputOptions,
    scan: Annotated[
        bool,
        typer.Option(
            "--scan",
            help="Search the whole device for remains of images, whatever its header is: swap maps, info pages, units. "
            "Default: no.",
        ),
    ] = False,
    digests: Annotated[
        bool, typer.Option("--digests", help="Also print SHA-256 of the list of frames and of the pages. Default: no.")
    ] = False,
    processes: Annotated[
        bool,
        typer.Option(
            "--processes", rich_help_panel=MACHINE_SECTION, help="Also list the machine's processes. Default: no."
        ),
    ] = False,
    redact: Annotated[
        bool,
        typer.Option(
            "--redact",
            rich_help_panel=MACHINE_SECTION,
            help="Leave out what names a person or the machine, for bug reports. Default: no.",
        ),
    ] = False,
    no_machine: Annotated[
        bool,
        typer.Option(
            "--no-machine",
            rich_help_panel=MACHINE_SECTION,
            help="Do not look for the machine, which reads the image's pages once more. Default: show its facts.",
        ),
    ] = False,
    for_kernel: Annotated[
        str | None,
        typer.Option(
            "--for-kernel",
            metavar="RELEASE",
            rich_help_panel=VERDICT_SECTION,
            help="Tell whether this kernel would resume from it: 6.1, or a full release. Default: the kernel of "
            "--on-machine, if that is given.",
        ),
    ] = None,
    on_machine: Annotated[
        str | None,
        typer.Option(
            "--on-machine",
            metavar="MACHINE",
            rich_help_panel=VERDICT_SECTION,
            help="And on this machine: `this`, a RAM dump or another image of it, or a JSON file of its facts. "
            "Default: an unknown machine.",
            autocompletion=among(["this"]),
        ),
    ] = None,
    on_machine_offset: Annotated[int, offset_option("on-machine-", VERDICT_SECTION)] = 0,
    on_machine_partition: Annotated[int | None, partition_option("on-machine-", VERDICT_SECTION)] = None,
    on_machine_base: Annotated[int | None, base_option("on-machine-", VERDICT_SECTION)] = None,
    on_machine_gap: Annotated[list[str] | None, gap_option("on-machine-", VERDICT_SECTION)] = None,
) -> None:
    """Show the contents of a hibernation image and whether it is intact.

    The exit status is 1 if it is damaged, if the kernel of --for-kernel would refuse it, or if --scan finds nothing;
    2 if it is of another architecture, which has no verdict here.
    """
    if no_machine and processes:
        raise typer.BadParameter("--no-machine excludes --processes, which are those of the machine")
    if redact and on_machine:
        raise typer.BadParameter("--redact excludes --on-machine, which names a file or a machine")
    place = AreaOptions(offset=on_machine_offset, partition=on_machine_partition, base=on_machine_base)
    if scan:
        if salvage.wanted or digests or for_kernel or on_machine or processes or redact:
            raise typer.BadParameter(
                "--scan excludes the other ways to inspect: give them with --map-block, afterwards"
            )
        _scan(image, options, output)
        return
    if salvage.wanted:
        if digests or for_kernel or on_machine or processes or redact:
            raise typer.BadParameter(
                "--consumed, --salvage and --map-block exclude --digests, --processes, --redact, --for-kernel and"
                " --on-machine"
            )
        _inspect_salvaged(image, options, salvage, output)
        return
    asked = _asked(for_kernel, on_machine, place, gaps_of(on_machine_gap, "--on-machine-gap"))
    with ExitStack() as stack:
        file, offset = options.place(image)
        stack.callback(close_volume, file)
        advance = stack.enter_context(page_progress(f"reading {image}", None, output.quiet))
        found = inspect_image(file, offset=offset, partition=options.partition, base=options.base, progress=advance)
        document = inspect_document(found, offset)
        if digests and found.image and not found.problems:
            document["sha256_pfns"], document["sha256_stored_pages"] = digests_of(found.image)
        verdict = verdict_on(found, *asked[:2]) if asked else None
        if asked and verdict:
            document["verdict"] = verdict_document(verdict, asked[2])
        if not no_machine and not output.quiet and found.image and not found.problems:
            _add_machine(document, found.image, processes)
        if redact:
            document = redacted_inspect_document(document, file.name)
    output.answer(document, inspection_with_machine_text)
    foreign = of_another_architecture(document)
    if (found.problems and not foreign) or (verdict and verdict.resumes is False):
        raise typer.Exit(BAD_NEWS)
    if foreign:
        raise typer.Exit(UNUSABLE)


def _add_machine(document: InspectDocument, image: Image, with_processes: bool) -> None:
    """Add the machine to the document of an intact image, or a remark on the reason why it is not shown."""
    if of_another_architecture(document):
        return
    try:
        source = source_of_image(image)
        reader = FactReader(Kernel.of(source))
        identity = read_identity(reader)
    except HibernautError as error:
        reason = error.complaint if isinstance(error, FormatError) else str(error)
        document["remarks"].append(f"its machine is not shown: {reason}")
        return
    listed = None
    if with_processes:
        swapped = reader.fact("swapped-out pages", lambda: _swapped(reader.kernel, source, identity.swap))
        listed = read_processes(reader, identity.clock, swapped)
    identity = replace(identity, remarks=tuple(reader.remarks))
    document["machine"] = machine_document(identity, image, listed, with_processes)


def _swapped(kernel: Kernel, source: Source, areas: Sequence[SwapAreaInUse] | None) -> SwappedPages | None:
    """Return the pages in the area of an image; None if its area is not known."""
    files = slot_files(kernel, source, areas or ())
    return SwappedPages(kernel, files, areas) if files else None


def _scan(path: Path, options: AreaOptions, output: OutputOptions) -> None:
    with ExitStack() as stack:
        file, offset = options.place(path)
        stack.callback(close_volume, file)
        area = locate_area(file, offset=offset, partition=options.partition, base=options.base)
        advance = stack.enter_context(page_progress(f"scanning {path}", area.blocks, output.quiet))
        remains = scan_area(area, advance)
    output.answer(remains_document(remains), remains_text)
    if not remains.found:
        raise typer.Exit(1)


def _inspect_salvaged(path: Path, options: AreaOptions, salvage: SalvageOptions, output: OutputOptions) -> None:
    with page_progress(f"reading {path}", None, output.quiet) as advance:
        image = salvage.open(options, path, advance)
    with image:
        document = salvaged_inspect_document(image, options.offset)
    output.answer(document, salvaged_inspection_text)
    if not image.whole:
        raise typer.Exit(1)


def _asked(
    for_kernel: str | None, on_machine: str | None, place: AreaOptions, gaps: tuple[MemoryGap, ...] | None
) -> tuple[ImageRules, ResumingMachine, RulesFrom] | None:
    """Return kernel and machine of the verdict, and the origin of the rules; None if no verdict is asked for.

    Raises:
        FormatError, OSError: the machine or its kernel is not known.
    """
    if for_kernel is None and on_machine is None:
        return None
    if on_machine is None:
        machine = ResumingMachine("an unknown machine")
    else:
        machine = resuming_machine(
            on_machine, offset=place.offset, partition=place.partition, base=place.base, gaps=gaps, settle=with_gaps
        )
    if for_kernel is not None:
        return image_rules_for_release(for_kernel), machine, "line"
    if machine.release is None:
        raise FormatError(
            "the kernel that runs there is not known", source=on_machine, advice="give its release as --for-kernel"
        )
    probed = image_rules_probed(machine.kernel, machine.release)
    return probed.rules, machine, probed.rules_from
