# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut replay FILE`: a saved run once more, byte for byte."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from hibernaut.cli.common import JsonOption, QuietOption, console, print_json
from hibernaut.cli.source_machine import MachineOptions, machine_in
from hibernaut.exploration.play import SourceMachine
from hibernaut.exploration.replay import replay, run_document
from hibernaut.linux import Machine
from hibernaut.linux.rules import rules_named
from hibernaut.report.explore import played_text

__all__ = ["replay_"]


def replay_(
    options: MachineOptions,
    file: Annotated[Path, typer.Argument(help="A run that explore saved.")],
    source: Annotated[
        Path | None, typer.Option("--source", help="The dump or image on whose machine the run begins.")
    ] = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Play a saved run again, print it like a log, and say whether it ends as it did: byte for byte.

    The exit status is 0 if it does, 1 if anything came out otherwise.
    """
    with ExitStack() as stack:

        def machine_of(wanted: SourceMachine, rules: str) -> Machine:
            if source is None:
                raise typer.BadParameter(f"the run begins on the machine of {wanted.name}", param_hint="--source")
            return machine_in(stack, source, options, rules_named(rules), quiet)[0]

        found = replay(file, machine_of)
        document = {**run_document(found.played), "same": found.same, "difference": found.difference}
    if json:
        print_json(document)
    elif not quiet:
        shown = found.played.run.violations[: len(document["findings"])]
        console().print(played_text({**document, "findings": list(map(str, shown))}))
    if not found.same:
        raise typer.Exit(1)
