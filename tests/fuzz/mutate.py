# SPDX-License-Identifier: GPL-2.0-or-later
"""Mutations of a file: of its numbers, where their places are known, of its bytes and blocks, of its JSON values."""

from __future__ import annotations

import copy
import functools
import json
import random
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

__all__ = ["Place", "fields_of", "mutate_bytes", "mutate_json", "words_of"]

Place = tuple[int, int]
"""Offset and size of a number, in bytes."""
BLOCK = 4096
FORMATS = {1: "<B", 2: "<H", 4: "<I", 8: "<Q"}
EDGES = (0, 1, 2, 7, 8, 31, 63, 255, 4095, 4096, 65535, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 40, 1 << 52)
JUNK: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 1 << 31, 1 << 63, 1 << 64, 1 << 200, 0.5, 1e308, float("nan"), float("inf")),
    *("", "0", "0x10", "-1", "6.1", "\ud800", "a\nb", "\x1b[31m", "x" * 300, [], [[]], [0], {}, {"": 0}, {"a": []}),
)


def fields_of(dtype: np.dtype[Any], at: int = 0) -> list[Place]:
    """Return the places of all numbers of a structure that begins at a byte."""
    return [(at + offset, size) for offset, size in _fields(dtype)]


@functools.cache
def _fields(dtype: np.dtype[Any]) -> tuple[Place, ...]:
    if dtype.fields is not None:
        parts = [(kind, int(offset)) for kind, offset, *_ in dtype.fields.values()]
        return tuple((at + offset, size) for kind, at in parts for offset, size in _fields(kind))
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        count = int(np.prod(shape))
        return tuple(
            (number * base.itemsize + offset, size) for number in range(count) for offset, size in _fields(base)
        )
    return ((0, dtype.itemsize),) if dtype.kind in "ui" else ()


def words_of(first: int, count: int, size: int = 8) -> list[Place]:
    """Return the places of consecutive numbers of one size."""
    return [(first + size * number, size) for number in range(count)]


