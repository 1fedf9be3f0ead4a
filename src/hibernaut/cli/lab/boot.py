# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut lab boot`: commands in a guest."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hibernaut.cli.common import JsonOption, QuietOption, console, print_json
from hibernaut.cli.lab.options import DryRunOption, GuestOptions, LabOptions, workshop

__all__ = ["boot"]

DEFAULT_COMMANDS = ("uname -a", "grep ^DirectMap /proc/meminfo")


def boot(
    *,
    run: Annotated[
        list[str] | None,
        typer.Option(
            "--run",
            metavar="COMMAND",
            help=f"Command for the guest's shell; repeatable. Default: {'; '.join(DEFAULT_COMMANDS)}.",
        ),
    ] = None,
    guest: GuestOptions,
    options: LabOptions,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Boot a guest, run commands in its shell, print their output, and end it.

    The exit status is 1 if a command fails.
    """
    variant = guest.guest()
    if dry_run:
        return options.dry_run(variant, Path("DIR"))
    laboratory = options.lab()
    answers: list[dict[str, Any]] = []
    with workshop(None) as folder, laboratory.boot(variant, folder, []) as running:
        for command in run or DEFAULT_COMMANDS:
            reply = running.port.ask(command)
            answers.append({"command": command, "status": reply.status, "lines": list(reply.lines)})
    if json:
        print_json({"kernel": laboratory.kernel.release, "answers": answers})
    elif not quiet:
        console().print("\n".join(line for answer in answers for line in answer["lines"]))
    if any(answer["status"] for answer in answers):
        raise typer.Exit(1)
    return None
