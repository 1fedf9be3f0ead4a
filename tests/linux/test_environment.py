# SPDX-License-Identifier: GPL-2.0-or-later
"""The environment: every choice asked of one object, recorded, replayable; the allocator that asks it."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hibernaut.errors import HibernautError, OutOfMemory
from hibernaut.linux.allocator import FreeFrames, FreePages
from hibernaut.linux.environment import ChooseFrames, Environment, FailAllocations, Kind, Replay


def test_default_environment_takes_the_lowest_frame_and_keeps_stale_translations() -> None:
    """Without interference nothing fails, the lowest free frame is taken, a stale translation stays, an owner waits."""
    environment = Environment()
    assert not environment.allocation_fails(1)
    assert environment.free_frame(1, [7, 9]) == 7
    assert environment.still_cached(0x1000)
    assert not environment.owner_writes(0x1002)
    assert [choice.kind for choice in environment.schedule] == list(Kind)
    assert [str(choice) for choice in environment.schedule] == [
        "allocation 1 succeeds",
        "allocation 1 gets frame 0x7 (of 2 free)",
        "stale translation of 0x1000 is still cached",
        "the owner of frame 0x1002 leaves it alone while the image is written",
    ]


def test_fail_allocations_counts_from_one() -> None:
    """FailAllocations(2) fails the second allocation and no other; a failed one counts."""
    environment, allocator = FailAllocations(2), FreePages([3, 4, 5])
    assert allocator.alloc_page(environment, "first") == 3
    with pytest.raises(OutOfMemory) as failure:
        allocator.alloc_page(environment, "second")
    assert (failure.value.number, failure.value.injected) == (2, True)
    assert allocator.alloc_page(environment, "third") == 4
    assert [allocation.pfn for allocation in allocator.allocations] == [3, None, 4]
    assert [allocation.number for allocation in allocator.allocations] == [1, 2, 3]
    with pytest.raises(ValueError, match="counted from 1"):
        FailAllocations(0)


def test_exhausted_allocator_is_not_an_injected_failure() -> None:
    """Running out of memory is logged as such."""
    allocator = FreePages([3])
    allocator.alloc_page(Environment(), "first")
    with pytest.raises(OutOfMemory) as failure:
        allocator.alloc_page(Environment(), "second")
    assert not failure.value.injected


def test_choose_frames_refuses_a_frame_that_is_not_free() -> None:
    """A frame asked for by name is handed out, or the run is refused: never silently another one."""
    environment, allocator = ChooseFrames(9, 8), FreePages([3, 9])
    assert allocator.alloc_page(environment, "first") == 9
    with pytest.raises(HibernautError, match="frame 0x8: it is not free"):
        allocator.alloc_page(environment, "second")


def test_replay_repeats_the_answers_of_a_recorded_run() -> None:
    """The indices of a schedule, replayed, give the same run."""

    def run(environment: Environment) -> list[int | None]:
        allocator = FreePages(range(20, 40))
        for number in range(6):
            with contextlib.suppress(OutOfMemory):
                allocator.alloc_page(environment, str(number))
        return [allocation.pfn for allocation in allocator.allocations]

    first = FailAllocations(2, 5)
    expected = run(first)
    again = Replay([choice.index for choice in first.schedule])
    assert run(again) == expected
    assert again.schedule == first.schedule


def test_replay_refuses_an_answer_that_does_not_exist() -> None:
    """A schedule of another machine is refused at the first choice that does not fit."""
    with pytest.raises(HibernautError, match="choice 1"):
        Replay([2]).allocation_fails(1)


def test_fork_keeps_the_record_and_is_independent() -> None:
    """A forked environment knows what was asked before, and adds to its own record only."""
    environment = Environment()
    environment.allocation_fails(1)
    twin = environment.fork()
    twin.allocation_fails(2)
    assert (len(environment.schedule), len(twin.schedule)) == (1, 2)


@given(st.sets(st.integers(0, 60), min_size=1), st.data())
def test_free_frames_are_a_sorted_list_without_those_taken(frames: set[int], data: st.DataObject) -> None:
    """Whatever the order of takes, FreeFrames reads like the sorted list of what is left."""
    left = sorted(frames)
    free = FreeFrames(left)
    while left:
        assert list(free) == left
        assert len(free) == len(left)
        assert [free.index(pfn) for pfn in left] == list(range(len(left)))
        assert free[-1] == left[-1]
        pfn = data.draw(st.sampled_from(left))
        twin = free.fork()
        free.take(pfn)
        assert list(twin) == left
        left.remove(pfn)
        assert pfn not in free
        with pytest.raises(ValueError, match="not free"):
            free.take(pfn)
