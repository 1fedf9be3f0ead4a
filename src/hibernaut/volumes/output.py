# SPDX-License-Identifier: GPL-2.0-or-later
"""Output files: private, written beside their target and renamed over it once they are complete and synced."""

from __future__ import annotations

import os
import secrets
import stat
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["Writeback", "replacing", "write_all", "write_file", "write_vector"]


IOVECS = 512
"""Buffers given to one system call; the system allows 1024 (IOV_MAX)."""
WRITEBACK_BYTES = 32 << 20
PRIVATE = 0o600
PUBLIC = 0o666


@contextmanager
def replacing(path: str | os.PathLike[str], *, public: bool = False) -> Iterator[int]:
    """Yield a descriptor, open for reading and writing, of a new file that takes the place of `path` on success.

    On leaving without an exception the file is synced and renamed over `path`, and the folder is synced; on an
    exception it is removed and `path` stays what it was. A symbolic link is followed: the file that it names is
    replaced.

    The memory of a machine holds its keys and passwords, so the file is private from its first moment on: mode 0600,
    whatever the umask. It keeps the owner of a file that it replaces, as far as the system permits, and never has a
    bit in its mode that the replaced file lacks. File systems without modes (FAT) apply those of their mount.

    Args:
        path: the file to make or replace.
        public: the file holds no memory: a new file's mode follows the umask.

    Raises:
        IsADirectoryError: `path` is a directory.
        FileExistsError: `path` is a device, pipe or socket, which a rename would only hide.
        OSError: as the system reports it.
    """
    target = Path(os.path.realpath(path))
    replaced = _status(target)
    if replaced is not None and stat.S_ISDIR(replaced.st_mode):
        raise IsADirectoryError(21, os.strerror(21), str(path))
    if replaced is not None and not stat.S_ISREG(replaced.st_mode):
        raise FileExistsError(17, "is not a regular file", str(path))
    partial = target.with_name(f".{target.name[:200]}.{secrets.token_hex(4)}.partial")
    mode = PUBLIC if public else PRIVATE
    try:
        fd = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error  # the name that the caller knows
    try:
        try:
            _protect(fd, None if public else PRIVATE, replaced)
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


def write_file(path: str | os.PathLike[str], data: bytes, *, public: bool = False) -> None:
    """Write a whole file, which appears complete or not at all. Arguments and errors as for `replacing`."""
    with replacing(path, public=public) as fd:
        write_all(fd, memoryview(data), 0)


def _status(path: Path) -> os.stat_result | None:
    """Return the status of a file; None if it does not exist."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _protect(fd: int, mode: int | None, replaced: os.stat_result | None) -> None:
    """Set the mode of a new file (None: the one that it was made with), cut to that of the replaced file; its owner."""
    made = os.fstat(fd)
    mode = stat.S_IMODE(made.st_mode) if mode is None else mode
    if replaced is not None:
        mode &= replaced.st_mode
        if made.st_gid != replaced.st_gid:
            try:
                os.fchown(fd, -1, replaced.st_gid)
            except OSError:  # not a member of it: what the group might do, another group must not
                mode &= ~stat.S_IRWXG
    if mode != stat.S_IMODE(os.fstat(fd).st_mode):
        with suppress(PermissionError):  # FAT
            os.fchmod(fd, mode)
    if replaced is not None and made.st_uid != replaced.st_uid:
        with suppress(OSError):  # only root gives files away
            os.fchown(fd, replaced.st_uid, -1)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_all(fd: int, data: memoryview, offset: int) -> None:
    """Write all bytes at an offset (`pwrite` may write fewer). Raises OSError as the system reports it."""
    while len(data):
        done = os.pwrite(fd, data, offset)
        data, offset = data[done:], offset + done


def write_vector(fd: int, parts: Sequence[bytes | memoryview], offset: int) -> None:
    """Write consecutive buffers at an offset, with few system calls. Raises OSError as the system reports it."""
    for first in range(0, len(parts), IOVECS):
        some = parts[first : first + IOVECS]
        size_bytes = sum(len(part) for part in some)
        done = os.pwritev(fd, some, offset)
        if done < size_bytes:  # cut short by a signal or a full disk; writing the rest reports which
            rest = memoryview(b"".join(some))
            write_all(fd, rest[done:], offset + done)
        offset += size_bytes


class Writeback:
    """Starts the writeback of a file while it grows, so that the sync at the end is short. Safe for several threads.

    POSIX_FADV_DONTNEED starts the writeback of dirty pages and returns at once (mm/fadvise.c); only pages that are
    already clean leave the page cache. Each call has a cost, so there is one for many bytes.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()
        self._waiting_bytes = 0

    def wrote(self, size_bytes: int) -> None:
        """Count bytes written anywhere in the file, and start writeback when there are enough."""
        with self._lock:
            self._waiting_bytes += size_bytes
            if self._waiting_bytes < WRITEBACK_BYTES:
                return
            self._waiting_bytes = 0
        with suppress(OSError):  # it is advice, which a file system may refuse
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
