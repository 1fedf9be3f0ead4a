# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's data, with its pages at hand and without, against bytes that are changed one word at a time."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hibernaut.linux.kernel_data import KernelData
from hibernaut.linux.mmzone import LIST_POISON1, LIST_POISON2
from tests.linux.tiny_machine import DATA, built
from tests.machines import BASE4 as BASE

PAGE = 4096
SIZE = 2 * PAGE
START = BASE + (DATA << 12)
PLACES = st.sampled_from([0, 8, 16, 64, 68, PAGE - 16, PAGE - 8, PAGE - 4, PAGE, PAGE + 24, SIZE - 16])
CHANGES = st.one_of(
    st.tuples(st.just("store"), PLACES, st.integers(0, (1 << 64) - 1), st.just(0)),
    st.tuples(st.just("add"), PLACES, st.integers(-(1 << 64), 1 << 64), st.just(0)),
    st.tuples(st.just("list_add"), PLACES, PLACES, PLACES),
    st.tuples(st.just("list_del"), PLACES, PLACES, PLACES),
)
Change = tuple[str, int, int, int]


def as_kernel(data: KernelData, change: Change) -> None:
    """Make a change by the functions under test. An entry that is deleted gets its links first."""
    kind, place, first, second = change
    at = START + place
    if kind == "store":
        data.store(at, first, "")
    elif kind == "add":
        data.add(at, first, "")
    elif kind == "list_add":
        data.list_add(at, START + first, START + second, "")
    else:
        data.store(at, START + first, "")
        data.store(at + 8, START + second, "")
        data.list_del(at, "")


def by_words(content: bytearray, change: Change) -> None:
    """Make the same change write by write, as include/linux/list.h has it, in bytes that begin at `START`."""
    kind, place, first, second = change

    def word(at: int) -> int:
        return int.from_bytes(content[at : at + 8], "little")

    def put(at: int, value: int) -> None:
        content[at : at + 8] = (value % (1 << 64)).to_bytes(8, "little")

    if kind == "store":
        put(place, first)
    elif kind == "add":
        put(place, word(place) + first)
    elif kind == "list_add":
        before, after = first, second
        put(after + 8, START + place)
        put(place, START + after)
        put(place + 8, START + before)
        put(before, START + place)
    else:
        put(place, START + first)
        put(place + 8, START + second)
        after, before = word(place) - START, word(place + 8) - START
        put(after + 8, START + before)
        put(before, START + after)
        put(place, LIST_POISON1)
        put(place + 8, LIST_POISON2)


@pytest.mark.parametrize("at_hand", [False, True])
@given(changes=st.lists(CHANGES, max_size=8))
@example([("store", 0, 1, 0), ("add", 68, 1 << 40, 0)])
@example([("store", 0, 1, 0), ("list_add", 68, 16, 16)])
@example([("store", 0, 1, 0), ("list_del", 68, 16, PAGE)])
@example([("store", 0, 1, 0), ("list_add", PAGE - 8, 16, 64), ("list_del", PAGE - 8, 64, 16)])
def test_changes_are_those_of_single_words(at_hand: bool, changes: list[Change]) -> None:
    """Wherever the words lie, at the end of a page or across it too, and whichever of them coincide."""
    machine, _ = built()
    frames = (DATA, DATA + 1)
    expected = bytearray(b"".join(machine.bytes_of(frames).values()))
    data = KernelData(machine)
    with data.opened() if at_hand else nullcontext():
        for change in changes:
            as_kernel(data, change)
            by_words(expected, change)
    assert b"".join(machine.bytes_of(frames).values()) == expected


def test_a_page_at_hand_for_every_address_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutant takes an address that is not aligned for that of the word it lies in."""

    def at_hand(data: KernelData, vaddr: int, right: Callable[..., Any] = KernelData._at_hand) -> Any:
        return right(data, vaddr & ~7)

    monkeypatch.setattr(KernelData, "_at_hand", at_hand)
    machine, _ = built()
    expected = bytearray(machine.bytes_of([DATA])[DATA])
    data = KernelData(machine)
    with data.opened():
        for change in (("store", 0, 1, 0), ("add", 68, 1 << 40, 0)):
            as_kernel(data, change)
            by_words(expected, change)
    assert machine.bytes_of([DATA])[DATA] != expected
