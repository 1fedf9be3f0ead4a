# SPDX-License-Identifier: GPL-2.0-or-later
"""Both LZO libraries and LZ4: what one packs the others unpack, and damage is a ValueError."""

from __future__ import annotations

import importlib.util
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

from hibernaut.swsusp import codecs
from hibernaut.swsusp.codecs import Codec, CompressorName, codec_named

UNIT = 32 * 4096


def without(maker: str, name: CompressorName) -> Codec:
    """The codec where the library of its first choice is not installed."""
    with pytest.MonkeyPatch.context() as patch:

        def absent() -> Codec:
            raise ImportError

        patch.setattr(codecs, maker, absent)
        return codec_named(name)


CODECS: dict[str, Callable[[], Codec]] = {
    "lzo": lambda: codec_named("lzo"),
    "lzo without python-lzo": lambda: without("_python_lzo", "lzo"),
    "lz4": lambda: codec_named("lz4"),
    "lz4 without cramjam": lambda: without("_lz4", "lz4"),
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


def test_python_lzo_is_preferred() -> None:
    """python-lzo if it is installed; else lzallright."""
    installed = importlib.util.find_spec("lzo") is not None
    assert codec_named("lzo").library == ("python-lzo" if installed else "lzallright")
    assert without("_python_lzo", "lzo").library == "lzallright"
