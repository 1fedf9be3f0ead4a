# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut lab trace`: the copy loop of a guest's kernel, recorded call by call."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from hibernaut.cli.lab.options import DryRunOption, GuestOptions, LabOptions, show_plan, workshop
from hibernaut.cli.options import OutputOptions
from hibernaut.hibernation.trace import write_trace
from hibernaut.lab.record import LOG_NAME
from hibernaut.lab.trace import TRACE_NAME, record_trace
from hibernaut.report.documents import TraceDocument
from hibernaut.report.explore import traced_text
from hibernaut.volumes.output import write_file

__all__ = ["trace"]


def trace(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="New or empty folder for trace, dump, image, record and log.")
    ],
    guest: GuestOptions,
    options: LabOptions,
    output: OutputOptions,
    dry_run: DryRunOption = False,
) -> None:
    """Let a guest hibernate and record the calls of its kernel's copy loop, to compare them with the model's.

    DIR/trace.json has the calls, and all that `hibernaut replay --against` needs; DIR/before.elf is the RAM right
    before the loop. `hibernaut report DIR/before.elf --trace DIR/trace.json` draws the timeline. A trace of a kernel
    that crashes ends with the crash.
    """
    variant = guest.guest()
    if dry_run:
        return show_plan(output, options.planned(variant, folder, gdb=True))
    laboratory = options.lab()
    with workshop(folder):
        recorded = record_trace(laboratory, variant, folder)
        write_trace(folder / TRACE_NAME, recorded.trace)
        write_file(folder / LOG_NAME, recorded.log.encode())
    document: TraceDocument = {
        "trace": str(folder / TRACE_NAME),
        "release": recorded.trace.release,
        "rules": recorded.trace.rules,
        "outcome": recorded.trace.outcome,
        "reason": recorded.reason,
        "calls": recorded.trace.counts,
        "allocations": [None if pfn is None else hex(pfn) for pfn in recorded.trace.allocations],
        "record": dataclasses.asdict(recorded.record),  # type: ignore[typeddict-item]  # its fields are the document's
    }
    output.answer(document, traced_text)
    return None
