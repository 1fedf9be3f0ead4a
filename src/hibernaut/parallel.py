# SPDX-License-Identifier: GPL-2.0-or-later
"""Work on all cores with results in order, on threads that end before the call returns.

Workers write to descriptors and read from mappings that the caller closes afterwards, so no worker may run after the
call, however it ends. Python raises KeyboardInterrupt, or the exception of a signal handler, between any two
instructions of the main thread. Hence:

- The calling thread starts workers and waits for them by locks implemented in C only, which an interrupt finds either
  taken or not. `threading.Condition` is written in Python: an interrupt inside it leaves its lock taken,
  or released twice. `Thread.start` and `Event.wait` are made of it. An interrupted `Thread.join` marks a thread as
  ended that is not (before Python 3.13).
- Each worker holds a lock while it runs, and reads `_Workers.stopped` once it has the lock. To end all workers, the
  calling thread sets `stopped`, then acquires and releases each lock. A worker that starts later finds `stopped` set
  and does nothing.
- A thread that the system has started may never run: without memory for its first frame it ends at once, and nothing
  tells. So the calling thread waits in short pieces, and gives up when it has looked many times and found none at work.
- An interrupt can come between the acquisition of a lock and the block that would release it: since Python 3.14 a
  `with` statement checks for signals there as well, outside the range of its handler. These locks are therefore
  `threading.RLock`, which the calling thread can acquire again when it starts over, and releases to the last level.
- Once the interpreter has begun to finalize, no worker runs any more, and waiting for one never ends. A generator can
  live until then, in a traceback or in a cycle of references: so `atexit` ends its workers before.
- `in_order` does not hand results to the calling thread one by one: with few cores and short pieces of work that would
  cost more than the work.
"""

from __future__ import annotations

import _thread
import atexit
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Generic, Self, TypeVar

__all__ = ["in_order", "ordered_results", "worker_count"]

Result = TypeVar("Result")
Committed = TypeVar("Committed")

WINDOW = 2
"""Most pieces of work per worker that are begun and not committed: bounds memory."""
READY = 8
"""Pieces for each finisher that are left to it: writes take longer at times, and no core is to wait for them."""
LOOK_SECONDS = 0.05
"""Time between two looks of the calling thread at threads that it waits for."""
MOST_LOOKS = 200
"""Looks after which threads that do not work are given up. They count, not the time: a process may be stopped."""


def worker_count() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def in_order(
    count: int,
    work: Callable[[int], Result],
    commit: Callable[[Result], Committed],
    finish: Callable[[Committed], None] | None = None,
    *,
    workers: int | None = None,
    finishers: int = 0,
) -> None:
    """Do `work(i)` for i below `count` on all cores; `commit` each result in order, then `finish` it in any order.

    After an interrupt of the calling thread no piece is begun; the interrupt is raised once the pieces under way end.

    Args:
        count: number of pieces of work.
        work: function of the piece's number, called from several threads at once.
        commit: function of the result, called for pieces 0, 1, 2, ... one at a time; must be quick.
        finish: function of the value of `commit`, called from several threads at once.
        workers: number of threads that work; None for one per core.
        finishers: number of threads besides these that finish: where that waits for a disk, no core waits. A worker
            finishes pieces where `READY` for each of them, or one without them, are left to be finished.

    Raises:
        MemoryError: no thread begins.
        BaseException: the exception of the lowest piece that failed; no piece is begun after a failure.
    """
    workers = min(worker_count() if workers is None else workers, count)
    finishers = min(finishers, count)
    if workers + finishers <= 1 or count == 1:
        for number in range(count):
            committed = commit(work(number))
            if finish is not None:
                finish(committed)
        return
    pieces = _Pieces(count, workers, finishers, work, commit, finish)
    with _Workers(pieces.run, pieces.stop) as threads, threads:
        for _ in range(workers + finishers):
            threads.start()
        threads.wait()
    if pieces.error is not None:
        raise pieces.error


