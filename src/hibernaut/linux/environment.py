# SPDX-License-Identifier: GPL-2.0-or-later
"""The environment: the one object asked for every choice that the modelled kernel does not make itself.

Does this allocation fail, which free frame does it get, is that stale translation still in the TLB; and before that,
what machine it is: how many regions are out of the direct map, of which kind, where their tables and the allocator's
own pages lie. Each is a `Question` with a list of possible answers, the first of which is what happens when nobody
interferes. Every question and its answer is recorded in order: that schedule, as a list of indices, replays the run
exactly (`Replay`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Self

from hibernaut.errors import HibernautError

__all__ = [
    "LAYOUT_KINDS",
    "Choice",
    "ChooseFrames",
    "Environment",
    "FailAllocations",
    "Kind",
    "Place",
    "Question",
    "Region",
    "Replay",
    "Structure",
]


class Kind(StrEnum):
    """What is asked."""

    ALLOCATION_FAILS = "allocation fails"
    FREE_FRAME = "free frame"
    STILL_CACHED = "still cached"
    REGIONS = "regions"
    REGION = "region"
    TABLES = "tables"
    PLACE = "place"
    CPUS = "cpus"
    REMEMBERED = "remembered"


LAYOUT_KINDS = frozenset({Kind.REGIONS, Kind.REGION, Kind.TABLES, Kind.PLACE, Kind.CPUS, Kind.REMEMBERED})
"""What is asked before the machine runs: which machine it is."""


class Region(IntEnum):
    """What a region of the direct map can be."""

    PAGE = 0
    BLOCK = 1
    GIB = 2
    MIXED = 3
    NONE = 4
    NO_TABLE = 5

    @property
    def word(self) -> str:
        """As the command line has it."""
        return ("4k", "2m", "1g", "mixed", "none", "no-table")[self]

    def __str__(self) -> str:
        return (
            "two pages not present, by 4K entries of their own",
            "2 MiB not present, as one entry",
            "1 GiB not present, as one entry",
            "2 MiB by 4K entries, every other one not present",
            "two pages without an entry, in a PTE table that exists",
            "2 MiB without a PTE table",
        )[self]


class Place(IntEnum):
    """Where something lies, as seen from the regions: what lies above them is copied after them."""

    ABOVE = 0
    BELOW = 1

    @property
    def word(self) -> str:
        """Above or below."""
        return self.name.lower()


class Structure(IntEnum):
    """What the kernel has one of: its static page tables, the allocator's own pages."""

    ROOT = 0
    MEM_MAP = 1
    ZONE = 2
    PCP = 3
    FREE = 4

    @property
    def word(self) -> str:
        """As the command line has it."""
        return ("root", "mem-map", "zone", "pcp", "free")[self]

    def __str__(self) -> str:
        return (
            "the root of the page tables and the fixmap's tables lie",
            "the array of struct page lies",
            "the heads of the free lists lie",
            "the CPUs' own lists lie",
            "the free pages lie",
        )[self]


@dataclass(frozen=True, eq=False)
class Question:
    """One choice to be made.

    Attributes:
        kind: what is asked.
        subject: the number of the allocation or region (counted from 1), the address of the stale translation, the
            `Structure` whose place is asked for; 0 where there is nothing to tell apart.
        options: the possible answers, at least one; the first is the one without interference. For `FREE_FRAME` the
            frames as the allocator has them: ascending, or in the order of its list; for `REGION`, `TABLES` and `PLACE`
            values of `Region` and `Place`; for the others numbers, where 1 is yes.
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
        return _WORDS[self.kind](self)


_WORDS: dict[Kind, Callable[[Choice], str]] = {
    Kind.ALLOCATION_FAILS: lambda one: f"allocation {one.subject} " + ("fails: injected" if one.value else "succeeds"),
    Kind.FREE_FRAME: lambda one: f"allocation {one.subject} gets frame {one.value:#x} (of {one.options} free)",
    Kind.STILL_CACHED: lambda one: (
        f"stale translation of {one.subject:#x} " + ("is still cached" if one.value else "is gone")
    ),
    Kind.REGIONS: lambda one: f"{one.value} {'region is' if one.value == 1 else 'regions are'} out of the direct map",
    Kind.REGION: lambda one: f"region {one.subject}: {Region(one.value)}",
    Kind.TABLES: lambda one: f"region {one.subject}: its tables lie {Place(one.value).word} all regions",
    Kind.PLACE: lambda one: f"{Structure(one.subject)} {Place(one.value).word} all regions",
    Kind.CPUS: lambda one: f"{one.value} {'CPU has' if one.value == 1 else 'CPUs have'} pages on a list of its own",
    Kind.REMEMBERED: lambda one: (
        "the CPU " + ("remembers" if one.value else "remembers nothing of") + " the regions as they were before"
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
        return bool(self._ask(Question(Kind.ALLOCATION_FAILS, number, (0, 1))))

    def free_frame(self, number: int, frames: Sequence[int]) -> int:
        """Which of the free frames (ascending, not empty) page allocation `number` gets."""
        return self._ask(Question(Kind.FREE_FRAME, number, frames))

    def still_cached(self, vaddr: int) -> bool:
        """Whether the CPU still uses its cached translation of an address that the tables contradict by now."""
        return bool(self._ask(Question(Kind.STILL_CACHED, vaddr, (1, 0))))

    def regions(self, counts: Sequence[int]) -> int:
        """How many regions are out of the direct map."""
        return self._ask(Question(Kind.REGIONS, 0, counts))

    def region(self, number: int, kinds: Sequence[Region]) -> Region:
        """Of which kind region `number` (counted from 1, ascending) is."""
        return Region(self._ask(Question(Kind.REGION, number, kinds)))

    def tables(self, region: int, places: Sequence[Place]) -> Place:
        """Where the page tables of a region lie."""
        return Place(self._ask(Question(Kind.TABLES, region, places)))

    def place(self, structure: Structure, places: Sequence[Place]) -> Place:
        """Where the kernel keeps something that it has one of."""
        return Place(self._ask(Question(Kind.PLACE, structure, places)))

    def cpus(self, counts: Sequence[int]) -> int:
        """How many CPUs have refilled their lists."""
        return self._ask(Question(Kind.CPUS, 0, counts))

    def remembered(self, options: Sequence[int]) -> bool:
        """Whether the CPU remembers translations of the regions from before they were taken out."""
        return bool(self._ask(Question(Kind.REMEMBERED, 0, options)))

    def fork(self) -> Self:
        """An independent environment in the same state, with the same record. What a subclass changes, it copies."""
        twin = copy.copy(self)
        twin._schedule = self._schedule.copy()
        return twin

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
