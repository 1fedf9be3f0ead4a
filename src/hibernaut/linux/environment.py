# SPDX-License-Identifier: GPL-2.0-or-later
"""The environment: the object that makes every choice which the modelled kernel does not make itself.

Such choices are whether an allocation fails, which free frame it gets, whether a stale translation is still in the
TLB, and whether the owner of a page uses it while the image is written. Each is a `Question` with a list of possible
answers, the first of which is the one without interference. The environment records every question and its answer in
order; that schedule, as a list of indices, replays the run exactly (`Replay`). Rooms further down ask questions of
their own kinds, such as a machine's layout, by `Environment.ask`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import NamedTuple, Protocol, Self

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
    """A kind of question. Other rooms define kinds of their own."""

    def describe(self, choice: Choice) -> str:
        """Return an answer to a question of this kind in words."""


class Kind(StrEnum):
    """Kinds of question that the kernel's code asks."""

    ALLOCATION_FAILS = "allocation fails"
    FREE_FRAME = "free frame"
    STILL_CACHED = "still cached"
    OWNER_WRITES = "owner writes"

    def describe(self, choice: Choice) -> str:
        """Return an answer to a question of this kind in words."""
        return _WORDS[self](choice)


class Question(NamedTuple):
    """A choice to make.

    Attributes:
        kind: the kind of question.
        subject: number of the allocation, counted from 1, address of the stale translation, or first frame of an
            owner's pages; kinds of other rooms define their own.
        options: the possible answers, at least one; the first is the one without interference. For `FREE_FRAME` the
            frames as the allocator has them: ascending, or in the order of its list; else numbers, where 1 is yes.
    """

    kind: QuestionKind
    subject: int
    options: Sequence[int]


class Choice(NamedTuple):
    """A question with its answer.

    Attributes:
        kind: the kind of question.
        subject: see `Question`.
        options: number of possible answers.
        index: position of the answer among them.
        value: the answer.
    """

    kind: QuestionKind
    subject: int
    options: int
    index: int  # type: ignore[assignment]  # the method of tuples is not needed
    value: int

    def __str__(self) -> str:
        return self.kind.describe(self)


_WORDS: dict[Kind, Callable[[Choice], str]] = {
    Kind.ALLOCATION_FAILS: lambda one: f"allocation {one.subject} " + ("fails: injected" if one.value else "succeeds"),
    Kind.FREE_FRAME: lambda one: f"allocation {one.subject} gets frame {one.value:#x} (of {one.options} free)",
    Kind.STILL_CACHED: lambda one: (
        f"stale translation of {one.subject:#x} " + ("is still cached" if one.value else "is gone")
    ),
    Kind.OWNER_WRITES: lambda one: (
        f"the owner of frame {one.subject:#x} "
        + ("writes to it" if one.value else "leaves it alone")
        + " while the image is written"
    ),
}


class Environment:
    """Environment without interference; subclasses override `decide`.

    No allocation fails, each gets the first free frame, a stale translation stays cached, and no owner uses its pages
    before the machine is off.
    """

    def __init__(self) -> None:
        self._schedule: list[Choice] = []

    @property
    def schedule(self) -> tuple[Choice, ...]:
        """All choices so far, in order."""
        return tuple(self._schedule)

    def decide(self, question: Question) -> int:
        """Return the index of the answer, from 0 to `len(question.options) - 1`; 0 unless a subclass decides."""
        del question
        return 0

    def allocation_fails(self, number: int) -> bool:
        """Return whether page allocation `number` (counted from 1) fails although there may be memory."""
        return bool(self.ask(Question(Kind.ALLOCATION_FAILS, number, (0, 1))))

    def free_frame(self, number: int, pfns: Sequence[int]) -> int:
        """Return the free frame (of `pfns`, which is not empty) that page allocation `number` gets."""
        return self.ask(Question(Kind.FREE_FRAME, number, pfns))

    def still_cached(self, vaddr: int) -> bool:
        """Return whether the CPU still uses its cached translation of an address although the tables contradict it."""
        return bool(self.ask(Question(Kind.STILL_CACHED, vaddr, (1, 0))))

    def owner_writes(self, pfn: int) -> bool:
        """Return whether the owner of pages from a frame on puts them back and writes while the image is written."""
        return bool(self.ask(Question(Kind.OWNER_WRITES, pfn, (0, 1))))

    def ask(self, question: Question) -> int:
        """Ask a question, record the choice and return the answer. Raise HibernautError if there is no such answer."""
        index = self.decide(question)
        kind, subject, options = question
        if not 0 <= index < len(options):
            raise HibernautError(
                f"choice {len(self._schedule) + 1} ({kind}) has no answer {index}: there are {len(options)}"
            )
        value = int(options[index])
        self._schedule.append(Choice(kind, subject, len(options), index, value))
        return value

    def fork(self) -> Self:
        """Return an independent environment in the same state. A subclass copies the state that it adds."""
        twin = object.__new__(type(self))
        twin.__dict__ = self.__dict__.copy()
        twin._schedule = self._schedule.copy()
        return twin


class FailAllocations(Environment):
    """Environment in which the page allocations with these numbers, counted from 1, fail.

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
    """Environment in which page allocation n (counted from 1) gets the n-th of these frames; later ones the first free.

    An allocation whose frame is not free raises HibernautError.
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
    """Environment that gives the answers of a recorded run, as indices in order; after the last one, always 0."""

    def __init__(self, indices: Sequence[int]) -> None:
        super().__init__()
        self._indices = tuple(indices)

    def decide(self, question: Question) -> int:
        """See `Environment.decide`."""
        del question
        at = len(self.schedule)
        return self._indices[at] if at < len(self._indices) else 0
