# SPDX-License-Identifier: GPL-2.0-or-later
"""Output files: written beside their target and renamed over it once they are complete and synced."""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["Writeback", "replacing", "write_all", "write_vector"]


IOVECS = 512
"""Buffers given to one system call; the system allows 1024 (IOV_MAX)."""
WRITEBACK_BYTES = 32 << 20


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[int]:
    """A descriptor, open for reading and writing, of a new file that takes the place of `path` on success.

    On leaving without an exception the file is synced and renamed over `path`, and the folder is synced; on an
    exception it is removed and `path` stays what it was. A symbolic link is followed: what it names is replaced. Mode
    follows the umask, nothing of the old file is kept.

    Raises:
        IsADirectoryError: `path` is a directory.
        FileExistsError: `path` is a device, pipe or socket, which a rename would only hide.
        OSError: as the system reports it.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(21, os.strerror(21), str(path))
    if target.exists() and not target.is_file():
        raise FileExistsError(17, "is not a regular file", str(path))
    partial = target.with_name(f".{target.name[:200]}.{secrets.token_hex(4)}.partial")
    try:
        fd = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except OSError as error:
        error.filename = str(path)  # the name that the caller knows
        raise
    try:
        try:
            yield fd
            os.fsync(fd)
        finally:
            os.close(fd)
        partial.rename(target)
    except BaseException:
        with suppress(FileNotFoundError):
            partial.unlink()
        raise
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_all(fd: int, data: memoryview, offset: int) -> None:
    """`pwrite` until everything is written. Raises OSError as the system reports it (no space, for one)."""
    while len(data):
        done = os.pwrite(fd, data, offset)
        data, offset = data[done:], offset + done


def write_vector(fd: int, parts: Sequence[bytes | memoryview], offset: int) -> None:
    """Write buffers one after the other from a byte on, in as few system calls as can be. Raises OSError."""
    for first in range(0, len(parts), IOVECS):
        some = parts[first : first + IOVECS]
        size_bytes = sum(len(part) for part in some)
        done = os.pwritev(fd, some, offset)
        if done < size_bytes:  # a signal or a full disk cut it short: the rest piece by piece, for the error's sake
            rest = memoryview(b"".join(some))
            write_all(fd, rest[done:], offset + done)
        offset += size_bytes


class Writeback:
    """Lets the system begin to write a file to the disk while it grows, so that the sync at the end is short.

    POSIX_FADV_DONTNEED starts the writing of dirty pages and returns at once (mm/fadvise.c); only pages that are
    clean already leave the cache. Asked for now and then: each time costs something. For use by several threads.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()
        self._waiting_bytes = 0

    def wrote(self, size_bytes: int) -> None:
        """So many more bytes were written somewhere in the file."""
        with self._lock:
            self._waiting_bytes += size_bytes
            if self._waiting_bytes < WRITEBACK_BYTES:
                return
            self._waiting_bytes = 0
        with suppress(OSError):  # advice: a file system may decline
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
