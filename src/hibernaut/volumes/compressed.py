# SPDX-License-Identifier: GPL-2.0-or-later
"""Compressed files: recognized by their first bytes, unpacked to an unlinked sparse temporary file.

zstd, gzip and xz, each with any number of consecutive frames (members, streams). The unpacked bytes go to a file in
$TMPDIR that has no name and disappears with its last descriptor; pages of zeroes become holes, so a mostly empty dump
needs little space. Memory stays bounded for any input: output is made one block at a time, and the windows of the
decoders are limited (zstd 128 MiB, xz 256 MiB). So is what a small file can unpack to: `HIBERNAUT_UNPACK_LIMIT` in all,
zeroes included, and of other bytes as many as leave some space free.

makedumpfile's flattened form is handled alike: it is a dump file in pieces, which must be put in their places before it
can be read.
"""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from typing import IO, Protocol, cast

import numpy as np

from hibernaut.errors import FormatError
from hibernaut.volumes.declarations import (
    FLATTENED_HEADER_BYTES,
    FLATTENED_LIMIT_BYTES,
    FLATTENED_MAGIC,
    FLATTENED_RECORD,
)
from hibernaut.volumes.output import write_all

__all__ = ["MAGIC_BYTES", "compression_of", "unpack"]

ZSTD_MAGIC = 0xFD2FB528
"""RFC 8878, 3.1.1."""
ZSTD_SKIPPABLE = 0x184D2A50
"""RFC 8878, 3.1.2: the low 4 bits are free. Such a frame comes first in files of parallel packers."""
MAGICS: dict[str, tuple[bytes, ...]] = {
    "zstd": tuple(magic.to_bytes(4, "little") for magic in (ZSTD_MAGIC, *range(ZSTD_SKIPPABLE, ZSTD_SKIPPABLE + 16))),
    "gzip": (b"\x1f\x8b\x08",),  # RFC 1952, 2.3.1; 8 is deflate, the only method
    "xz": (b"\xfd7zXZ\x00",),  # The .xz File Format, 2.1.1.1
    "flattened": (FLATTENED_MAGIC,),
}
MAGIC_BYTES = 16
"""Number of first bytes that `compression_of` needs."""

HOLE_BYTES = 4096
"""Zero bytes become holes of the temporary file in multiples of this."""
INPUT_BYTES = 1 << 18
"""Compressed bytes read at a time."""
OUTPUT_BYTES = 1 << 20
"""Unpacked bytes handled at a time: whole pages, so that holes fall on page boundaries."""
LIMIT_VARIABLE = "HIBERNAUT_UNPACK_LIMIT"
"""Environment variable with the most unpacked bytes: a number, or one with K, M, G or T (powers of 1024)."""
DEFAULT_LIMIT = "64G"
SIZE = re.compile(r"(\d{1,18})([KMGT]?)")
RESERVED_BYTES = 1 << 30
"""Space that unpacking leaves free on the file system of the temporary file; a quarter of it where less is free."""
ZSTD_WINDOW_BYTES = 1 << 27
XZ_MEMORY_BYTES = 1 << 28


def compression_of(first: bytes) -> str | None:
    """Return the format of a file by its first bytes: zstd, gzip, xz, flattened; None for any other."""
    for name, magics in MAGICS.items():
        if first.startswith(magics):
            return name
    return None


def unpack(source: IO[bytes], compression: str, name: str) -> IO[bytes]:
    """Unpack all of `source` into an unlinked temporary file.

    Args:
        source: compressed file at its start, unbuffered.
        compression: format, as `compression_of` names it.
        name: name of the file in messages.

    Raises:
        FormatError: the data is damaged or ends early, the offset is a place in the *compressed* file; or it unpacks
            to more than is allowed or than there is room for.
        OSError: the temporary file cannot be made, or the disk is full.
    """
    target = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - the caller owns and closes it
    try:
        if compression == "flattened":
            _rearrange(source, target.fileno(), name)
        else:
            blocks = _zstd_blocks(source, name) if compression == "zstd" else _blocks(source, compression, name)
            _write_sparse(blocks, target.fileno(), name)
    except BaseException:
        target.close()
        raise
    return target


