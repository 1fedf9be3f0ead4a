# SPDX-License-Identifier: GPL-2.0-or-later
"""The system's liblzo2 and liblz4 through ctypes: straight from one array into another, without the GIL.

liblzo2 is the kernel's own algorithm (`lzo1x_1_compress`, `lzo1x_decompress_safe`), as liblz4 is. A call reads and
writes nothing outside of the given arrays, whatever the stream is: only the functions are used that are made for data
from elsewhere.
"""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path

import numpy as np

from hibernaut.memory.page import Bytes

__all__ = ["LZ4_NAMES", "LZO_NAMES", "Liblz4", "Liblzo2", "library_file", "lzo_error"]

LZO_NAMES = ("liblzo2.so.2", "liblzo2.2.dylib")
LZ4_NAMES = ("liblz4.so.1", "liblz4.1.dylib")
LZO_OK = 0
LZO_WORK_BYTES = 16384 * ctypes.sizeof(ctypes.c_void_p)
"""`LZO1X_1_MEM_COMPRESS` of lzo/lzo1x.h."""
LZO_ERRORS = {
    -4: "it ends within a match or a literal",
    -5: "it has more data than expected",
    -6: "it refers to data before its start",
    -7: "it has no end",
    -8: "bytes follow its end",
}
"""`LZO_E_INPUT_OVERRUN` to `LZO_E_INPUT_NOT_CONSUMED` of lzo/lzoconf.h."""


class Liblzo2:
    """LZO1X by the system's library. Any number of threads can use one object.

    Raises:
        ImportError: the library is not there.
    """

    name = "liblzo2"

    def __init__(self) -> None:
        library = _loaded(LZO_NAMES)
        pointer, size = ctypes.c_void_p, ctypes.c_ulong
        self._decompress = _function(
            library, "lzo1x_decompress_safe", (pointer, size, pointer, ctypes.POINTER(size), pointer)
        )
        self._compress = _function(library, "lzo1x_1_compress", (pointer, size, pointer, ctypes.POINTER(size), pointer))
        self._local = threading.local()

    def compress(self, unit: Bytes) -> bytes:
        """Return the compressed bytes of a contiguous array."""
        if not hasattr(self._local, "work"):
            self._local.work = np.empty(LZO_WORK_BYTES, dtype=np.uint8)
        out = np.empty(len(unit) + len(unit) // 16 + 64 + 3, dtype=np.uint8)  # the worst case by liblzo2's LZO.FAQ
        size_bytes = ctypes.c_ulong(len(out))
        error = self._compress(
            unit.ctypes.data, len(unit), out.ctypes.data, ctypes.byref(size_bytes), self._local.work.ctypes.data
        )
        if error != LZO_OK:
            raise RuntimeError(f"liblzo2 does not compress: error {error}")
        return out[: size_bytes.value].tobytes()

    def decompress_into(self, packed: Bytes, out: Bytes) -> int:
        """Decompress a contiguous array into another, and return the number of bytes.

        Raises:
            ValueError: it is damaged, or decompresses to more bytes than there is room for.
        """
        size_bytes = ctypes.c_ulong(len(out))
        error = self._decompress(packed.ctypes.data, len(packed), out.ctypes.data, ctypes.byref(size_bytes), None)
        if error != LZO_OK:
            raise ValueError(f"does not decompress: {lzo_error(error)}")
        return size_bytes.value


class Liblz4:
    """LZ4 blocks by the system's library. Any number of threads can use one object.

    Raises:
        ImportError: the library is not there.
    """

    name = "liblz4"

    def __init__(self) -> None:
        library = _loaded(LZ4_NAMES)
        arguments = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int)
        self._decompress = _function(library, "LZ4_decompress_safe", arguments)
        self._compress = _function(library, "LZ4_compress_default", arguments)

    def compress(self, unit: Bytes) -> bytes:
        """Return the compressed bytes of a contiguous array."""
        out = np.empty(len(unit) + len(unit) // 255 + 16, dtype=np.uint8)  # LZ4_COMPRESSBOUND of lz4.h
        size_bytes: int = self._compress(unit.ctypes.data, out.ctypes.data, len(unit), len(out))
        if size_bytes <= 0:
            raise RuntimeError("liblz4 does not compress")
        return out[:size_bytes].tobytes()

    def decompress_into(self, packed: Bytes, out: Bytes) -> int:
        """Decompress a contiguous array into another, and return the number of bytes.

        Raises:
            ValueError: it is damaged, or decompresses to more bytes than there is room for.
        """
        size_bytes: int = self._decompress(packed.ctypes.data, out.ctypes.data, len(packed), len(out))
        if size_bytes < 0:
            raise ValueError("does not decompress: it is damaged, or has more data than expected")
        return size_bytes


def lzo_error(number: int) -> str:
    """Return what is wrong with a stream by the number of liblzo2's error."""
    return LZO_ERRORS.get(number, f"error {number} of liblzo2")


def library_file(names: tuple[str, ...]) -> Path | None:
    """Return the path by which the dynamic linker finds the first library that is there; None if none is."""
    try:
        loaded = _loaded(names)._name
    except ImportError:
        return None
    mapped = (Path(line.split(maxsplit=5)[-1].strip()) for line in Path("/proc/self/maps").read_text().splitlines())
    files = (
        file.with_name(loaded) for file in mapped if file.name.startswith(loaded)
    )  # a mapping has the link's target
    return next((file for file in files if file.exists()), None)


def _loaded(names: tuple[str, ...]) -> ctypes.CDLL:
    """Return the first library that is there. Raises ImportError if none is."""
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise ImportError(f"{names[0]} is not installed")


def _function(library: ctypes.CDLL, name: str, arguments: tuple[type, ...]) -> ctypes._NamedFuncPointer:
    try:
        function = library[name]
    except AttributeError as error:
        raise ImportError(f"{library._name} has no {name}") from error
    function.argtypes = arguments
    function.restype = ctypes.c_int
    return function
