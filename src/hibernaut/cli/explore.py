# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut explore`: every run of a family of machines, or of the machine in a dump, by every way that is asked."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from hibernaut.cli.common import JsonOption, QuietOption, RulesOption, console, print_json
from hibernaut.cli.source_machine import MachineOptions, machine_in
from hibernaut.errors import HibernautError
from hibernaut.exploration import explore
from hibernaut.exploration.fingerprint import fingerprint
from hibernaut.exploration.operations import hibernation, operations_of
from hibernaut.exploration.plan import Sweep
from hibernaut.exploration.play import FamilyMachine, Played, SourceMachine, Written, play
from hibernaut.exploration.replay import write_run
from hibernaut.exploration.run import Outcome
from hibernaut.exploration.scopes import BOUND_WORDS, FAMILY_WORDS, bounds_of_words, family_of_words
from hibernaut.exploration.search import Bounds
from hibernaut.exploration.sweep import Progress, run_sweep
from hibernaut.exploration.tally import Counterexample, Tally
from hibernaut.hibernation.ways import MUTANTS, WAYS, way_named
from hibernaut.linux import Machine
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
    if source is not None:
        if layout or scheduler or results or processes:
            raise typer.BadParameter("--layout, --results, --scheduler and --processes are for simulated machines")
        with ExitStack() as stack:
            machine, rules_from = machine_in(stack, source, options, rules, quiet)
            document = _explore_source(machine, source, ways, bounds, then_allocate, save, quiet)
            document["rules_from"] = rules_from
    else:
        sweep = Sweep(family_of_words(layout or ()), ways, (rules or LINES[0]).line, bounds, then_allocate)
        with sweep_progress(quiet) as told:
            tallies = run_sweep(sweep, results, scheduler=scheduler, processes=processes, progress=told)
        document = _document(sweep.scope, tallies, lambda way, found: _play(sweep, way, found), save)
        document["rules_from"] = "line"
    if json:
        print_json(document)
    elif not quiet:
        console().print(explored_text(document))
    if not all(way["safe"] for way in document["ways"]):
        raise typer.Exit(1)


def _play(sweep: Sweep, way: str, found: Counterexample) -> Played:
    machine = FamilyMachine(sweep.family, found.layout_choices)
    operations = operations_of(machine.chosen()[0], way, sweep.allocations_after)
    return play(Written(machine, sweep.rules, operations, found.choices))


def _explore_source(
    machine: Machine, source: Path, ways: tuple[str, ...], bounds: Bounds, after: int, save: Path | None, quiet: bool
) -> dict[str, Any]:
    """One machine by each way; its runs are few enough to be run one after the other."""
    for way in ways:
        way_named(way)
    tallies: dict[str, Tally] = {}
    where = SourceMachine(source.name, fingerprint(machine))

    def played(way: str, found: Counterexample) -> Played:
        return play(Written(where, machine.rules.line, hibernation(way, after), found.choices), machine)

    with sweep_progress(quiet) as told:
        for way in ways:
            told(Progress(len(tallies), len(ways), *_sums(tallies)))
            tallies[way] = explore(machine, way, bounds=bounds, allocations_after=after)
        told(Progress(len(ways), len(ways), *_sums(tallies)))
    scope = f"the machine of {source.name}; {bounds}; rules of {machine.rules.line}"
    return _document(scope, tallies, played, save)


def _sums(tallies: dict[str, Tally]) -> tuple[int, int]:
    return sum(one.runs for one in tallies.values()), sum(one.states for one in tallies.values())


def _document(
    scope: str, tallies: dict[str, Tally], played: Callable[[str, Counterexample], Played], save: Path | None
) -> dict[str, Any]:
    ways = []
    taken: set[str] = set()
    for name, tally in tallies.items():
        endings = []
        for outcome, (runs, machines, shortest) in sorted(tally.endings.items(), key=lambda one: one[1][2].rank):
            one = played(name, shortest)
            if one.outcome != outcome:
                raise HibernautError(f"{name}: a run that ended as {outcome!s} ends as {one.outcome!s} when replayed")
            path = None
            if save is not None and outcome.violated:
                path = _file_of(save, name, outcome, taken)
                write_run(path, one)
            endings.append(
                {
                    "verdict": str(outcome),
                    "outcome": outcome.status,
                    "violated": list(outcome.violated),
                    "warned": outcome.warned,
                    "loses": outcome.loses,
                    "runs": runs,
                    "machines": machines,
                    "choices_away": shortest.deviations,
                    "schedule": list(one.lines),
                    "injected": list(one.injected),
                    "findings": [str(violation) for violation in one.run.violations[:SHOWN_FINDINGS]],
                    "file": None if path is None else str(path),
                }
            )
        ways.append(
            {
                "way": name,
                "safe": not any(outcome.loses for outcome in tally.endings),
                "machines": tally.machines,
                "runs": tally.runs,
                "states": tally.states,
                "steps": tally.steps,
                "cut_machines": tally.cut,
                "cut": tally.where,
                "endings": endings,
            }
        )
    return {"scope": scope, "covered": not any(way["cut_machines"] for way in ways), "ways": ways}


SHOWN_FINDINGS = 5


def _file_of(folder: Path, way: str, outcome: Outcome, taken: set[str]) -> Path:
    """A file's name that says what the run in it comes to; `taken` are those given to other runs."""
    warned = " after a warning" if outcome.warned else ""
    stem = re.sub(r"[^a-z0-9]+", "-", f"{way} {outcome.status}{warned} {outcome.violated[0]}")
    name, number = stem, 1
    while name in taken:
        number += 1
        name = f"{stem}-{number}"
    taken.add(name)
    return folder / f"{name}.json"


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
