# SPDX-License-Identifier: GPL-2.0-or-later
"""Sweeps: every machine of a family by every way, on all cores or on a cluster, streamed to a file."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from hibernaut.exploration.cluster import on_cluster
from hibernaut.exploration.plan import Sweep, layouts
from hibernaut.exploration.pool import Workers, on_pool
from hibernaut.exploration.records import MachineRecord
from hibernaut.exploration.results import ResultsFile
from hibernaut.exploration.tally import Tally

__all__ = ["Progress", "run_sweep"]


@dataclass(frozen=True)
class Progress:
    """The progress of a sweep.

    Attributes:
        machines: machines done.
        total: machines in all.
        runs, states: the sums so far.
    """

    machines: int
    total: int
    runs: int
    states: int

    @classmethod
    def of(cls, machines: int, total: int, tallies: dict[str, Tally]) -> Progress:
        """Return the progress with the sums of some tallies."""
        runs, states = sum(one.runs for one in tallies.values()), sum(one.states for one in tallies.values())
        return cls(machines, total, runs, states)


def run_sweep(
    sweep: Sweep,
    path: Path | None = None,
    *,
    scheduler: str | None = None,
    processes: int | None = None,
    workers: Workers | None = None,
    each: Callable[[MachineRecord], None] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> dict[str, Tally]:
    """Run a sweep, or resume one.

    Args:
        sweep: the sweep.
        path: file of results: records of this sweep that it holds are taken, each new one is appended. None keeps only
            the sums.
        scheduler: address of a Dask scheduler (`tcp://...`); None runs on this computer.
        processes: number of its cores to use; None uses all.
        workers: workers of this computer that several sweeps share (`local_pool`), instead of `processes`: what one
            sweep has computed, the next one knows.
        each: called with the record of every machine, those of earlier runs first.
        progress: called after every machine.

    Returns:
        The tally of each way.

    Raises:
        FormatError: `path` is something else, or holds another sweep's results.
        HibernautError: a worker ended, Dask is missing, or the scheduler does not answer.
    """
    machines = list(layouts(sweep.family))
    tallies = {way: Tally() for way in sweep.ways}
    with ResultsFile(sweep, path) as results:
        done: set[tuple[int, ...]] = set()

        def take(record: MachineRecord) -> None:
            done.add(record.layout_choices)
            for name, way in record.ways.items():
                tallies[name].add(record.layout_choices, record.regions, way)
            if each is not None:
                each(record)

        def tell() -> None:
            if progress is not None:
                progress(Progress.of(len(done), len(machines), tallies))

        known = set(machines)
        for record in results.earlier():
            if record.layout_choices in known and record.layout_choices not in done:
                take(record)
        tell()
        left = [layout_choices for layout_choices in machines if layout_choices not in done]
        # Closed at once if anything fails here: a traceback would keep the generator, and its workers, alive.
        with closing(
            on_pool(sweep, left, processes, workers) if scheduler is None else on_cluster(sweep, left, scheduler)
        ) as records:
            for record in records:
                if record.layout_choices in done:
                    continue
                results.write(record)
                take(record)
                tell()
    return tallies
