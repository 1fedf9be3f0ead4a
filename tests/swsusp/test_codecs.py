# SPDX-License-Identifier: GPL-2.0-or-later
"""Every library of LZO and LZ4: what one packs the others unpack, and damage is a ValueError."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import lz4.block
import lzallright
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from hibernaut.swsusp import codecs, system_codecs
from hibernaut.swsusp.codecs import Codec, codec_named

UNIT = 32 * 4096


def without(*makers: str) -> Codec:
    """The codec where the libraries of the first choices are not installed."""
    with pytest.MonkeyPatch.context() as patch:

        def absent() -> Codec:
            raise ImportError

        for maker in makers:
            patch.setattr(codecs, maker, absent)
        return codec_named("lz4" if "lz4" in makers[0] else "lzo")


def installed(maker: str) -> Codec:
    """The codec of one library; the test is skipped where that is not installed."""
    try:
        codec: Codec = getattr(codecs, maker)()
    except ImportError as error:
        pytest.skip(str(error))
    return codec


CODECS: dict[str, Callable[[], Codec]] = {
    "lzo by liblzo2": lambda: installed("_liblzo2"),
    "lzo by python-lzo": lambda: installed("_python_lzo"),
    "lzo by lzallright": lambda: installed("_lzallright"),
    "lz4 by liblz4": lambda: installed("_liblz4"),
    "lz4 by lz4 and cramjam": lambda: installed("_lz4"),
    "lz4 by lz4 alone": lambda: installed("_lz4_alone"),
}


def foreign(name: str) -> tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]:
    """Packing and unpacking by a library called directly."""
    if name.startswith("lz4"):
        return partial(lz4.block.compress, store_size=False), partial(lz4.block.decompress, uncompressed_size=UNIT)
    return lzallright.LZOCompressor().compress, lambda packed: lzallright.LZOCompressor.decompress(packed, UNIT)


def unpacked(codec: Codec, packed: bytes, size_bytes: int) -> NDArray[np.uint8]:
    """Return what a codec decompresses into an array of this size."""
    out = np.full(size_bytes, 0xEE, dtype=np.uint8)
    codec.decompress_into(np.frombuffer(packed, dtype=np.uint8), out)
    return out


def unit(seed: int, noise: int) -> NDArray[np.uint8]:
    """128 KiB, the first bytes noise and the rest a pattern."""
    plain = np.resize(np.arange(200, dtype=np.uint8), UNIT)
    plain[:noise] = np.random.default_rng(seed).integers(0, 256, noise, dtype=np.uint8)
    return plain


@pytest.mark.parametrize("name", CODECS)
@given(seed=st.integers(0, 1 << 30), noise=st.integers(0, UNIT))
def test_round_trips_with_another_library(name: str, seed: int, noise: int) -> None:
    """Both directions, from all noise to all pattern."""
    codec, (pack, unpack) = CODECS[name](), foreign(name)
    plain = unit(seed, noise)
    assert (unpacked(codec, pack(plain.tobytes()), UNIT) == plain).all()
    assert unpack(codec.compress(plain)) == plain.tobytes()


@pytest.mark.parametrize("name", CODECS)
def test_another_size_than_expected_is_damage(name: str) -> None:
    """More bytes or fewer than there is room for are refused; nothing is written beyond the room."""
    codec = CODECS[name]()
    packed = codec.compress(unit(1, 5000))
    for size_bytes in (UNIT - 4096, UNIT + 4096):
        with pytest.raises(ValueError, match=r"decompress"):
            unpacked(codec, packed, size_bytes)


@pytest.mark.parametrize("name", CODECS)
@given(data=st.binary(max_size=400))
def test_garbage_is_a_value_error(name: str, data: bytes) -> None:
    """Bytes that are not a stream never raise another exception."""
    with pytest.raises(ValueError, match=r"decompress"):
        unpacked(CODECS[name](), data, UNIT)


@pytest.mark.parametrize("name", CODECS)
def test_threads_share_a_codec(name: str) -> None:
    """One codec used by four threads at once packs and unpacks as for one: the libraries keep no state in it."""
    codec = CODECS[name]()
    plain = [unit(seed, 9000 * seed) for seed in range(12)]
    packed = [codec.compress(one) for one in plain]

    def use(number: int) -> bool:
        one = number % len(plain)
        return codec.compress(plain[one]) == packed[one] and bool(
            (unpacked(codec, packed[one], UNIT) == plain[one]).all()
        )

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(use, range(400)))


@pytest.mark.parametrize("maker", ["_liblzo2", "_liblz4"])
@given(data=st.data())
def test_a_changed_stream_stays_within_its_room(maker: str, data: st.DataObject) -> None:
    """Whatever bytes a stream has: the bytes around the room stay, and the answer is that of another library."""
    codec = installed(maker)
    other = codecs._lzallright() if codec.name == "lzo" else codecs._lz4_alone()
    packed = np.frombuffer(codec.compress(unit(data.draw(st.integers(0, 9)), data.draw(st.integers(0, 4000)))), "u1")
    packed = packed[: data.draw(st.integers(1, len(packed)))].copy()
    for at in data.draw(st.lists(st.integers(0, len(packed) - 1), max_size=4)):
        packed[at] = data.draw(st.integers(0, 255))
    around = np.full(UNIT + 2 * 4096, 0xEE, dtype=np.uint8)
    room = around[4096:-4096]
    found: list[object] = []
    for one, out in ((codec, room), (other, np.empty(UNIT, dtype=np.uint8))):
        try:
            one.decompress_into(packed, out)
            found.append(out.tobytes())
        except ValueError:
            found.append(ValueError)
    assert (around[:4096] == 0xEE).all()
    assert (around[-4096:] == 0xEE).all()
    assert found[0] == found[1]


@pytest.mark.parametrize("maker", ["_python_lzo", "_lzallright"])
def test_every_lzo_library_has_the_same_words(maker: str) -> None:
    """A message does not depend on what is installed."""
    packed = np.frombuffer(codecs._lzallright().compress(unit(1, 3000)), "u1")
    other, words = installed(maker), set()
    for one in (packed[:-3], packed[:1000], np.r_[packed, packed[:7]], np.zeros(900, "u1"), packed[2000:]):
        texts = []
        for codec in (installed("_liblzo2"), other):
            with pytest.raises(ValueError, match=r"decompress") as caught:
                codec.decompress_into(one, np.empty(UNIT, dtype=np.uint8))
            texts.append(str(caught.value))
        assert texts[0] == texts[1]
        words.add(texts[0])
    assert len(words) > 1


def test_the_systems_libraries_are_preferred() -> None:
    """Then python-lzo; lzallright and lz4 come with hibernaut."""
    lzo = [name for name in ("_liblzo2", "_python_lzo", "_lzallright") if made(name)]
    assert codec_named("lzo").library == lzo[0].strip("_").replace("_", "-")
    assert without("_liblzo2", "_python_lzo").library == "lzallright"
    assert codec_named("lz4").library == ("liblz4" if made("_liblz4") else "lz4")
    assert without("_liblz4").library == "lz4"


def made(maker: str) -> bool:
    """Return whether a library is installed."""
    try:
        getattr(codecs, maker)()
    except ImportError:
        return False
    return True


@pytest.mark.parametrize("maker", [system_codecs.Liblzo2, system_codecs.Liblz4])
def test_the_system_is_asked_once_for_a_library(monkeypatch: pytest.MonkeyPatch, maker: Callable[[], object]) -> None:
    """Each image has a codec of its own; they share the library."""
    asked = []
    real = ctypes.CDLL

    def counting(name: str) -> ctypes.CDLL:
        asked.append(name)
        return real(name)

    try:
        maker()
    except ImportError as missing:
        pytest.skip(str(missing))
    system_codecs._loaded.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", counting)
    for _ in range(3):
        maker()
    assert len(asked) == 1


def test_a_system_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither it nor one that lacks a function is taken."""
    monkeypatch.setattr(system_codecs, "LZO_NAMES", ("liblz-that-is-not-there.so.2",))
    with pytest.raises(ImportError, match=r"liblz-that-is-not-there\.so\.2 is not installed"):
        system_codecs.Liblzo2()
    monkeypatch.setattr(system_codecs, "LZ4_NAMES", ("libc.so.6",))
    with pytest.raises(ImportError, match=r"libc\.so\.6 has no LZ4_decompress_safe"):
        system_codecs.Liblz4()
