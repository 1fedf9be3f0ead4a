# SPDX-License-Identifier: GPL-2.0-or-later
"""The log: lines that the modelled kernel prints, and facts that only the model knows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Self

__all__ = ["MODEL_MARK", "Event", "EventLog"]

MODEL_MARK = "  [model] "
"""Prefix of lines that no kernel prints."""


class Event(NamedTuple):
    """One line of the log. There is no clock, only an order.

    Attributes:
        text: the line.
        by_kernel: True if a real kernel prints it, False if only the model knows it.
    """

    text: str
    by_kernel: bool

    def __str__(self) -> str:
        return self.text if self.by_kernel else MODEL_MARK + self.text


class EventLog:
    """Events in order."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._once: set[str] = set()

    def printk(self, text: str) -> None:
        """Add a line that the kernel prints."""
        self._events.append(Event(text, by_kernel=True))

    def printk_once(self, text: str) -> None:
        """Add a line that the kernel prints once since boot (`pr_warn_once`), unless it did."""
        if text not in self._once:
            self._once.add(text)
            self.printk(text)

    @property
    def once(self) -> frozenset[str]:
        """Lines that `printk_once` will not print again."""
        return frozenset(self._once)

    def note(self, text: str) -> None:
        """Add a fact that only the model knows."""
        self._events.append(Event(text, by_kernel=False))

    def add(self, events: Sequence[Event], once: frozenset[str]) -> None:
        """Add events, and the lines that `printk_once` will not print again."""
        self._events += events
        self._once |= once

    @property
    def events(self) -> tuple[Event, ...]:
        """All events so far."""
        return tuple(self._events)

    @property
    def lines(self) -> tuple[str, ...]:
        """All events as text, the model's own marked."""
        return tuple(str(event) for event in self._events)

    def lines_from(self, number: int) -> tuple[str, ...]:
        """Return `lines` from one on, counted from 0."""
        return tuple([str(event) for event in self._events[number:]])

    @property
    def kernel_lines(self) -> tuple[str, ...]:
        """The lines that a real kernel prints."""
        return tuple(event.text for event in self._events if event.by_kernel)

    def fork(self) -> Self:
        """Return an independent log in the same state."""
        twin = object.__new__(type(self))
        twin._events, twin._once = self._events.copy(), self._once.copy()
        return twin

    def __iter__(self) -> Iterator[Event]:
        return iter(self.events)

    def __len__(self) -> int:
        return len(self._events)
