# SPDX-License-Identifier: GPL-2.0-or-later
"""Steps of a machine, kept by what they read: pages, its state beside its memory, and the answers of its environment.

Two runs that differ in a page which a step does not touch share the step. So do two that have allocated different
numbers of pages: the number of an allocation is in nothing but its question, its record and its line in the log. What a
step may depend on and change is listed here; a machine with anything else in its state, and a step that changes
anything else, is executed each time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from dataclasses import is_dataclass
from operator import attrgetter, is_
from types import FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

from hibernaut.linux.environment import Environment, Kind, Question
from hibernaut.linux.page_alloc import BuddyAllocator
from hibernaut.linux.printk import Event
from hibernaut.linux.transitions import Asks, Done, keep
from hibernaut.memory.ranges import FrameRanges

if TYPE_CHECKING:
    from hibernaut.linux.allocator import Allocation
    from hibernaut.linux.machine import Machine
    from hibernaut.linux.page_flags import PageFlags
    from hibernaut.memory.overlay import Overlay
    from hibernaut.paging.entries import Level
    from hibernaut.paging.tlb import Tlb

__all__ = ["StepInputs", "machine_step"]

MOST_STEPS = 1 << 15
"""Points of all steps that one memo keeps: some eight for each step, which holds about as many pages."""

_CONSTANT = (
    "cr3",
    "levels",
    "base",
    "end_pfn",
    "encryption",
    "rules",
    "saveable",
    "page_flags",
    "secretmem_users",
    "owners",
    "kernel_image",
)
"""Attributes of a machine that no step changes."""

_constants = attrgetter(*_CONSTANT)

_CHANGES = frozenset(("tlbs", "table_pool", "direct_pages_count", "log", "allocator", "memory", "_fixmap"))
"""Attributes whose changes by a step are kept with it."""

_APART = ("cpu", "preemptible", "environment", "calls", "memo", "_direct_map", "_watchers")
"""Attributes that take part otherwise: in the key, or as the way in which a step reads or is watched."""

_NAMED = frozenset((*_CONSTANT, *_CHANGES, *_APART))

Result = TypeVar("Result")


class StepInputs:
    """Inputs that all steps of one copy depend on and none of them changes.

    Args:
        machine: the machine.
        others: whatever else they depend on.

    Attributes:
        key: a value that is equal, and identical, for equal inputs; None if the steps must not be kept.
        attributes: the number of attributes of the machine.
        unchanged: returns those of a machine that a step which is kept does not change.
    """

    def __init__(self, machine: Machine, *others: Hashable) -> None:
        self._objects = _constants(machine)
        self._more = tuple(name for name in vars(machine) if name not in _NAMED)
        self.attributes = len(vars(machine))
        self.unchanged = _unchanged(tuple(vars(machine)))
        allocator = machine.allocator
        self.key: object | None = None
        more = [value for name, value in vars(machine).items() if name not in _NAMED]
        values = (machine.memo.derived("values", value, _is_value) for value in (*others, *more))
        if not isinstance(allocator, BuddyAllocator) or not all(values):
            return
        places = allocator.places
        inputs = (
            *others,
            machine.cr3,
            machine.levels,
            machine.base,
            machine.end_pfn,
            machine.encryption,
            machine.rules,
            None if machine.saveable is None else machine.saveable.bounds,
            None if machine.page_flags is None else _flags(machine.page_flags),
            machine.secretmem_users,
            tuple((owned.owner, owned.frames.bounds) for owned in machine.owners),
            machine.kernel_image,
            places,
            machine.memory.ranges.bounds,
        )
        self.key = machine.memo.of("inputs of steps").setdefault(inputs, object())

    def are_of(self, machine: Machine) -> bool:
        """Return whether a machine still has them."""
        attributes = vars(machine)
        return self.key is not None and len(attributes) == self.attributes and _constants(machine) == self._objects

    def state(self, machine: Machine) -> tuple[Hashable, ...]:
        """Return the part of a machine's state that changes during a copy and does not lie in its memory."""
        counts = machine.direct_pages_count
        return (
            machine.cpu,
            machine.preemptible,
            tuple(machine.table_pool),
            _tlbs(machine),
            machine.log.once,
            None if counts is None else tuple(counts.items()),
            _slot(machine),
            *[getattr(machine, name) for name in self._more],
        )


