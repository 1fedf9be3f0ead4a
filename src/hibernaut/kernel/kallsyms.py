# SPDX-License-Identifier: GPL-2.0-or-later
"""The compressed symbol names of kallsyms: found in a kernel's image, decoded.

Each symbol is a length and as many indices into a table of 256 tokens; the tokens together are the symbol's type (nm's
letter) and its name (`kallsyms_expand_symbol`, kernel/kallsyms.c; `write_src`, scripts/kallsyms.c). Since Linux kernel
commit 73bbb94466fd ("kallsyms: support "big" kernel symbols") (in v6.1), a length above 127 takes two bytes.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hibernaut.errors import FormatError

__all__ = [
    "MARKER_SYMBOLS",
    "MAX_PADDING",
    "MAX_SYMBOLS",
    "TOKENS",
    "KallsymsTables",
    "decode_names",
    "decode_tokens",
    "end_of_names",
    "expand_names",
    "markers_after",
    "names_in_image",
    "tables_in_image",
]

MAX_SYMBOLS = 1 << 20
"""Distributions' kernels have 100 to 250 thousand."""
FEWEST_SYMBOLS = 1 << 10
TOKENS = 256
LONG = 0x80
"""Bit of a length's first byte: the second one follows (ULEB128)."""
MARKER_SYMBOLS = 256
"""`kallsyms_markers` has the position of each 256th symbol."""
MAX_PADDING = 8
"""`output_label` aligns each table to 8 bytes, or to 4 (7.2 and later)."""
SEPARATOR, NOTHING = TOKENS, TOKENS + 1
"""Indices in place of the bytes of a length."""
MAX_EXPANDED_BYTES = 256 << 20
"""Bound for all names: `KSYM_NAME_LEN` (include/linux/kallsyms.h) is 512, distributions' kernels have 5 MB."""
FIRST_LENGTHS = 12
"""So many lengths are followed, at all places at once, before symbols are decoded."""
FIRST_SYMBOLS = 32
MOST_DIGITS = 1 << 10
"""Places of the digits of a token table that are looked at: distributions' kernels have 6."""
MOST_STARTS = 1 << 12
"""Places where names may begin that are looked at: distributions' kernels have up to 124."""
MOST_WALKED = 8 * MAX_SYMBOLS
"""Names that are walked in search of the markers behind them, in all: work does not follow what counts claim."""
SEARCHED_BYTES = 128
"""Bytes that are searched for markers count as one name that is walked."""
SYMBOL = re.compile(rb"[A-Za-z?][!-~]+")
LETTER = re.compile(rb"[A-Za-z?]")

DIGITS = b"".join(b"%d\x00" % digit for digit in range(10))
"""Tokens 0x30 to 0x39: a character that names use stands for itself."""
DIGITS_AT = 0x30


def decode_tokens(table: bytes, index: Sequence[int]) -> list[bytes]:
    """Return the 256 tokens of `kallsyms_token_table`, which begin where `kallsyms_token_index` says.

    Raises:
        ValueError: one lies outside the table, or has no end.
    """
    return [table[start : table.index(b"\x00", start)] for start in index]


def decode_names(names: bytes | memoryview, tokens: Sequence[bytes], count: int) -> list[bytes]:
    """Return the first `count` symbols of `kallsyms_names`: type and name of each.

    Raises:
        ValueError: the table ends before.
    """
    return expand_names(names, tokens, count).split(b"\0")[1:]


def expand_names(names: bytes | memoryview, tokens: Sequence[bytes], count: int) -> bytes:
    """Return the first `count` symbols of `kallsyms_names` in one string: a NUL, the type and the name of each.

    Raises:
        ValueError: the table ends before.
    """
    bounds = _bounds(names, count)
    indices = np.frombuffer(names, dtype=np.uint8, count=bounds[-1]).astype(np.uint16)
    starts = np.array(bounds[:-1], dtype=np.int64)
    indices[starts[indices[starts] & LONG != 0] + 1] = NOTHING
    indices[starts] = SEPARATOR
    pieces = [*tokens, b"\0", b""]
    lengths = np.array([len(piece) for piece in pieces], dtype=np.int32)
    begins = np.cumsum(lengths, dtype=np.int32) - lengths
    each = lengths[indices]
    ends = np.cumsum(each, dtype=np.int64)
    if not len(ends):
        return b""
    if ends[-1] > MAX_EXPANDED_BYTES:
        raise ValueError(f"its names have {int(ends[-1])} bytes")
    source = np.repeat(begins[indices] - (ends - each).astype(np.int32), each)
    source += np.arange(int(ends[-1]), dtype=np.int32)
    return np.frombuffer(b"".join(pieces), dtype=np.uint8)[source].tobytes()


