# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut lab hibernate`: a guest hibernates."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from hibernaut.cli.lab.options import DryRunOption, GuestOptions, LabOptions, show_plan, workshop
from hibernaut.cli.options import OutputOptions
from hibernaut.lab.laboratory import DumpPoints, Hibernated
from hibernaut.lab.record import LOG_NAME
from hibernaut.report.text import counted
from hibernaut.volumes.output import write_file

__all__ = ["hibernate"]


def hibernate(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="New or empty folder for image, record and log.")],
    guest: GuestOptions,
    options: LabOptions,
    output: OutputOptions,
    dump_before: Annotated[
        bool,
        typer.Option("--dump-before", help="Also dump RAM right before the copy loop, to before.elf. Default: no."),
    ] = False,
    dump_after: Annotated[
        bool, typer.Option("--dump-after", help="Also dump RAM right after the copy loop, to after.elf. Default: no.")
    ] = False,
    dry_run: DryRunOption = False,
) -> None:
    """Boot a guest, fill its memory with pages that contain their own identity, and let it hibernate.

    The exit status is 1 if it does not hibernate.
    """
    variant = guest.guest()
    if dry_run:
        return show_plan(output, options.planned(variant, folder, gdb=dump_before or dump_after))
    laboratory = options.lab()
    with workshop(folder):
        dumps = DumpPoints(folder / "before.elf" if dump_before else None, folder / "after.elf" if dump_after else None)
        done = laboratory.hibernate(variant, folder, dumps)
        write_file(folder / LOG_NAME, done.log.encode())
    document = {
        "outcome": done.outcome,
        "reason": done.reason,
        "image": str(done.image),
        "seconds": round(done.seconds, 1),
        "record": dataclasses.asdict(done.record),
    }
    output.answer(document, lambda _: _text(done))
    if done.outcome != "hibernated":
        raise typer.Exit(1)
    return None


def _text(done: Hibernated) -> str:
    record = done.record
    pages = "" if record.saved_pages is None else f", {counted(record.saved_pages, 'page')}"
    return f"Linux {record.release}{pages}, {done.seconds:.0f} s: {done.summary}\n{done.image}"