def _zstd_blocks(source: IO[bytes], name: str) -> Iterator[memoryview]:
    """Yield unpacked bytes, `OUTPUT_BYTES` at a time, each block valid until the next one."""
    import zstandard

    # The library's reader cannot tell an early end from the end: check the structure of the frames first.
    _check_zstd_frames(source, name)
    unpacker = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES)
    buffer = memoryview(bytearray(OUTPUT_BYTES))
    with unpacker.stream_reader(source, read_size=INPUT_BYTES, read_across_frames=True, closefd=False) as reader:
        filled = OUTPUT_BYTES
        while filled == OUTPUT_BYTES:
            filled = 0
            try:
                while filled < OUTPUT_BYTES and (got := reader.readinto(buffer[filled:])):
                    filled += got
            except zstandard.ZstdError as error:
                raise _damaged(f"damaged zstd data ({error})", name, source.tell()) from error
            yield buffer[:filled]


def _check_zstd_frames(source: IO[bytes], name: str) -> None:
    """Walk frames and block headers (RFC 8878, 3.1) without unpacking: each must be complete, nothing may follow.

    Leaves `source` at its start.
    """
    fd = source.fileno()
    size_bytes = os.fstat(fd).st_size or os.lseek(fd, 0, os.SEEK_END)
    at = 0
    while at < size_bytes:
        start, head = at, os.pread(fd, 18, at)
        magic = int.from_bytes(head[:4], "little")
        if magic & ~0xF == ZSTD_SKIPPABLE:
            at += 8 + int.from_bytes(head[4:8], "little")
        elif magic == ZSTD_MAGIC and len(head) > 4:
            at = _zstd_frame_end(fd, at, head[4])
        else:
            raise _damaged("damaged zstd data", name, at, expected="a frame", found=head[:4].hex())
        if at > size_bytes or len(head) < 8:
            raise _damaged("zstd data ends in the middle of the frame that starts here", name, start)
    os.lseek(fd, 0, os.SEEK_SET)


def _zstd_frame_end(fd: int, at: int, descriptor: int) -> int:
    """Return the end of the frame at `at` by its headers, perhaps beyond the file (RFC 8878, 3.1.1.1, 3.1.1.2)."""
    single_segment = descriptor >> 5 & 1
    content_size_bytes = (single_segment, 2, 4, 8)[descriptor >> 6]
    dictionary_bytes = (0, 1, 2, 4)[descriptor & 3]
    at += 5 + (1 - single_segment) + dictionary_bytes + content_size_bytes
    last = 0
    while not last:
        header = os.pread(fd, 3, at)
        value = int.from_bytes(header, "little")
        last = value & 1 if len(header) == 3 else 1
        run_length = value >> 1 & 3 == 1
        at += 3 + (1 if run_length else value >> 3)
    return at + 4 * (descriptor >> 2 & 1)


