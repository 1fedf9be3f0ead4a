# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut files SOURCE`: the files that a kernel has in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hibernaut.cli.machine_options import MachineInside, SwapOptions
from hibernaut.cli.options import MemoryOptions, OutputOptions, SourceArgument, refuse_same_file
from hibernaut.cli.salvage_options import SalvageOptions
from hibernaut.errors import HibernautError
from hibernaut.kernel.cached_files import cached_files, find_file, read_file
from hibernaut.memory.page import PAGE_SIZE
from hibernaut.report.documents import ExtractDocument
from hibernaut.report.processes import extract_document, extract_text, files_document, files_text
from hibernaut.volumes.output import replacing, write_all

__all__ = ["files"]


def files(
    source: SourceArgument,
    options: MemoryOptions,
    salvage: SalvageOptions,
    swap: SwapOptions,
    output: OutputOptions,
    extract: Annotated[
        str | None, typer.Option("--extract", metavar="PATH", help="Put this file together. Default: list all files.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="OUT",
            help="File to write. Default: the name of the file extracted, unless it exists.",
        ),
    ] = None,
) -> None:
    """List the files in the page cache and in tmpfs, or put one together, its swapped-out pages included.

    A file of tmpfs is whole in memory and swap; of other files, pages that were never read are on their disk only.
    The exit status is 1 if pages of an extracted file are missing. It needs drgn and a kernel with BTF.
    """
    if out is not None and extract is None:
        raise typer.BadParameter("--output names the file that --extract writes; give both")
    made = Path(Path(extract or "").name) if out is None else out
    refuse_same_file(made, source, *swap.paths, option="--output")
    if extract is not None and out is None and made.exists():
        raise HibernautError(f"{made} exists", advice="give a name with --output")
    with swap.open(options, salvage, source, output.quiet) as inside:
        if extract is None:
            output.answer(files_document(cached_files(inside.kernel)), files_text)
            return
        document = _extracted(inside, extract, made)
    output.answer(document, extract_text)
    if document["missing_pages"]:
        raise typer.Exit(1)


def _extracted(inside: MachineInside, path: str, out: Path) -> ExtractDocument:
    file = find_file(inside.kernel, path)
    missing: list[tuple[int, str]] = []
    with replacing(out) as fd:
        for first, content, reasons in read_file(file, inside.swapped):
            write_all(fd, memoryview(content), first * PAGE_SIZE)
            missing += [(first + page, reason) for page, reason in enumerate(reasons) if reason is not None]
    return extract_document(file, str(out), missing)
