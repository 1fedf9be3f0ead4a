# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut replay FILE`: a saved run once more, byte for byte; or a kernel's copy loop in the model, call by call."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from hibernaut.cli.options import MachineOptions, OutputOptions, among
from hibernaut.cli.salvage_options import SalvageOptions
from hibernaut.exploration.play import SourceMachine
from hibernaut.exploration.replay import replay
from hibernaut.hibernation.trace import check_trace, read_trace
from hibernaut.hibernation.ways import WAYS, way_named
from hibernaut.linux import Machine
from hibernaut.linux.rules import rules_named
from hibernaut.report.explore import checked_document, checked_text, played_text, replay_document

__all__ = ["replay_"]


def replay_(
    options: MachineOptions,
    salvage: SalvageOptions,
    output: OutputOptions,
    file: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="Run that explore or answers saved. Default: none, with --against."),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--source",
            metavar="SOURCE",
            help="Dump or image on whose machine the run begins. Default: none, for a run of a simulated machine.",
        ),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            "--against",
            metavar="TRACE",
            help="Copy loop that lab trace recorded, to be run by the model, in place of FILE. Default: none.",
        ),
    ] = None,
    via: Annotated[
        str,
        typer.Option(
            "--via",
            metavar="WAY",
            help="Way of the model, for --against. Default: remap.",
            autocompletion=among(WAYS),
        ),
    ] = "remap",
) -> None:
    """Play a saved run again, print its log, and tell whether it ends as it was saved, byte for byte.

    With --against, the model runs the copy loop that a real kernel ran, from the same tables and list of pages and with
    the same allocations, and must make the same calls; the first difference is shown.

    The exit status is 0 if all is the same, 1 if it differs.
    """
    if (file is None) == (against is None):
        raise typer.BadParameter("give either a saved run or --against TRACE", param_hint="FILE")
    if salvage.wanted and source is None:
        raise typer.BadParameter("--consumed, --salvage and --map-block are for an image that --source names")
    same = (
        _against(against, via, output)
        if against is not None
        else _again(file or Path(), source, options, salvage, output)
    )
    if not same:
        raise typer.Exit(1)


def _again(
    file: Path, source: Path | None, options: MachineOptions, salvage: SalvageOptions, output: OutputOptions
) -> bool:
    """Replay a saved run, and return whether it is the same."""
    with ExitStack() as stack:

        def machine_of(wanted: SourceMachine, rules: str) -> Machine:
            if source is None:
                raise typer.BadParameter(
                    f"the run begins on the machine of {wanted.name}; give it", param_hint="--source"
                )
            opened = stack.enter_context(salvage.open_memory(options, source, output.quiet))
            return options.machine(stack, source, rules_named(rules), output.quiet, opened).machine

        found = replay(file, machine_of)
        document = replay_document(found)
    output.answer(document, lambda _: played_text(document, map(str, found.played.run.violations)))
    return found.same


def _against(path: Path, via: str, output: OutputOptions) -> bool:
    """Compare a trace with the model, and return whether the calls are the same."""
    trace = read_trace(path)
    found = check_trace(trace, way_named(via))
    output.answer(checked_document(path, trace, via, found), checked_text)
    return found.difference is None
