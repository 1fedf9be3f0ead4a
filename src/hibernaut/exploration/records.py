# SPDX-License-Identifier: GPL-2.0-or-later
"""The record of one machine of a sweep: how its runs ended, by each way; one line of JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from hibernaut.exploration.run import Outcome
from hibernaut.exploration.search import Explored

__all__ = ["Ending", "MachineRecord", "WayResult"]


@dataclass(frozen=True)
class Ending:
    """The runs of one machine by one way that ended alike.

    Attributes:
        outcome: their outcome.
        runs: the number of runs.
        deviations: the fewest choices, in one of them, that are not the one without interference.
        choices: that run's choices, as indices.
    """

    outcome: Outcome
    runs: int
    deviations: int
    choices: tuple[int, ...]

    def as_json(self) -> dict[str, Any]:
        """Return its fields, the outcome's among them."""
        return {
            "outcome": self.outcome.status,
            "violated": self.outcome.violated,
            "warned": self.outcome.warned,
            "death": self.outcome.crash,
            "runs": self.runs,
            "deviations": self.deviations,
            "choices": self.choices,
        }

    @classmethod
    def from_json(cls, found: Any) -> Ending:
        """Return the ending of `as_json`. Raises KeyError, TypeError."""
        outcome = Outcome(found["outcome"], tuple(found["violated"]), found["warned"], found["death"])
        return cls(outcome, found["runs"], found["deviations"], tuple(found["choices"]))


@dataclass(frozen=True)
class WayResult:
    """All runs of one machine by one way.

    Attributes:
        runs, states, steps, cut: see `Explored`.
        endings: all endings, those nearest to a run without interference first.
    """

    runs: int
    states: int
    steps: int
    cut: str | None
    endings: tuple[Ending, ...]

    @classmethod
    def of(cls, found: Explored) -> WayResult:
        """Return the result of a search."""
        endings = tuple(
            Ending(outcome, best.runs, best.deviations, _trimmed(best.choices()))
            for outcome, best in sorted(found.futures.items(), key=lambda item: (item[1].deviations, item[0]))
        )
        return cls(found.runs, found.states, found.steps, found.cut, endings)

    def as_json(self) -> dict[str, Any]:
        """Return its fields."""
        return {
            "runs": self.runs,
            "states": self.states,
            "steps": self.steps,
            "cut": self.cut,
            "endings": [ending.as_json() for ending in self.endings],
        }

    @classmethod
    def from_json(cls, found: Any) -> WayResult:
        """Return the result of `as_json`. Raises KeyError, TypeError."""
        endings = tuple(map(Ending.from_json, found["endings"]))
        return cls(found["runs"], found["states"], found["steps"], found["cut"], endings)


def _trimmed(choices: tuple[int, ...]) -> tuple[int, ...]:
    """Return the choices up to the last that is not the one without interference."""
    end = max((at + 1 for at, index in enumerate(choices) if index), default=0)
    return choices[:end]


@dataclass(frozen=True)
class MachineRecord:
    """All runs of one machine, by every way of a sweep.

    Attributes:
        layout_choices: the choices that make the machine, as indices; "unit" in files.
        regions: its regions, in words.
        places: its layout choices with more than one option, in words.
        ways: the results by the names of the ways.
    """

    layout_choices: tuple[int, ...]
    regions: tuple[str, ...]
    places: tuple[str, ...]
    ways: dict[str, WayResult]

    def line(self) -> str:
        """Return the record as one line of JSON."""
        return json.dumps(
            {
                "unit": self.layout_choices,
                "regions": self.regions,
                "places": self.places,
                "ways": {name: way.as_json() for name, way in self.ways.items()},
            },
            separators=(",", ":"),
        )

    @classmethod
    def from_line(cls, line: str) -> MachineRecord:
        """Return the record in such a line. Raises ValueError, KeyError, TypeError, AttributeError."""
        found = json.loads(line)
        ways = {name: WayResult.from_json(way) for name, way in found["ways"].items()}
        return cls(tuple(found["unit"]), tuple(found["regions"]), tuple(found["places"]), ways)
