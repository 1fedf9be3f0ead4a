# SPDX-License-Identifier: GPL-2.0-or-later
"""Sweeps: every machine of a family by every way, on all cores or on a cluster, streamed to a file, to be resumed.

A unit is one machine; what comes of it, by every way, is one `Record`, one line of JSON in the file. A file whose sweep
was interrupted is gone on with: units that it has are not run again, a last line that is not whole is dropped.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import IO, Any

from hibernaut.errors import FormatError, HibernautError
from hibernaut.exploration.families import Family
from hibernaut.exploration.operations import operations_of
from hibernaut.exploration.run import Run, Verdict
from hibernaut.exploration.search import Bounds, Chooser, Explored, explore_run
from hibernaut.hibernation.ways import way_named
from hibernaut.linux.build import build_machine
from hibernaut.linux.environment import Environment, Place, Region, Replay
from hibernaut.linux.rules import rules_named

__all__ = [
    "Counterexample",
    "Progress",
    "Record",
    "Sweep",
    "Tally",
    "Way",
    "endings_of",
    "layouts",
    "read_records",
    "run_sweep",
    "run_unit",
]

FORMAT, VERSION = "hibernaut sweep", 1
AHEAD = 4
"""So many units a worker are handed out at a time: enough to keep it busy, few enough to stop soon."""


@dataclass(frozen=True)
class Sweep:
    """What is to be run.

    Attributes:
        family: the machines.
        ways: names of ways.
        rules: name of the kernel line whose rules hold.
        bounds: how far each search goes.
        allocations_after: pages that somebody allocates on every resumed machine.

    Raises:
        HibernautError: a way or line that is not known.
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
        """Everything that decides what comes of it."""
        return {
            "family": family_json(self.family),
            "ways": list(self.ways),
            "rules": self.rules,
            "bounds": asdict(self.bounds),
            "allocations_after": self.allocations_after,
        }

    @property
    def scope(self) -> str:
        """In words and numbers."""
        after = f"; {self.allocations_after} allocations after the resume" if self.allocations_after else ""
        return f"{self.family.scope}; {self.bounds}; rules of {self.rules}{after}"


def family_json(family: Family) -> dict[str, Any]:
    """A family's fields, in words."""
    found: dict[str, Any] = {}
    for name, value in vars(family).items():
        words = (
            [one.word if isinstance(one, Region | Place) else one for one in value] if name != "free_pages" else value
        )
        found[name] = words
    return found


def family_from_json(found: Any) -> Family:
    """The family of `family_json`. Raises FormatError."""
    try:
        fields: dict[str, Any] = {}
        for name, value in found.items():
            fields[name] = _field(name, value)
        return Family(**fields)
    except (AttributeError, TypeError, ValueError, HibernautError) as error:
        raise FormatError(f"not a family of machines: {error}") from None


def _field(name: str, value: Any) -> Any:
    if name == "free_pages":
        return _typed(int, value)
    if name == "kinds":
        words = {kind.word: kind for kind in Region}
        return tuple(words[_known(word, words)] for word in value)
    if name in ("regions", "cpus"):
        return tuple(_typed(int, one) for one in value)
    if name == "remembered":
        return tuple(_typed(bool, one) for one in value)
    places = {place.word: place for place in Place}
    return tuple(places[_known(word, places)] for word in value)


