# SPDX-License-Identifier: GPL-2.0-or-later
"""Memos: results of pure functions, kept by their inputs.

A result is kept under everything that it depends on. Pages of memory take part by the digest of their bytes
(`PhysicalMemory.page_digest`), so that a write is another key, and no entry is ever invalidated. Forks of a machine,
and machines that are explored one after another, share one memo.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["Memo", "Results"]

MOST_RESULTS = 1 << 14
"""Results of one function that are kept; one more, and all of them are dropped: memory stays bounded."""

Source = TypeVar("Source")
Result = TypeVar("Result")


class Results(dict[Any, Any]):
    """The results of one function, by its inputs.

    Args:
        most: the most results that are kept; 0 keeps none.
    """

    def __init__(self, most: int = MOST_RESULTS) -> None:
        super().__init__()
        self._most = most

    def has_room(self, count: int) -> bool:
        """Drop all results if so many more would be too many; return whether there is room for them then."""
        if len(self) + count > self._most:
            self.clear()
        return count <= self._most

    def __setitem__(self, inputs: Any, result: Any) -> None:
        if self.has_room(1):
            super().__setitem__(inputs, result)


class Memo:
    """Results of several functions.

    Args:
        keeps: False keeps nothing: every result is computed from the bytes each time. For tests.
    """

    def __init__(self, *, keeps: bool = True) -> None:
        self._keeps = keeps
        self._of: dict[str, Results] = {}

    def of(self, function: str, most: int = MOST_RESULTS) -> Results:
        """Return the results of a function, by its name; `most` as in `Results`, from the first call."""
        found = self._of.get(function)
        if found is None:
            found = self._of[function] = Results(most if self._keeps else 0)
        return found

    def derived(self, function: str, source: Source, make: Callable[[Source], Result]) -> Result:
        """Return `make(source)`, kept by the identity of a source that never changes, and that another result is."""
        known = self.of(function)
        found = known.get(id(source))
        if found is None or found[0] is not source:
            found = known[id(source)] = source, make(source)
        result: Result = found[1]
        return result
