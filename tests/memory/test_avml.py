# SPDX-License-Identifier: GPL-2.0-or-later
"""Dumps of AVML, made field by field, with Snappy by another library than the reader's: read, cut, and hostile."""

from __future__ import annotations

import struct
import tracemalloc
from contextlib import suppress

import cramjam
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hibernaut.errors import CorruptImage, FormatError, HibernautError
from hibernaut.memory.avml import open_avml
from hibernaut.memory.dump import Dump
from tests.memory.conftest import Opening
from tests.memory.naive import IDENTIFIER, PAGE, avml, chunk, framed, frames_of_ranges, page_of


def pages(*pfns: int) -> bytes:
    """Return pages that name their frames."""
    return b"".join(map(page_of, pfns))


LOW, HIGH = pages(*range(3, 60)), pages(*range(0x100000, 0x100009))
CASES = {
    "one chunk": [(3 * PAGE, LOW[:PAGE], framed(LOW[:PAGE]))],
    "two ranges": [(3 * PAGE, LOW, framed(LOW)), (1 << 32, HIGH, framed(HIGH))],
    "by AVML's library": [(3 * PAGE, LOW, bytes(cramjam.snappy.compress(LOW)))],
    "plain chunks": [(3 * PAGE, LOW, framed(LOW, plain=True))],
    "pages over two chunks": [(3 * PAGE, LOW, framed(LOW, (1000, 5000, 3, 9000)))],
    "chunks of a page": [(3 * PAGE, LOW, framed(LOW, (PAGE,)))],
    "skipped chunks": [(3 * PAGE, LOW, framed(LOW, (PAGE,), extra=b"\xfe\x03\0\0xyz\x80\0\0\0" + IDENTIFIER))],
    "start inside a page": [(3 * PAGE - 100, bytes(100) + LOW, framed(bytes(100) + LOW))],
    "end inside a page": [(3 * PAGE, LOW + b"end", framed(LOW + b"end"))],
    "a page of two ranges": [
        (3 * PAGE, LOW[: PAGE + 1000], framed(LOW[: PAGE + 1000])),
        (4 * PAGE + 1000, LOW[PAGE + 1000 :], framed(LOW[PAGE + 1000 :], (777,))),
    ],
    "overlap": [(3 * PAGE, LOW, framed(LOW)), (5 * PAGE, HIGH, framed(HIGH))],
}


@pytest.mark.parametrize("blocks", CASES.values(), ids=CASES)
def test_every_page_is_read(opening: Opening, blocks: list[tuple[int, bytes, bytes]]) -> None:
    """In order, by frame, and many at once."""
    wanted = frames_of_ranges([(start, data) for start, data, _ in blocks])
    dump = opening.dump(open_avml, avml(blocks))
    assert (dump.kind, dump.remarks) == ("avml", ())
    memory = dump.memory
    assert {first + row: one.tobytes() for first, some in memory.blocks(7) for row, one in enumerate(some)} == wanted
    assert {pfn for start, count in memory.ranges for pfn in range(start, start + count)} == set(wanted)
    asked = sorted({near for pfn in wanted for near in (pfn - 1, pfn, pfn + 1)})
    got, present = memory.gather(np.array(asked))
    assert present.tolist() == [pfn in wanted for pfn in asked]
    assert [one.tobytes() for one in got] == [wanted.get(pfn, bytes(PAGE)) for pfn in asked]
    assert all(not memory.run(pfn, 1).flags.writeable for pfn in wanted)


def test_many_pages_at_once(opening: Opening) -> None:
    """More than one task of frames, out of order."""
    data = pages(*range(5000))
    memory = opening.dump(open_avml, avml([(0, data, bytes(cramjam.snappy.compress(data)))])).memory
    order = np.random.default_rng(1).permutation(5000)
    got, present = memory.gather(order)
    assert present.all()
    assert (got.view("<u8")[:, 0] == order).all()


@pytest.mark.parametrize("cut", [1, 4, 8, 9, 40, 5000, 70000, 150000])
def test_a_file_that_is_cut_is_read_as_far_as_it_goes(opening: Opening, cut: int) -> None:
    """Whole chunks are read; the remark has the number of missing pages."""
    whole = avml(CASES["two ranges"])
    wanted = frames_of_ranges([(start, data) for start, data, _ in CASES["two ranges"]])
    dump = opening.dump(open_avml, whole[:-cut])
    assert "the dump is incomplete" in dump.remarks[0]
    found = {first + row: one.tobytes() for first, some in dump.memory.blocks() for row, one in enumerate(some)}
    assert found.items() <= wanted.items()
    assert f"{len(wanted) - len(found)} pages of its last range" in dump.remarks[0] or cut <= 8 or cut > 40000


