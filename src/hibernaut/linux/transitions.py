# SPDX-License-Identifier: GPL-2.0-or-later
"""Transitions: what a function of the kernel does to its own data, kept by the pages that it reads.

The allocator's functions depend on nothing but their arguments and the bytes that they read, and do nothing but write
bytes. A call that finds the same bytes in every page that an earlier one touched writes the same bytes, so its pages
are put in place at once. A call that prints a line or crashes is never kept.

The pages are asked for in the order in which the function touches them: the digest of each decides which is next.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from hibernaut.memory.overlay import BULK

if TYPE_CHECKING:
    from hibernaut.linux.allocator import AllocatorMachine
    from hibernaut.memory.memo import Results
    from hibernaut.memory.overlay import Touched

__all__ = ["Asks", "Done", "keep", "transition"]

MOST_STEPS = 1 << 14
"""Steps of all functions that one memo keeps: some four for each transition, most of whose pages are shared."""

_numbers = itertools.count()

Result = TypeVar("Result")


class Asks(NamedTuple):
    """A function reads something next.

    Attributes:
        about: the frame of a page, or a question that it asks the environment.
        number: number of this point of the function, which with the page's digest or the answer is the key of what
            follows.
    """

    about: Any
    number: int


class Done(NamedTuple):
    """A function has ended.

    Attributes:
        result: its result.
        pages: the pages that it wrote to, in the order of the first writes: (frame, `Overlay.version`).
    """

    result: object
    pages: tuple[tuple[int, object], ...]


def transition(
    machine: AllocatorMachine,
    function: Callable[[], Result],
    *inputs: Hashable,
    keeps: Callable[[], bool] | None = None,
) -> Result:
    """Return `function()`, its writes included, from the memo of the machine if it is known there.

    A function may call another one that is kept, too.

    Args:
        machine: the machine.
        function: the function; it reads and writes nothing but the memory of the machine.
        inputs: everything else that the function depends on, its name first.
        keeps: whether a call that has just returned is kept; by default one that has added no line to the log.

    Raises:
        MachineFault: as the function.
    """
    memo = machine.memo
    if memo is None:
        return function()
    steps = memo.of("transitions", MOST_STEPS)
    memory = machine.memory
    found = steps.get(inputs)
    while found.__class__ is Asks:
        found = steps.get((found.number, memory.page_digest(found.about)))
    if found is not None:
        for pfn, version in found.pages:
            machine.replace_page(pfn, version)
        result: Result = found.result
        return result
    logged = len(machine.log)
    with memory.tracking() as (touched, stored):
        result = function()
    if len(machine.log) == logged if keeps is None else keeps():
        keep(steps, inputs, touched, Done(result, tuple((pfn, memory.version(pfn)) for pfn in stored)))
    return result


def keep(steps: Results, inputs: Hashable, touched: Touched, done: Done) -> None:
    """Keep the end of a function under its inputs and what it has read, in order."""
    if BULK in touched or not steps.has_room(len(touched) + 1):
        return
    put = dict.__setitem__  # there is room
    key = inputs
    for about, found in touched.items():
        asks = steps.get(key)
        if asks is None:
            asks = Asks(about, next(_numbers))
            put(steps, key, asks)
        elif asks.__class__ is not Asks or asks.about != about:
            return  # the function depends on more than its inputs
        key = asks.number, found
    put(steps, key, done)
