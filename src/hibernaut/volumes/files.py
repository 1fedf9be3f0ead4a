# SPDX-License-Identifier: GPL-2.0-or-later
"""Input files: plain bytes by position, mapped or read; compressed files are unpacked."""

from __future__ import annotations

import errno
import mmap
import os
import stat
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from hibernaut.errors import FormatError
from hibernaut.volumes.closing import Closing
from hibernaut.volumes.compressed import MAGIC_BYTES, compression_of, unpack

__all__ = ["KCORE", "PlainFile", "open_plain", "read_at_most"]

Bytes = NDArray[np.uint8]
"""Shape (n,)."""
KCORE = Path("/proc/kcore")
"""The memory of the running kernel, as an ELF core (fs/proc/kcore.c)."""
NO_KCORE = {
    errno.EACCES: "only root may read the memory of the running kernel",
    errno.EPERM: "the kernel refuses to show its memory: its lockdown is confidentiality, or CAP_SYS_RAWIO is missing",
    errno.ENOENT: "the running kernel has no such file: it is built without CONFIG_PROC_KCORE",
}
"""Reason by error number; `open_kcore` asks for CAP_SYS_RAWIO and LOCKDOWN_KCORE."""
PIECE_BYTES = 1 << 20
"""Bytes that `read_at_most` reads at a time."""
KCORE_ADVICE = "run it as root on a kernel that is not locked down, or give a dump"


class PlainFile(Closing):
    """A regular file or block device as plain bytes; a compressed one appears unpacked.

    Attributes:
        path: the file as it was given.
        name: name of the file in messages.
        size_bytes: length of the plain bytes, never 0.
        compression: zstd, gzip, xz or flattened; None for a plain file.
        is_live: whether it is a file of /proc, such as /proc/kcore: its bytes change, and it cannot be mapped.
    """

    def __init__(self, path: Path, stream: IO[bytes], size_bytes: int, compression: str | None) -> None:
        self.path = path
        self.name = str(path)
        self.size_bytes = size_bytes
        self.compression = compression
        self.is_live = _is_of_proc(stream.fileno())
        self._stream = stream
        self._map: mmap.mmap | None = None

    def fileno(self) -> int:
        """Return the descriptor of the plain bytes (the temporary file of a compressed file), open for reading."""
        return self._stream.fileno()

    def pread(self, offset: int, size_bytes: int) -> bytes:
        """Return bytes at a position: fewer than requested only at the end of the file, none beyond it."""
        size_bytes = min(size_bytes, self.size_bytes - offset)
        if size_bytes <= 0:
            return b""
        whole = self._pread(offset, size_bytes)
        if len(whole) == size_bytes:
            return whole
        while 0 < len(whole) < size_bytes:
            more = self._pread(offset + len(whole), size_bytes - len(whole))
            if not more:
                break
            whole += more
        return whole

    def _pread(self, offset: int, size_bytes: int) -> bytes:
        try:
            return os.pread(self._stream.fileno(), size_bytes, offset)
        except OSError as error:
            raise self._unreadable(error, offset) from error

    def pread_into(self, offset: int, out: Bytes) -> int:
        """Read bytes at a position into an array, shape (n,), contiguous, and return their number (see `pread`)."""
        view = out.data
        done = 0
        while done < len(view):
            try:
                got = os.preadv(self.fileno(), [view[done:]], offset + done)
            except OSError as error:
                raise self._unreadable(error, offset + done) from error
            if not got:
                break
            done += got
        return done

    def _unreadable(self, error: OSError, offset: int) -> OSError:
        """Return the error of a read, with the file and the byte."""
        return OSError(error.errno, f"{error.strerror}, at byte {offset}", self.name)

    def map(self) -> Bytes:
        """Return all bytes, shape (size_bytes,), read-only, mapped: nothing is read until it is accessed.

        The mapping exists as long as an array on it, also after `close`. A mapped file that shrinks ends the process
        (SIGBUS): do not map a file that another process may cut.

        Raises:
            FormatError: the system cannot map such a file (some files of /proc).
        """
        if self._map is None:
            try:
                self._map = mmap.mmap(self.fileno(), self.size_bytes, access=mmap.ACCESS_READ)
            except OSError as error:
                raise FormatError(f"the file cannot be mapped ({error.strerror})", source=self.name) from error
        return np.frombuffer(self._map, dtype=np.uint8)

    def data_extents(self) -> list[tuple[int, int]]:
        """Return (first byte, one past the last) of all data outside holes, ascending; one extent if unknown."""
        extents: list[tuple[int, int]] = []
        at = 0
        try:
            while at < self.size_bytes:
                at = os.lseek(self.fileno(), at, os.SEEK_DATA)
                end = min(os.lseek(self.fileno(), at, os.SEEK_HOLE), self.size_bytes)
                extents.append((at, end))
                at = end
        except OSError as error:
            if error.errno != errno.ENXIO:  # ENXIO: the rest is a hole
                return [(0, self.size_bytes)]
        return extents

    def is_hole(self, offset: int, size_bytes: int) -> bool:
        """Return whether the file system says that a part is a hole, which reads as zeroes; False if it does not.

        What lies behind the end of the file is not one, also if the file was cut since it was opened.
        """
        end = offset + size_bytes
        try:
            return os.lseek(self.fileno(), offset, os.SEEK_DATA) >= end
        except OSError as error:  # ENXIO: no data from there on, or no file
            return error.errno == errno.ENXIO and os.fstat(self.fileno()).st_size >= end

    def release(self, offset: int, size_bytes: int) -> None:
        """Drop a mapped range from this process's resident memory (not from the page cache).

        Arrays on it stay valid; an access maps the pages again.
        """
        if self._map is None:
            return
        first = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
        last = min(offset + size_bytes, self.size_bytes)
        last = last if last == self.size_bytes else last - last % mmap.PAGESIZE
        if first < last:
            self._map.madvise(mmap.MADV_DONTNEED, first, last - first)

    def close(self) -> None:
        """Close the descriptor; the mapping is removed with the last array on it."""
        self._map = None
        self._stream.close()


