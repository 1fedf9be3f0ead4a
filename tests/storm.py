# SPDX-License-Identifier: GPL-2.0-or-later
"""Run as a program: calls of `hibernaut.parallel` that signals interrupt at any instant."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from functools import partial

from hibernaut import parallel

CALLS = 300
PIECES = 60
CHANCE = random.Random(1)


class Interrupted(BaseException):
    """Raised by the signal."""


class Storm:
    """Signals at random instants, of which as many interrupt a call as it is to bear."""

    def __init__(self) -> None:
        self._left = 0
        self.interrupted = 0
        signal.signal(signal.SIGALRM, self._handle)

    def call(self, function: Callable[[], None]) -> None:
        """Call a function, interrupted twice or less."""
        try:
            try:
                self._left = 2
                signal.setitimer(signal.ITIMER_REAL, CHANCE.uniform(1e-6, 5e-3))
                function()
            finally:
                self._left = 0
        except Interrupted:
            self._left = 0
            self.interrupted += 1

    def end(self) -> None:
        """Cancel a pending signal."""
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _handle(self, _signal: int, _frame: object) -> None:
        if self._left:
            self._left -= 1
            signal.setitimer(signal.ITIMER_REAL, CHANCE.uniform(1e-6, 2e-3))
            raise Interrupted


def main() -> None:
    """End with status 1 if work was done when a call had ended."""
    parallel.worker_count = lambda: 4
    # A generator that an exception leaves behind is closed where no other exception can be raised.
    sys.unraisablehook = lambda _told: None
    began: list[int] = []
    ended: list[int] = []
    finished: list[int] = []

    def work(number: int) -> int:
        began.append(number)
        sum(range(2000))
        ended.append(number)
        return number

    def results() -> None:
        for _ in parallel.ordered_results(partial(work, number) for number in range(PIECES)):
            pass

    storm = Storm()
    for number in range(CALLS):
        finishers = number // 2 % 3
        pieces = partial(parallel.in_order, PIECES, work, int, finished.append, finishers=finishers)
        storm.call(results if number % 2 else pieces)
        done = len(began), len(ended), len(finished)
        while len(os.listdir("/proc/self/task")) > 1:
            time.sleep(0.001)
        later = len(began), len(ended), len(finished)
        if later != done:
            sys.exit(f"call {number}: {done} pieces were begun, worked on, finished; later {later}")
    storm.end()
    sys.stdout.write(f"{CALLS} calls, {storm.interrupted} interrupted\n")


if __name__ == "__main__":
    main()
