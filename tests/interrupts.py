# SPDX-License-Identifier: GPL-2.0-or-later
"""Real interrupts of the main thread, at instants that a test chooses."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Interrupted", "Interrupts", "see_gone", "settled_threads", "system_threads"]

AGAIN_SECONDS = 0.2
POLL_SECONDS = 0.0005


def system_threads() -> set[str]:
    """The threads of this process that the system knows, by their numbers."""
    return set(os.listdir("/proc/self/task"))


def settled_threads() -> set[str]:
    """Return the threads of this process once none of an earlier test is about to vanish."""
    seen: set[str] = set()
    while seen != (now := system_threads()):
        seen = now
        time.sleep(0.05)
    return seen


def see_gone(before: set[str]) -> None:
    """Wait until all threads that were not there before are gone: the system needs a moment after their last act."""
    for _ in range(6000):
        if system_threads() <= before:
            return
        time.sleep(0.01)
    raise AssertionError(f"threads are left: {system_threads() - before}")


class Interrupted(BaseException):
    """Raised in the main thread by a signal, as KeyboardInterrupt is."""


class Interrupts:
    """A signal whose handler raises `Interrupted` in the main thread, for as long as the test expects it."""

    def __init__(self) -> None:
        self._main = threading.main_thread().ident
        self._handled = 0
        self._closed = False
        self._expected = False
        self._under_way = False
        self._before = signal.signal(signal.SIGUSR1, self._handle)

    def send(self) -> None:
        """Interrupt the main thread from another one; returns when the handler has begun.

        A signal that comes just before the main thread begins to wait for a lock does not end the wait: it is sent
        again.
        """
        assert self._main is not None
        assert threading.get_ident() != self._main
        handled = self._handled
        while self._handled == handled:
            assert not self._closed, "a thread outlives its test"
            signal.pthread_kill(self._main, signal.SIGUSR1)
            again = time.monotonic() + AGAIN_SECONDS
            while self._handled == handled and time.monotonic() < again:
                time.sleep(POLL_SECONDS)

    def once(self, function: Callable[..., object], times: int = 1) -> Callable[..., object]:
        """A function that interrupts the main thread when another thread first calls it, then does what it should.

        It takes a moment for that, in which a main thread that does not wait for it leaves the block of `expected`.
        """
        left = [None] * times

        def wrapped(*arguments: object, **options: object) -> object:
            if threading.get_ident() == self._main or not left:
                return function(*arguments, **options)
            self._under_way = True
            while left:
                left.pop()
                self.send()
            time.sleep(0.1)
            result = function(*arguments, **options)
            self._under_way = False
            return result

        return wrapped

    @contextmanager
    def expected(self) -> Iterator[None]:
        """The block ends with `Interrupted`, and no thread is left that was not there before."""
        before = system_threads()
        gc.disable()  # Hypothesis has a callback there, where an exception is reported and lost
        try:
            self._expected = True
            yield
        except Interrupted:
            self._expected = False
            assert not self._under_way, "a thread is still at work"
        else:
            self._expected = False
            raise AssertionError("the block was not interrupted")
        finally:
            gc.enable()
        see_gone(before)

    def close(self) -> None:
        """Restore the previous handler; send no more, which would end the process now."""
        self._closed = True
        signal.signal(signal.SIGUSR1, self._before)

    def _handle(self, _signal: int, _frame: FrameType | None) -> None:
        self._handled += 1
        if self._expected:
            raise Interrupted