def ordered_results(
    tasks: Iterator[Callable[[], Result]],
    *,
    workers: int | None = None,
    ahead: int | None = None,
    stop: Callable[[], None] | None = None,
) -> Generator[Result, None, None]:
    """Run tasks on threads and yield their results in the order of the tasks.

    When the generator is closed or interrupted, it begins no task and waits for those under way.

    Args:
        tasks: functions to call on the threads; the calling thread advances the iterator.
        workers: number of threads; None for one per core.
        ahead: most tasks begun whose results have not been yielded; None for two per worker.
        stop: function that makes tasks under way end soon. It is called before the generator waits for them, if not
            all results were consumed, and again if the wait is interrupted. It must not raise.

    Raises:
        MemoryError: no thread begins.
        BaseException: the exception of a task, in its turn.
    """
    workers = worker_count() if workers is None else workers
    ahead = 2 * workers if ahead is None else ahead
    queue: SimpleQueue[_Task[Result] | None] = SimpleQueue()
    flying: deque[_Task[Result]] = deque()
    complete = False

    def run() -> None:
        while (task := queue.get()) is not None and not threads.stopped:
            task.run()

    def end() -> None:
        if stop is not None and not complete:
            stop()
        for _ in range(workers):
            queue.put(None)

    with _Workers(run, end) as threads, threads:
        for number, call in enumerate(tasks):
            if number < workers:
                threads.start()
            flying.append(_Task(call))
            queue.put(flying[-1])
            if len(flying) >= ahead:
                yield flying.popleft().result(threads)
        while flying:
            yield flying.popleft().result(threads)
        complete = True


class _Workers:
    """Threads that run one function, all of which have ended when the block is left, however it is left.

    Enter it twice, `with _Workers(...) as threads, threads`: an interrupt between the end of the block and the first
    instruction of `__exit__` is then handled by the other one.

    Args:
        run: function that each thread calls; what it raises, `wait` and `wait_for` raise.
        stop: function that makes `run` return soon, possibly called more than once; must not raise.

    Attributes:
        stopped: whether the block is being left.
    """

    def __init__(self, run: Callable[[], None], stop: Callable[[], None]) -> None:
        self.stopped = False
        self._run = run
        self._stop = stop
        self._running: list[threading.RLock] = []
        self._begun: list[None] = []
        self._ended: list[None] = []
        self._errors: list[BaseException] = []
        self._done = threading.Lock()
        self._done.acquire()

    def start(self) -> None:
        """Start one more thread; where the system gives no more, the others do its work.

        Raises:
            MemoryError: there are no others.
        """
        _AT_WORK.add(self)
        running = threading.RLock()
        self._running.append(running)
        try:
            _thread.start_new_thread(self._work, (running,))
        except RuntimeError as error:
            if len(self._running) == 1:
                raise MemoryError("the system starts no thread") from error

    def wait(self) -> None:
        """Wait until all threads return from `run`. Raises as `wait_for`."""
        self.wait_for(self._done)

    def wait_for(self, lock: threading.Lock) -> None:
        """Wait until one of the threads releases a lock.

        Raises:
            MemoryError: none of them begins.
            BaseException: the exception of a thread.
        """
        looks = 0
        while not lock.acquire(timeout=LOOK_SECONDS):
            if self._errors:
                raise self._errors[0]
            looks = looks + 1 if len(self._begun) == len(self._ended) else 0
            if looks == MOST_LOOKS:
                raise MemoryError("no thread begins")
        lock.release()

    def _work(self, running: threading.RLock) -> None:
        with running:
            if self.stopped:
                return
            self._begun.append(None)
            try:
                self._run()
            except BaseException as error:  # the calling thread raises it
                self._errors.append(error)
            finally:
                self._ended.append(None)
                if len(self._begun) == len(self._ended):
                    with suppress(RuntimeError):  # released by another one
                        self._done.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        interrupt: BaseException | None = None
        while True:
            try:
                self._end()
                _AT_WORK.discard(self)
                break
            except BaseException as another:
                interrupt = another
        if interrupt is not None:
            raise interrupt

    def _end(self) -> None:
        """Have all threads end, and wait until they have. After an interrupt it can be called again."""
        self.stopped = True
        self._stop()
        for running in self._running:
            running.acquire()
            _release(running)


_AT_WORK: set[_Workers] = set()
"""All whose threads may not have ended. One callback ends them: the `atexit` of Python 3.11 to 3.13 keeps a place for
each callback that was ever registered, and `atexit.unregister` looks through all of them."""


def _forget_all() -> None:
    """Forget the threads of the parent, which a forked child does not have."""
    while _AT_WORK:
        _AT_WORK.pop()._running.clear()


