# SPDX-License-Identifier: GPL-2.0-or-later
"""A BTF that is read as far as it is asked for.

Records have no index: those up to the one that is asked for are located, piece by piece, and strings are read where a
name lies. What comes first in the whole, a type of some name or an enumerator, is the first in the part that is
located, if it is there. That there is none is known only when all is read.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from hibernaut.kernel.btf import Btf, BtfKind
from hibernaut.memory.page import PAGE_SIZE

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["GrowingBtf"]

PIECE_BYTES, LARGE_PIECE_BYTES, FEW_BYTES = 1 << 15, 1 << 18, 1 << 20
"""Bytes of types that are located at a time: small pieces of the first few, where the kernel's core has its types, then
large ones."""


class GrowingBtf(Btf):
    """The types of a kernel, without a base. Safe to use from several threads.

    Its header is checked at once, its records and strings when they are read: any question may raise FormatError.

    Args:
        read: returns bytes by position and number; raises FormatError if they cannot be read.
        size_bytes: number of all bytes; checked by the caller to be a plausible length.
        name: name of the source in messages.

    Raises:
        FormatError: the content is not BTF, or is cut short.
    """

    def __init__(self, read: Callable[[int, int], bytes], size_bytes: int, name: str | None = None) -> None:
        self.base = None
        self.first = 1
        self._name = name
        self._strings_start = 0
        self._lock = threading.RLock()
        self._content = _Content(read, size_bytes)
        header = self._header(self._content)
        start = int(header["hdr_len"])
        types = self._place(self._content, "types", start + int(header["type_off"]), int(header["type_len"]))
        strings = self._place(self._content, "strings", start + int(header["str_off"]), int(header["str_len"]))
        self._types_at, self._strings_at = types.start, strings.start
        self._strings = self._strings_read = bytearray(strings.stop - strings.start)
        self._is_read = np.zeros(-(-len(self._strings) // PAGE_SIZE), dtype=np.bool_)
        self._words = self._words_of(bytes(types.stop - types.start)).copy()
        if not self._strings or self._content[strings.start : strings.start + 1] != b"\0":
            raise self._damaged("its section of strings does not begin or end with a NUL")
        self._lengths_of_kinds(self._layout(self._content, start))
        self._read_words = self._next_word = 0
        self._set_records(np.empty(0, dtype=np.int64))

    @property
    def kinds(self) -> npt.NDArray[np.uint8]:
        """See `Btf.kinds`."""
        self._read_all()
        return super().kinds

    @property
    def raw(self) -> tuple[memoryview, bytes]:
        """See `Btf.raw`."""
        self._read_all()
        return super().raw

    def __len__(self) -> int:
        """Return the number of types."""
        self._read_all()
        return super().__len__()

    def find(self, name: str, *kinds: BtfKind) -> list[int]:
        """See `Btf.find`."""
        self._read_all()
        return super().find(name, *kinds)

    def find_each(self, name: str, *kinds: BtfKind) -> Iterator[int]:
        """Yield the numbers that `find` returns, each as soon as it is found."""
        row = 0
        while True:
            end = len(self._at)
            rows = row + np.flatnonzero(np.isin(self._kinds[row:end], kinds))
            names = self._names[rows]
            yield from (self.first + rows[np.isin(names, self._positions_up_to(name, names))]).tolist()
            row = end
            if not self._grow(row):
                return

    def find_anonymous(self, members: frozenset[str]) -> int | None:
        """See `Btf.find_anonymous`."""
        row = 0
        while True:
            end = len(self._at)
            found = self._find_anonymous(members, row)
            row = end
            if found is not None or not self._grow(row):
                return found

    def find_enumerator(self, name: str) -> tuple[int, int] | None:
        """See `Btf.find_enumerator`."""
        while True:
            with self._lock:
                count = len(self._at)
                found = self._find_enumerator(name, self._positions_up_to(name, self._enumerators[1]))
            if found is not None or not self._grow(count):
                return found

    def numbers(self, *kinds: BtfKind) -> list[int]:
        """See `Btf.numbers`."""
        self._read_all()
        return super().numbers(*kinds)

    def names(self, *kinds: BtfKind) -> dict[str, int]:
        """See `Btf.names`."""
        self._read_all()
        return super().names(*kinds)

    def _positions_up_to(self, name: str, positions: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
        """Return each position of a name, as `Btf._positions`, up to the last of some positions."""
        wanted = name.encode() + b"\0"
        end = min(int(positions.max(initial=0)) + len(wanted), len(self._strings))
        self._read_strings(0, end)
        found: list[int] = []
        at = self._strings.find(wanted, 0, end)
        while at >= 0:
            found.append(at)
            at = self._strings.find(wanted, at + 1, end)
        return np.array(found, dtype=np.uint32)

    def _positions(self, name: str) -> npt.NDArray[np.uint32]:
        self._read_strings(0, len(self._strings))
        return super()._positions(name)

    def _reach_type(self, number: int) -> None:
        while number >= self.first + (count := len(self._at)) and self._grow(count):
            pass

    def _reach_string(self, at: int) -> None:
        end = at
        while end < len(self._strings):
            start, end = end, min(end - end % PAGE_SIZE + PAGE_SIZE, len(self._strings))
            self._read_strings(start, end)
            if self._strings.find(b"\0", start, end) >= 0:
                return
        raise self._damaged("its section of strings does not begin or end with a NUL")

    def _read_strings(self, start: int, end: int) -> None:
        """Read the pages of strings from one byte to another, those that are not read yet."""
        with self._lock:
            first = start // PAGE_SIZE
            missing = first + np.flatnonzero(~self._is_read[first : -(-end // PAGE_SIZE)])
            for run in np.split(missing, np.flatnonzero(np.diff(missing) != 1) + 1):
                if len(run):
                    at = int(run[0]) * PAGE_SIZE
                    stop = min(at + len(run) * PAGE_SIZE, len(self._strings))
                    self._strings_read[at:stop] = self._content[self._strings_at + at : self._strings_at + stop]
                    self._is_read[run] = True

    def _grow(self, known: int) -> bool:
        """Locate the records of one more piece, unless more than those known are; returns whether more may be."""
        with self._lock:
            if len(self._at) > known:
                return True
            if self._read_words == len(self._words):
                return False
            piece_bytes = PIECE_BYTES if 4 * self._read_words < FEW_BYTES else LARGE_PIECE_BYTES
            end = min(self._read_words + piece_bytes // 4, len(self._words))
            piece = self._content[self._types_at + 4 * self._read_words : self._types_at + 4 * end]
            self._words[self._read_words : end] = np.frombuffer(piece, dtype="<u4")
            found, next_word = self._walk(self._words[:end].data, self._next_word)
            if end == len(self._words):
                self._refuse_rest(len(self._at) + len(found), next_word)
            for known_columns in ("_by_name", "_enumerators"):
                self.__dict__.pop(known_columns, None)
            self._set_records(np.concatenate((self._at, np.array(found, dtype=np.int64))))
            self._read_words, self._next_word = end, next_word
            return True

    def _read_all(self) -> None:
        """Locate all records and read all strings."""
        while self._grow(len(self._at)):
            pass
        self._read_strings(0, len(self._strings))
        if self._strings[-1:] != b"\0":
            raise self._damaged("its section of strings does not begin or end with a NUL")


class _Content:
    """The bytes of a BTF, each part read when it is sliced."""

    def __init__(self, read: Callable[[int, int], bytes], size_bytes: int) -> None:
        self._read = read
        self._size_bytes = size_bytes

    def __len__(self) -> int:
        """Return the number of bytes."""
        return self._size_bytes

    def __getitem__(self, part: slice, /) -> bytes:
        """Return a part of them, which lies within them."""
        start, stop, _ = part.indices(self._size_bytes)
        return self._read(start, stop - start) if stop > start else b""
