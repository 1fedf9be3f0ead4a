# SPDX-License-Identifier: GPL-2.0-or-later
"""LZO-RLE. Witnesses: an encoder of LZO1X for all that both have in common, streams by hand, pages of a real zswap."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hibernaut.kernel.lzo_rle import decompress_lzo_rle
from hibernaut.kernel.zswap import DECOMPRESSORS
from hibernaut.swsusp.codecs import codec_named

END = bytes([17, 0, 0])
VERSION_1 = bytes([17, 1])


def zeroes(length: int, state: int = 0) -> bytes:
    """Return the instruction for a run of 4 to 2051 zeroes: the length less 4, its 3 low bits in the first byte."""
    return bytes([0x18 | length - 4 & 7, 0xFC | state, 0xFF, length - 4 >> 3])


def literals(data: bytes) -> bytes:
    """Return a stream's start with 1 to 238 literals; a stream cannot start with anything else."""
    return bytes([17 + len(data)]) + data


ZERO_PAGE = literals(bytes(4)) + zeroes(2051) + zeroes(2041)


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=40), st.integers(1, 90)), max_size=30), st.booleans())
def test_plain_lzo_is_decoded(parts: list[tuple[bytes, int]], reverse: bool) -> None:
    """Whatever an encoder of LZO1X writes: a stream of version 0."""
    data = b"".join(piece * count for piece, count in parts)
    data = (data[::-1] + data if reverse else data)[: 1 << 16]
    if not data:
        return
    packed = bytes(codec_named("lzo").compress(np.frombuffer(data, dtype=np.uint8)))
    assert decompress_lzo_rle(packed, len(data)) == data
    with pytest.raises(ValueError, match=f"more than {len(data) - 1} bytes"):
        decompress_lzo_rle(packed, len(data) - 1)


def test_far_copies() -> None:
    """Distances from 16 KiB on, which no page has, but the format does."""
    start = bytes(range(1, 201))
    length = 40000
    extra, last = divmod(length - 2 - 31 - 1, 255)
    repeated = bytes([32, *bytes(extra), last + 1]) + (199 << 2).to_bytes(2, "little")
    plain = (start * 202)[: 200 + length]
    for distance in (16385, 20000, 32767, 32769, 40000):
        high, low = divmod(distance - (1 << 14), 1 << 14)
        far = bytes([16 | high << 3 | 5]) + (low << 2).to_bytes(2, "little")
        packed = literals(start) + repeated + far + END
        assert decompress_lzo_rle(packed, 50000) == plain + plain[len(plain) - distance :][:7]


def test_runs_of_zeroes() -> None:
    """Their length is in 11 bits, from 4 on; the literals after it are as after a copy. Version 0 has no runs."""
    assert decompress_lzo_rle(VERSION_1 + ZERO_PAGE + END, 4096) == bytes(4096)
    for length in (4, 11, 12, 2051):
        run = zeroes(length, 2) + b"xy"
        stream = VERSION_1 + literals(b"abcdef") + run + bytes([0x80 | 1 << 2, 0]) + END
        assert decompress_lzo_rle(stream, 4096) == b"abcdef" + bytes(length) + b"xy" + b"xyxyx"
    plain = literals(b"abcdef") + zeroes(2051) + END
    with pytest.raises(ValueError, match="a copy from 49151 bytes before"):
        decompress_lzo_rle(plain, 4096)


@pytest.mark.parametrize(
    ("stream", "words"),
    [
        (b"", "cut short"),
        (VERSION_1, "a copy|cut short"),
        (bytes([17, 2]) + ZERO_PAGE + END, "version 2"),
        (VERSION_1 + ZERO_PAGE, "cut short"),
        (VERSION_1 + ZERO_PAGE[:8], "cut short"),
        (VERSION_1 + ZERO_PAGE + END + b"\0\0", "2 bytes after the end"),
        (VERSION_1 + ZERO_PAGE + zeroes(4) + END, "more than 4096 bytes"),
        (VERSION_1 + literals(b"abc") + bytes([0x80 | 3 << 2, 0]) + END, "a copy from 4 bytes before, 3 are there"),
        (VERSION_1 + literals(b"abcdefgh")[:5], "cut short"),
        (VERSION_1 + literals(b"abcdef") + bytes([32]) + bytes(4000), "a length beyond the size"),
    ],
)
def test_damaged_streams_are_refused(stream: bytes, words: str) -> None:
    """One line; nothing is written past the page."""
    with pytest.raises(ValueError, match=words) as error:
        decompress_lzo_rle(stream, 4096)
    assert str(error.value).startswith("LZO-RLE, byte ")


def test_zswap_takes_whole_pages_only() -> None:
    """A stream of less than a page is refused, as for the other compressors."""
    page = np.full(4096, 7, dtype=np.uint8)
    DECOMPRESSORS["lzo-rle"](VERSION_1 + ZERO_PAGE + END, page)
    assert not page.any()
    with pytest.raises(ValueError, match="it has 4 bytes then"):
        DECOMPRESSORS["lzo-rle"](VERSION_1 + literals(b"abcd") + END, page)


@given(st.binary(max_size=200))
def test_random_bytes_never_escape(stream: bytes) -> None:
    """A page, or the refusal."""
    for start in (b"", VERSION_1):
        with contextlib.suppress(ValueError):
            assert len(decompress_lzo_rle(start + stream, 4096)) <= 4096
