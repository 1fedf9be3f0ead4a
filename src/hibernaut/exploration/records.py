# SPDX-License-Identifier: GPL-2.0-or-later
"""The record of one machine of a sweep: how its runs ended, by each way; one line of JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from hibernaut.exploration.run import Outcome
from hibernaut.exploration.search import Explored

__all__ = ["Ending", "MachineRecord", "WayResult"]

STATUSES = ("saved", "refused", "died")
MOST_RUNS = 1 << 62
"""The most runs, states and steps that a record may name."""

T = TypeVar("T")


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
        """Return the ending of `as_json`. Raises ValueError, with the field."""
        status = _field(found, "outcome", _text)
        if status not in STATUSES:
            raise ValueError(f"outcome is none of {', '.join(STATUSES)}")
        violated = _field(found, "violated", _list(_text))
        outcome = Outcome(status, violated, _field(found, "warned", _flag), _field(found, "death", _text))
        runs, deviations = _field(found, "runs", _count), _field(found, "deviations", _count)
        return cls(outcome, runs, deviations, _field(found, "choices", _list(_count)))


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
        """Return the result of `as_json`. Raises ValueError, with the field."""
        runs, states, steps = (_field(found, name, _count) for name in ("runs", "states", "steps"))
        cut = _field(found, "cut", lambda value: None if value is None else _text(value))
        return cls(runs, states, steps, cut, _field(found, "endings", _list(Ending.from_json)))


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
        """Return the record in such a line. Raises ValueError, with the field."""
        try:
            found = json.loads(line)
        except RecursionError:
            raise ValueError("it is nested too deeply") from None
        return cls(
            _field(found, "unit", _list(_count)),
            _field(found, "regions", _list(_text)),
            _field(found, "places", _list(_text)),
            _field(found, "ways", _ways),
        )


def _field(found: Any, name: str, read: Callable[[Any], T]) -> T:
    """Return a field of an object, as `read` gives it. Raises ValueError, with the field's name."""
    if not isinstance(found, dict):
        raise ValueError("is not an object")
    if name not in found:
        raise ValueError(f"{name} is missing")
    try:
        return read(found[name])
    except ValueError as error:
        raise ValueError(f"{name} {error}") from None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("is not a string")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("is not Unicode text") from None
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("is neither true nor false")
    return value


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= MOST_RUNS:
        raise ValueError(f"is not a number from 0 to {MOST_RUNS}")
    return value


def _list(read: Callable[[Any], T]) -> Callable[[Any], tuple[T, ...]]:
    """Return the reader of a list whose elements `read` reads."""

    def elements(values: Any) -> tuple[T, ...]:
        if not isinstance(values, list):
            raise ValueError("is not a list")
        try:
            return tuple(map(read, values))
        except ValueError as error:
            raise ValueError(f"has an element that {error}") from None

    return elements


def _ways(found: Any) -> dict[str, WayResult]:
    if not isinstance(found, dict):
        raise ValueError("is not an object")
    return {_text(name): _field(found, name, WayResult.from_json) for name in found}
