# SPDX-License-Identifier: GPL-2.0-or-later
"""The machines of a sweep on the cores of this computer."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import NamedTuple

from hibernaut.errors import HibernautError
from hibernaut.exploration.one_machine import explore_layout
from hibernaut.exploration.plan import Sweep
from hibernaut.exploration.records import MachineRecord

__all__ = ["Workers", "local_pool", "on_pool"]

AHEAD = 4
"""Machines handed out ahead for each worker: enough to keep it busy, few enough to stop soon."""


class Workers(NamedTuple):
    """Worker processes of this computer.

    Attributes:
        pool: the pool that hands out work; a process starts with the first work for it.
        processes: the most of them.
    """

    pool: ProcessPoolExecutor
    processes: int


@contextmanager
def local_pool(processes: int | None = None) -> Iterator[Workers]:
    """Give worker processes, by default one for each core.

    They are gone when the block is left. If an exception or an interrupt ends it, their work is given up.
    """
    count = processes or len(os.sched_getaffinity(0))
    context = get_context("forkserver")
    leash, held = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_end_with_leash, initargs=(leash,))
    try:
        yield Workers(pool, count)
        pool.shutdown()
    finally:
        held.close()
        pool.shutdown(cancel_futures=True)
        leash.close()


def _end_with_leash(leash: Connection) -> None:
    """End this worker when the other end of a pipe is closed: by its parent, or since its parent was killed.

    An interrupt from the terminal reaches workers, too; their parent decides what it means.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.disable()  # a search makes many objects and no reference cycles: a collection reads all and frees none

    def watch() -> None:
        leash.poll(None)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def on_pool(
    sweep: Sweep, machines: Sequence[tuple[int, ...]], processes: int | None, shared: Workers | None = None
) -> Generator[MachineRecord, None, None]:
    """Yield the records of some machines, in the order in which they are done.

    Args:
        sweep: the sweep.
        machines: the layout choices of each machine.
        processes: the number of worker processes; None for one a core. One is this process.
        shared: workers that other sweeps use as well, instead of processes of its own.

    Raises:
        HibernautError: a worker process ended.
    """
    if shared is not None:
        yield from _by_workers(sweep, machines, shared)
    elif processes == 1 or len(machines) < 2:
        for layout_choices in machines:
            yield explore_layout(sweep, layout_choices)
    else:
        with local_pool(processes) as workers:
            yield from _by_workers(sweep, machines, workers)


def _by_workers(
    sweep: Sweep, machines: Sequence[tuple[int, ...]], workers: Workers
) -> Generator[MachineRecord, None, None]:
    left = iter(machines)
    under_way: set[Future[MachineRecord]] = set()
    while True:
        for layout_choices in left:
            under_way.add(workers.pool.submit(explore_layout, sweep, layout_choices))
            if len(under_way) >= AHEAD * workers.processes:
                break
        if not under_way:
            return
        done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
        try:
            for future in done:
                yield future.result()
        except BrokenProcessPool:
            raise HibernautError(
                "a worker process ended (killed, out of memory, or started by a script without "
                '`if __name__ == "__main__":`); the results hold every finished machine, run the sweep again to '
                "resume it"
            ) from None