def damaged(*, crc: int | None = None, stream: bytes | None = None, length: int | None = None) -> bytes:
    """Return a file with one range of a page, wrong in one way."""
    data = page_of(3)
    stream = IDENTIFIER + chunk(data, crc=crc) if stream is None else stream
    whole = avml([(3 * PAGE, data, stream)])
    return whole if length is None else whole[:-8] + struct.pack("<Q", length)


HOSTILE = {
    "reserved chunk": (damaged(stream=IDENTIFIER + b"\x02\0\0\0"), "impossible chunk of kind 0x02"),
    "identifier": (damaged(stream=b"\xff\x06\0\0sNaPpy" + chunk(page_of(3))), "no identifier"),
    "more than 64 KiB": (
        damaged(stream=IDENTIFIER + b"\0\x08\0\0" + bytes(4) + b"\x80\x80\x80\x01"),
        "chunk of 2097152 bytes of data",
    ),
    "4 GiB": (damaged(stream=IDENTIFIER + b"\0\x09\0\0" + bytes(4) + b"\xff\xff\xff\xff\x0f"), "chunk of 4294967295"),
    "unreadable length": (damaged(stream=IDENTIFIER + b"\0\x09\0\0" + bytes(4) + b"\xff" * 5), "unreadable number"),
    "more than the range": (damaged(stream=IDENTIFIER + chunk(pages(3, 4))), "chunk of 8192 bytes of data"),
    "short chunk": (damaged(stream=IDENTIFIER + b"\0\x02\0\0ab"), "impossible chunk of kind 0x00"),
    "wrong length after it": (damaged(length=5), "no length after a range"),
    "range beyond memory": (struct.pack("<IIQQ8x", 0x4C4D5641, 2, 1 << 52, (1 << 52) + 4095), "impossible range"),
    "range backwards": (struct.pack("<IIQQ8x", 0x4C4D5641, 2, 8192, 4095), "impossible range"),
    "rubbish after a range": (damaged() + bytes(32), "no AVML header after a range"),
    "no page": (avml([(0, b"x", framed(b"x"))]), "no range holds a whole page"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_impossible_files_are_refused(opening: Opening, name: str) -> None:
    """At the byte where they are wrong."""
    content, words = HOSTILE[name]
    with pytest.raises(FormatError, match=words):
        opening(open_avml, content)


@pytest.mark.parametrize(
    "content",
    [
        damaged(crc=5),
        damaged(stream=IDENTIFIER + b"\0\x08\0\0" + bytes(4) + b"\x80\x20\xfe\xff"),
        damaged(stream=IDENTIFIER + b"\x01\x04\x10\0" + bytes(4) + page_of(3)),
    ],
)
def test_damaged_chunks_are_corrupt_when_they_are_read(opening: Opening, content: bytes) -> None:
    """The CRC of each chunk is checked."""
    memory = opening.dump(open_avml, content).memory
    with pytest.raises(CorruptImage, match="damaged chunk"):
        memory.page(3)
    with pytest.raises(CorruptImage, match="damaged chunk"):
        list(memory.blocks())


def test_a_claimed_range_allocates_nothing(opening: Opening) -> None:
    """4 PiB in a header of 32 bytes."""
    data = page_of(0)
    content = struct.pack("<IIQQ8x", 0x4C4D5641, 2, 0, (1 << 52) - 1) + framed(data)
    tracemalloc.start()
    try:
        memory = opening.dump(open_avml, content).memory
        assert memory.page(0) is not None
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert list(memory.ranges) == [(0, 1)]
    assert peak < 8 << 20


def test_other_files_are_not_avml(opening: Opening) -> None:
    """LiME itself, other versions, and files that are too short."""
    assert "version 3" in opening.refusal(open_avml, avml(CASES["one chunk"], version=3))
    assert "no AVML magic" in opening.refusal(open_avml, bytes(4096))
    assert "shorter" in opening.refusal(open_avml, b"AVML")


@given(data=st.data())
def test_bytes_changed_anywhere(opening: Opening, data: st.DataObject) -> None:
    """Refused, corrupt, or read: no other exception."""
    content = bytearray(avml([(3 * PAGE, LOW[: 4 * PAGE], framed(LOW[: 4 * PAGE], (5000,)))]))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1) | st.integers(0, 60))] = data.draw(st.integers(0, 255))
    with suppress(HibernautError):
        answer = opening(open_avml, bytes(content))
        if isinstance(answer, Dump):
            list(answer.memory.blocks())
