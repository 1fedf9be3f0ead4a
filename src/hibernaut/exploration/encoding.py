# SPDX-License-Identifier: GPL-2.0-or-later
"""An encoding of states as bytes, such that two values with the same bytes are the same value.

A state is known by a digest of its encoding; what the encoding confused, a search would merge. Each value is a tag,
then the length of what follows or the number of items, then these, so that no value's bytes are the beginning of
another's and a sequence of values needs no separators:

====================  ==================================================================
value                 bytes
====================  ==================================================================
None                  ``n``
False, True           ``0``, ``1``
an integer            ``i``, u32 length, two's complement, little endian, shortest
text                  ``t``, u32 length, UTF-8
bytes                 ``b``, u32 length, the bytes
a list or tuple       ``l``, u32 number of items, the items
pages by frame        ``p``, u32 number of pages; for each, ascending: u64 frame, one byte
                      that is 1 if the page exists, then its 4096 bytes; else 0
====================  ==================================================================

Lengths and frames are little endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from hibernaut.memory.page import Bytes

__all__ = ["Value", "encode", "encode_pages"]

Value: TypeAlias = "bool | int | str | bytes | Sequence[Value] | None"

_LENGTH = struct.Struct("<cI")
_PAGE = struct.Struct("<Q?")


def encode(value: Value) -> bytes:
    """Return the bytes of a value. Raises TypeError for anything else than the types above."""
    if value is None:
        return b"n"
    if isinstance(value, bool):
        return b"1" if value else b"0"
    if isinstance(value, int):
        length = value.bit_length() // 8 + 1
        return _LENGTH.pack(b"i", length) + value.to_bytes(length, "little", signed=True)
    if isinstance(value, str):
        text = value.encode()
        return _LENGTH.pack(b"t", len(text)) + text
    if isinstance(value, bytes):
        return _LENGTH.pack(b"b", len(value)) + value
    if isinstance(value, list | tuple):
        return _LENGTH.pack(b"l", len(value)) + b"".join(map(encode, value))
    raise TypeError(f"a {type(value).__name__} has no encoding")


def encode_pages(pages: Mapping[int, Bytes | None]) -> Iterator[bytes | memoryview]:
    """Yield the bytes of pages by frame in pieces, so that no page is copied."""
    yield _LENGTH.pack(b"p", len(pages))
    for pfn in sorted(pages):
        page = pages[pfn]
        yield _PAGE.pack(pfn, page is not None)
        if page is not None:
            yield np.ascontiguousarray(page).data
