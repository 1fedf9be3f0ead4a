# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut explore`: every run of a family of machines, or of the machine in a dump, by every way that is asked."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from hibernaut.cli.common import JsonOption, QuietOption, RulesOption, console, print_json
from hibernaut.cli.source_machine import MachineOptions, machine_in
from hibernaut.exploration import Exploration, PlayedEnding, Sweep, explore_source, explore_sweep
from hibernaut.exploration.scopes import BOUND_WORDS, FAMILY_WORDS, bounds_of_words, family_of_words
from hibernaut.exploration.sweep import Progress
from hibernaut.hibernation.ways import MUTANTS, WAYS
from hibernaut.linux.rules import LINES
from hibernaut.report.explore import explored_text

__all__ = ["ProcessesOption", "SchedulerOption", "explore_", "sweep_progress"]

DEFAULT_WAYS = ",".join(name for name in WAYS if name not in MUTANTS)

LayoutOption = Annotated[
    list[str] | None,
    typer.Option(
        "--layout",
        metavar="KEY=VALUES",
        help="What the simulated machines vary in; repeatable: "
        + "; ".join(f"{key}={values}" for key, values in FAMILY_WORDS.items())
        + ".",
    ),
]
BoundOption = Annotated[
    list[str] | None,
    typer.Option(
        "--bound",
        metavar="KEY=N",
        help="How far to go; repeatable: " + "; ".join(f"{key} ({what})" for key, what in BOUND_WORDS.items()) + ".",
    ),
]


SchedulerOption = Annotated[
    str | None,
    typer.Option("--scheduler", metavar="ADDRESS", help="A Dask scheduler (tcp://...) whose workers run it."),
]
ProcessesOption = Annotated[int | None, typer.Option("--processes", min=1, help="How many cores; default: all.")]


def explore_(
    options: MachineOptions,
    source: Annotated[
        Path | None,
        typer.Argument(help="A dump or an image: its machine is explored. Without it: simulated machines (--layout)."),
    ] = None,
    layout: LayoutOption = None,
    via: Annotated[
        str, typer.Option("--via", metavar="WAY,...", help=f"The ways: {', '.join(WAYS)}, reserved:N.")
    ] = DEFAULT_WAYS,
    rules: RulesOption = None,
    bound: BoundOption = None,
    then_allocate: Annotated[
        int, typer.Option("--then-allocate", min=0, max=4096, help="Pages allocated on every resumed machine.")
    ] = 0,
    save: Annotated[
        Path | None, typer.Option("--save", metavar="DIR", help="The shortest run to each bad end, a file each.")
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option("--results", metavar="FILE", help="All results as JSON Lines; one that exists is gone on with."),
    ] = None,
    scheduler: SchedulerOption = None,
    processes: ProcessesOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run every run there can be: every failing allocation, every stale translation, every layout of a family.

    For each way the ends that its runs come to, how many runs, and the shortest to each bad one: the fewest choices
    away from all going well, on the smallest machine. The exit status is 1 if any run loses or breaks something.
    """
    ways = tuple(via.split(","))
    bounds = bounds_of_words(bound or ())
    if save is not None:  # before work whose result could not be written
        save.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        if source is not None:
            if layout or scheduler or results or processes:
                raise typer.BadParameter("--layout, --results, --scheduler and --processes are for simulated machines")
            machine, rules_from = machine_in(stack, source, options, rules, quiet)
            told = stack.enter_context(sweep_progress(quiet))
            found = explore_source(machine, source.name, ways, bounds, allocations_after=then_allocate, progress=told)
        else:
            rules_from = "line"
            sweep = Sweep(family_of_words(layout or ()), ways, (rules or LINES[0]).line, bounds, then_allocate)
            told = stack.enter_context(sweep_progress(quiet))
            found = explore_sweep(sweep, results, scheduler=scheduler, processes=processes, progress=told)
        files = {} if save is None else found.save(save)
        document = {**_document(found, files), "rules_from": rules_from}
    if json:
        print_json(document)
    elif not quiet:
        console().print(explored_text(document))
    if not found.safe:
        raise typer.Exit(1)


SHOWN_FINDINGS = 5


def _document(found: Exploration, files: Mapping[PlayedEnding, Path]) -> dict[str, Any]:
    return {
        "scope": found.scope,
        "covered": found.covered,
        "ways": [
            {
                "way": way.name,
                "safe": way.safe,
                "machines": way.tally.machines,
                "runs": way.tally.runs,
                "states": way.tally.states,
                "steps": way.tally.steps,
                "cut_machines": way.tally.cut,
                "cut": way.tally.where,
                "endings": [_ending(ending, files.get(ending)) for ending in way.endings],
            }
            for way in found.ways
        ],
    }


def _ending(ending: PlayedEnding, file: Path | None) -> dict[str, Any]:
    outcome, played = ending.outcome, ending.played
    return {
        "verdict": str(outcome),
        "outcome": outcome.status,
        "violated": list(outcome.violated),
        "warned": outcome.warned,
        "loses": outcome.loses,
        "runs": ending.runs,
        "machines": ending.machines,
        "choices_away": ending.shortest.deviations,
        "schedule": list(played.lines),
        "injected": list(played.injected),
        "findings": [str(violation) for violation in played.run.violations[:SHOWN_FINDINGS]],
        "file": None if file is None else str(file),
    }


@contextmanager
def sweep_progress(quiet: bool) -> Iterator[Callable[..., None]]:
    """A bar on standard error, if that is a terminal: machines, runs, states, states a second, what is left.

    Gives the function that moves it: it takes a `Progress` and, if there are several sweeps, the name of one.
    """
    stderr = Console(stderr=True)
    if quiet or not stderr.is_terminal:
        yield lambda *_: None
        return
    started, before = time.monotonic(), 0
    columns = (TextColumn("machines"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Bar(*columns, TimeRemainingColumn(), console=stderr, transient=True) as bar:
        task = bar.add_task("", total=None)

        def told(progress: Progress, name: str = "") -> None:
            nonlocal started, before
            if not progress.machines or progress.states < before:  # another sweep, or one that is gone on with
                started, before = time.monotonic(), progress.states
            rate = (progress.states - before) / max(1e-9, time.monotonic() - started)
            line = f"{name} {progress.runs} runs, {progress.states} states, {rate:.0f} states/s"
            bar.update(task, completed=progress.machines, total=progress.total, description=line)

        yield told
