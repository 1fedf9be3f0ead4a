# SPDX-License-Identifier: GPL-2.0-or-later
"""Volumes made of others, against the same bytes in one piece."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hibernaut.errors import FormatError
from hibernaut.volumes.volume import Bytes, Joined, Mapped, Slice, StreamVolume, Striped, Volume, VolumeFile
from hibernaut.volumes.xts import XtsVolume


class Plain:
    """Bytes as a volume: all that a caller has to write."""

    def __init__(self, content: bytes) -> None:
        self.name = "plain"
        self.content = content
        self.size_bytes = len(content)

    def pread(self, offset: int, size_bytes: int) -> bytes:
        """See `Volume.pread`."""
        return self.content[offset : offset + size_bytes]

    def pread_into(self, offset: int, out: Bytes) -> int:
        """See `Volume.pread_into`."""
        part = self.pread(offset, len(out))
        out[: len(part)] = np.frombuffer(part, dtype=np.uint8)
        return len(part)


CONTENT = np.random.default_rng(1).bytes(40_000)
BASE = Plain(CONTENT)


def mapped() -> tuple[Volume, bytes]:
    """Runs out of order, one of zeroes."""
    runs = [(30_000, 5_000), (None, 300), (0, 7), (100, 9_000)]
    return Mapped(BASE, runs, "m"), b"".join(
        bytes(length) if start is None else CONTENT[start : start + length] for start, length in runs
    )


def joined() -> tuple[Volume, bytes]:
    """Two volumes, one after the other."""
    return Joined([Slice(BASE, 10, 500, "a"), Slice(BASE, 39_000, 5_000, "b")], "j"), CONTENT[10:510] + CONTENT[39_000:]


def striped() -> tuple[Volume, bytes]:
    """Three volumes by turns."""
    parts = [CONTENT[at : at + 6_000] for at in (0, 10_000, 20_000)]
    whole = b"".join(parts[turn % 3][turn // 3 * 1_000 :][:1_000] for turn in range(18))
    return Striped([Plain(part) for part in parts], 1_000, "s"), whole


def streamed() -> tuple[Volume, bytes]:
    """A file of a volume, taken for a library's stream."""
    return StreamVolume(VolumeFile(BASE), len(CONTENT), "v", advice="look"), CONTENT


@pytest.mark.parametrize("make", [mapped, joined, striped, streamed])
@given(data=st.data())
def test_any_bytes_of_a_volume(make: Callable[[], tuple[Volume, bytes]], data: st.DataObject) -> None:
    """A read gives the bytes that are there, fewer only at the end, and leaves the rest of an array alone."""
    volume, content = make()
    assert isinstance(volume, Volume)
    assert volume.size_bytes == len(content)
    offset = data.draw(st.integers(0, len(content) + 10))
    size = data.draw(st.integers(0, len(content) + 10))
    assert volume.pread(offset, size) == content[offset : offset + size]
    out = np.full(size, 0xEE, dtype=np.uint8)
    got = volume.pread_into(offset, out)
    assert out[:got].tobytes() == content[offset : offset + size]
    assert (out[got:] == 0xEE).all()


def test_runs_outside_a_volume_are_refused() -> None:
    """A cut disk is refused, not read as zeroes."""
    with pytest.raises(FormatError, match=r"m has 10 bytes at byte 39995: plain; expected bytes below 40000; copy"):
        Mapped(BASE, [(39_995, 10)], "m")
    with pytest.raises(FormatError, match="m is empty"):
        Mapped(BASE, [(5, 0)], "m")
    with pytest.raises(FormatError, match="p begins at byte 40000"):
        Slice(BASE, 40_000, 1, "p")


def test_a_library_that_fails_is_one_line() -> None:
    """Whatever a library raises on damaged bytes becomes a FormatError with the place."""

    class Broken:
        def seek(self, offset: int, _whence: int = 0, /) -> int:
            return offset

        def read(self, _size: int = -1, /) -> bytes:
            raise KeyError("no\nsuch cluster")

    volume = StreamVolume(Broken(), 100, "disk", advice="check it")
    with pytest.raises(
        FormatError, match=r"^this part is damaged.*KeyError: 'no\\nsuch cluster'.*disk, byte 7; check it$"
    ):
        volume.pread(7, 5)


@pytest.mark.parametrize("sector_bytes", [512, 4096])
@pytest.mark.parametrize("key_bytes", [32, 64])
@given(data=st.data())
def test_xts_against_the_library(sector_bytes: int, key_bytes: int, data: st.DataObject) -> None:
    """Every read equals the library's own XTS, a sector at a time."""
    ciphers = pytest.importorskip("cryptography.hazmat.primitives.ciphers")
    key = np.random.default_rng(key_bytes).bytes(key_bytes)
    first = data.draw(st.sampled_from([0, 7, (1 << 32) - 3, (1 << 63) - 1000]))
    plain = CONTENT[: len(CONTENT) // 4096 * 4096]
    packed = bytearray()
    for at in range(0, len(plain), sector_bytes):
        tweak = (first + at // 512).to_bytes(16, "little")
        cipher = ciphers.Cipher(ciphers.algorithms.AES(key), ciphers.modes.XTS(tweak))
        packed += cipher.encryptor().update(plain[at : at + sector_bytes])
    start = 1536
    volume = XtsVolume(
        Plain(bytes(start) + bytes(packed)), start, len(plain), key,
        sector_bytes=sector_bytes, first_sector=first, name="x",
    )  # fmt: skip
    offset = data.draw(st.integers(0, len(plain) + 10))
    size = data.draw(st.integers(0, len(plain)))
    assert volume.pread(offset, size) == plain[offset : offset + size]


def test_threads_share_a_stream() -> None:
    """The position of a stream is shared; what threads read is right all the same."""
    volume, content = streamed()
    wrong: list[int] = []

    def read(seed: int) -> None:
        rng = np.random.default_rng(seed)
        places = rng.integers(0, len(content), 300).tolist()
        wrong.extend(at for at in places if volume.pread(at, 50) != content[at : at + 50])

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(2 * (os.cpu_count() or 1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
