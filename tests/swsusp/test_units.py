# SPDX-License-Identifier: GPL-2.0-or-later
"""Many units in one call: as one by one by another library, with zlib's CRC, never outside of the arrays."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from hibernaut.swsusp.codecs import Codec
from hibernaut.swsusp.units import DamagedUnit, ZeroUnits, pack_units, packed_room, unpack_units
from tests.swsusp.test_codecs import CODECS, foreign

UNIT = 32 * 4096
AROUND = 4096


def stream(seed: int, size_bytes: int) -> NDArray[np.uint8]:
    """Bytes that compress, each unit by another factor."""
    plain = np.resize(np.arange(250, dtype=np.uint8), size_bytes)
    rng = np.random.default_rng(seed)
    for at in range(0, size_bytes, UNIT):
        noise = int(rng.integers(0, UNIT))
        plain[at : at + noise] = rng.integers(0, 256, len(plain[at : at + noise]), dtype=np.uint8)
    return plain


def packed(codec: Codec, plain: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], list[int], list[int], int]:
    """The blocks of a stream, where its units begin in them and how long they are, and its CRC."""
    units = -(-len(plain) // UNIT)
    room = np.full(packed_room(codec, units, UNIT), 0xEE, dtype=np.uint8)
    stored_bytes, compressed_bytes, crc = pack_units(codec, plain, UNIT, room)
    at, lengths, begin = [], [], 0
    for _ in range(units):
        lengths.append(int(room[begin : begin + 8].view("<u8")[0]))
        at.append(begin + 8)
        end = begin + 8 + lengths[-1]
        begin = -(-end // 4096) * 4096
        assert not room[end:begin].any()  # memory of before would leak into the file
    assert (begin, sum(lengths)) == (stored_bytes, compressed_bytes)
    assert (room[stored_bytes:][-AROUND:] == 0xEE).all()
    return room[:stored_bytes], at, lengths, crc


@pytest.mark.parametrize("name", CODECS)
@given(seed=st.integers(0, 1 << 30), pages=st.integers(1, 130) | st.sampled_from([256, 257, 511, 512, 600]))
def test_units_are_those_of_another_library(name: str, seed: int, pages: int) -> None:
    """Packed together, each unpacks by a library called directly; unpacked together they are the stream again."""
    codec, plain = CODECS[name](), stream(seed, pages * 4096)
    blocks, at, lengths, crc = packed(codec, plain)
    assert crc == zlib.crc32(plain.tobytes())
    _, unpack = foreign(name)
    alone = [unpack(blocks[begin : begin + length].tobytes()) for begin, length in zip(at, lengths, strict=True)]
    assert b"".join(alone) == plain.tobytes()
    around = np.full(len(plain) + 2 * AROUND, 0xEE, dtype=np.uint8)
    out = around[AROUND:-AROUND]
    assert unpack_units(codec, blocks, at, lengths, out, UNIT, zlib.crc32(b"before")) == zlib.crc32(
        b"before" + plain.tobytes()
    )
    assert (out == plain).all()
    assert (around[:AROUND] == 0xEE).all()
    assert (around[-AROUND:] == 0xEE).all()


@pytest.mark.parametrize("name", CODECS)
@given(bad=st.integers(0, 3), kind=st.sampled_from(["cut", "long", "garbage"]))
def test_a_damaged_unit_is_named(name: str, bad: int, kind: str) -> None:
    """The first unit that does not decompress to its length is the one that the error has."""
    codec, plain = CODECS[name](), stream(bad, 4 * UNIT)
    blocks, at, lengths, _ = packed(codec, plain)
    out = np.zeros(len(plain), dtype=np.uint8)
    if kind == "cut":
        lengths[bad] -= 5
    elif kind == "garbage":
        blocks[at[bad] : at[bad] + lengths[bad]] = 0
    else:
        other = codec.compress(stream(bad, UNIT + 4096))
        blocks = np.concatenate((blocks, np.frombuffer(other, dtype=np.uint8)))
        at[bad], lengths[bad] = len(blocks) - len(other), len(other)
    with pytest.raises(DamagedUnit, match="decompress") as caught:
        unpack_units(codec, blocks, at, lengths, out, UNIT)
    assert caught.value.position == bad


OUTSIDE: dict[str, Callable[[list[int], list[int]], object]] = {
    "begins before": lambda at, _: at.__setitem__(0, -1),
    "ends behind": lambda _, lengths: lengths.__setitem__(-1, 1 << 20),
    "negative length": lambda _, lengths: lengths.__setitem__(0, -5),
}


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("how", OUTSIDE)
def test_places_outside_of_the_arrays_are_refused(name: str, how: str) -> None:
    """An address is never made of a place that is not checked."""
    codec, plain = CODECS[name](), stream(1, 2 * UNIT)
    blocks, at, lengths, _ = packed(codec, plain)
    OUTSIDE[how](at, lengths)
    with pytest.raises(ValueError, match="outside"):
        unpack_units(codec, blocks, at, lengths, np.empty(len(plain), dtype=np.uint8), UNIT)


@pytest.mark.parametrize("name", CODECS)
def test_a_room_that_is_too_small_is_refused(name: str) -> None:
    """More units than the room is for, in either direction, are refused, and nothing is written behind it."""
    codec, plain = CODECS[name](), np.random.default_rng(1).integers(0, 256, 2 * UNIT, dtype=np.uint8)
    around = np.full(packed_room(codec, 1, UNIT) + AROUND, 0xEE, dtype=np.uint8)
    with pytest.raises(ValueError, match=r"room|assign"):
        pack_units(codec, plain, UNIT, around[:-AROUND])
    assert (around[-AROUND:] == 0xEE).all()
    blocks, at, lengths, _ = packed(codec, plain)
    for size_bytes in (UNIT, 2 * UNIT + 1):
        with pytest.raises(ValueError, match="units of"):
            unpack_units(codec, blocks, at, lengths, np.empty(size_bytes, dtype=np.uint8), UNIT)


@pytest.mark.parametrize("name", CODECS)
@given(kinds=st.lists(st.sampled_from(["zero", "zero but for the last byte", "data"]), min_size=1, max_size=12))
def test_units_of_zeroes_are_recognised_by_their_form_alone(name: str, kinds: list[str]) -> None:
    """With forms that were learned before, or just now, the bytes are the same, and none of another unit is one."""
    codec, zeroes = CODECS[name](), ZeroUnits()
    plain = np.zeros(len(kinds) * UNIT - 4096, dtype=np.uint8)
    for number, kind in enumerate(kinds):
        unit = plain[number * UNIT : (number + 1) * UNIT]
        if kind == "data":
            unit[:] = stream(number, len(unit))
        elif kind != "zero":
            unit[-1] = 1
    blocks, at, lengths, crc = packed(codec, plain)
    for _ in range(2):
        out = np.full(len(plain), 0xEE, dtype=np.uint8)
        assert unpack_units(codec, blocks, at, lengths, out, UNIT, 0, zeroes) == crc
        assert (out == plain).all()
    form = blocks[at[0] : at[0] + lengths[0]]
    assert zeroes.has(form) == (kinds[0] == "zero" and len(kinds) > 1)


@pytest.mark.parametrize("name", CODECS)
@given(zero=st.lists(st.booleans(), min_size=2, max_size=12), which=st.integers(0, 11))
def test_a_damaged_unit_among_zeroes_is_named(name: str, zero: list[bool], which: int) -> None:
    """The position of a unit that is cut counts all units before it, whatever they hold."""
    codec, zeroes = CODECS[name](), ZeroUnits()
    which %= len(zero)
    plain = np.zeros(len(zero) * UNIT, dtype=np.uint8)
    for number in range(len(zero)):
        if number == which or not zero[number]:
            plain[number * UNIT : (number + 1) * UNIT] = stream(number, UNIT)
    blocks, at, lengths, _ = packed(codec, plain)
    lengths[which] -= 5
    with pytest.raises(DamagedUnit) as caught:
        unpack_units(codec, blocks, at, lengths, np.empty(len(plain), dtype=np.uint8), UNIT, 0, zeroes)
    assert caught.value.position == which


@pytest.mark.parametrize("name", CODECS)
def test_the_form_of_a_unit_of_zeroes_is_that_of_its_length_alone(name: str) -> None:
    """In the place of a shorter unit the form of a whole one is damage, and the other way round, known or not."""
    codec, zeroes = CODECS[name](), ZeroUnits()
    blocks, at, lengths, _ = packed(codec, np.zeros(2 * UNIT + 4096, dtype=np.uint8))
    whole, short = at[0], at[2]
    for _ in range(2):
        assert unpack_units(codec, blocks, at, lengths, np.ones(2 * UNIT + 4096, dtype=np.uint8), UNIT, 0, zeroes)
    assert zeroes.has(blocks[whole : whole + lengths[0]])
    assert not zeroes.has(blocks[short : short + lengths[2]])
    for places, sizes, size_bytes in (
        ([whole, whole], [lengths[0]] * 2, UNIT + 4096),
        ([whole, short], [lengths[0], lengths[2]], 2 * UNIT),
    ):
        with pytest.raises(DamagedUnit) as caught:
            unpack_units(codec, blocks, places, sizes, np.empty(size_bytes, dtype=np.uint8), UNIT, 0, zeroes)
        assert caught.value.position == 1