def _typed(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise ValueError(f"{value!r} is no {kind.__name__}")
    return value


def _known(word: Any, words: Iterable[str]) -> str:
    if word not in list(words):
        raise ValueError(f"{word!r} is none of {', '.join(words)}")
    return str(word)


@dataclass(frozen=True)
class Ending:
    """Runs of one machine by one way that ended alike.

    Attributes:
        verdict: how.
        runs: how many.
        deviations: the fewest choices other than the one without interference, in such a run.
        choices: that run's, as indices.
    """

    verdict: Verdict
    runs: int
    deviations: int
    choices: tuple[int, ...]


@dataclass(frozen=True)
class Way:
    """What came of one machine by one way.

    Attributes:
        runs, states, steps, cut: as `Explored`.
        endings: all the ways in which it ended.
    """

    runs: int
    states: int
    steps: int
    cut: str | None
    endings: tuple[Ending, ...]


@dataclass(frozen=True)
class Record:
    """What came of one machine.

    Attributes:
        unit: the choices that made it, as indices.
        regions: in words.
        places: what lies where, and what else was chosen, in words.
        ways: by name.
    """

    unit: tuple[int, ...]
    regions: tuple[str, ...]
    places: tuple[str, ...]
    ways: dict[str, Way]

    def line(self) -> str:
        """As one line of JSON."""
        return json.dumps(
            {
                "unit": self.unit,
                "regions": self.regions,
                "places": self.places,
                "ways": {
                    name: {
                        "runs": way.runs,
                        "states": way.states,
                        "steps": way.steps,
                        "cut": way.cut,
                        "endings": [
                            {
                                "outcome": one.verdict.outcome,
                                "violated": one.verdict.violated,
                                "warned": one.verdict.warned,
                                "death": one.verdict.death,
                                "runs": one.runs,
                                "deviations": one.deviations,
                                "choices": one.choices,
                            }
                            for one in way.endings
                        ],
                    }
                    for name, way in self.ways.items()
                },
            },
            separators=(",", ":"),
        )

    @classmethod
    def from_line(cls, line: str) -> Record:
        """From such a line. Raises ValueError, KeyError, TypeError."""
        found = json.loads(line)
        return cls(
            tuple(found["unit"]),
            tuple(found["regions"]),
            tuple(found["places"]),
            {
                name: Way(
                    way["runs"],
                    way["states"],
                    way["steps"],
                    way["cut"],
                    tuple(
                        Ending(
                            Verdict(one["outcome"], tuple(one["violated"]), one["warned"], one["death"]),
                            one["runs"],
                            one["deviations"],
                            tuple(one["choices"]),
                        )
                        for one in way["endings"]
                    ),
                )
                for name, way in found["ways"].items()
            },
        )


def layouts(family: Family) -> Iterator[tuple[int, ...]]:
    """The choices of every machine of a family, each machine once, those with fewer and simpler regions first."""
    branches: list[tuple[int, ...]] = [()]
    while branches:
        chooser = Chooser(branches.pop(), Bounds(frames=0))
        family.choose(chooser)
        choices = tuple(choice.index for choice in chooser.schedule)
        yield choices
        more = [(*choices[:at], other) for at in range(chooser.told, len(choices)) for other in chooser.others[at]]
        branches += more[::-1]


def run_unit(sweep: Sweep, unit: Sequence[int]) -> Record:
    """All runs of one machine of a sweep, by every way."""
    asked = Replay(unit)
    situated = sweep.family.choose(asked)
    machine = build_machine(situated.layout, Environment(), rules_named(sweep.rules))
    ways = {}
    for name in sweep.ways:
        operations = operations_of(situated, name, sweep.allocations_after)
        found = explore_run(Run(machine, operations), sweep.bounds)
        ways[name] = Way(found.runs, found.states, found.steps, found.cut, endings_of(found))
    places = tuple(str(choice) for choice in asked.schedule if choice.options > 1)
    return Record(tuple(unit), tuple(map(str, situated.regions)), places, ways)


def endings_of(found: Explored) -> tuple[Ending, ...]:
    """How the runs of a machine by one way ended, those nearest to what happens without interference first."""
    return tuple(
        Ending(verdict, best.runs, best.deviations, _trimmed(best.choices()))
        for verdict, best in sorted(found.futures.items(), key=lambda item: (item[1].deviations, item[0]))
    )


def _trimmed(choices: tuple[int, ...]) -> tuple[int, ...]:
    """Without the choices after the last that is not the one without interference."""
    end = max((at + 1 for at, index in enumerate(choices) if index), default=0)
    return choices[:end]


# ---- adding up ----


@dataclass(frozen=True)
class Counterexample:
    """The shortest run that ended in some way.

    Attributes:
        unit: the machine's choices.
        choices: the run's.
        regions: in words.
        deviations: how many choices of both are not the ones without interference.
    """

    unit: tuple[int, ...]
    choices: tuple[int, ...]
    regions: tuple[str, ...]
    deviations: int

    @property
    def rank(self) -> tuple[int, int, tuple[int, ...], tuple[int, ...]]:
        """Fewest choices away from all going well, then the smallest machine."""
        return self.deviations, len(self.regions), self.unit, self.choices


@dataclass
class Tally:
    """What came of one way in all machines of a sweep so far.

    Attributes:
        machines, runs, states, steps: how many.
        cut: in how many machines the search was cut.
        where: where it was cut first.
        endings: (runs, machines, the shortest run) by verdict.
    """

    machines: int = 0
    runs: int = 0
    states: int = 0
    steps: int = 0
    cut: int = 0
    where: str | None = None
    endings: dict[Verdict, tuple[int, int, Counterexample]] = field(default_factory=dict)

    def add(self, unit: tuple[int, ...], regions: tuple[str, ...], way: Way) -> None:
        """Add one machine: its choices, its regions, what came of it."""
        self.machines += 1
        self.runs += way.runs
        self.states += way.states
        self.steps += way.steps
        self.cut += way.cut is not None
        self.where = self.where or way.cut
        for one in way.endings:
            deviations = one.deviations + sum(map(bool, unit))
            found = Counterexample(unit, one.choices, regions, deviations)
            runs, machines, best = self.endings.get(one.verdict, (0, 0, found))
            shortest = min(best, found, key=lambda each: each.rank)
            self.endings[one.verdict] = runs + one.runs, machines + 1, shortest


# ---- running ----


@dataclass(frozen=True)
class Progress:
    """How far a sweep is.

    Attributes:
        units: machines done.
        total: machines in all.
        runs, states: as far as added up.
    """

    units: int
    total: int
    runs: int
    states: int


@contextmanager
def local_pool(processes: int | None = None) -> Iterator[tuple[ProcessPoolExecutor, int]]:
    """All cores of this machine, and how many they are."""
    count = processes or len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(count, mp_context=get_context("forkserver"), initializer=_end_with_parent) as pool:
        try:
            yield pool, count
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _end_with_parent() -> None:
    """In a worker: a parent that was killed leaves none behind, waiting for work for ever."""
    parent = parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _on_pool(sweep: Sweep, units: Sequence[tuple[int, ...]], processes: int | None) -> Iterator[Record]:
    """The records of some units, as they come."""
    if processes == 1 or len(units) < 2:
        for unit in units:
            yield run_unit(sweep, unit)
        return
    with local_pool(processes) as (pool, count):
        left = iter(units)
        under_way: set[Future[Record]] = set()
        while True:
            for unit in left:
                under_way.add(pool.submit(run_unit, sweep, unit))
                if len(under_way) >= AHEAD * count:
                    break
            if not under_way:
                return
            done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
            try:
                for future in done:
                    yield future.result()
            except BrokenProcessPool:
                raise HibernautError(
                    "a worker process died (killed, out of memory, or started by a script that does not keep to "
                    '`if __name__ == "__main__":`); what is done is in the results, start again to go on'
                ) from None


def run_sweep(
    sweep: Sweep,
    path: Path | None = None,
    *,
    scheduler: str | None = None,
    processes: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> dict[str, Tally]:
    """Run a sweep, or go on with one.

    Args:
        sweep: what is to be run.
        path: every record goes there as it comes, one line each; records of the same sweep that are there already are
            taken. None: nothing is kept but the sums.
        scheduler: address of a Dask scheduler (`tcp://...`); None: this machine's cores.
        processes: how many of them; None: all.
        progress: called after every unit.

    Returns:
        What came of each way.

    Raises:
        FormatError: `path` is something else, or another sweep's.
        HibernautError: a worker died, no Dask, no such scheduler.
    """
    units = list(layouts(sweep.family))
    tallies = {way: Tally() for way in sweep.ways}
    with _Results(sweep, path) as results:
        done: set[tuple[int, ...]] = set()
        known = set(units)
        for record in results.earlier():
            if record.unit in known and record.unit not in done:
                done.add(record.unit)
                _add(tallies, record)
        _tell(progress, tallies, len(done), len(units))
        left = [unit for unit in units if unit not in done]
        if scheduler is not None:
            from hibernaut.exploration.cluster import on_cluster

            records = on_cluster(sweep, left, scheduler)
        else:
            records = _on_pool(sweep, left, processes)
        for record in records:
            if record.unit in done:
                continue
            done.add(record.unit)
            results.write(record)
            _add(tallies, record)
            _tell(progress, tallies, len(done), len(units))
    return tallies


def _add(tallies: dict[str, Tally], record: Record) -> None:
    for name, way in record.ways.items():
        tallies[name].add(record.unit, record.regions, way)


def _tell(progress: Callable[[Progress], None] | None, tallies: dict[str, Tally], done: int, total: int) -> None:
    if progress is not None:
        runs, states = sum(one.runs for one in tallies.values()), sum(one.states for one in tallies.values())
        progress(Progress(done, total, runs, states))


class _Results:
    """The file of a sweep: a line that says what it is, then one a unit."""

    def __init__(self, sweep: Sweep, path: Path | None) -> None:
        self._head = json.dumps({"format": FORMAT, "version": VERSION, "sweep": sweep.as_json()})
        self._path = path
        self._file: IO[str] | None = None

    def __enter__(self) -> _Results:
        if self._path is None:
            return self
        fresh = not self._path.exists() or not self._path.stat().st_size
        if not fresh:
            self._check()
        self._file = self._path.open("a", encoding="utf-8")
        if fresh:
            self._file.write(self._head + "\n")
            self._file.flush()
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def _check(self) -> None:
        """Raises FormatError if the file is not this sweep's; drops what follows the last whole line."""
        assert self._path is not None
        with self._path.open("rb") as file:
            head = file.readline(len(self._head) + 2)
            if head.decode("utf-8", "replace").rstrip("\n") != self._head:
                other = head.startswith(f'{{"format": "{FORMAT}"'.encode())
                raise FormatError(
                    "holds the results of another sweep" if other else "is no file of a sweep's results",
                    source=str(self._path),
                    expected="an empty or new file, or this sweep's",
                )
            end = _end_of_lines(file)
        if end != self._path.stat().st_size:
            os.truncate(self._path, end)

    def earlier(self) -> Iterator[Record]:
        """What is in the file already."""
        if self._path is not None:
            for _, record in read_records(self._path):
                yield record

    def write(self, record: Record) -> None:
        """One more, at once."""
        if self._file is not None:
            self._file.write(record.line() + "\n")
            self._file.flush()


def _end_of_lines(file: IO[bytes]) -> int:
    """Where the last whole line of a file ends, read backwards."""
    size = file.seek(0, os.SEEK_END)
    end = size
    while end:
        start = max(0, end - 65536)
        file.seek(start)
        at = file.read(end - start).rfind(b"\n")
        if at >= 0:
            return start + at + 1
        end = start
    return 0


def read_records(path: Path) -> Iterator[tuple[int, Record]]:
    """The records of a sweep's file, with the number of their line.

    Raises:
        FormatError: a line that is none.
    """
    with path.open(encoding="utf-8") as file:
        next(file, None)
        for number, line in enumerate(file, 2):
            try:
                record = Record.from_line(line)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise FormatError(f"line {number} is no record of a sweep: {error!r}", source=str(path)) from None
            yield number, record
