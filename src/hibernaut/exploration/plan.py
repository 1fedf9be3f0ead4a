# SPDX-License-Identifier: GPL-2.0-or-later
"""The plan of a sweep: which machines run, by which ways, under which rules and bounds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from hibernaut.errors import HibernautError
from hibernaut.exploration.families import Family
from hibernaut.exploration.scopes import family_json
from hibernaut.exploration.search import Bounds, Chooser
from hibernaut.hibernation.ways import way_named
from hibernaut.linux.rules import rules_named

__all__ = ["Sweep", "layouts"]


@dataclass(frozen=True)
class Sweep:
    """Every machine of a family, by some ways.

    Attributes:
        family: the machines.
        ways: names of ways.
        rules: name of the kernel line that is modelled.
        bounds: limits of each search.
        allocations_after: the number of pages allocated on every resumed machine.

    Raises:
        HibernautError: a way or line is unknown, or a way is named twice.
    """

    family: Family
    ways: tuple[str, ...]
    rules: str = "6.1"
    bounds: Bounds = field(default_factory=Bounds)
    allocations_after: int = 0

    def __post_init__(self) -> None:
        rules_named(self.rules)
        for way in self.ways:
            way_named(way)
        if not self.ways or len(set(self.ways)) != len(self.ways):
            raise HibernautError(f"a sweep needs one or more ways, each once: {self.ways}")

    def as_json(self) -> dict[str, Any]:
        """Return everything that decides the results."""
        return {
            "family": family_json(self.family),
            "ways": list(self.ways),
            "rules": self.rules,
            "bounds": asdict(self.bounds),
            "allocations_after": self.allocations_after,
        }

    @property
    def scope(self) -> str:
        """The machines, bounds and rules in one line."""
        after = f"; {self.allocations_after} allocations after the resume" if self.allocations_after else ""
        return f"{self.family.scope}; {self.bounds}; rules of {self.rules}{after}"


def layouts(family: Family) -> Iterator[tuple[int, ...]]:
    """Yield the layout choices of every machine of a family, each once, fewer and simpler regions first."""
    branches: list[tuple[int, ...]] = [()]
    while branches:
        chooser = Chooser(branches.pop(), Bounds(frames=0))
        family.choose(chooser)
        choices = tuple(chooser.indices)
        yield choices
        more = [(*choices[:at], other) for at in range(chooser.told, len(choices)) for other in chooser.others[at]]
        branches += more[::-1]
