# SPDX-License-Identifier: GPL-2.0-or-later
"""Work on all cores: every piece once, results in order, errors not lost, memory bounded, no thread left."""

from __future__ import annotations

import _thread
import atexit
import ctypes
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path
from queue import SimpleQueue

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hibernaut import parallel
from hibernaut.parallel import in_order, ordered_results
from hibernaut.volumes.output import replacing, write_all
from tests import storm
from tests.interrupts import Interrupted, Interrupts, see_gone, settled_threads, system_threads


@pytest.fixture(autouse=True)
def four_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """More threads than this machine may have, so that they get in each other's way."""
    monkeypatch.setattr(parallel, "worker_count", lambda: 4)


@given(st.lists(st.integers(0, 2), max_size=40), st.integers(1, 4), st.integers(0, 3))
def test_results_are_committed_in_order_and_finished_once(delays: list[int], workers: int, finishers: int) -> None:
    """Pieces that take longer than later ones do not overtake them; each is finished exactly once."""
    committed: list[int] = []
    finished: list[int] = []

    def work(number: int) -> int:
        time.sleep(delays[number] / 2000)
        return number

    def commit(number: int) -> int:
        committed.append(number)
        return number

    in_order(len(delays), work, commit, finished.append, workers=workers, finishers=finishers)
    assert committed == list(range(len(delays)))
    assert sorted(finished) == committed
    assert list(ordered_results(partial(work, number) for number in range(len(delays)))) == committed


@pytest.mark.parametrize("finishers", [0, 2])
@pytest.mark.parametrize("where", ["work", "commit", "finish"])
def test_the_first_failure_is_raised(where: str, finishers: int) -> None:
    """An exception in any part reaches the caller, and soon nothing more is begun."""
    begun: list[int] = []

    def fail_at_7(part: str, number: int) -> int:
        if part == where and number >= 7:
            raise ValueError(f"{part} {number}")
        return number

    def work(number: int) -> int:
        begun.append(number)
        return fail_at_7("work", number)

    def finish(number: int) -> None:
        fail_at_7("finish", number)

    with pytest.raises(ValueError, match=f"{where} "):
        in_order(10_000, work, lambda number: fail_at_7("commit", number), finish, finishers=finishers)
    assert len(begun) < 1000
    assert threading.active_count() < 10


@pytest.mark.parametrize("finishers", [0, 2])
def test_no_more_is_begun_than_the_window_allows(finishers: int) -> None:
    """While the first piece is slow the others do not run away: at most four a worker are begun."""
    gate = threading.Event()
    begun: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        if number == 0:
            gate.wait(5)
        elif len(begun) == 4 * parallel.WINDOW:
            time.sleep(0.05)  # would be enough for the others to begin hundreds more
            assert len(begun) == 4 * parallel.WINDOW
            gate.set()
        return number

    in_order(500, work, lambda number: number, finishers=finishers)
    assert len(begun) == 500


@pytest.mark.parametrize("finishers", [1, 2])
def test_no_more_is_begun_than_finishers_and_workers_finish(finishers: int) -> None:
    """With enough left to each finisher, workers finish as well, and none begins: results that wait are bounded."""
    gate = threading.Event()
    begun: list[int] = []
    begun_by: set[int] = set()
    finished_by: list[int] = []
    most = (1 + parallel.READY) * finishers + 4 * parallel.WINDOW

    def work(number: int) -> int:
        begun.append(number)
        begun_by.add(threading.get_ident())
        return number

    def finish(_number: int) -> None:
        finished_by.append(threading.get_ident())
        if len(finished_by) == finishers + 4:
            time.sleep(0.05)  # would be enough for the others to begin hundreds more
            assert len(begun) <= most
            assert len(set(finished_by)) == finishers + 4
            gate.set()
        gate.wait(5)

    in_order(500, work, lambda number: number, finish, finishers=finishers)
    assert gate.is_set()
    assert len(begun_by) <= 4
    assert len(begun) == len(finished_by) == 500


def test_one_worker_with_finishers_works_on_while_they_finish() -> None:
    """On one core as well, the disk is waited for beside the work."""
    second = threading.Event()

    def work(number: int) -> int:
        if number:
            second.set()
        return number

    seen: list[bool] = []
    in_order(2, work, lambda number: number, lambda _number: seen.append(second.wait(5)), workers=1, finishers=1)
    assert seen == [True, True]