def mutate_bytes(data: bytes, rng: random.Random, places: Sequence[Place], others: Sequence[bytes], most: int) -> bytes:
    """Return data with one to six changes, at most `most` bytes."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        if places and rng.random() < 0.6:
            _change_number(out, rng, places)
        else:
            rng.choice(CHANGES)(out, rng, others)
    return bytes(out[:most])


def _change_number(out: bytearray, rng: random.Random, places: Sequence[Place]) -> None:
    at, size = rng.choice(places)
    if at + size > len(out):
        return
    form, bound = FORMATS[size], 1 << 8 * size
    (old,) = struct.unpack_from(form, out, at)
    kind = rng.randrange(6)
    if kind == 0:
        value = rng.choice(EDGES)
    elif kind == 1:
        value = old + rng.choice((-4096, -512, -8, -1, 1, 8, 512, 4096))
    elif kind == 2:
        value = old ^ 1 << rng.randrange(8 * size)
    elif kind == 3:
        other, other_size = rng.choice(places)
        value = struct.unpack_from(FORMATS[other_size], out, other)[0] if other + other_size <= len(out) else -1
    elif kind == 4:
        value = bound - rng.choice((1, 2, 4096, len(out) or 1))
    else:
        value = rng.choice((len(out), len(out) // BLOCK, rng.randrange(len(out) + 1), rng.randrange(bound)))
    struct.pack_into(form, out, at, value % bound)


def _flip(out: bytearray, rng: random.Random, _others: Sequence[bytes]) -> None:
    if out:
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)


def _set(out: bytearray, rng: random.Random, _others: Sequence[bytes]) -> None:
    if out:
        out[rng.randrange(len(out))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))


def _word(out: bytearray, rng: random.Random, _others: Sequence[bytes]) -> None:
    if len(out) >= 8:
        _change_number(out, rng, [(rng.randrange(len(out) - 7), rng.choice((1, 2, 4, 8)))])


def _cut(out: bytearray, rng: random.Random, _others: Sequence[bytes]) -> None:
    unit = rng.choice((1, 8, 512, BLOCK))
    del out[rng.randrange(len(out) // unit + 1) * unit :]


def _grow(out: bytearray, rng: random.Random, _others: Sequence[bytes]) -> None:
    out += bytes([rng.choice((0, 0xFF))]) * rng.choice((1, 8, 512, BLOCK))


def _copy(out: bytearray, rng: random.Random, _others: Sequence[bytes]) -> None:
    """Copy a block over another one, or in front of it."""
    size = rng.choice((1, 4, 8, 16, 32, 512, BLOCK))
    count = len(out) // size
    if count:
        source, target = rng.randrange(count) * size, rng.randrange(count) * size
        end = target if rng.random() < 0.3 else target + size
        out[target:end] = out[source : source + size]


def _remove(out: bytearray, rng: random.Random, _others: Sequence[bytes]) -> None:
    size = rng.choice((1, 4, 8, 16, 32, 512, BLOCK))
    at = rng.randrange(len(out) // size + 1) * size
    del out[at : at + size]


def _splice(out: bytearray, rng: random.Random, others: Sequence[bytes]) -> None:
    """Take the end, or a block, from another file."""
    other = rng.choice(others) if others else b""
    size = rng.choice((8, 512, BLOCK))
    at = rng.randrange(len(out) // size + 1) * size
    if rng.random() < 0.5:
        out[at:] = other[at:]
    else:
        out[at : at + size] = other[at : at + size]


def _fill(out: bytearray, rng: random.Random, _others: Sequence[bytes]) -> None:
    """Repeat one word over a block: a table that names the same thing everywhere."""
    if len(out) >= 8:
        at = rng.randrange(len(out) // 8) * 8
        block = at // BLOCK * BLOCK
        end = min(block + BLOCK, len(out) // 8 * 8)
        out[block:end] = bytes(out[at : at + 8]) * ((end - block) // 8)


CHANGES: tuple[Callable[[bytearray, random.Random, Sequence[bytes]], None], ...] = (
    *(_flip, _set, _word, _word, _cut, _grow, _copy, _remove, _splice, _fill),
)


def mutate_json(data: bytes, rng: random.Random, others: Sequence[bytes], most: int) -> bytes:
    """Return JSON, or lines of it, with one to three values changed, removed, doubled or moved."""
    lines = data.split(b"\n") if data.count(b"\n{") and not data.startswith(b"{\n") else [data]
    number = rng.randrange(len(lines))
    try:
        found = json.loads(lines[number])
    except (ValueError, RecursionError):
        return mutate_bytes(data, rng, (), others, most)
    root = [found]
    for _ in range(rng.choice((1, 1, 2, 3))):
        _change_value(root, rng)
    text = json.dumps(root[0], indent=1 if len(lines) == 1 else None)
    lines[number] = text.encode("utf-8", "surrogatepass")
    return b"\n".join(lines)[:most]


def _change_value(root: list[Any], rng: random.Random) -> None:
    holders: list[tuple[Any, Any]] = []
    pending: list[Any] = [root]
    while pending:
        one = pending.pop()
        keys = range(len(one)) if isinstance(one, list) else list(one)
        for key in keys:
            holders.append((one, key))
            if isinstance(one[key], list | dict):
                pending.append(one[key])
    holder, key = rng.choice(holders)
    kind = rng.randrange(7)
    if kind == 0 and holder is not root:
        del holder[key]
    elif kind == 1 and isinstance(holder, list) and holder is not root:
        holder.extend([holder[key]] * rng.choice((1, 2, 50)))
    elif kind == 2:
        other, other_key = rng.choice(holders)
        holder[key] = json.loads(json.dumps(other[other_key]))
    elif kind == 4 and isinstance(holder, dict):
        holder[rng.choice([one for one in JUNK if isinstance(one, str)])] = holder.pop(key)
    elif kind == 3 and type(holder[key]) is int:
        holder[key] += rng.choice((-1, 1, -holder[key], 1 << 20, 1 << 62))
    else:
        holder[key] = copy.deepcopy(rng.choice(JUNK))