def _is_of_proc(fd: int) -> bool:
    """Return whether a file is one of procfs, which the running kernel makes up as it is read."""
    try:
        return os.fstat(fd).st_dev == os.stat("/proc/self").st_dev
    except OSError:
        return False


def read_at_most(stream: IO[bytes], size_bytes: int) -> bytes:
    """Return the bytes of a stream from its position on, `size_bytes` at most. Memory follows what is there.

    `IO.read` makes a buffer of all the bytes that it is asked for.
    """
    pieces, left = [], size_bytes
    while left > 0 and (piece := stream.read(min(left, PIECE_BYTES))):
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


def open_plain(path: str | os.PathLike[str]) -> PlainFile:
    """Open a file for reading; zstd, gzip and xz files are unpacked first (see `hibernaut.volumes.compressed`).

    Raises:
        FormatError: the path is a directory or another special file, the file is empty, or its compressed data is
            damaged.
        OSError: the file does not exist or cannot be read, or the disk is too full to unpack it.
    """
    name = os.fspath(path)
    size_bytes, stream = _open(name)
    try:
        compression = compression_of(stream.read(MAGIC_BYTES))
        stream.seek(0)
        if compression is None:
            return PlainFile(Path(name), stream, size_bytes, None)
        plain = unpack(stream, compression, name)
    except BaseException:
        stream.close()
        raise
    stream.close()
    unpacked_bytes = os.fstat(plain.fileno()).st_size
    if not unpacked_bytes:
        plain.close()
        raise FormatError(f"the {compression} file is empty when unpacked", source=name, advice="copy or dump it again")
    return PlainFile(Path(name), plain, unpacked_bytes, compression)


def _open(name: str) -> tuple[int, IO[bytes]]:
    """Return size and stream, at its start, of a regular file or block device."""
    # Without O_NONBLOCK, opening a named pipe waits for its writer.
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if Path(name) == KCORE:
            raise FormatError(
                NO_KCORE.get(error.errno or 0, str(error.strerror)), source=name, advice=KCORE_ADVICE
            ) from error
        raise
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            raise FormatError("this is a directory", source=name, expected="a file", advice="give a file in it")
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise FormatError(
                "this is neither a regular file nor a block device",
                source=name,
                advice="copy it to a file first: readers need to seek",
            )
        size_bytes = os.lseek(fd, 0, os.SEEK_END)  # a block device has no st_size
        if not size_bytes:
            raise FormatError("the file is empty", source=name, advice="copy or dump it again")
        os.lseek(fd, 0, os.SEEK_SET)
        return size_bytes, os.fdopen(fd, "rb", buffering=0)
    except BaseException:
        os.close(fd)
        raise
