# SPDX-License-Identifier: GPL-2.0-or-later
"""The machines of a sweep on a Dask cluster. Every worker needs the same version of this package."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

from hibernaut.errors import HibernautError, how_to_install
from hibernaut.exploration.one_machine import explore_layout
from hibernaut.exploration.plan import Sweep
from hibernaut.exploration.records import MachineRecord

__all__ = ["on_cluster"]

AHEAD = 8
"""Machines handed out ahead for each core of a worker."""
MOST_AHEAD = 4096
CONNECT_SECONDS = 10
RETRIES = 10
"""Retries of a machine after its worker was lost, bounded since a machine may be the cause."""


def on_cluster(
    sweep: Sweep, machines: Sequence[tuple[int, ...]], scheduler: str
) -> Generator[MachineRecord, None, None]:
    """Yield the records of some machines, in the order in which they are done.

    A machine whose worker is lost is run again on another one; each gives one record.

    Args:
        sweep: the sweep.
        machines: the layout choices of each machine.
        scheduler: address of the scheduler.

    Raises:
        HibernautError: Dask is not installed, the scheduler does not answer, or a machine lost worker after worker.
    """
    try:
        import distributed
        from distributed.scheduler import KilledWorker
    except ImportError:
        raise HibernautError("Dask is not installed", advice=f"try: {how_to_install('distributed')}") from None
    dask: Any = distributed  # half of its functions bear no types
    try:
        client = dask.Client(scheduler, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise HibernautError(
            f"no Dask scheduler answers at {scheduler}: {error}",
            advice="start one with `dask scheduler`, or leave out --scheduler",
        ) from None
    with client:
        cores = max(1, sum(client.ncores().values()))
        left = iter(machines)
        shared = client.scatter(sweep, broadcast=True)

        def submit(count: int) -> list[Any]:
            taken = [layout_choices for _, layout_choices in zip(range(count), left, strict=False)]
            return [
                client.submit(explore_layout, shared, layout_choices, pure=False, retries=RETRIES)
                for layout_choices in taken
            ]

        under_way = dask.as_completed(submit(min(MOST_AHEAD, AHEAD * cores)), loop=client.loop)
        for future in under_way:
            try:
                record: MachineRecord = future.result()
            except KilledWorker as error:
                raise HibernautError(f"a machine lost worker after worker: {error}") from None
            yield record
            future.release()
            for more in submit(1):
                under_way.add(more)
