# SPDX-License-Identifier: GPL-2.0-or-later
"""A sweep's units on a Dask cluster. Every worker needs the same version of this package."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from hibernaut.errors import HibernautError

if TYPE_CHECKING:
    from hibernaut.exploration.sweep import Record, Sweep

__all__ = ["on_cluster"]

AHEAD = 8
"""So many units a worker core are handed out at a time."""
MOST_AHEAD = 4096
CONNECT_SECONDS = 10
RETRIES = 10
"""How often a unit is tried anew whose worker was lost: a unit that kills its workers must come to an end."""


def on_cluster(sweep: Sweep, units: Sequence[tuple[int, ...]], scheduler: str) -> Iterator[Record]:
    """The records of some units, as they come.

    A unit whose worker dies is run again on another one; each gives one record.

    Args:
        sweep: what is to be run.
        units: its machines.
        scheduler: address of the scheduler.

    Raises:
        HibernautError: Dask is not installed, the scheduler does not answer, a unit was lost again and again.
    """
    from hibernaut.exploration.sweep import run_unit

    try:
        import distributed
        from distributed.scheduler import KilledWorker
    except ImportError:
        raise HibernautError("a cluster needs Dask: pip install 'hibernaut[dask]'") from None
    dask: Any = distributed  # half of its functions bear no types
    try:
        client = dask.Client(scheduler, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise HibernautError(f"no Dask scheduler answers at {scheduler}: {error}") from None
    with client:
        cores = max(1, sum(client.ncores().values()))
        left = iter(units)
        shared = client.scatter(sweep, broadcast=True)

        def some(count: int) -> list[Any]:
            taken = [unit for _, unit in zip(range(count), left, strict=False)]
            return [client.submit(run_unit, shared, unit, pure=False, retries=RETRIES) for unit in taken]

        going = dask.as_completed(some(min(MOST_AHEAD, AHEAD * cores)), loop=client.loop)
        for future in going:
            try:
                record: Record = future.result()
            except KilledWorker as error:
                raise HibernautError(f"a unit lost one worker after the other: {error}") from None
            yield record
            future.release()
            for more in some(1):
                going.add(more)
