# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut lab boot`: commands in a guest."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hibernaut.cli.lab.options import DryRunOption, GuestOptions, LabOptions, show_plan, workshop
from hibernaut.cli.options import OutputOptions
from hibernaut.report.documents import BootDocument, ReplyDocument

__all__ = ["boot"]

DEFAULT_COMMANDS = ("uname -a", "grep ^DirectMap /proc/meminfo")


def boot(
    guest: GuestOptions,
    options: LabOptions,
    output: OutputOptions,
    run: Annotated[
        list[str] | None,
        typer.Option(
            "--run",
            metavar="COMMAND",
            help=f"Command for the guest's shell; repeatable. Default: {'; '.join(DEFAULT_COMMANDS)}.",
        ),
    ] = None,
    dry_run: DryRunOption = False,
) -> None:
    """Boot a guest, run commands in its shell, print their output, and end it.

    The exit status is 1 if a command fails.
    """
    variant = guest.guest()
    if dry_run:
        return show_plan(output, options.planned(variant, Path("DIR")))
    laboratory = options.lab()
    answers: list[ReplyDocument] = []
    with workshop(None) as folder, laboratory.boot(variant, folder, []) as running:
        for command in run or DEFAULT_COMMANDS:
            reply = running.port.ask(command)
            answers.append({"command": command, "status": reply.status, "lines": list(reply.lines)})
    document: BootDocument = {"kernel": laboratory.kernel.release, "answers": answers}
    output.answer(document, lambda done: "\n".join(line for answer in done["answers"] for line in answer["lines"]))
    if any(answer["status"] for answer in answers):
        raise typer.Exit(1)
    return None