def test_a_finisher_that_waits_ends_with_the_last_worker() -> None:
    """A worker that finds the work stopped wakes the threads that wait for its next piece."""
    finished = threading.Event()

    class Pieces(parallel._Pieces[int, int]):
        def _complete(self, number: int, result: int) -> None:
            super()._complete(number, result)
            finished.wait(5)
            time.sleep(0.05)  # the finisher waits again
            self.stop()

    pieces = Pieces(9, 1, 1, lambda number: number, lambda number: number, lambda _number: finished.set())
    threads = [threading.Thread(target=pieces.run, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()
    assert finished.is_set()


def test_a_piece_that_fails_wakes_the_threads_that_wait_for_it() -> None:
    """The others have begun all that the window allows: without that piece nothing more is committed."""
    begun: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        if number == 0:
            while len(begun) < 4 * parallel.WINDOW:
                time.sleep(0.001)
            time.sleep(0.05)  # the others wait
            raise ValueError("of piece 0")
        return number

    with pytest.raises(ValueError, match="of piece 0"):
        in_order(500, work, lambda number: number, lambda _number: None, finishers=1)


def test_nothing_is_finished_after_a_failure() -> None:
    """Pieces that were committed before another one failed stay unfinished."""
    calls: list[int] = []
    first, second, failed = threading.Event(), threading.Event(), threading.Event()

    def work(number: int) -> int:
        if number == 1:
            first.wait(5)  # so that the finisher has piece 0, and the worker finishes piece 1
        return number

    def finish(number: int) -> None:
        calls.append(number)
        first.set()
        if len(calls) == 1:
            second.wait(5)
            failed.set()
            raise ValueError(f"of piece {number}")
        second.set()
        failed.wait(5)
        time.sleep(0.05)  # the failure is known then

    with pytest.raises(ValueError, match="of piece"):
        in_order(500, work, lambda number: number, finish, workers=1, finishers=1)
    assert calls == [0, 1]


# ---- interrupts ----


@pytest.mark.parametrize("finishers", [0, 2])
@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("where", ["work", "commit", "finish"])
def test_an_interrupt_waits_for_the_threads(interrupts: Interrupts, where: str, times: int, finishers: int) -> None:
    """After any number of interrupts of the calling thread, the piece under way ends first, and nothing else begins."""
    begun: list[int] = []
    ended: list[int] = []
    sent = threading.Event()

    def part(name: str, number: int) -> int:
        if name == "work":
            begun.append(number)
            assert number < 50 or sent.wait(60)  # the other threads do not come to an end of the work meanwhile
        if name == where and number == 5:
            for _ in range(times):
                interrupts.send()
            sent.set()
            ended.append(number)
        return number

    def finish(number: int) -> None:
        part("finish", number)

    with interrupts.expected():
        in_order(
            1_000_000,
            lambda number: part("work", number),
            lambda number: part("commit", number),
            finish,
            finishers=finishers,
        )
    assert ended == [5]
    assert len(begun) < 1_000_000


def test_an_interrupted_writer_leaves_the_descriptor_alone(interrupts: Interrupts, tmp_path: Path) -> None:
    """When `replacing` closes the descriptor no thread has it any more: the next file with its number stays empty."""
    target, other = tmp_path / "out", tmp_path / "other"
    numbers: list[int] = []
    begun: list[int] = []
    slow: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        if not slow and threading.current_thread() is not threading.main_thread():
            slow.append(number)
            while len(begun) < number + 4 * parallel.WINDOW:  # then all others wait for this piece
                time.sleep(0.001)
            interrupts.send()
            time.sleep(0.3)  # in which a calling thread that does not wait closes the file, and another is opened
        return number

    def write() -> None:
        with replacing(target) as fd:
            numbers.append(fd)
            in_order(500, work, lambda number: number, lambda number: write_all(fd, memoryview(b"page"), 4096 * number))

    with ExitStack() as stack:
        with interrupts.expected():
            try:
                write()
            finally:
                victim = stack.enter_context(other.open("wb"))
        assert victim.fileno() == numbers[0]
        assert os.fstat(victim.fileno()).st_size == 0
    assert list(tmp_path.iterdir()) == [other]


@pytest.mark.parametrize("times", [1, 3])
def test_interrupted_results_wait_for_the_threads(interrupts: Interrupts, times: int) -> None:
    """The same for results one after the other; the tasks under way get the signal to end soon."""
    ended: list[int] = []
    told = threading.Event()

    def task(number: int) -> int:
        if number == 5:
            for _ in range(times):
                interrupts.send()
            assert told.wait(60)
            ended.append(number)
        return number

    with interrupts.expected():
        for _ in ordered_results((partial(task, number) for number in range(10_000)), stop=told.set):
            pass
    assert ended == [5]


def test_results_that_are_no_longer_consumed() -> None:
    """A consumer that fails, and one that closes the iterator, leave no thread behind."""
    before = settled_threads()
    results = ordered_results(partial(int, number) for number in range(10_000))
    assert next(results) == 0
    assert system_threads() > before
    results.close()
    see_gone(before)

    def fail() -> None:
        for number in ordered_results(partial(int, number) for number in range(10_000)):
            if number == 7:
                raise ValueError(number)

    with pytest.raises(ValueError, match="7"):
        fail()
    see_gone(before)


def test_an_exception_from_outside_in_another_thread() -> None:
    """A calling thread that is not the main one gets such an exception when its workers have ended."""
    ended: list[int] = []
    raised: list[int] = []
    together = threading.Barrier(4, timeout=60)

    def work(number: int) -> int:
        if number < 4 and together.wait() == 0:  # all workers are there, so the calling thread waits for them
            ident = ctypes.c_ulong(caller.ident or 0)
            assert ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(Interrupted)) == 1
        ended.append(number)
        return number

    def call() -> None:
        try:
            in_order(100, work, lambda number: number)
            while True:
                pass  # until the exception comes, at the latest here
        except Interrupted:
            raised.append(len(ended))

    caller = threading.Thread(target=call)
    before = system_threads()
    caller.start()
    caller.join()
    see_gone(before)
    assert raised == [len(ended)]


def test_interrupts_at_any_instant() -> None:
    """Two interrupts a call, while threads are started, at work, waited for: afterwards no work is ever done."""
    told = subprocess.run([sys.executable, storm.__file__], capture_output=True, text=True, check=False)
    assert (told.returncode, told.stderr) == (0, "")
    assert re.fullmatch(rf"{storm.CALLS} calls, [1-9]\d* interrupted\n", told.stdout)


LEAK = """
import time
from hibernaut.parallel import _Workers

class Interrupted(BaseException):
    pass

class Leaky:
    left = 2

    def __init__(self, lock):
        self.lock, self.release = lock, lock.release

    def acquire(self):
        self.lock.acquire()
        if self.left:
            self.left -= 1
            raise Interrupted

    def __enter__(self):
        self.acquire()

    def __exit__(self, *_):
        self.release()

def work():
    begun.append("begun")
    time.sleep(0.1)
    ended.append("ended")

begun, ended = [], []
try:
    with _Workers(work, lambda: None) as threads:
        threads.start()
        while not begun:
            time.sleep(0.001)
        threads._running[0] = Leaky(threads._running[0])
except Interrupted:
    print(*ended)
"""


def test_an_interrupt_right_after_a_lock_was_acquired() -> None:
    """As Python 3.14 raises it: the lock stays acquired, twice here, and the call ends all the same."""
    told = subprocess.run([sys.executable, "-c", LEAK], capture_output=True, text=True, check=False, timeout=60)
    assert (told.returncode, told.stdout, told.stderr) == (0, "ended\n", "")


ABANDONED = """
from functools import partial
from hibernaut import parallel

class Keeper:
    pass

parallel.worker_count = lambda: 4
keeper = Keeper()
keeper.myself = keeper
keeper.results = parallel.ordered_results(partial(int, number) for number in range(10_000))
next(keeper.results)
del keeper
"""


def test_a_generator_that_lives_until_the_interpreter_ends() -> None:
    """Results in a cycle of references, as in the traceback of a failed test, do not keep the process from ending."""
    told = subprocess.run([sys.executable, "-c", ABANDONED], capture_output=True, text=True, check=False, timeout=60)
    assert (told.returncode, told.stdout, told.stderr) == (0, "", "")


FORKED = """
import os, sys
from functools import partial
from hibernaut import parallel

parallel.worker_count = lambda: 4
results = parallel.ordered_results(partial(int, number) for number in range(10_000))
next(results)
child = os.fork()
if child:
    print(sum(results), os.waitpid(child, 0)[1])
"""


def test_a_child_that_is_forked_in_the_midst_of_a_call() -> None:
    """It has none of the threads, and waits for none when it ends; the parent continues."""
    words = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKED]  # Python 3.12 warns of such forks
    told = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert (told.returncode, told.stdout, told.stderr) == (0, f"{sum(range(1, 10_000))} 0\n", "")


