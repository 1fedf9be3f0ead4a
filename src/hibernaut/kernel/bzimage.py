# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel as it lies on a disk: the setup header of a bzImage, its release, and the vmlinux packed in it.

Documentation/arch/x86/boot.rst declares the header; arch/x86/boot/compressed/Makefile packs the payload.
"""

from __future__ import annotations

import bz2
import lzma
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np

from hibernaut.errors import FormatError
from hibernaut.volumes.files import read_at_most

__all__ = ["bzimage_release", "unpack_bzimage"]

SETUP_HEADER = np.dtype(
    {
        "names": ["setup_sects", "header", "version", "kernel_version", "payload_offset", "payload_length"],
        "formats": ["u1", "S4", "<u2", "<u2", "<u4", "<u4"],
        "offsets": [0x1F1, 0x202, 0x206, 0x20E, 0x248, 0x24C],
        "itemsize": 0x268,
    }
)
"""struct setup_header (arch/x86/include/uapi/asm/bootparam.h), by its place in the file."""
MAGIC = b"HdrS"
MAGIC_AT = 0x202
VERSION_WITH_PAYLOAD = 0x208
"""The version of the boot protocol that payload_offset came with."""
SECTOR_BYTES = 512
RELEASE_AT = 0x200
"""kernel_version counts from here."""
RELEASE = re.compile(rb"[0-9][!-~]*")
HEAD_BYTES = 1 << 16
MAX_FILE_BYTES = 1 << 28
MAX_IMAGE_BYTES = 1 << 29
"""A distribution's vmlinux has some 60 MiB."""
SMALL_IMAGE_BYTES = 1 << 26
MOST_RATIO = 32
"""An image has at most `SMALL_IMAGE_BYTES`, and so many bytes for each of the payload: kernels have some 6."""
LZMA_MEMORY_BYTES = 1 << 28
"""Memory that a decoder of LZMA may take for its dictionary: scripts/xz_wrap.sh asks for 128 MiB at most."""
ELF = b"\x7fELF"
LZ4_MAGIC = b"\x02\x21\x4c\x18"
LZ4_BLOCK_BYTES = 8 << 20


class _Decompressor(Protocol):
    def decompress(self, data: bytes, /, max_length: int = ...) -> bytes: ...


def _most_bytes(payload: bytes) -> int:
    """Return the size of the largest image that a payload may unpack to."""
    return min(MAX_IMAGE_BYTES, SMALL_IMAGE_BYTES + MOST_RATIO * len(payload))


def _zstd(data: bytes) -> bytes:
    import zstandard

    with zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(data) as stream:
        return stream.read(_most_bytes(data) + 1)


def _streamed(make: Callable[[], _Decompressor]) -> Callable[[bytes], bytes]:
    """Return a function that unpacks one stream and leaves what follows it: the kernel's own length."""
    return lambda data: make().decompress(data, _most_bytes(data) + 1)


def _lz4(data: bytes) -> bytes:
    """Unpack lz4's legacy format: blocks of at most 8 MiB, each after its length; the kernel's own length ends them."""
    import lz4.block

    image, at = bytearray(), len(LZ4_MAGIC)
    while at + 4 < len(data) and len(image) <= _most_bytes(data):
        size, at = int.from_bytes(data[at : at + 4], "little"), at + 4
        image += lz4.block.decompress(data[at : at + size], uncompressed_size=LZ4_BLOCK_BYTES)
        at += size
    return bytes(image)


PACKERS: dict[bytes, Callable[[bytes], bytes]] = {
    b"\x1f\x8b": _streamed(lambda: zlib.decompressobj(31)),
    b"BZh": _streamed(bz2.BZ2Decompressor),
    b"\x5d\x00\x00": _streamed(lambda: lzma.LZMADecompressor(lzma.FORMAT_ALONE, LZMA_MEMORY_BYTES)),
    b"\xfd7zXZ\x00": _streamed(lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, LZMA_MEMORY_BYTES)),
    b"\x28\xb5\x2f\xfd": _zstd,
    LZ4_MAGIC: _lz4,
}
"""First bytes -> what unpacks it: all that CONFIG_KERNEL_* offers but LZO."""
PACKER_NAMES = ("gzip", "bzip2", "lzma", "xz", "zstd", "lz4")


def bzimage_release(path: Path) -> str:
    """Return the release of a bzImage, as `uname -r` prints it when it runs.

    Raises:
        FormatError: not a bzImage, or it does not have its release.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    at = RELEASE_AT + int(_header(head, path)["kernel_version"])
    found = RELEASE.match(head[at : at + 128])
    if not found:
        raise FormatError("the bzImage has no release", source=str(path), offset=at)
    return found[0].decode()


def unpack_bzimage(path: Path) -> bytes:
    """Return the vmlinux in a bzImage, an ELF file without symbols.

    Raises:
        FormatError: not a bzImage, or its payload is not there, damaged, or packed in a way that is not known here.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        content = read_at_most(file, MAX_FILE_BYTES)
    header = _header(content, path)
    if header["version"] < VERSION_WITH_PAYLOAD:
        raise FormatError("the bzImage does not say where its payload is", source=str(path), offset=MAGIC_AT)
    start = (int(header["setup_sects"] or 4) + 1) * SECTOR_BYTES + int(header["payload_offset"])
    payload = content[start : start + int(header["payload_length"])]
    packer = next((packer for magic, packer in PACKERS.items() if payload.startswith(magic)), None)
    if packer is None:
        raise FormatError(
            "the bzImage's payload cannot be unpacked", source=str(path), offset=start, expected=", ".join(PACKER_NAMES)
        )
    try:
        image = packer(payload)
        if len(image) > (most := _most_bytes(payload)):
            raise ValueError(f"it unpacks to more than {most} bytes")
    except Exception as error:  # the packers' errors share no narrower base
        raise FormatError(f"the bzImage's payload is damaged: {error}", source=str(path), offset=start) from None
    if not image.startswith(ELF):
        raise FormatError("the bzImage's payload is not an ELF file", source=str(path), offset=start)
    return image


def _header(head: bytes, path: Path) -> np.void:
    if len(head) < SETUP_HEADER.itemsize or head[MAGIC_AT : MAGIC_AT + 4] != MAGIC:
        raise FormatError("not a bzImage", source=str(path), offset=MAGIC_AT, expected="HdrS")
    found: np.void = np.frombuffer(head, dtype=SETUP_HEADER, count=1)[0]
    return found
