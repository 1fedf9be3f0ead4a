# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut lab dump`: the RAM of a guest that is ready to hibernate."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from hibernaut.cli.common import JsonOption, QuietOption, console, print_json
from hibernaut.cli.lab.options import DryRunOption, GuestOptions, LabOptions, workshop
from hibernaut.lab.guest_state import RunningGuest

__all__ = ["dump"]


def dump(
    *,
    out: Annotated[Path, typer.Argument(help="ELF core to make.")],
    guest: GuestOptions,
    options: LabOptions,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Dump the RAM of a guest that is ready to hibernate, with memory filled and regions out of the direct map."""
    variant = guest.guest()
    if dry_run:
        return options.dry_run(variant, out.parent)
    if out.exists():
        raise typer.BadParameter(f"{out} already exists", param_hint="OUT")
    laboratory = options.lab()
    out.parent.mkdir(parents=True, exist_ok=True)

    def take(running: RunningGuest) -> None:
        running.qemu.execute("stop")
        running.qemu.dump(out)

    with workshop(None) as folder:
        record = laboratory.ready(variant, folder, take)
    if json:
        print_json({"dump": str(out), "record": dataclasses.asdict(record)})
    elif not quiet:
        console().print(f"{out}: RAM of Linux {record.release}, {variant.what}")
    return None