@functools.cache
def _unchanged(names: tuple[str, ...]) -> Callable[[Machine], tuple[Any, ...]]:
    """Return the function that returns the attributes of these which a step that is kept does not change."""
    return attrgetter(*(name for name in names if name not in _CHANGES and name != "_direct_map"))


def _is_value(value: object) -> bool:
    """Return whether an object never changes and is equal only to its like; code is taken for such."""
    params = getattr(value, "__dataclass_params__", None)
    if is_dataclass(value) and params is not None and params.frozen:
        return True
    if isinstance(value, tuple | frozenset):
        return all(map(_is_value, value))
    return value is None or isinstance(value, int | str | bytes | type | FrameRanges | FunctionType | property)


def _flags(flags: PageFlags) -> tuple[Hashable, ...]:
    return tuple(ranges.bounds for ranges in (flags.ram, flags.reserved, flags.offline, flags.guard, flags.nosave))


class _Changes(NamedTuple):
    """Changes by a step to the state of a machine that does not lie in its memory.

    Attributes:
        tlbs: the TLBs after it; None if they have not changed.
        events: lines that it adds to the log; of the line of an allocation the position in `allocations`.
        once: the lines that are not printed again.
        allocations: allocations that it adds to the record.
        table_pool, direct_pages_count: those of the machine after it.
        slot: number and address of the fixmap slot, if it is known.
    """

    tlbs: tuple[Tlb | None, ...] | None
    events: tuple[Event | int, ...]
    once: frozenset[str]
    allocations: tuple[Allocation, ...]
    table_pool: tuple[int, ...]
    direct_pages_count: dict[Level, int] | None
    slot: tuple[int, int] | None


def machine_step(machine: Machine, inputs: StepInputs, function: Callable[[], Result], *others: Hashable) -> Result:
    """Return `function()`, which may read and change the machine, from its memo if it is known there.

    A call that raises an exception is never kept.

    Args:
        machine: the machine.
        inputs: what it depends on as all steps of its copy do.
        function: the function. It asks the machine's environment alone, and returns values that never change. An
            environment that answers by anything else than `Environment.decide` is asked each time.
        others: everything else that it depends on.
    """
    allocator = machine.allocator
    shared = (
        inputs.are_of(machine) and machine.calls is None and _only_decides(cast(Hashable, type(machine.environment)))
    )
    if not shared or not isinstance(allocator, BuddyAllocator):
        return function()
    steps = machine.memo.of("machine_step", MOST_STEPS)
    memory, environment = machine.memory, machine.environment
    key = (inputs.key, *others, *inputs.state(machine))
    found = steps.get(key)
    known: list[int] = []
    allocated = allocator.number
    while found.__class__ is Asks:
        about = found.about
        if about.__class__ is _Subject:
            known.append(environment.ask(about.question(allocated)))
            found = steps.get((found.number, known[-1]))
        else:
            found = steps.get((found.number, memory.page_digest(about)))
    if found is not None:
        for pfn, version in found.pages:
            machine.replace_page(pfn, version, table=True)
        result: Result
        result, changes = found.result
        _apply(machine, changes, allocated)
        return result
    before = inputs.unchanged(machine)
    logged = len(machine.log)
    tlbs = _tlbs(machine)
    machine.environment = _Asked(environment, memory, known, allocated)
    try:
        with memory.tracking() as (touched, stored):
            result = function()
    finally:
        machine.environment = environment
    allocations = machine.allocations[allocated:]
    events = _relative(machine.log.events[logged:], allocations)
    changes = _Changes(
        None if _tlbs(machine) == tlbs else tuple(None if tlb is None else tlb.copy() for tlb in machine.tlbs),
        events or (),
        machine.log.once,
        allocations,
        tuple(machine.table_pool),
        None if machine.direct_pages_count is None else machine.direct_pages_count.copy(),
        _slot(machine),
    )
    same = len(vars(machine)) == inputs.attributes and all(map(is_, before, inputs.unchanged(machine)))
    if events is not None and same:
        pages = tuple((pfn, memory.version(pfn)) for pfn in stored)
        keep(steps, key, touched, Done((result, changes), pages))
    return result


