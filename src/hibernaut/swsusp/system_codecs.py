# SPDX-License-Identifier: GPL-2.0-or-later
"""The system's liblzo2 and liblz4 through ctypes: straight from one array into another, without the GIL.

liblzo2 is the kernel's own algorithm (`lzo1x_1_compress`, `lzo1x_decompress_safe`), as liblz4 is. A call reads and
writes nothing outside of the given arrays, whatever the stream is: only the functions are used that are made for data
from elsewhere.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from pathlib import Path

import numpy as np

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
        self._decompress = _function(library, "lzo1x_decompress_safe", (pointer, size, pointer, pointer, pointer))
        self._compress = _function(library, "lzo1x_1_compress", (pointer, size, pointer, pointer, pointer))
        self._version = _function(library, "lzo_version_string", ())
        self._local = threading.local()

    @property
    def version(self) -> str:
        """Version of the library."""
        return _text_of(self._version)

    def compressed_bound(self, size_bytes: int) -> int:
        """Return the most bytes that so many are compressed to, by liblzo2's LZO.FAQ."""
        return size_bytes + size_bytes // 16 + 64 + 3

    def compress_at(self, address: int, size_bytes: int, target: int, room_bytes: int) -> int:  # noqa: ARG002
        """Compress bytes at an address to another one, with room for `compressed_bound`; return their number."""
        size, at, work = self._own
        error = self._compress(address, size_bytes, target, at, work)
        if error != LZO_OK:
            raise RuntimeError(f"liblzo2 does not compress: error {error}")
        return size.value

    def decompress_at(self, address: int, size_bytes: int, target: int, room_bytes: int) -> int:
        """Decompress bytes at an address to another one with so much room, and return their number.

        Raises:
            ValueError: they are damaged, or decompress to more bytes than there is room for.
        """
        size, at, _ = self._own
        size.value = room_bytes
        error = self._decompress(address, size_bytes, target, at, None)
        if error != LZO_OK:
            raise ValueError(f"does not decompress: {lzo_error(error)}")
        return size.value

    @property
    def _own(self) -> tuple[ctypes.c_ulong, int, int]:
        """A length of this thread, its address, and the address of this thread's room to work in."""
        local = self._local
        try:
            own: tuple[ctypes.c_ulong, int, int] = local.own
        except AttributeError:
            size, local.work = ctypes.c_ulong(), np.empty(LZO_WORK_BYTES, dtype=np.uint8)
            own = local.own = size, ctypes.addressof(size), local.work.ctypes.data
        return own


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
        self._version = _function(library, "LZ4_versionString", ())

    @property
    def version(self) -> str:
        """Version of the library."""
        return _text_of(self._version)

    def compressed_bound(self, size_bytes: int) -> int:
        """Return the most bytes that so many are compressed to, `LZ4_COMPRESSBOUND` of lz4.h."""
        return size_bytes + size_bytes // 255 + 16

    def compress_at(self, address: int, size_bytes: int, target: int, room_bytes: int) -> int:
        """Compress bytes at an address to another one with so much room, and return their number."""
        done: int = self._compress(address, target, size_bytes, room_bytes)
        if done <= 0:
            raise RuntimeError("liblz4 does not compress")
        return done

    def decompress_at(self, address: int, size_bytes: int, target: int, room_bytes: int) -> int:
        """Decompress bytes at an address to another one with so much room, and return their number.

        Raises:
            ValueError: they are damaged, or decompress to more bytes than there is room for.
        """
        done: int = self._decompress(address, target, size_bytes, room_bytes)
        if done < 0:
            raise ValueError("does not decompress: it is damaged, or has more data than expected")
        return done


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


@functools.cache  # asking the dynamic linker takes as long as decompressing a unit
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


def _text_of(function: ctypes._NamedFuncPointer) -> str:
    """Return the text that a function without arguments returns."""
    function.restype = ctypes.c_char_p
    text: bytes = function()
    return text.decode("ascii", "replace")
