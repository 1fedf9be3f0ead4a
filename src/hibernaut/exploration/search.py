# SPDX-License-Identifier: GPL-2.0-or-later
"""The search through all runs of a machine: depth first, equal states merged, the shortest run to each outcome kept.

A state is a machine between two steps (`Run`). From each state the next step is executed once for every combination of
answers to the questions that it asks: first without interference, then with each other answer that a question allows,
and so on, always from a fork of the state. A state whose digest is known is not entered again; the known futures of it
are added as often as it is reached, so the number of runs is exact, and the shortest run to each outcome is the true
minimum.

Three reductions leave runs out without a loss:

- *Late binding.* Whether a stale translation is still cached is asked when it would be used, not when it went stale:
  until then nothing depends on it. One that agrees with the tables is not asked about: both answers read alike.
- *Classes of free frames.* Of the frames that an allocation may get, one stands for its neighbours, up to the next
  frame that the copy treats differently: a hole's edge, a page table, a page of the allocator's own. Hibernation only
  compares a frame's number with the frame that is being copied, and writes to its `struct page` as to those of its
  neighbours. The links depend on the place in the list, so its first two frames and its last are tried as well.
  (`tests/exploration` compares with the full set.)
- *Plain pages.* Present pages are copied without a step of their own: nothing is asked and nothing written there, so no
  two orders of events differ.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple, Self

import numpy as np

from hibernaut.errors import HibernautError
from hibernaut.exploration.run import Outcome, Run
from hibernaut.hibernation.page_tables import page_tables
from hibernaut.linux.environment import Environment, Kind, Question
from hibernaut.linux.machine import Machine
from hibernaut.linux.page_alloc import BuddyAllocator
from hibernaut.memory.page import PAGE_SHIFT

__all__ = ["Best", "Bounds", "Chooser", "Explored", "explore_run", "landmarks"]


@dataclass(frozen=True)
class Bounds:
    """The limits of a search.

    Attributes:
        failures: the most allocations of a run that fail; None for any number.
        frames: the most classes of free frames of which one is tried for each allocation, besides the first two and the
            last of the list; 0 for all frames, 1 for only the frame that the kernel takes.
        states: the number of distinct states of a machine and way after which the search is cut; None for never.

    Raises:
        HibernautError: a negative number, or no states.
    """

    failures: int | None = None
    frames: int = 1
    states: int | None = None

    def __post_init__(self) -> None:
        if (self.failures or 0) < 0 or self.frames < 0 or (self.states is not None and self.states < 1):
            raise HibernautError(f"bounds must not be negative, and states must be positive: {self}")

    def __str__(self) -> str:
        failures = "any number of allocations fail" if self.failures is None else f"at most {self.failures} fail"
        frames = {0: "each free frame", 1: "the frame that the kernel takes"}.get(
            self.frames, f"up to {self.frames} classes of free frames"
        )
        states = "" if self.states is None else f"; cut after {self.states} states"
        return f"{failures}; {frames}{states}"


class Chooser(Environment):
    """An environment with given first answers, then without interference, that notes the other answers.

    Args:
        prefix: the first answers, as indices.
        bounds: limits of the other answers.
        failures: the number of allocations that failed before.
        marks: frames at which classes of free frames end, ascending.

    Attributes:
        told: the number of given answers.
        indices: the index of every answer.
        others: for every choice the indices of the answers that it did not take.
        failures: the number of allocations that have failed so far.
    """

    def __init__(
        self,
        prefix: Sequence[int] = (),
        bounds: Bounds | None = None,
        failures: int = 0,
        marks: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self._prefix = tuple(prefix)
        self.told = len(self._prefix)
        self._bounds = Bounds() if bounds is None else bounds
        self._marks = marks
        self.failures = failures
        self.indices: list[int] = []
        self.others: list[Sequence[int]] = []

    def decide(self, question: Question) -> int:
        """See `Environment.decide`."""
        at = len(self.others)
        allowed = self._allowed(question)
        index = self._prefix[at] if at < len(self._prefix) else 0
        self.indices.append(index)
        self.others.append([other for other in allowed if other != index] if len(allowed) > 1 else ())
        if question.kind == Kind.ALLOCATION_FAILS and index:
            self.failures += 1
        return index

    def fork(self) -> Self:
        """See `Environment.fork`."""
        twin = super().fork()
        twin.indices = self.indices.copy()
        twin.others = self.others.copy()
        return twin

    def _allowed(self, question: Question) -> Sequence[int]:
        if question.kind == Kind.ALLOCATION_FAILS:
            limit = self._bounds.failures
            return (0, 1) if limit is None or self.failures < limit else (0,)
        if question.kind != Kind.FREE_FRAME or self._bounds.frames == 0:
            return range(len(question.options))
        if self._bounds.frames == 1:
            return (0,)
        classes = np.searchsorted(np.asarray(self._marks), np.asarray(list(question.options)))
        _, first = np.unique(classes, return_index=True)
        last = len(question.options) - 1
        return sorted({0, min(1, last), last, *first[: self._bounds.frames].tolist()})


class Best(NamedTuple):
    """The runs from a state that end alike.

    Attributes:
        runs: their number.
        deviations: the fewest choices, in one of them, that are not the one without interference.
        path: the choices of that run, step by step: (indices, rest), None at its end.
    """

    runs: int
    deviations: int
    path: tuple[tuple[int, ...], object] | None

    def after(self, choices: tuple[int, ...]) -> Best:
        """Return the same runs from the state before, by a step with these choices."""
        deviations = self.deviations + sum(map(bool, choices)) if choices else self.deviations
        return Best(self.runs, deviations, (choices, self.path))

    def choices(self) -> tuple[int, ...]:
        """Return all choices of the run, as indices."""
        found: list[int] = []
        path = self.path
        while path is not None:
            indices, rest = path
            found += indices
            path = rest  # type: ignore[assignment]
        return tuple(found)


Futures = dict[Outcome, Best]


def _merge(futures: Futures, outcome: Outcome, best: Best) -> None:
    known = futures.get(outcome)
    if known is None:
        futures[outcome] = best
        return
    shorter = best if best.deviations < known.deviations else known
    futures[outcome] = Best(known.runs + best.runs, shorter.deviations, shorter.path)


@dataclass
class _Node:
    """A state on the current path of the search.

    Attributes:
        key: its digest, and the number of failed allocations where that is bounded.
        run: the state.
        failures: the number of failed allocations.
        arrived: the choices of the step that led here.
        branches: choices of the next step still to be tried.
        futures: the known outcomes so far.
    """

    key: tuple[bytes, int]
    run: Run
    failures: int
    arrived: tuple[int, ...] = ()
    branches: list[tuple[int, ...]] = field(default_factory=lambda: [()])
    futures: Futures = field(default_factory=dict)


@dataclass(frozen=True)
class Explored:
    """The result of a search: all runs of one machine by one way.

    Attributes:
        futures: the runs by outcome.
        runs: the number of runs, one for each combination of answers.
        states: the number of distinct states on them, ends included.
        steps: the number of steps that were executed.
        cut: where the search was cut; None if it covered everything.
    """

    futures: Futures
    runs: int
    states: int
    steps: int
    cut: str | None


def explore_run(start: Run, bounds: Bounds | None = None) -> Explored:
    """Search through all runs from a state.

    Args:
        start: the state; it is not changed.
        bounds: limits of the search.
    """
    with _no_collections():
        return _explore_run(start, Bounds() if bounds is None else bounds)


@contextmanager
def _no_collections() -> Iterator[None]:
    """Keep Python from looking for reference cycles: a search makes none, and many objects that would be looked at."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _explore_run(start: Run, bounds: Bounds) -> Explored:
    marks = landmarks(start.machine) if bounds.frames > 1 else ()
    root = _Node((start.digest(), 0), start, 0)
    known: dict[tuple[bytes, int], Futures] = {}
    ends: set[tuple[bytes, Outcome]] = set()
    stack, steps, cut = [root], 0, None
    while stack:
        node = stack[-1]
        if not node.branches or cut is not None:
            stack.pop()
            known[node.key] = node.futures
            if stack:
                for outcome, best in node.futures.items():
                    _merge(stack[-1].futures, outcome, best.after(node.arrived))
            continue
        chooser = Chooser(node.branches.pop(), bounds, node.failures, marks)
        run = node.run.fork(chooser)
        run.advance()
        steps += 1
        choices = tuple(chooser.indices)
        node.branches += _branches(choices, chooser)
        key = (run.digest(), chooser.failures if bounds.failures is not None else 0) if not run.finished else None
        if key is None:
            outcome = run.outcome
            ends.add((node.key[0], outcome))
            _merge(node.futures, outcome, Best(1, 0, None).after(choices))
        elif key in known:
            for outcome, best in known[key].items():
                _merge(node.futures, outcome, best.after(choices))
        else:
            stack.append(_Node(key, run, chooser.failures, choices))
        full = bounds.states is not None and len(known) + len(stack) + len(ends) >= bounds.states
        if full and any(one.branches for one in stack):
            cut = f"after {bounds.states} states, {len(stack)} steps into a run"
    return Explored(root.futures, sum(best.runs for best in root.futures.values()), len(known) + len(ends), steps, cut)


def _branches(choices: tuple[int, ...], chooser: Chooser) -> list[tuple[int, ...]]:
    """Return the combinations to try next: alike up to an answer that was not given, and another answer there."""
    told = chooser.told
    return [(*choices[:at], other) for at in range(told, len(choices)) for other in chooser.others[at]]


def landmarks(machine: Machine) -> list[int]:
    """Return the frames at which classes of free frames begin and end, ascending."""
    marks: set[int] = set()
    for hole in machine.direct_map.holes:
        marks |= {hole.start_pfn, hole.start_pfn + hole.pages}
    for pfn in page_tables(machine):
        marks |= {pfn, pfn + 1}
    if isinstance(machine.allocator, BuddyAllocator):
        places = machine.allocator.places
        first = places.mem_map >> PAGE_SHIFT
        marks |= {first, first + places.mem_map_pages}
        for paddr in (places.zone, *places.pcps):
            marks |= {paddr >> PAGE_SHIFT, (paddr >> PAGE_SHIFT) + 1}
    return sorted(marks)
