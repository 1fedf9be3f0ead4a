# SPDX-License-Identifier: GPL-2.0-or-later
"""The sums of a sweep: how many runs ended in each way, and the shortest run to each end."""

from __future__ import annotations

from dataclasses import dataclass, field

from hibernaut.exploration.records import WayResult
from hibernaut.exploration.run import Outcome
from hibernaut.notebook import html_table

__all__ = ["Counterexample", "Tally"]


@dataclass(frozen=True)
class Counterexample:
    """The shortest run with some outcome.

    Attributes:
        layout_choices: the choices that make the machine.
        choices: the choices of the run.
        regions: the machine's regions, in words.
        deviations: how many choices of both are not the ones without interference.
    """

    layout_choices: tuple[int, ...]
    choices: tuple[int, ...]
    regions: tuple[str, ...]
    deviations: int

    @property
    def rank(self) -> tuple[int, int, tuple[int, ...], tuple[int, ...]]:
        """Its place in the order of runs: fewest deviations first, then the smallest machine."""
        return self.deviations, len(self.regions), self.layout_choices, self.choices


@dataclass
class Tally:
    """The sums of one way over the machines of a sweep so far.

    Attributes:
        machines, runs, states, steps: the totals.
        cut: on how many machines the search was cut.
        where: where it was cut first.
        endings: (runs, machines, the shortest run) by outcome.
    """

    machines: int = 0
    runs: int = 0
    states: int = 0
    steps: int = 0
    cut: int = 0
    where: str | None = None
    endings: dict[Outcome, tuple[int, int, Counterexample]] = field(default_factory=dict)

    def _repr_html_(self) -> str:
        lose = sum(runs for outcome, (runs, _, _) in self.endings.items() if outcome.loses)
        traces = any(outcome.violated for outcome in self.endings)
        safe = "none loses anything, but some leave traces" if traces else "none loses or breaks anything"
        verb = "loses or breaks" if lose == 1 else "lose or break"
        verdict = f"{lose} of {self.runs} runs {verb} something" if lose else f"of {self.runs} runs {safe}"
        scope = f"machines cut: {self.cut}, the first {self.where}" if self.cut else "every run was executed"
        caption = f"{verdict}; {scope} (machines: {self.machines}, states: {self.states})"
        found = sorted(self.endings.items(), key=lambda item: (item[1][2].rank, item[0]))
        rows = (
            (outcome, _loss(outcome), runs, machines, shortest.deviations, "; ".join(shortest.regions))
            for outcome, (runs, machines, shortest) in found
        )
        head = (
            "outcome",
            "loses or breaks something",
            "runs",
            "machines",
            "choices of the shortest run that deviate",
            "its regions out of the direct map",
        )
        return html_table(caption, head, rows)

    def add(self, layout_choices: tuple[int, ...], regions: tuple[str, ...], way: WayResult) -> None:
        """Add the result of one machine."""
        self.machines += 1
        self.runs += way.runs
        self.states += way.states
        self.steps += way.steps
        self.cut += way.cut is not None
        self.where = self.where or way.cut
        for one in way.endings:
            deviations = one.deviations + sum(map(bool, layout_choices))
            found = Counterexample(layout_choices, one.choices, regions, deviations)
            runs, machines, best = self.endings.get(one.outcome, (0, 0, found))
            shortest = min(best, found, key=lambda each: each.rank)
            self.endings[one.outcome] = runs + one.runs, machines + 1, shortest


def _loss(outcome: Outcome) -> str:
    """Return whether a run with an outcome loses or breaks something, in a word."""
    if outcome.loses:
        return "yes"
    return "leaves traces" if outcome.violated else "no"
