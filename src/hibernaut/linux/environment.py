# SPDX-License-Identifier: GPL-2.0-or-later
"""The environment: the one object asked for every choice that the modelled kernel does not make itself.

Does this allocation fail, which free frame does it get, is that stale translation still in the TLB. Each is a
`Question` with a list of possible answers, the first of which is the one without interference. Every question and its
answer is recorded in order: that schedule, as a list of indices, replays the run exactly (`Replay`). Rooms further down
ask questions of their own kinds, as of a machine's layout, by `Environment.ask`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, Self

from hibernaut.errors import HibernautError

__all__ = [
    "Choice",
    "ChooseFrames",
    "Environment",
    "FailAllocations",
    "Kind",
    "Question",
    "QuestionKind",
    "Replay",
]


class QuestionKind(Protocol):
    """A kind of question. Other rooms ask questions of their own kinds; each says in words how it was answered."""

    def describe(self, choice: Choice) -> str:
        """Return an answer to a question of this kind in words."""


class Kind(StrEnum):
    """The kinds of question that the kernel's code asks."""

    ALLOCATION_FAILS = "allocation fails"
    FREE_FRAME = "free frame"
    STILL_CACHED = "still cached"

    def describe(self, choice: Choice) -> str:
        """Return an answer to a question of this kind in words."""
        return _WORDS[self](choice)


@dataclass(frozen=True, eq=False)
class Question:
    """One choice to be made.

    Attributes:
        kind: the kind of question.
        subject: the number of the allocation, counted from 1, or the address of the stale translation; for the kinds of
            other rooms as these define it.
        options: the possible answers, at least one; the first is the one without interference. For `FREE_FRAME` the
            frames as the allocator has them: ascending, or in the order of its list; else numbers, where 1 is yes.
    """

    kind: QuestionKind
    subject: int
    options: Sequence[int]


@dataclass(frozen=True)
class Choice:
    """A question as it was answered.

    Attributes:
        kind: what was asked.
        subject: see `Question`.
        options: how many answers there were.
        index: which of them was taken.
        value: that answer.
    """

    kind: QuestionKind
    subject: int
    options: int
    index: int
    value: int

    def __str__(self) -> str:
        return self.kind.describe(self)


_WORDS: dict[Kind, Callable[[Choice], str]] = {
    Kind.ALLOCATION_FAILS: lambda one: f"allocation {one.subject} " + ("fails: injected" if one.value else "succeeds"),
    Kind.FREE_FRAME: lambda one: f"allocation {one.subject} gets frame {one.value:#x} (of {one.options} free)",
    Kind.STILL_CACHED: lambda one: (
        f"stale translation of {one.subject:#x} " + ("is still cached" if one.value else "is gone")
    ),
}


class Environment:
    """Nothing fails, the lowest free frame is taken, a stale translation stays cached. Subclasses override `decide`."""

    def __init__(self) -> None:
        self._schedule: list[Choice] = []

    @property
    def schedule(self) -> tuple[Choice, ...]:
        """Every choice so far, in order."""
        return tuple(self._schedule)

    def decide(self, question: Question) -> int:
        """The index of the answer to take, from 0 to `len(question.options) - 1`. Here always 0."""
        del question
        return 0

    def allocation_fails(self, number: int) -> bool:
        """Whether page allocation `number` (counted from 1) fails although there may be memory."""
        return bool(self.ask(Question(Kind.ALLOCATION_FAILS, number, (0, 1))))

    def free_frame(self, number: int, frames: Sequence[int]) -> int:
        """Which of the free frames (ascending, not empty) page allocation `number` gets."""
        return self.ask(Question(Kind.FREE_FRAME, number, frames))

    def still_cached(self, vaddr: int) -> bool:
        """Whether the CPU still uses its cached translation of an address that the tables contradict by now."""
        return bool(self.ask(Question(Kind.STILL_CACHED, vaddr, (1, 0))))

    def ask(self, question: Question) -> int:
        """Put a question, record the choice and return the answer. Raises HibernautError if there is no such answer."""
        index = self.decide(question)
        if not 0 <= index < len(question.options):
            raise HibernautError(
                f"choice {len(self._schedule) + 1} ({question.kind}) has no answer {index}: there are "
                f"{len(question.options)}"
            )
        value = int(question.options[index])
        self._schedule.append(Choice(question.kind, question.subject, len(question.options), index, value))
        return value

    def fork(self) -> Self:
        """An independent environment in the same state, with the same record. What a subclass changes, it copies."""
        twin = copy.copy(self)
        twin._schedule = self._schedule.copy()
        return twin


class FailAllocations(Environment):
    """The page allocations with these numbers, counted from 1, fail.

    Raises:
        ValueError: a number below 1.
    """

    def __init__(self, *numbers: int) -> None:
        super().__init__()
        if any(number < 1 for number in numbers):
            raise ValueError(f"allocations are counted from 1: {numbers}")
        self._numbers = frozenset(numbers)

    def decide(self, question: Question) -> int:
        """See `Environment.decide`."""
        return int(question.kind == Kind.ALLOCATION_FAILS and question.subject in self._numbers)


class ChooseFrames(Environment):
    """Page allocation n (counted from 1) gets the n-th of these frames; those after them the lowest free frame.

    Asking for a frame that is not free then raises HibernautError at that allocation.
    """

    def __init__(self, *pfns: int) -> None:
        super().__init__()
        self._pfns = pfns

    def decide(self, question: Question) -> int:
        """See `Environment.decide`."""
        if question.kind != Kind.FREE_FRAME or question.subject > len(self._pfns):
            return 0
        wanted = self._pfns[question.subject - 1]
        try:
            return question.options.index(wanted)
        except ValueError:
            raise HibernautError(
                f"allocation {question.subject} cannot get frame {wanted:#x}: it is not free"
            ) from None


class Replay(Environment):
    """The answers of a recorded run, as indices in the order of its questions; after the last one, 0 for ever."""

    def __init__(self, indices: Sequence[int]) -> None:
        super().__init__()
        self._indices = tuple(indices)

    def decide(self, question: Question) -> int:
        """See `Environment.decide`."""
        del question
        at = len(self.schedule)
        return self._indices[at] if at < len(self._indices) else 0
