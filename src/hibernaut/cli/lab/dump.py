# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut lab dump`: the RAM of a guest that is ready to hibernate."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from hibernaut.cli.lab.options import DryRunOption, GuestOptions, LabOptions, show_plan, workshop
from hibernaut.cli.options import OutputOptions
from hibernaut.lab.guest_state import RunningGuest

__all__ = ["dump"]


def dump(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="ELF core to make.")],
    guest: GuestOptions,
    options: LabOptions,
    output: OutputOptions,
    dry_run: DryRunOption = False,
) -> None:
    """Dump the RAM of a guest that is ready to hibernate, with memory filled and regions out of the direct map."""
    variant = guest.guest()
    if dry_run:
        return show_plan(output, options.planned(variant, out.parent))
    if out.exists():
        raise typer.BadParameter(f"{out} already exists; give another name", param_hint="OUT")
    laboratory = options.lab()
    out.parent.mkdir(parents=True, exist_ok=True)

    def take(running: RunningGuest) -> None:
        running.qemu.execute("stop")
        running.qemu.dump(out)

    with workshop(None) as folder:
        record = laboratory.ready(variant, folder, take)
    output.answer(
        {"dump": str(out), "record": dataclasses.asdict(record)},
        lambda done: f"{done['dump']}: RAM of Linux {record.release}, {variant.what}",
    )
    return None
