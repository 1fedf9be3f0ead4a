# SPDX-License-Identifier: GPL-2.0-or-later
"""Every run of a machine: every failure, every order, and the shortest run that loses a page."""

from __future__ import annotations

from hibernaut.errors import HibernautError
from hibernaut.exploration.families import Family
from hibernaut.exploration.operations import Operation, hibernation
from hibernaut.exploration.plan import Sweep
from hibernaut.exploration.play import FamilyMachine, Played, SourceMachine, Written, play
from hibernaut.exploration.records import WayResult
from hibernaut.exploration.replay import replay, write_run
from hibernaut.exploration.run import Outcome, Run
from hibernaut.exploration.search import Bounds, explore_run
from hibernaut.exploration.sweep import run_sweep
from hibernaut.exploration.tally import Counterexample, Tally
from hibernaut.hibernation import ways
from hibernaut.hibernation.invariants import INVARIANTS, TRACES
from hibernaut.linux.machine import Machine
from hibernaut.linux.rules import LINES, KernelRules

__all__ = [
    "INVARIANTS",
    "TRACES",
    "Bounds",
    "Counterexample",
    "Family",
    "FamilyMachine",
    "Operation",
    "Outcome",
    "Played",
    "SourceMachine",
    "Sweep",
    "Tally",
    "Written",
    "explore",
    "play",
    "replay",
    "run_sweep",
    "write_run",
]


def explore(
    what: Machine | Family,
    way: str | ways.Way,
    rules: KernelRules | None = None,
    bounds: Bounds | None = None,
    *,
    allocations_after: int = 0,
    processes: int | None = 1,
) -> Tally:
    """Run every run of a machine, or of every machine of a family, by one way.

    Args:
        what: a machine, which is not changed; or a family.
        way: by name, or one of those with a name.
        rules: of a family's kernels, 6.1's by default; a machine has its own.
        bounds: how far to go.
        allocations_after: how many pages somebody allocates on every resumed machine.
        processes: on how many cores a family is run; None: all. With more than one, a script has to keep what it does
            under `if __name__ == "__main__":`, as `multiprocessing` wants it.

    Returns:
        What came of it: how many machines, runs, states; for each end how many runs, and the shortest.

    Raises:
        HibernautError: a way without a name; rules for a machine that has others.
    """
    name = _name_of(way)
    bounds = Bounds() if bounds is None else bounds
    if isinstance(what, Family):
        line = (LINES[0] if rules is None else rules).line
        return run_sweep(Sweep(what, (name,), line, bounds, allocations_after), processes=processes)[name]
    if rules not in (None, what.rules):
        raise HibernautError(f"the machine has the rules of {what.rules.line}, not those of {rules and rules.line}")
    found = explore_run(Run(what, hibernation(name, allocations_after)), bounds)
    tally = Tally()
    tally.add((), (), WayResult.of(found))
    return tally


def _name_of(way: str | ways.Way) -> str:
    if isinstance(way, str):
        ways.way_named(way)
        return way
    if isinstance(way, ways.Reserved):
        return f"reserved:{way.pages}"
    for name, known in ways.WAYS.items():
        if type(known) is type(way) and vars(known) == vars(way):
            return name
    raise HibernautError(f"{way.name} is not one of the ways with a name: {', '.join(ways.WAYS)}")