def test_a_call_leaves_nothing_that_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole calls, failed ones and abandoned ones: `atexit` has as many callbacks as before, and no workers are left.

    The mutant registers a callback for each call, and leaves it.
    """

    def fails(number: int) -> int:
        raise ValueError(number)

    def calls() -> int:
        before = atexit._ncallbacks()
        for _ in range(20):
            both_ways(10)
            with pytest.raises(ValueError, match="0"):
                in_order(1, fails, int)
            abandoned = ordered_results(partial(int, number) for number in range(50))
            next(abandoned)
            abandoned.close()
        assert not parallel._AT_WORK
        return atexit._ncallbacks() - before

    assert calls() == 0
    start = parallel._Workers.start

    def callback() -> None:
        """Do nothing."""

    def registers(workers: parallel._Workers) -> None:
        atexit.register(callback)
        start(workers)

    monkeypatch.setattr(parallel._Workers, "start", registers)
    assert calls() >= 60
    atexit.unregister(callback)


def both_ways(pieces: int) -> tuple[list[int], list[int]]:
    """Results of both functions for numbers below `pieces`."""
    committed: list[int] = []
    in_order(pieces, lambda number: number, committed.append)
    return committed, list(ordered_results(partial(int, number) for number in range(pieces)))


@pytest.fixture
def few_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that do not work are given up soon."""
    monkeypatch.setattr(parallel, "LOOK_SECONDS", 0.001)
    monkeypatch.setattr(parallel, "MOST_LOOKS", 20)