os.register_at_fork(after_in_child=_forget_all)


@atexit.register
def _end_all() -> None:
    """End the threads of all calls that have not ended, such as those of a generator that was never closed."""
    interrupt: BaseException | None = None
    while _AT_WORK:
        try:
            workers = next(iter(_AT_WORK))
            workers._end()
            _AT_WORK.discard(workers)
        except BaseException as another:
            interrupt = another
    if interrupt is not None:
        raise interrupt


def _release(lock: threading.RLock) -> None:
    """Release all levels of a lock that this thread holds; of a lock that it does not hold, none."""
    with suppress(RuntimeError):
        while True:
            lock.release()


class _Task(Generic[Result]):
    """One call by a worker, and its result."""

    def __init__(self, call: Callable[[], Result]) -> None:
        self._call = call
        self._results: list[Result] = []
        self._error: BaseException | None = None
        self._pending = threading.Lock()
        self._pending.acquire()

    def run(self) -> None:
        """Make the call and keep its result or its exception."""
        try:
            self._results.append(self._call())
        except BaseException as error:  # `result` raises it
            self._error = error
        finally:
            self._pending.release()

    def result(self, threads: _Workers) -> Result:
        """Wait for the call by one of the threads; return its result or raise its exception."""
        threads.wait_for(self._pending)
        if self._error is not None:
            raise self._error
        return self._results.pop()


class _Pieces(Generic[Result, Committed]):
    """Numbered pieces of work, whose results are committed in order; see `in_order`."""

    def __init__(
        self,
        count: int,
        workers: int,
        finishers: int,
        work: Callable[[int], Result],
        commit: Callable[[Result], Committed],
        finish: Callable[[Committed], None] | None,
    ) -> None:
        self.error: BaseException | None = None
        self._failed_at = count + 1
        self._count = count
        self._workers = workers
        self._work = work
        self._commit = commit
        self._finish = finish
        self._window = WINDOW * workers
        self._most_ready = max(1, READY * finishers)
        self._changed = threading.Condition()
        self._threads = 0
        self._at_work = 0
        self._begun = 0
        self._committed = 0
        self._waiting: dict[int, Result] = {}
        self._ready: SimpleQueue[tuple[int, Committed] | None] = SimpleQueue()
        self._stopped = False

    def run(self) -> None:
        """Work on pieces and finish some, until nothing is left to do, or one fails."""
        with self._changed:
            self._threads += 1
            works = self._threads <= self._workers
            self._at_work += works
        while True:
            number = self._count  # of no piece
            try:
                piece = self._next() if works else self._ready.get()
                if piece is None or self._is_stopped():
                    break
                if isinstance(piece, int):
                    number = piece
                    self._complete(number, self._work(number))
                else:
                    number, committed = piece
                    if self._finish is not None:
                        self._finish(committed)
            except BaseException as error:  # `in_order` raises it
                with self._changed:
                    if number < self._failed_at:
                        self.error, self._failed_at = error, number
                    self._changed.notify_all()
        with self._changed:
            self._at_work -= works
            is_last = not self._at_work
        if is_last or not works:
            self._ready.put(None)  # one finisher ends, and has the next one end

    def stop(self) -> None:
        """Begin and finish no further piece. A worker that waits is woken by the one at work that it waits for."""
        self._stopped = True
        self._ready.put(None)

    def _next(self) -> int | tuple[int, Committed] | None:
        """Return a piece to begin, or a committed one to finish with its number; None if a worker is to end."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_over() or self._begun - self._committed < self._window)
                over = self._is_over()
                if not over and self._ready.qsize() < self._most_ready:
                    self._begun += 1
                    return self._begun - 1
            try:
                return self._ready.get(block=False)
            except Empty:
                if over:
                    return None

    def _is_stopped(self) -> bool:
        return self._stopped or self.error is not None

    def _is_over(self) -> bool:
        """Whether no piece is left to begin: those under way are finished by their workers."""
        return self._is_stopped() or self._begun >= self._count

    def _complete(self, number: int, result: Result) -> None:
        with self._changed:
            self._waiting[number] = result
            while self._committed in self._waiting and not self._stopped:
                committed = self._commit(self._waiting.pop(self._committed))
                if self._finish is not None:
                    self._ready.put((self._committed, committed))
                self._committed += 1
            self._changed.notify_all()
