# SPDX-License-Identifier: GPL-2.0-or-later
"""Work on all cores: every piece once, results in order, errors not lost, memory bounded."""

from __future__ import annotations

import threading
import time
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hibernaut.swsusp import parallel
from hibernaut.swsusp.parallel import in_order, ordered_results


@pytest.fixture(autouse=True)
def four_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """More threads than this machine may have, so that they get in each other's way."""
    monkeypatch.setattr(parallel, "worker_count", lambda: 4)


@given(st.lists(st.integers(0, 2), max_size=40))
def test_results_are_committed_in_order_and_finished_once(delays: list[int]) -> None:
    """Pieces that take longer than later ones do not overtake them; each is finished exactly once."""
    committed: list[int] = []
    finished: list[int] = []

    def work(number: int) -> int:
        time.sleep(delays[number] / 2000)
        return number

    def commit(number: int) -> int:
        committed.append(number)
        return number

    in_order(len(delays), work, commit, finished.append)
    assert committed == list(range(len(delays)))
    assert sorted(finished) == committed
    assert list(ordered_results(partial(work, number) for number in range(len(delays)))) == committed


@pytest.mark.parametrize("where", ["work", "commit", "finish"])
def test_the_first_failure_is_raised(where: str) -> None:
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
        in_order(10_000, work, lambda number: fail_at_7("commit", number), finish)
    assert len(begun) < 1000
    assert threading.active_count() < 10


def test_no_more_is_begun_than_the_window_allows() -> None:
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

    in_order(500, work, lambda number: number)
    assert len(begun) == 500
