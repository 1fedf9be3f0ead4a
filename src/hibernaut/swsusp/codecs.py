"""The two compressors of hibernation images, raw streams without headers, from well-kept libraries.

LZO1X comes from python-lzo (liblzo2, the kernel's own algorithm) where it is installed; else from lzallright, which has
wheels everywhere and is slower. Both release the GIL. The kernel decompresses with `lzo1x_decompress_safe` and
`LZ4_decompress_safe`, so any valid stream will do, whoever compressed it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hibernaut.errors import HibernautError

__all__ = ["COMPRESSORS", "Codec", "CompressorName", "codec_named"]

CompressorName = Literal["lzo", "lz4", "none"]
COMPRESSORS: tuple[CompressorName, ...] = ("lzo", "lz4", "none")


@dataclass(frozen=True)
class Codec:
    """One compressor.

    Attributes:
        name: lzo or lz4.
        library: what does the work.
        compress: a unit (uint8, contiguous) to its compressed bytes.
        decompress: compressed bytes and the largest size allowed to the plain bytes; ValueError if they are damaged.
    """

    name: CompressorName
    library: str
    compress: Callable[[NDArray[np.uint8]], bytes]
    decompress: Callable[[bytes, int], bytes]


def codec_named(name: CompressorName) -> Codec:
    """The codec of that name. Raises HibernautError if no library for it is installed."""
    makers = {"lzo": (_python_lzo, _lzallright), "lz4": (_lz4,)}
    for maker in makers[name]:
        try:
            return maker()
        except ImportError:
            continue
    raise HibernautError(f"no library for {name} is installed: pip install 'hibernaut[lzo]' or lzallright")


def _python_lzo() -> Codec:
    lzo = importlib.import_module("lzo")

    def compress(unit: NDArray[np.uint8]) -> bytes:
        packed: bytes = lzo.compress(unit, 1, False)  # level 1 is lzo1x_1_compress, as in the kernel
        return packed

    def decompress(packed: bytes, size_bytes: int) -> bytes:
        try:
            plain: bytes = lzo.decompress(packed, False, size_bytes)
        except lzo.error as error:
            raise ValueError(str(error)) from error
        return plain

    return Codec("lzo", "python-lzo", compress, decompress)


def _lzallright() -> Codec:
    lzallright = importlib.import_module("lzallright")

    def compress(unit: NDArray[np.uint8]) -> bytes:
        # A compressor has a work area: one a call, for calls come from several threads.
        packed: bytes = lzallright.LZOCompressor().compress(unit.tobytes())
        return packed

    def decompress(packed: bytes, size_bytes: int) -> bytes:
        try:
            plain: bytes = lzallright.LZOCompressor.decompress(packed, size_bytes)
        except lzallright.LZOError as error:
            raise ValueError(str(error.args[0])) from error  # the second argument can be all of the output
        if len(plain) > size_bytes:
            raise ValueError(f"more than {size_bytes} bytes come out")
        return plain

    return Codec("lzo", "lzallright", compress, decompress)


def _lz4() -> Codec:
    block = importlib.import_module("lz4.block")

    def compress(unit: NDArray[np.uint8]) -> bytes:
        packed: bytes = block.compress(unit, store_size=False)
        return packed

    def decompress(packed: bytes, size_bytes: int) -> bytes:
        try:
            plain: bytes = block.decompress(packed, uncompressed_size=size_bytes)
        except block.LZ4BlockError as error:
            raise ValueError(str(error)) from error
        return plain

    return Codec("lz4", "lz4", compress, decompress)
