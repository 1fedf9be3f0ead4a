# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut lab hibernate`: a guest hibernates."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from hibernaut.cli.lab.options import DryRunOption, GuestOptions, LabOptions, show_plan, workshop
from hibernaut.cli.options import OutputOptions, among
from hibernaut.lab.host.cache import Cache
from hibernaut.lab.laboratory import DumpPoints, Hibernated
from hibernaut.lab.other_machines import (
    OTHER_MACHINES,
    OtherHibernated,
    OtherMachine,
    command_line,
    hibernate_other,
)
from hibernaut.lab.record import LOG_NAME
from hibernaut.report.documents import OtherMachineDocument
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
    arch: Annotated[
        str | None,
        typer.Option(
            "--arch",
            metavar="ARCH",
            help=f"Guest of another architecture, with Debian's kernel: {', '.join(OTHER_MACHINES)}. Only "
            "--cache, --mirror and --dry-run apply to it. Default: x86-64.",
            autocompletion=among(OTHER_MACHINES),
        ),
    ] = None,
    dry_run: DryRunOption = False,
) -> None:
    """Boot a guest, fill its memory with pages that contain their own identity, and let it hibernate.

    The exit status is 1 if it does not hibernate.
    """
    if arch is not None:
        return _hibernate_other(_other_machine(arch), folder, options, output, dry_run)
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


def _other_machine(name: str) -> OtherMachine:
    if name not in OTHER_MACHINES:
        raise typer.BadParameter(f"unknown machine {name!r}; expected {', '.join(OTHER_MACHINES)}", param_hint="--arch")
    return OTHER_MACHINES[name]


def _hibernate_other(
    machine: OtherMachine, folder: Path, options: LabOptions, output: OutputOptions, dry_run: bool
) -> None:
    """Let a guest of another architecture hibernate. Exits with 1 if it does not."""
    if dry_run:
        firmware = machine.firmware[1] if machine.firmware else None
        words = command_line(machine, f"vmlinuz-{machine.name}", firmware, folder, str)
        return show_plan(output, {"kernel": machine.name, "command": words})
    with workshop(folder):
        done = hibernate_other(machine, folder, Cache(options.cache), options.mirror)
    document: OtherMachineDocument = {
        "machine": done.machine,
        "outcome": "hibernated" if done.hibernated else "failed",
        "reason": done.reason,
        "image": str(done.image),
        "seconds": round(done.seconds, 1),
        "release": done.release,
        "build": done.build,
        "page_bytes": done.page_bytes,
        "frames": [f"{pfn:#x}" for pfn in done.frames],
    }
    output.answer(document, lambda _: _other_text(done))
    if not done.hibernated:
        raise typer.Exit(1)
    return None


def _other_text(done: OtherHibernated) -> str:
    outcome = "hibernated" if done.hibernated else f"failed: {done.reason}"
    return f"Linux {done.release}, {done.build}, {done.seconds:.0f} s: {outcome}\n{done.image}"


def _text(done: Hibernated) -> str:
    record = done.record
    pages = "" if record.saved_pages is None else f", {counted(record.saved_pages, 'page')}"
    return f"Linux {record.release}{pages}, {done.seconds:.0f} s: {done.summary}\n{done.image}"
