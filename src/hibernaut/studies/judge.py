# SPDX-License-Identifier: GPL-2.0-or-later
"""The judge: each claim against every trial of its studies, with the shortest run that shows it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hibernaut.exploration.explorations import play_on_family
from hibernaut.exploration.play import Played
from hibernaut.exploration.records import MachineRecord
from hibernaut.exploration.results import read_records
from hibernaut.exploration.tally import Counterexample, Tally
from hibernaut.linux.environment import Replay
from hibernaut.studies.claims import Claim
from hibernaut.studies.questions import Study
from hibernaut.studies.trials import Trial

__all__ = ["Judge", "Judged", "Shown", "Studied"]


@dataclass(frozen=True)
class Shown:
    """The run that comes with a claim.

    Attributes:
        study: the study of its machine.
        found: the ending that it was found by.
        played: the run.
    """

    study: Study
    found: Counterexample
    played: Played


@dataclass(frozen=True)
class Judged:
    """A claim that was judged.

    Attributes:
        claim: the claim.
        machines: the number of trials that it was asked of.
        runs: the number of their runs.
        against: the number of trials that contradict it.
        first_against: the first of them, in words.
        shown: the run that comes with the claim; None if there is no such run.
    """

    claim: Claim
    machines: int
    runs: int
    against: int
    first_against: str | None
    shown: Shown | None


@dataclass(frozen=True)
class Studied:
    """A study that was run.

    Attributes:
        study: the study.
        tallies: the sums by way.
        path: the file of its records.
    """

    study: Study
    tallies: Mapping[str, Tally]
    path: Path

    def trials(self) -> Iterator[Trial]:
        """Yield every machine by every way."""
        for _, record in read_records(self.path):
            yield from _trials(self.study, record)


class Judge:
    """The judge of claims: they are asked of each machine of their studies once, while the studies run.

    Args:
        claims: the claims.
    """

    def __init__(self, claims: Sequence[Claim]) -> None:
        self._counts = [_Count(claim) for claim in claims]

    def ask(self, study: Study, record: MachineRecord) -> None:
        """Ask every claim about a study of one of its machines, by every way."""
        asked = [count for count in self._counts if study.name in count.claim.studies]
        for trial in _trials(study, record) if asked else ():
            for count in asked:
                if trial.name in count.claim.ways:
                    count.ask(study, trial)

    def judged(self, studied: Sequence[Studied]) -> tuple[Judged, ...]:
        """Return the judgements, in the order of the claims, each with the run that shows it."""
        return tuple(
            Judged(one.claim, one.machines, one.runs, one.against, one.first, _shown(one.claim, studied))
            for one in self._counts
        )


def _trials(study: Study, record: MachineRecord) -> Iterator[Trial]:
    machine = study.sweep.family.choose(Replay(record.layout_choices))
    for name, way in record.ways.items():
        yield Trial(machine, name, way)


@dataclass
class _Count:
    """The findings on a claim so far; see `Judged`."""

    claim: Claim
    machines: int = 0
    runs: int = 0
    against: int = 0
    first: str | None = None

    def ask(self, study: Study, trial: Trial) -> None:
        """Ask the claim of a trial."""
        self.machines += 1
        self.runs += trial.way.runs
        if not self.claim.holds(trial):
            self.against += 1
            regions = ", ".join(map(str, trial.machine.regions)) or "no regions"
            self.first = self.first or f"{study.name}: {trial.name}: {regions}"


def _shown(claim: Claim, studied: Sequence[Studied]) -> Shown | None:
    """Return the shortest run that shows a claim, from the first study that has one."""
    way, which = claim.shows
    for one in studied:
        tally = one.tallies.get(way)
        if one.study.name not in claim.studies or tally is None:
            continue
        found = [best for outcome, (_, _, best) in tally.endings.items() if which(outcome)]
        if found:
            shortest = min(found, key=lambda each: each.rank)
            choices = shortest.choices if claim.plays is None else ()
            played = play_on_family(one.study.sweep, claim.plays or way, shortest.layout_choices, choices)
            return Shown(one.study, shortest, played)
    return None
