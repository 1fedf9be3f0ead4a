# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut lab confirm`: the model's prediction of a run, tried on a real kernel."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from hibernaut.cli.lab.options import DryRunOption, KeepOption, LabOptions, show_plan, workshop
from hibernaut.cli.options import OutputOptions
from hibernaut.errors import HibernautError, LabUnavailable
from hibernaut.exploration.replay import replay
from hibernaut.lab.confirm import confirm
from hibernaut.lab.prediction import cannot_arrange, predict
from hibernaut.report.explore import confirmed_text

__all__ = ["confirm_"]


def confirm_(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Run of a simulated machine, saved by explore or answers.")
    ],
    options: LabOptions,
    output: OutputOptions,
    keep: KeepOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Arrange a guest like the machine of a saved run, let its kernel hibernate, and compare with the model.

    The regions, the positions of their tables and of the allocator's own pages, and failing allocations are arranged
    as far as a guest allows; a run that cannot be arranged is refused with the reason.

    The exit status is 0 if the kernel agrees with the model, 1 if not.
    """
    played, difference = replay(file)
    if difference is not None:
        raise HibernautError(f"{file} differs from what the model computes now: {difference}")
    prediction = predict(played)
    why = cannot_arrange(prediction)
    if why is not None:
        raise LabUnavailable(f"this run cannot be arranged in a guest: {why}")
    if dry_run:
        return show_plan(output, options.planned(prediction.variant, keep or Path("DIR")))
    laboratory = options.lab()
    with workshop(keep) as folder:
        found = confirm(laboratory, prediction, folder)
    predicted = dataclasses.asdict(prediction)
    predicted["dies_of"] = predicted.pop("resumed_crash")
    output.answer({"file": str(file), **predicted, **dataclasses.asdict(found)}, confirmed_text)
    if not found.agrees:
        raise typer.Exit(1)
    return None