@pytest.mark.usefixtures("few_looks")
@pytest.mark.parametrize("refuses", [False, True])
@pytest.mark.parametrize("nr_started", [0, 1, 3])
def test_threads_that_never_run(nr_started: int, refuses: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without memory the system starts no thread, or one that ends before its first instruction: others do its work."""
    start, calls = _thread.start_new_thread, count()

    def starved(function: Callable[..., object], arguments: tuple[object, ...]) -> int:
        if next(calls) % 4 < nr_started:
            return start(function, arguments)
        if refuses:
            raise RuntimeError("can't start new thread")
        return 0

    monkeypatch.setattr(_thread, "start_new_thread", starved)
    if nr_started:
        assert both_ways(50) == (list(range(50)), list(range(50)))
        finished: list[int] = []
        in_order(50, lambda number: number, lambda number: number, finished.append, finishers=3)
        assert sorted(finished) == list(range(50))
        return
    with pytest.raises(MemoryError, match="thread"):
        in_order(50, lambda number: number, lambda number: number)
    with pytest.raises(MemoryError, match="thread"):
        next(ordered_results(partial(int, number) for number in range(50)))


@pytest.mark.usefixtures("few_looks")
def test_a_thread_that_fails_outside_of_its_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its task or piece is lost: its exception is raised, while the others wait for work or for that piece."""

    class Queue(SimpleQueue[object]):
        left = [1]

        def get(self, block: bool = True, timeout: float | None = None) -> object:
            super().get(block, timeout)
            self.left.pop()
            raise MemoryError("of the queue")

    with monkeypatch.context() as patch:
        patch.setattr(parallel, "SimpleQueue", Queue)
        with pytest.raises(MemoryError, match="of the queue"):
            list(ordered_results(partial(int, number) for number in range(50)))
    begin, begun = parallel._Pieces._next, []

    def failing(self: parallel._Pieces[int, int]) -> int | tuple[int, int] | None:
        begun.append(begin(self))
        if len(begun) == 3:
            raise MemoryError("of a piece")
        return begun[-1]

    monkeypatch.setattr(parallel._Pieces, "_next", failing)
    with pytest.raises(MemoryError, match="of a piece"):
        in_order(50, lambda number: number, lambda number: number)


@pytest.mark.usefixtures("few_looks")
def test_workers_that_end_without_a_message_to_finishers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without memory for that, too, a worker's exception is raised, and finishers that wait for pieces end."""

    class Condition(threading.Condition):
        def notify_all(self) -> None:
            raise MemoryError("of a wake-up")

    monkeypatch.setattr(threading, "Condition", Condition)
    with pytest.raises(MemoryError, match="of a wake-up"):
        in_order(50, lambda number: number, lambda number: number, lambda _number: None, finishers=5)
