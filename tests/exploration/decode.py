# SPDX-License-Identifier: GPL-2.0-or-later
"""A reader of encoded states, written from the documented table and independent of the writer."""

from __future__ import annotations

import struct
from typing import Any

from hibernaut.memory.page import PAGE_SIZE

__all__ = ["decode", "decode_all", "same"]


def decode(data: bytes) -> tuple[Any, bytes]:
    """The first value, and the bytes behind it."""
    tag, rest = data[:1], data[1:]
    if tag in (b"n", b"0", b"1"):
        return {b"n": None, b"0": False, b"1": True}[tag], rest
    (length,) = struct.unpack("<I", rest[:4])
    rest = rest[4:]
    if tag == b"i":
        return int.from_bytes(rest[:length], "little", signed=True), rest[length:]
    if tag == b"t":
        return rest[:length].decode(), rest[length:]
    if tag == b"b":
        return rest[:length], rest[length:]
    if tag == b"l":
        items = []
        for _ in range(length):
            item, rest = decode(rest)
            items.append(item)
        return items, rest
    assert tag == b"p", tag
    pages: dict[int, bytes | None] = {}
    for _ in range(length):
        pfn, there, rest = int.from_bytes(rest[:8], "little"), rest[8], rest[9:]
        pages[pfn] = rest[:PAGE_SIZE] if there else None
        rest = rest[PAGE_SIZE:] if there else rest
    return pages, rest


def decode_all(data: bytes) -> list[Any]:
    """All values."""
    found = []
    while data:
        value, data = decode(data)
        found.append(value)
    return found


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal and of the same types: 1 is not True. Lists and tuples count as one type."""
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and bool(one == other)