class _Decoder(Protocol):
    """A decoder of one frame, like `lzma.LZMADecompressor` and `isal.igzip_lib.IgzipDecompressor`."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1, /) -> bytes: ...


def _codec(compression: str) -> tuple[Callable[[], _Decoder], tuple[type[Exception], ...]]:
    """Return a factory of decoders and the exceptions by which they report damage, imported only on use."""
    if compression == "gzip":
        from isal import igzip_lib

        # The class is declared as an instance in the library's stubs.
        damage = cast("type[Exception]", igzip_lib.IsalError)
        return (lambda: igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)), (damage, EOFError)
    import lzma

    return (lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, XZ_MEMORY_BYTES)), (lzma.LZMAError, EOFError)


def _blocks(source: IO[bytes], compression: str, name: str) -> Iterator[memoryview]:
    """Yield unpacked bytes, `OUTPUT_BYTES` at a time."""
    pending: list[bytes] = []
    pending_bytes = 0
    for piece in _pieces(source, compression, name):
        pending.append(piece)
        pending_bytes += len(piece)
        while pending_bytes >= OUTPUT_BYTES:
            joined = b"".join(pending)
            yield memoryview(joined)[:OUTPUT_BYTES]
            pending, pending_bytes = [joined[OUTPUT_BYTES:]], pending_bytes - OUTPUT_BYTES
    yield memoryview(b"".join(pending))


def _pieces(source: IO[bytes], compression: str, name: str) -> Iterator[bytes]:
    """Yield unpacked bytes of gzip or xz, frame after frame; zero bytes between and after frames are padding."""
    make, damage = _codec(compression)
    decoder: _Decoder | None = make()
    data = b""
    while True:
        if not data and (decoder is None or decoder.needs_input):
            data = source.read(INPUT_BYTES)
            if not data:
                break
        if decoder is None:
            data = data.lstrip(b"\x00")
            if not data:
                continue
            decoder = make()
        try:
            yield decoder.decompress(data, OUTPUT_BYTES)
        except damage as error:
            raise _damaged(f"damaged {compression} data ({error})", name, source.tell()) from error
        data = b""
        if decoder.eof:
            data, decoder = decoder.unused_data, None
    if decoder is not None:
        raise _damaged(f"{compression} data ends in the middle of a frame", name, source.tell())


def _write_sparse(blocks: Iterator[memoryview], fd: int, name: str) -> None:
    """Write consecutive blocks, leaving holes where whole pages are zero. Raises FormatError beyond the limits."""
    limit, room = _limit_bytes(), _room_bytes(fd)
    at = 0
    for block in blocks:
        if at + len(block) > limit:
            raise FormatError(
                f"unpacks to more than {limit} bytes",
                source=name,
                advice=f"set {LIMIT_VARIABLE} to a larger size, such as 1T, if you trust the file",
            )
        whole = len(block) - len(block) % HOLE_BYTES
        pages = np.frombuffer(block, dtype=np.uint64, count=whole // 8).reshape(-1, HOLE_BYTES // 8)
        used = np.concatenate(([False], pages.any(axis=1), [whole < len(block)], [False]))
        edges = np.flatnonzero(used[1:] != used[:-1]) * HOLE_BYTES
        for first, last in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            data = block[first : min(last, len(block))]
            room -= len(data)
            if room < 0:
                raise FormatError(
                    f"unpacks to more than there is room for in {tempfile.gettempdir()}",
                    source=name,
                    advice="set TMPDIR to a folder with more free space",
                )
            write_all(fd, data, at + first)
        at += len(block)
    os.ftruncate(fd, at)


def _limit_bytes() -> int:
    """Return the most bytes that a file may unpack to. Raises FormatError if the variable has no size."""
    text = os.environ.get(LIMIT_VARIABLE) or DEFAULT_LIMIT
    match = SIZE.fullmatch(text)
    if match is None:
        raise FormatError(
            f"{LIMIT_VARIABLE} is {text!r}",
            expected="bytes, or a number with K, M, G or T",
            advice="set it to such a size, or unset it",
        )
    return int(match[1]) << 10 * " KMGT".index(match[2] or " ")


def _room_bytes(fd: int) -> int:
    """Return the number of bytes that may be written to the file system of a file."""
    system = os.fstatvfs(fd)
    free = system.f_bavail * system.f_frsize
    return free - min(RESERVED_BYTES, free // 4)


def _rearrange(source: IO[bytes], fd: int, name: str) -> None:
    """Write the records of a flattened file at their offsets."""
    end = os.lseek(source.fileno(), 0, os.SEEK_END)
    at = FLATTENED_HEADER_BYTES
    while True:
        raw = os.pread(source.fileno(), FLATTENED_RECORD.itemsize, at)
        if len(raw) < FLATTENED_RECORD.itemsize:
            raise _damaged("flattened dump ends without its end mark", name, at)
        place, size_bytes = np.frombuffer(raw, dtype=FLATTENED_RECORD)[0].tolist()
        if place == size_bytes == -1:
            return
        at += len(raw)
        impossible = _damaged(
            f"impossible record of a flattened dump: {size_bytes} bytes for {place}", name, at - len(raw)
        )
        if place < 0 or size_bytes < 0 or place + size_bytes > FLATTENED_LIMIT_BYTES or size_bytes > end - at:
            raise impossible
        for done in range(0, size_bytes, OUTPUT_BYTES):
            piece = os.pread(source.fileno(), min(OUTPUT_BYTES, size_bytes - done), at + done)
            try:
                write_all(fd, memoryview(piece), place + done)
            except OSError as error:
                if error.errno != errno.EFBIG:  # the file system's own limit: ext4 has 16 TiB
                    raise
                raise impossible from error
        at += size_bytes


def _damaged(
    what: str, name: str, offset: int, *, expected: str | None = None, found: str | None = None
) -> FormatError:
    """Return the error for damaged data."""
    advice = "copy or compress it again"
    return FormatError(what, source=name, offset=offset, expected=expected, found=found, advice=advice)
