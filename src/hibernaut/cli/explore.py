# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut explore`: every run of a family of machines, or of the machine in a dump, by every way that is given."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hibernaut.cli.options import MachineOptions, OutputOptions, RulesOption, refuse_same_file, report_option
from hibernaut.cli.picture_options import RunPictureOptions
from hibernaut.cli.progress import sweep_progress
from hibernaut.cli.salvage_options import SalvageOptions
from hibernaut.cli.sweep_options import ScopeOptions, SweepOptions
from hibernaut.exploration import Sweep, explore_source, explore_sweep
from hibernaut.kernel_line import RulesFrom
from hibernaut.linux.rules import LINES
from hibernaut.report.explore import explore_document, explored_text
from hibernaut.report.page import need_report_extra
from hibernaut.volumes.output import make_folder, write_file

if TYPE_CHECKING:
    from hibernaut.exploration import Exploration
    from hibernaut.linux.machine import Machine
    from hibernaut.report.frame_picture import StyledLine

__all__ = ["explore_"]


def explore_(
    options: MachineOptions,
    salvage: SalvageOptions,
    scope: ScopeOptions,
    sweep: SweepOptions,
    output: OutputOptions,
    drawn: RunPictureOptions,
    source: Annotated[
        Path | None,
        typer.Argument(
            metavar="SOURCE", help="Dump or image whose machine is explored. Default: simulated machines (--layout)."
        ),
    ] = None,
    rules: RulesOption = None,
    save: Annotated[
        Path | None,
        typer.Option(
            "--save",
            metavar="DIR",
            help="Folder for the shortest run to each bad outcome, a file each. Default: they are not saved.",
        ),
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(
            "--results",
            metavar="FILE",
            help="File for all results, as JSON Lines; it is resumed if it exists. Default: results are not kept.",
        ),
    ] = None,
    report: Annotated[Path | None, report_option("each shortest run as a strip of pictures")] = None,
) -> None:
    """Run every possible run: every failing allocation, every stale translation, every layout of a family.

    For each way: the outcomes, the number of runs, and the shortest run to each bad outcome, which has the fewest
    deviations from all going well, on the smallest machine.

    The exit status is 1 if any run loses or breaks something.
    """
    drawn.check(output)
    if report is not None:
        need_report_extra()
        refuse_same_file(report, source, results, option="--report")
    bounds = scope.bounds()
    explored = None
    if save is not None:  # before work whose result could not be written
        make_folder(save)
    rules_from: RulesFrom = "line"
    with ExitStack() as stack:
        if source is not None:
            if scope.layout or sweep.scheduler or results or sweep.processes:
                raise typer.BadParameter(
                    "--layout, --results, --scheduler and --processes are for simulated machines", param_hint="SOURCE"
                )
            opened = stack.enter_context(salvage.open_memory(options, source, output.quiet))
            inside = options.machine(stack, source, rules, output.quiet, opened)
            rules_from, explored = inside.rules.rules_from, inside.machine
            told = stack.enter_context(sweep_progress(output.quiet))
            found = explore_source(
                inside.machine,
                source.name,
                scope.ways,
                bounds,
                allocations_after=scope.then_allocate,
                progress=told,
            )
        else:
            if salvage.wanted:
                raise typer.BadParameter("--consumed, --salvage and --map-block are for a SOURCE")
            line = (rules or LINES[0]).line
            machines = Sweep(scope.family(), scope.ways, line, bounds, scope.then_allocate)
            told = stack.enter_context(sweep_progress(output.quiet))
            found = explore_sweep(
                machines, results, scheduler=sweep.scheduler, processes=sweep.processes, progress=told
            )
        files = {} if save is None else found.save(save)
        document = explore_document(found, files, rules_from)
        if report is not None:
            from hibernaut.report.exploration_page import exploration_report

            write_file(report, exploration_report(found, explored).encode())
        drawn.draw(lambda width, plain: _pictures(found, explored, width, plain), output)
    output.answer(document, explored_text)
    if not found.safe:
        raise typer.Exit(1)


def _pictures(found: Exploration, machine: Machine | None, width: int, plain: bool) -> list[StyledLine]:
    """Return the lines of the pictures of an exploration; see `exploration_pictures`."""
    from hibernaut.report.run_picture import exploration_pictures

    return exploration_pictures(found, machine, width, plain=plain)
