# SPDX-License-Identifier: GPL-2.0-or-later
"""Work on all cores whose results count in order.

The calling thread works too, and no thread only waits for the others: with few cores and short pieces of work, handing
every result to a waiting thread costs more than the result.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

__all__ = ["in_order", "ordered_results", "worker_count"]

Result = TypeVar("Result")
Committed = TypeVar("Committed")

WINDOW = 4
"""Pieces of work, for each worker, that may be begun before the first of them is committed: bounds memory."""


def worker_count() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def ordered_results(tasks: Iterator[Callable[[], Result]]) -> Iterator[Result]:
    """Run tasks on threads and give their results in the order of the tasks, at most two a worker in flight."""
    workers = worker_count()
    with ThreadPoolExecutor(workers) as pool:
        flying: deque[Future[Result]] = deque()
        try:
            for task in tasks:
                flying.append(pool.submit(task))
                if len(flying) >= 2 * workers:
                    yield flying.popleft().result()
            while flying:
                yield flying.popleft().result()
        finally:
            for future in flying:
                future.cancel()


def in_order(
    count: int,
    work: Callable[[int], Result],
    commit: Callable[[Result], Committed],
    finish: Callable[[Committed], None] | None = None,
) -> None:
    """Do `work(i)` for i below `count` on all cores; `commit` each result in order, then `finish` it in any order.

    Args:
        count: how many pieces of work.
        work: called from several threads at once.
        commit: called for results 0, 1, 2, ... one at a time: must be quick.
        finish: called with what `commit` returned, from several threads at once.

    Raises:
        BaseException: whatever the first piece that failed raised; no further work is begun then.
    """
    crew = _Crew(count, work, commit, finish)
    threads = [threading.Thread(target=crew.run, daemon=True) for _ in range(min(worker_count(), count) - 1)]
    for thread in threads:
        thread.start()
    crew.run()
    for thread in threads:
        thread.join()
    if crew.error is not None:
        raise crew.error


class _Crew(Generic[Result, Committed]):
    def __init__(
        self,
        count: int,
        work: Callable[[int], Result],
        commit: Callable[[Result], Committed],
        finish: Callable[[Committed], None] | None,
    ) -> None:
        self.error: BaseException | None = None
        self._failed_at = count
        self._count = count
        self._work = work
        self._commit = commit
        self._finish = finish
        self._window = WINDOW * worker_count()
        self._changed = threading.Condition()
        self._begun = 0
        self._committed = 0
        self._waiting: dict[int, Result] = {}

    def run(self) -> None:
        """One worker: until there is nothing left to begin, or something failed."""
        while (number := self._begin()) is not None:
            try:
                self._complete(number, self._work(number))
            except BaseException as error:  # the caller raises it, whatever it is
                with self._changed:
                    if number < self._failed_at:
                        self.error, self._failed_at = error, number
                    self._changed.notify_all()

    def _begin(self) -> int | None:
        with self._changed:
            self._changed.wait_for(lambda: self._done() or self._begun - self._committed < self._window)
            if self._done():
                return None
            self._begun += 1
            return self._begun - 1

    def _done(self) -> bool:
        return self.error is not None or self._begun >= self._count

    def _complete(self, number: int, result: Result) -> None:
        ready = []
        with self._changed:
            self._waiting[number] = result
            while self._committed in self._waiting:
                ready.append(self._commit(self._waiting.pop(self._committed)))
                self._committed += 1
            self._changed.notify_all()
        if self._finish is not None:
            for committed in ready:
                self._finish(committed)
