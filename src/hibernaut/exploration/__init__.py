# SPDX-License-Identifier: GPL-2.0-or-later
"""Every run of a machine: every failure, every order, and the shortest run that loses a page."""

from __future__ import annotations

from hibernaut.exploration.explorations import (
    Exploration,
    ExploredWay,
    PlayedEnding,
    explore,
    explore_source,
    explore_sweep,
)
from hibernaut.exploration.families import Family
from hibernaut.exploration.operations import Operation
from hibernaut.exploration.plan import Sweep
from hibernaut.exploration.play import FamilyMachine, Played, SourceMachine, Written, play
from hibernaut.exploration.replay import Replayed, replay, write_run
from hibernaut.exploration.run import Outcome
from hibernaut.exploration.search import Bounds
from hibernaut.exploration.sweep import run_sweep
from hibernaut.exploration.tally import Counterexample, Tally
from hibernaut.hibernation.invariants import INVARIANTS, TRACES

__all__ = [
    "INVARIANTS",
    "TRACES",
    "Bounds",
    "Counterexample",
    "Exploration",
    "ExploredWay",
    "Family",
    "FamilyMachine",
    "Operation",
    "Outcome",
    "Played",
    "PlayedEnding",
    "Replayed",
    "SourceMachine",
    "Sweep",
    "Tally",
    "Written",
    "explore",
    "explore_source",
    "explore_sweep",
    "play",
    "replay",
    "run_sweep",
    "write_run",
]
