# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut replay FILE`: a saved run once more, byte for byte."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from hibernaut.cli.options import MachineOptions, OutputOptions
from hibernaut.exploration.play import SourceMachine
from hibernaut.exploration.replay import replay
from hibernaut.linux import Machine
from hibernaut.linux.rules import rules_named
from hibernaut.report.explore import played_text, replay_document

__all__ = ["replay_"]


def replay_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Run that explore or answers saved.")],
    options: MachineOptions,
    output: OutputOptions,
    source: Annotated[
        Path | None,
        typer.Option(
            "--source",
            metavar="SOURCE",
            help="Dump or image on whose machine the run begins. Default: none, for a run of a simulated machine.",
        ),
    ] = None,
) -> None:
    """Play a saved run again, print its log, and tell whether it ends as it was saved, byte for byte.

    The exit status is 0 if it does, 1 if it differs.
    """
    with ExitStack() as stack:

        def machine_of(wanted: SourceMachine, rules: str) -> Machine:
            if source is None:
                raise typer.BadParameter(
                    f"the run begins on the machine of {wanted.name}; give it", param_hint="--source"
                )
            return options.machine(stack, source, rules_named(rules), output.quiet).machine

        found = replay(file, machine_of)
        document = replay_document(found)
    output.answer(document, lambda _: played_text(document, map(str, found.played.run.violations)))
    if not found.same:
        raise typer.Exit(1)
