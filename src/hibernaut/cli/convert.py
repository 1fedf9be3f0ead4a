# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut convert SOURCE OUT --to FORMAT`: memory from any source into a file that other tools open."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hibernaut.cli.manifest import ManifestOption
from hibernaut.cli.options import MemoryOptions, OutputOptions, SourceArgument, refuse_same_file
from hibernaut.cli.progress import page_progress
from hibernaut.cli.salvage_options import SalvageOptions
from hibernaut.cli.terminal import say
from hibernaut.kernel.core_file import convert
from hibernaut.memory.kdump_writer import KdumpCompressor
from hibernaut.report.images import convert_document, converted_text
from hibernaut.report.manifest import area_document
from hibernaut.report.salvage import salvage_document, salvage_lines

__all__ = ["convert_"]


class Format(StrEnum):
    """Formats that can be written."""

    RAW = "raw"
    ELF = "elf"
    LIME = "lime"
    KDUMP = "kdump"


class PageCompressor(StrEnum):
    """Compressors of the pages of a kdump-compressed dump."""

    ZLIB = "zlib"
    LZO = "lzo"
    ZSTD = "zstd"
    NONE = "none"


def convert_(
    source: SourceArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="File to make; it appears whole or not at all.")],
    to: Annotated[
        Format,
        typer.Option(
            "--to",
            help="raw (frame n at byte 4096 n), elf (for crash and drgn), lime, or kdump (makedumpfile's, compressed). "
            "Required.",
        ),
    ],
    options: MemoryOptions,
    salvage: SalvageOptions,
    manifest: ManifestOption,
    output: OutputOptions,
    compressor: Annotated[
        PageCompressor | None,
        typer.Option("--compressor", help="Compressor of the pages, for --to kdump. Default: zlib."),
    ] = None,
) -> None:
    """Convert a dump or an image: all its page frames, each at its place in the machine's memory."""
    refuse_same_file(out, source)
    if options.index is not None and out.absolute() == options.index.absolute():
        raise typer.BadParameter("OUT and --index name the same file; expected two", param_hint="--index")
    if compressor is not None and to is not Format.KDUMP:
        raise typer.BadParameter(f"--to {to.value} has no compressed pages", param_hint="--compressor")
    packed: KdumpCompressor = compressor.value if compressor else "zlib"
    with (
        manifest.begun(source, out, output.quiet) as made,
        salvage.open_memory(options, source, output.quiet) as plain,
    ):
        opened, tables = options.with_tables(plain, [to.value], output.quiet)
        vaddr_base = tables.base if tables is not None and to is Format.ELF else None
        root = None if tables is None else tables.root
        with page_progress(f"writing {out}", opened.memory.ranges.total_pages, output.quiet) as advance:
            converted = convert(
                opened, out, to.value, vaddr_base=vaddr_base, root=root, compressor=packed, progress=advance
            )
        document = convert_document(opened, converted, vaddr_base)
        if opened.salvaged is not None:
            document["salvage"] = salvage_document(opened.salvaged)
        if made is not None:
            document["manifest"] = made.write(out, area_document(opened, compared=True))
    if converted.vmcoreinfo is False:
        say(
            "VMCOREINFO of the kernel is not in this memory: crash and drgn will not take the file for a kernel's",
            output.quiet,
        )
    output.answer(document, lambda done: "\n".join([converted_text(str(out), done), *salvage_lines(done)]))
    salvage.exit_unless_whole(opened)
