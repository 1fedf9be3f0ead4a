# SPDX-License-Identifier: GPL-2.0-or-later
"""Explorations: all runs of a machine or of a family of machines, and the shortest run to each end, played again."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hibernaut.errors import HibernautError
from hibernaut.exploration.families import Family
from hibernaut.exploration.fingerprint import fingerprint
from hibernaut.exploration.operations import hibernation, operations_of
from hibernaut.exploration.plan import Sweep
from hibernaut.exploration.play import FamilyMachine, Played, SourceMachine, Written, play
from hibernaut.exploration.records import WayResult
from hibernaut.exploration.replay import write_run
from hibernaut.exploration.run import Outcome, Run
from hibernaut.exploration.search import Bounds, explore_run
from hibernaut.exploration.sweep import Progress, run_sweep
from hibernaut.exploration.tally import Counterexample, Tally
from hibernaut.hibernation import ways
from hibernaut.linux.machine import Machine
from hibernaut.linux.rules import LINES, KernelRules

__all__ = [
    "Exploration",
    "ExploredWay",
    "PlayedEnding",
    "explore",
    "explore_source",
    "explore_sweep",
    "play_on_family",
]


@dataclass(frozen=True, eq=False)
class PlayedEnding:
    """All runs of a way that ended alike, and the shortest of them.

    Attributes:
        outcome: their outcome.
        runs: the number of runs.
        machines: the number of machines that have such a run.
        shortest: the run with the fewest deviations, on the smallest machine.
        played: that run, played again.
    """

    outcome: Outcome
    runs: int
    machines: int
    shortest: Counterexample
    played: Played


@dataclass(frozen=True, eq=False)
class ExploredWay:
    """All runs by one way.

    Attributes:
        name: the name of the way.
        tally: the sums.
        endings: the endings, shortest runs first.
    """

    name: str
    tally: Tally
    endings: tuple[PlayedEnding, ...]

    @property
    def safe(self) -> bool:
        """Whether no run loses or breaks more than leaves a trace."""
        return not any(ending.outcome.loses for ending in self.endings)


@dataclass(frozen=True, eq=False)
class Exploration:
    """All runs of a machine or of a family, by some ways.

    Attributes:
        scope: the machines, bounds and rules in one line.
        ways: the results, way by way.
    """

    scope: str
    ways: tuple[ExploredWay, ...]

    @property
    def covered(self) -> bool:
        """Whether no search was cut: every run of the scope was executed."""
        return not any(way.tally.cut for way in self.ways)

    @property
    def safe(self) -> bool:
        """Whether every way is safe."""
        return all(way.safe for way in self.ways)

    def save(self, folder: Path) -> Mapping[PlayedEnding, Path]:
        """Save the shortest run to each end that breaks an invariant, and return the files.

        Args:
            folder: an existing folder. A file's name says the way, the outcome and the first broken invariant.
        """
        files: dict[PlayedEnding, Path] = {}
        taken: set[str] = set()
        for way in self.ways:
            for ending in way.endings:
                if ending.outcome.violated:
                    files[ending] = folder / f"{_file_name(way.name, ending.outcome, taken)}.json"
                    write_run(files[ending], ending.played)
        return files


def _file_name(way: str, outcome: Outcome, taken: set[str]) -> str:
    """Return a name that is not taken, and take it."""
    warned = " after a warning" if outcome.warned else ""
    stem = re.sub(r"[^a-z0-9]+", "-", f"{way} {outcome.status}{warned} {outcome.violated[0]}")
    name, number = stem, 1
    while name in taken:
        number += 1
        name = f"{stem}-{number}"
    taken.add(name)
    return name


def explore(
    what: Machine | Family,
    way: str | ways.Way,
    rules: KernelRules | None = None,
    bounds: Bounds | None = None,
    *,
    allocations_after: int = 0,
    processes: int | None = 1,
) -> Tally:
    """Execute all runs of a machine, or of every machine of a family, by one way.

    Args:
        what: a machine, which is not changed; or a family.
        way: the way or its name.
        rules: rules for a family's kernels, by default those of 6.1; a machine has its own.
        bounds: limits of the search.
        allocations_after: the number of pages allocated on every resumed machine.
        processes: the number of cores for a family; None for all. With more than one, a script has to keep its own work
            under `if __name__ == "__main__":`, as `multiprocessing` requires.

    Returns:
        The number of machines, runs and states; for each outcome the number of runs, and the shortest.

    Raises:
        HibernautError: the way has no name, or the machine has other rules.
    """
    name = _name_of(way)
    bounds = Bounds() if bounds is None else bounds
    if isinstance(what, Family):
        line = (LINES[0] if rules is None else rules).line
        return run_sweep(Sweep(what, (name,), line, bounds, allocations_after), processes=processes)[name]
    if rules not in (None, what.rules):
        raise HibernautError(f"the machine has the rules of {what.rules.line}, not those of {rules and rules.line}")
    tally = Tally()
    operations = hibernation(name, allocations_after, owners=what.owners_need_rights)
    tally.add((), (), WayResult.of(explore_run(Run(what, operations), bounds)))
    return tally


def _name_of(way: str | ways.Way) -> str:
    if isinstance(way, str):
        ways.way_named(way)
        return way
    if isinstance(way, ways.Reserved):
        return f"reserved:{way.nr_pages}"
    if type(way) is ways.Mermap and way.nr_pages > 1:
        return f"mermap:{way.nr_pages}"
    for name, known in ways.WAYS.items():
        if type(known) is type(way) and vars(known) == vars(way):
            return name
    raise HibernautError(f"{way.name} is not one of the ways with a name: {', '.join(ways.WAYS)}")


def explore_sweep(
    sweep: Sweep,
    results: Path | None = None,
    *,
    scheduler: str | None = None,
    processes: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Exploration:
    """Run a sweep, or resume one, and play the shortest run to each end again.

    Args:
        sweep: the sweep.
        results: see `run_sweep`, like the following.
        scheduler: address of a Dask scheduler.
        processes: number of cores.
        progress: called after every machine.

    Raises:
        HibernautError: as `run_sweep`; or a run ends otherwise when it is played again.
    """
    tallies = run_sweep(sweep, results, scheduler=scheduler, processes=processes, progress=progress)

    def again(way: str, found: Counterexample) -> Played:
        return play_on_family(sweep, way, found.layout_choices, found.choices)

    return Exploration(sweep.scope, tuple(_explored(way, tally, again) for way, tally in tallies.items()))


def explore_source(
    machine: Machine,
    name: str,
    names: Sequence[str],
    bounds: Bounds | None = None,
    *,
    allocations_after: int = 0,
    progress: Callable[[Progress], None] | None = None,
) -> Exploration:
    """Explore the machine of a dump or an image, and play the shortest run to each end again.

    Args:
        machine: the machine; it is not changed.
        name: name of the source, for the scope and for saved runs.
        names: names of ways.
        bounds: limits of each search.
        allocations_after: the number of pages allocated on every resumed machine.
        progress: called before every way, and at the end.

    Raises:
        HibernautError: an unknown way, or a run ends otherwise when it is played again.
    """
    for way in names:
        ways.way_named(way)
    bounds = Bounds() if bounds is None else bounds
    where = SourceMachine(name, fingerprint(machine))
    tallies: dict[str, Tally] = {}

    def tell() -> None:
        if progress is not None:
            progress(Progress.of(len(tallies), len(names), tallies))

    def again(way: str, found: Counterexample) -> Played:
        operations = hibernation(way, allocations_after, owners=machine.owners_need_rights)
        return play(Written(where, machine.rules.line, operations, found.choices), machine)

    for way in names:
        tell()
        tallies[way] = explore(machine, way, bounds=bounds, allocations_after=allocations_after)
    tell()
    scope = f"the machine of {name}; {bounds}; rules of {machine.rules.line}"
    return Exploration(scope, tuple(_explored(way, tally, again) for way, tally in tallies.items()))


def play_on_family(sweep: Sweep, way: str, layout_choices: tuple[int, ...], choices: tuple[int, ...]) -> Played:
    """Play one run of a sweep.

    Args:
        sweep: the sweep.
        way: name of the way, which need not be one of the sweep's.
        layout_choices: the choices that make the machine.
        choices: the choices of the run.

    Raises:
        HibernautError: the choices do not fit.
    """
    machine = FamilyMachine(sweep.family, layout_choices)
    operations = operations_of(machine.chosen()[0], way, sweep.allocations_after)
    return play(Written(machine, sweep.rules, operations, choices))


def _explored(name: str, tally: Tally, again: Callable[[str, Counterexample], Played]) -> ExploredWay:
    """Return a way's results with its shortest runs; raise HibernautError if one of them ends otherwise."""
    endings = []
    for outcome, (runs, machines, shortest) in sorted(tally.endings.items(), key=lambda one: one[1][2].rank):
        played = again(name, shortest)
        if played.outcome != outcome:
            raise HibernautError(f"{name}: a run that ended as {outcome!s} ends as {played.outcome!s} when replayed")
        endings.append(PlayedEnding(outcome, runs, machines, shortest, played))
    return ExploredWay(name, tally, tuple(endings))
