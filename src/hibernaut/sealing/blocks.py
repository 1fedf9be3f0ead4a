# SPDX-License-Identifier: GPL-2.0-or-later
"""The blocks of a swap device, read in runs into a buffer."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Protocol

from hibernaut.errors import FormatError

__all__ = ["BLOCK_BYTES", "AbsentBlock", "BlockFile", "Blocks", "read_block", "read_blocks", "runs"]

BLOCK_BYTES = 4096
"""A page of x86-64: what swap.c reads at a time."""


class AbsentBlock(Exception):
    """A block beyond the device, or behind the end of its file.

    Attributes:
        block: its number.
    """

    def __init__(self, block: int) -> None:
        self.block = block
        super().__init__(block)


class Blocks(Protocol):
    """The device of a swap area. Several threads may read at a time.

    Attributes:
        name: name in messages.
    """

    name: str

    @property
    def blocks(self) -> int:
        """Number of whole blocks."""

    def read_into(self, block: int, out: memoryview) -> int:
        """Read from the beginning of a block on; return the bytes read, fewer only at the end. Raises OSError."""


class BlockFile:
    """A block device, or a file with one in it.

    Attributes:
        name: path as it was given.
        blocks: see `Blocks`.

    Args:
        path: the file.
        base_bytes: byte at which the device begins.

    Raises:
        FormatError: it is neither a regular file nor a block device, or has no block there.
        OSError: it cannot be opened.
    """

    def __init__(self, path: str, base_bytes: int = 0) -> None:
        self.name = path
        self._base_bytes = base_bytes
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            mode = os.fstat(self._fd).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
                raise FormatError(
                    "this is neither a regular file nor a block device", source=path, advice="give a swap device"
                )
            self.blocks = (os.lseek(self._fd, 0, os.SEEK_END) - base_bytes) // BLOCK_BYTES
            if self.blocks <= 0:
                raise FormatError(
                    f"the file has no block at byte {base_bytes}", source=path, advice="give a swap device"
                )
            with suppress(OSError):  # what the page cache has may be older than the disk, from which the kernel reads
                os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
        except BaseException:
            os.close(self._fd)
            raise

    def read_into(self, block: int, out: memoryview) -> int:
        """See `Blocks`."""
        at, done = self._base_bytes + block * BLOCK_BYTES, 0
        while done < len(out):
            try:
                got = os.preadv(self._fd, [out[done:]], at + done)
            except OSError as error:
                raise OSError(error.errno, f"{error.strerror}, at byte {at + done}", self.name) from error
            if not got:
                break
            done += got
        return done

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def runs(blocks: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield (first block, number of blocks) of each run of neighbours, in the order given."""
    first = length = 0
    for block in blocks:
        if length and block == first + length:
            length += 1
            continue
        if length:
            yield first, length
        first, length = block, 1
    if length:
        yield first, length


def read_blocks(area: Blocks, blocks: Sequence[int], out: memoryview) -> None:
    """Read many blocks, in the order given, neighbours with one call.

    Args:
        area: the device.
        blocks: block numbers, shape (n,).
        out: buffer of 4096 n bytes.

    Raises:
        AbsentBlock: the first one that the device does not have.
        OSError: the device cannot be read.
    """
    at = 0
    for first, length in runs(blocks):
        inside = max(min(length, area.blocks - first), 0)
        got = area.read_into(first, out[at : at + inside * BLOCK_BYTES]) if inside else 0
        if got < length * BLOCK_BYTES:
            raise AbsentBlock(first + got // BLOCK_BYTES)
        at += length * BLOCK_BYTES


def read_block(area: Blocks, block: int) -> bytes:
    """Return one block. Raises AbsentBlock, OSError."""
    found = bytearray(BLOCK_BYTES)
    read_blocks(area, [block], memoryview(found))
    return bytes(found)