def end_of_names(names: bytes | memoryview, count: int) -> int:
    """Return the byte at which the first `count` symbols end. Raises ValueError if the table ends before."""
    return _bounds(names, count)[-1]


def _bounds(names: bytes | memoryview, count: int) -> list[int]:
    """Return where each of `count` symbols begins, and where the last one ends. Raises ValueError if it is cut."""
    bounds, at = [0], 0
    try:
        for _ in range(count):
            length, at = names[at], at + 1
            if length & LONG:
                length, at = length & ~LONG | names[at] << 7, at + 1
            at += length
            bounds.append(at)
    except IndexError:
        at = len(names) + 1
    if at > len(names):
        raise ValueError("kallsyms_names ends early")
    return bounds


@dataclass(frozen=True)
class KallsymsTables:
    """The places of the tables in a kernel image.

    Attributes:
        num_syms: byte at which `kallsyms_num_syms` lies.
        names: byte at which `kallsyms_names` begins.
        token_table: byte at which `kallsyms_token_table` begins.
        token_index: byte at which `kallsyms_token_index` begins.
        symbols: type and name of each symbol.
    """

    num_syms: int
    names: int
    token_table: int
    token_index: int
    symbols: list[bytes]


def names_in_image(image: bytes, source: str | None = None) -> list[bytes]:
    """Return the symbols of a kernel image without a symbol table: type and name of each; see `tables_in_image`."""
    return tables_in_image(image, source).symbols


def tables_in_image(image: bytes, source: str | None = None) -> KallsymsTables:
    """Return the tables of a kernel image without a symbol table.

    The token table is found by its digits and confirmed by its index; the names before it, by the markers that follow
    them.

    Raises:
        FormatError: no kallsyms in it.
    """
    starts, walked = 0, 0
    for table_at, index_at, tokens in _token_tables(image):
        last_at: dict[bytes, int] = {}
        walk = _Walk(memoryview(image)[:table_at], tokens)
        for count_at, start, count in _likely_starts(image, table_at, tokens):
            starts += 1
            if starts > MOST_STARTS or walked > MOST_WALKED:
                break
            if not walk.begins_with_symbols(start):
                continue
            walked += MARKER_SYMBOLS
            second = walk.after(start, MARKER_SYMBOLS)
            if second is None:
                continue
            names = memoryview(image)[start:table_at]
            markers = struct.pack("<II", 0, second - start)
            if markers not in last_at:
                last_at[markers] = image.rfind(markers, 0, table_at)
                walked += table_at // SEARCHED_BYTES
            if last_at[markers] < start:
                continue
            walked += min(count, len(names))
            found = _names_at(names, tokens, count)
            if found is not None:
                return KallsymsTables(count_at, start, table_at, index_at, found)
    raise FormatError("no kallsyms in the kernel image", source=source)


def _token_tables(image: bytes) -> Iterator[tuple[int, int, list[bytes]]]:
    """Yield each place that is a token table by its index, the place of that index, and the tokens."""
    digits_at = image.find(DIGITS)
    for _ in range(MOST_DIGITS):
        if digits_at < 0:
            return
        second = digits_at  # of token 1: no NUL need stand before the first token
        for _ in range(DIGITS_AT - 1):
            second = image.rfind(b"\x00", 0, max(0, second - 1)) + 1
        starts = [second]
        while len(starts) < TOKENS and starts[-1] > 0:
            starts.append(image.find(b"\x00", starts[-1]) + 1)
        end = starts.pop()
        for at in range(end, min(end + MAX_PADDING + 1, len(image) - 2 * TOKENS + 1)):
            index = np.frombuffer(image, dtype="<u2", count=TOKENS, offset=at).astype(np.int64)
            if end > 0 and index[0] == 0 and np.array_equal(index[1:] - index[1], np.array(starts) - second):
                start = second - int(index[1])
                yield start, at, decode_tokens(image[start:end], index.tolist())
        digits_at = image.find(DIGITS, digits_at + 1)


