# SPDX-License-Identifier: GPL-2.0-or-later
"""The two compressors of hibernation images: raw streams without headers, from maintained libraries.

Each comes from the system's library where it is installed. Else LZO1X comes from python-lzo (liblzo2 built in), else
from lzallright, which has wheels everywhere and is slower; LZ4 is compressed by lz4 and decompressed by cramjam, which
writes into a given array instead of a new object; without cramjam, by lz4. All release the GIL. The kernel decompresses
with `lzo1x_decompress_safe` and `LZ4_decompress_safe`, which accept any valid stream.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hibernaut.errors import HibernautError, how_to_install
from hibernaut.swsusp.system_codecs import Liblz4, Liblzo2, lzo_error

__all__ = ["COMPRESSORS", "Codec", "CompressorName", "WrongLength", "codec_named", "makers_of"]

CompressorName = Literal["lzo", "lz4", "none"]
COMPRESSORS: tuple[CompressorName, ...] = ("lzo", "lz4", "none")
PACKAGES = {"lzo": ("lzallright",), "lz4": ("lz4", "cramjam")}
"""Python packages that bring each compressor."""
LZALLRIGHT_ERRORS = {"InputOverrun": -4, "OutputOverrun": -5, "LookbehindOverrun": -6, "InputNotConsumed": -8}
"""Its results, by the numbers that liblzo2 has for them."""
NUMBER = re.compile(r"-\d+")


class WrongLength(ValueError):
    """A unit that decompresses to another size than expected.

    Attributes:
        size_bytes: the size that it decompresses to.
    """

    def __init__(self, size_bytes: int, expected_bytes: int) -> None:
        self.size_bytes = size_bytes
        super().__init__(f"decompresses to {size_bytes} bytes; expected {expected_bytes}")


@dataclass(frozen=True)
class Codec:
    """One compressor.

    Attributes:
        name: lzo or lz4.
        library: library that implements it: liblzo2, python-lzo or lzallright; liblz4, or lz4.
        compress: returns the compressed bytes of a unit (uint8, contiguous).
        decompress_into: decompresses bytes (uint8) into an array (uint8, contiguous) of exactly the expected size;
            raises ValueError if they are damaged, WrongLength if the size differs.
        system: the system's library, which takes addresses; None for another one.
        packages: Python packages that it is made of, those for decompression last; none for a system's library.
    """

    name: CompressorName
    library: str
    compress: Callable[[NDArray[np.uint8]], bytes]
    decompress_into: Callable[[NDArray[np.uint8], NDArray[np.uint8]], None]
    system: Liblzo2 | Liblz4 | None = None
    packages: tuple[str, ...] = ()


def codec_named(name: CompressorName) -> Codec:
    """Return a codec by name. Raises HibernautError if no library for it is installed."""
    for maker in makers_of(name):
        try:
            return maker()
        except ImportError:
            continue
    raise HibernautError(f"no library for {name} is installed", advice=f"try: {how_to_install(*PACKAGES[name])}")


def makers_of(name: CompressorName) -> tuple[Callable[[], Codec], ...]:
    """Return the functions that make a codec by each library, the first choice first; each raises ImportError."""
    return {
        "lzo": (_liblzo2, _python_lzo, _lzallright),
        "lz4": (_liblz4, _lz4, _lz4_alone),
        "none": (),
    }[name]


def _liblzo2() -> Codec:
    return _of_system("lzo", Liblzo2())


def _liblz4() -> Codec:
    return _of_system("lz4", Liblz4())


def _of_system(name: CompressorName, library: Liblzo2 | Liblz4) -> Codec:
    def compress(unit: NDArray[np.uint8]) -> bytes:
        room = np.empty(library.compressed_bound(len(unit)), dtype=np.uint8)
        return room[: library.compress_at(unit.ctypes.data, len(unit), room.ctypes.data, len(room))].tobytes()

    def decompress_into(packed: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
        size_bytes = library.decompress_at(packed.ctypes.data, len(packed), out.ctypes.data, len(out))
        if size_bytes != len(out):
            raise WrongLength(size_bytes, len(out))

    return Codec(name, library.name, compress, decompress_into, library)


def _python_lzo() -> Codec:
    lzo = importlib.import_module("lzo")

    def compress(unit: NDArray[np.uint8]) -> bytes:
        packed: bytes = lzo.compress(unit, 1, False)  # level 1 is lzo1x_1_compress, as in the kernel
        return packed

    def decompress_into(packed: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
        try:
            plain: bytes = lzo.decompress(packed, False, len(out))
        except lzo.error as error:
            number = NUMBER.search(str(error))  # its text is that of any damage, with liblzo2's number
            raise ValueError(f"does not decompress: {lzo_error(int(number[0])) if number else error}") from error
        _put(plain, out)

    return Codec("lzo", "python-lzo", compress, decompress_into, packages=("python-lzo",))


def _lzallright() -> Codec:
    lzallright = importlib.import_module("lzallright")

    def compress(unit: NDArray[np.uint8]) -> bytes:
        # A compressor has a work area, and calls come from several threads.
        packed: bytes = lzallright.LZOCompressor().compress(unit.tobytes())
        return packed

    def decompress_into(packed: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
        try:
            plain: bytes = lzallright.LZOCompressor.decompress(packed.tobytes(), len(out))
        except lzallright.LZOError as error:
            # The error's second argument can be all of the output.
            result = error.args[0]
            number = LZALLRIGHT_ERRORS.get(str(result).rpartition(".")[2])
            raise ValueError(f"does not decompress: {lzo_error(number) if number else result}") from error
        _put(plain, out)

    return Codec("lzo", "lzallright", compress, decompress_into, packages=("lzallright",))


def _put(plain: bytes, out: NDArray[np.uint8]) -> None:
    if len(plain) != len(out):
        raise WrongLength(len(plain), len(out))
    out[:] = np.frombuffer(plain, dtype=np.uint8)


def _lz4() -> Codec:
    block = importlib.import_module("lz4.block")
    cramjam = importlib.import_module("cramjam")

    def decompress_into(packed: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
        try:
            size_bytes = cramjam.lz4.decompress_block_into(packed, out, output_len=len(out))
        except cramjam.DecompressionError as error:
            raise ValueError(f"does not decompress: {error}") from error
        if size_bytes != len(out):
            raise WrongLength(size_bytes, len(out))

    return Codec("lz4", "lz4", _lz4_compress(block), decompress_into, packages=("lz4", "cramjam"))


def _lz4_alone() -> Codec:
    block = importlib.import_module("lz4.block")

    def decompress_into(packed: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
        try:
            plain: bytes = block.decompress(packed, uncompressed_size=len(out))
        except block.LZ4BlockError as error:
            raise ValueError(f"does not decompress: {error}") from error
        _put(plain, out)

    return Codec("lz4", "lz4", _lz4_compress(block), decompress_into, packages=("lz4",))


def _lz4_compress(block: Any) -> Callable[[NDArray[np.uint8]], bytes]:
    def compress(unit: NDArray[np.uint8]) -> bytes:
        packed: bytes = block.compress(unit, store_size=False)
        return packed

    return compress
