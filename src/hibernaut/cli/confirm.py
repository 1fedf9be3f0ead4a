# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut lab confirm FILE`: what the model says of a run, tried on a real kernel."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from hibernaut.cli.common import JsonOption, QuietOption, console, print_json
from hibernaut.cli.lab.commands import DryRunOption, Place, workshop
from hibernaut.errors import HibernautError, LabUnavailable
from hibernaut.exploration.replay import replay
from hibernaut.lab.confirm import cannot_arrange, confirm, foretold
from hibernaut.report.explore import confirmed_text

__all__ = ["confirm_"]


def confirm_(
    *,
    file: Annotated[Path, typer.Argument(help="A run of a simulated machine, saved by explore or answers.")],
    place: Place,
    keep: Annotated[
        Path | None, typer.Option("--keep", metavar="DIR", help="Keep disks, record and logs there.")
    ] = None,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Arrange a saved run's situation in a guest, let its kernel hibernate, and say whether the kernel agrees.

    The regions, where their tables and the allocator's own pages lie, and failing allocations are arranged, as far as
    a guest can be made so; what cannot be is refused with the reason. The exit status is 0 if the kernel agrees, 1 if
    not.
    """
    played, difference = replay(file)
    if difference is not None:
        raise HibernautError(f"{file} is not what the model says today: {difference}")
    prediction = foretold(played)
    why = cannot_arrange(prediction)
    if why is not None:
        raise LabUnavailable(f"this run cannot be arranged in a guest: {why}")
    if dry_run:
        return place.dry_run(prediction.variant, keep or Path())
    laboratory = place.lab()
    with workshop(keep) as folder:
        found = confirm(laboratory, prediction, folder)
    document = {"file": str(file), **dataclasses.asdict(prediction), **dataclasses.asdict(found)}
    if json:
        print_json(document)
    elif not quiet:
        console().print(confirmed_text(document))
    if not found.agrees:
        raise typer.Exit(1)
    return None