def _likely_starts(image: bytes, end: int, tokens: Sequence[bytes]) -> list[tuple[int, int, int]]:
    """Return places of a plausible number of names, the places 4 or 8 bytes after it where they may begin, and it."""
    found = np.frombuffer(image, dtype=np.uint8, count=end)
    words = np.frombuffer(image, dtype="<u4", count=end // 4)
    letter = np.array([LETTER.match(token) is not None for token in tokens])
    counts_at = 4 * np.flatnonzero((words >= FEWEST_SYMBOLS) & (words <= MAX_SYMBOLS))
    likely: list[tuple[int, int, int]] = []
    for aligned in (4, 8):
        at = starts = counts_at + aligned
        for _ in range(FIRST_LENGTHS):
            inside = at < end - 1
            at, starts = at[inside], starts[inside]
            plausible = (found[at] > 1) & (found[at] < LONG) & letter[found[at + 1]]
            at, starts = at[plausible], starts[plausible]
            at = at + 1 + found[at]
        counts = starts - aligned
        likely += zip(counts.tolist(), starts.tolist(), words[counts // 4].tolist(), strict=True)
    return sorted(likely)


class _Walk:
    """Symbols that may begin at any byte of a table, from one to the next.

    Walks from different bytes soon meet, since a length that is reached by both leads both to the same symbol. So each
    byte is looked at once: it has a place in one chain of symbols, which ends where it meets another one.

    Args:
        names: bytes that may hold names.
        tokens: the 256 tokens.
    """

    def __init__(self, names: memoryview, tokens: Sequence[bytes]) -> None:
        self._names = names
        self._tokens = tokens
        self._chains: list[list[int]] = []
        self._places: dict[int, tuple[int, int]] = {}
        self._prints: dict[int, bool] = {}
        self._ends: dict[int, int | None] = {}

    def after(self, start: int, symbols: int) -> int | None:
        """Return the byte behind so many symbols that begin at `start`; None if the bytes end before."""
        if start not in self._places:
            self._places[start] = len(self._chains), 0
            self._chains.append([start])
        at: int | None = start
        while at is not None:
            number, index = self._places[at]
            chain = self._chains[number]
            while len(chain) <= index + symbols:
                at = self._next(chain[-1])
                if at is None:
                    return None
                if at in self._places:
                    symbols -= len(chain) - index
                    break
                self._places[at] = number, len(chain)
                chain.append(at)
            else:
                return chain[index + symbols]
        return None

    def begins_with_symbols(self, start: int) -> bool:
        """Return whether the first symbols from `start` on have a type and a name that prints."""
        at: int | None = start
        for _ in range(FIRST_SYMBOLS):
            if at is None:
                return False
            if at not in self._prints:
                self._prints[at] = self._is_symbol(at)
            if not self._prints[at]:
                return False
            at = self._next(at)
        return at is not None

    def _is_symbol(self, at: int) -> bool:
        end = self._next(at)
        if end is None:
            return False
        indices = self._names[at + 1 + (self._names[at] >= LONG) : end]
        return SYMBOL.fullmatch(b"".join([self._tokens[index] for index in indices])) is not None

    def _next(self, at: int) -> int | None:
        if at not in self._ends:
            try:
                self._ends[at] = at + end_of_names(self._names[at:], 1)
            except ValueError:
                self._ends[at] = None
        return self._ends[at]


def _names_at(names: memoryview, tokens: Sequence[bytes], count: int) -> list[bytes] | None:
    """Return `count` symbols if their markers follow them, else None."""
    try:
        is_followed = markers_after(names, count) is not None
    except ValueError:
        return None
    return decode_names(names, tokens, count) if is_followed else None


def markers_after(names: bytes | memoryview, count: int) -> int | None:
    """Return the byte at which the markers of `count` symbols follow their names; None if they do not.

    Raises:
        ValueError: the names end before.
    """
    *starts, end = _bounds(names, count)
    markers = np.array(starts[::MARKER_SYMBOLS], dtype="<u4").tobytes()
    at = bytes(names[end : end + MAX_PADDING + len(markers)]).find(markers)
    return end + at if at >= 0 else None
