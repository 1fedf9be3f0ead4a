"""The environment: the one object asked for every choice that the modelled kernel does not make itself.

Does this allocation fail, which free frame does it get, is that stale translation still in the TLB: each is a
`Question` with a list of possible answers, the first of which is what happens when nobody interferes. Every question
and its answer is recorded in order: that schedule, as a list of indices, replays the run exactly (`Replay`).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from hibernaut.errors import HibernautError

__all__ = ["Choice", "ChooseFrames", "Environment", "FailAllocations", "Kind", "Question", "Replay"]


class Kind(StrEnum):
    """What is asked."""

    ALLOCATION_FAILS = "allocation fails"
    FREE_FRAME = "free frame"
    STILL_CACHED = "still cached"


@dataclass(frozen=True, eq=False)
class Question:
    """One choice to be made.

    Attributes:
        kind: what is asked.
        subject: the number of the allocation (counted from 1), or the address of the stale translation.
        options: the possible answers, at least one; the first is the one without interference. For `FREE_FRAME` the
            frames in ascending order, for the other kinds 0 and 1.
    """

    kind: Kind
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

    kind: Kind
    subject: int
    options: int
    index: int
    value: int

    def __str__(self) -> str:
        if self.kind == Kind.ALLOCATION_FAILS:
            return f"allocation {self.subject} " + ("fails: injected" if self.value else "succeeds")
        if self.kind == Kind.FREE_FRAME:
            return f"allocation {self.subject} gets frame {self.value:#x} (of {self.options} free)"
        return f"stale translation of {self.subject:#x} " + ("is still cached" if self.value else "is gone")


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
        return bool(self._ask(Question(Kind.ALLOCATION_FAILS, number, (0, 1))))

    def free_frame(self, number: int, frames: Sequence[int]) -> int:
        """Which of the free frames (ascending, not empty) page allocation `number` gets."""
        return self._ask(Question(Kind.FREE_FRAME, number, frames))

    def still_cached(self, vaddr: int) -> bool:
        """Whether the CPU still uses its cached translation of an address that the tables contradict by now."""
        return bool(self._ask(Question(Kind.STILL_CACHED, vaddr, (1, 0))))

    def fork(self) -> Self:
        """An independent environment in the same state, with the same record."""
        return copy.deepcopy(self)

    def _ask(self, question: Question) -> int:
        index = self.decide(question)
        if not 0 <= index < len(question.options):
            raise HibernautError(
                f"choice {len(self._schedule) + 1} ({question.kind}) has no answer {index}: there are "
                f"{len(question.options)}"
            )
        value = int(question.options[index])
        self._schedule.append(Choice(question.kind, question.subject, len(question.options), index, value))
        return value


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
