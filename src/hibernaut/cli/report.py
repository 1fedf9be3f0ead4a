# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut report SOURCE [OTHER]`: a page that shows a machine's memory, in any browser, without any network."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from hibernaut.cli.failure import BAD_NEWS
from hibernaut.cli.options import MemoryOptions, OutputOptions, SourceArgument, refuse_same_file
from hibernaut.cli.progress import page_progress
from hibernaut.cli.salvage_options import SalvageOptions
from hibernaut.hibernation.copy_timeline import copy_timeline, match_trace
from hibernaut.hibernation.examination import Examination, difference_between, examine
from hibernaut.hibernation.trace import read_trace
from hibernaut.report.copy_timeline import TimelineReport, timeline_document
from hibernaut.report.documents import ReportDocument
from hibernaut.report.page import need_report_extra, report_page
from hibernaut.report.report_text import report_text
from hibernaut.report.source_report import difference_document, source_report
from hibernaut.sources import Source
from hibernaut.volumes.output import write_file

__all__ = ["report"]


def report(
    source: SourceArgument,
    options: MemoryOptions,
    salvage: SalvageOptions,
    output: OutputOptions,
    other: Annotated[
        Path | None,
        typer.Argument(
            metavar="OTHER",
            help="Second dump or image, compared with SOURCE frame by frame. Default: none.",
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="File for the page. Default: report.html.")
    ] = Path("report.html"),
    trace: Annotated[
        Path | None,
        typer.Option(
            "--trace",
            metavar="TRACE",
            help="Copy loop of SOURCE's kernel, as lab trace recorded it: adds its timeline. SOURCE is the dump from"
            " right before the loop, or the image. Default: none.",
        ),
    ] = None,
    redact: Annotated[
        bool,
        typer.Option("--redact", help="Leave out what names a person or the machine, for bug reports. Default: no."),
    ] = False,
) -> None:
    """Write a page on the machine in a dump or an image: verdict, map of its memory, page tables, compression.

    The page is one private file that any browser opens from the disk; it asks no network. With OTHER: what differs,
    by frame and by owner. With --trace: the copy as a real kernel made it, call by call.

    Of a damaged or used-up image the page has what is left of it, and where it is lost. --consumed and --salvage are
    for OTHER as well, if it is such an image; --map-block is for SOURCE alone.

    The exit status is 1 if a page table is lost or would be, or if SOURCE is an image that is damaged or not whole.
    """
    need_report_extra()
    refuse_same_file(out, source, other, trace, option="--output")
    recorded = None if trace is None else copy_timeline(read_trace(trace), str(trace))
    with ExitStack() as stack:
        found = _examined(stack, options, salvage.open_memory(options, source, output.quiet), output.quiet)
        first = source_report(found, redacted=redact, name="SOURCE")
        second = difference = memory = timeline = None
        if recorded is not None:
            unknown = match_trace(recorded.trace, str(trace), found)
            name = "TRACE" if redact else str(trace)
            timeline = TimelineReport(recorded, timeline_document(recorded, name, unknown))
        if other is not None:
            theirs = _examined(stack, options, salvage.open_other(options, other, output.quiet), output.quiet)
            second = source_report(theirs, redacted=redact, name="OTHER")
            advance = stack.enter_context(page_progress("comparing", None, output.quiet))
            between = difference_between(found, theirs, advance)
            difference, memory = difference_document(between, found, theirs), between.memory
        page = report_page(first, second, difference, memory, timeline, redacted=redact).encode()
    write_file(out, page)
    document: ReportDocument = {
        "report": "REPORT" if redact else str(out),
        "report_bytes": len(page),
        "redacted": redact,
        "source": first.document,
        "other": None if second is None else second.document,
        "difference": difference,
        "trace": None if timeline is None else timeline.document,
    }
    output.answer(document, report_text)
    if first.document["verdict"]["state"] == "bad":
        raise typer.Exit(BAD_NEWS)
    salvage.exit_unless_whole(found.source)


def _examined(stack: ExitStack, options: MemoryOptions, opened: Source, quiet: bool) -> Examination:
    stack.enter_context(opened)
    with page_progress(f"reading {opened.name}", None, quiet) as advance:
        return examine(opened, cr3=options.cr3, levels=options.levels, progress=advance)
