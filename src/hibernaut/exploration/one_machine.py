# SPDX-License-Identifier: GPL-2.0-or-later
"""The work on one machine of a sweep, which a pool or a cluster hands to its workers."""

from __future__ import annotations

from collections.abc import Sequence

from hibernaut.exploration.operations import operations_of
from hibernaut.exploration.plan import Sweep
from hibernaut.exploration.records import MachineRecord, WayResult
from hibernaut.exploration.run import Run
from hibernaut.exploration.search import explore_run
from hibernaut.linux.build import build_machine
from hibernaut.linux.environment import Environment, Replay
from hibernaut.linux.page_counts import direct_pages_count
from hibernaut.linux.rules import rules_named
from hibernaut.memory.memo import Memo

__all__ = ["explore_layout"]


_MEMO = Memo()
"""The memo that the machines of one worker share. It keeps results of pure functions by all of their inputs: none
depends on which machines a worker has had before."""


def explore_layout(sweep: Sweep, layout_choices: Sequence[int], memo: Memo | None = None) -> MachineRecord:
    """Execute all runs of one machine of a sweep, by every way.

    Args:
        sweep: the sweep.
        layout_choices: the choices that make the machine.
        memo: the memo that it shares with other machines; by default all machines of this process share one.
    """
    asked = Replay(layout_choices)
    chosen = sweep.family.choose(asked)
    machine = build_machine(chosen.layout, Environment(), rules_named(sweep.rules), _MEMO if memo is None else memo)
    direct_pages_count(machine)  # once, and not before the first split of each way
    ways = {}
    for name in sweep.ways:
        operations = operations_of(chosen, name, sweep.allocations_after)
        ways[name] = WayResult.of(explore_run(Run(machine, operations), sweep.bounds))
    places = tuple(str(choice) for choice in asked.schedule if choice.options > 1)
    return MachineRecord(tuple(layout_choices), tuple(map(str, chosen.regions)), places, ways)
