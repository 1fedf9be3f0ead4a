# SPDX-License-Identifier: GPL-2.0-or-later
"""Decompressed parts of a file that are kept for a while, so that reading by frame unpacks each part once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hibernaut.memory.page import Bytes

__all__ = ["RecentParts"]


class RecentParts:
    """The parts that were used last. Safe to use from several threads, which may unpack the same part at once.

    Args:
        unpack: returns the data of a part by its number; it becomes read-only.
        most: number of parts kept.
    """

    def __init__(self, unpack: Callable[[int], Bytes], most: int) -> None:
        self._unpack = unpack
        self._most = most
        self._parts: OrderedDict[int, Bytes] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, number: int) -> Bytes:
        """Return the data of a part; raises what `unpack` raises."""
        with self._lock:
            if number in self._parts:
                self._parts.move_to_end(number)
                return self._parts[number]
        data = self._unpack(number)
        data.flags.writeable = False
        with self._lock:
            self._parts[number] = data
            if len(self._parts) > self._most:
                self._parts.popitem(last=False)
        return data

    def clear(self) -> None:
        """Keep nothing."""
        with self._lock:
            self._parts.clear()