@functools.cache
def _only_decides(kind: Any) -> bool:
    """Return whether a class of environments asks every question as `Environment` does."""
    own = {"__init__", "__doc__", "__module__", "decide", "fork", "schedule"}
    asks = (name for name in vars(Environment) if name not in own and callable(getattr(Environment, name)))
    return all(getattr(kind, name) is getattr(Environment, name) for name in asks)


def _tlbs(machine: Machine) -> tuple[Hashable, ...]:
    return tuple([None if tlb is None else tlb.state() for tlb in machine.tlbs])


def _slot(machine: Machine) -> tuple[int, int] | None:
    slot = machine.known_slot
    return None if slot is None else (slot.index, slot.paddr)


def _relative(events: tuple[Event, ...], allocations: tuple[Allocation, ...]) -> tuple[Event | int, ...] | None:
    """Return events with the positions of allocations in place of their lines; None if another line has a number."""
    lines = {one.line(injected=injected): at for at, one in enumerate(allocations) for injected in (False, True)}
    found: list[Event | int] = []
    for event in events:
        at = lines.get(event.text)
        if at is None and "allocation" in event.text:
            return None
        found.append(event if at is None else at if event.text == allocations[at].line(injected=False) else -1 - at)
    return tuple(found)


def _apply(machine: Machine, changes: _Changes, allocated: int) -> None:
    """Change the state of a machine, which has allocated so many pages, as a step that is known does."""
    if changes.tlbs is not None:
        machine.tlbs = [None if tlb is None else tlb.copy() for tlb in changes.tlbs]
    allocations = [one.renumbered(allocated + number) for number, one in enumerate(changes.allocations, 1)]
    if allocations and isinstance(machine.allocator, BuddyAllocator):
        machine.allocator.add_allocations(allocations)
    events = [
        event
        if isinstance(event, Event)
        else Event(allocations[event].line() if event >= 0 else allocations[-1 - event].line(injected=True), False)
        for event in changes.events
    ]
    machine.log.add(events, changes.once)
    machine.table_pool = list(changes.table_pool)
    counts = changes.direct_pages_count
    machine.direct_pages_count = None if counts is None else counts.copy()
    if changes.slot is not None:
        machine.use_slot(*changes.slot)


class _Subject:
    """A question as a thing that a step reads: equal to another one of the same kind, subject and options.

    Args:
        question: the question.
        number: its number in the step: the same question can be asked again.
        allocated: the number of allocations before the step, from which a question about one is counted.
    """

    def __init__(self, question: Question, number: int, allocated: int) -> None:
        counted = question.kind in (Kind.ALLOCATION_FAILS, Kind.FREE_FRAME)
        self._question = question
        self._counted = question.subject - allocated if counted else None
        subject = question.subject if self._counted is None else self._counted
        self._key = (question.kind, subject, tuple(question.options), number)

    def question(self, allocated: int) -> Question:
        """Return the question, after so many allocations."""
        if self._counted is None:
            return self._question
        return Question(self._question.kind, allocated + self._counted, self._question.options)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Subject) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


class _Asked(Environment):
    """The environment of a machine while a step is noted: answers that are known already are given again.

    Args:
        environment: the environment that is asked everything else.
        memory: the memory that notes questions and answers.
        known: the answers to the first questions.
        allocated: the number of allocations before the step.
    """

    def __init__(self, environment: Environment, memory: Overlay, known: list[int], allocated: int) -> None:
        super().__init__()
        self._environment = environment
        self._memory = memory
        self._known = known
        self._allocated = allocated
        self._number = 0

    def ask(self, question: Question) -> int:
        """See `Environment.ask`."""
        number = self._number
        self._number += 1
        answer = self._known[number] if number < len(self._known) else self._environment.ask(question)
        self._memory.note(_Subject(question, number, self._allocated), answer)
        return answer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._environment, name)
