# SPDX-License-Identifier: GPL-2.0-or-later
"""Output files: private, written without a name and put in the place of their target once complete and synced.

A process that is killed leaves nothing: the system frees a file without a name (O_TMPFILE). Where the file system has
no such files, the new file has a hidden name beside its target and a lock; one without a lock is removed by the
next writer of the same target.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from hibernaut.parallel import worker_count
from hibernaut.volumes.closing import Closing

__all__ = [
    "BulkOutput",
    "Writeback",
    "allocate",
    "bulk_workers",
    "bulk_writers",
    "make_folder",
    "remove_file",
    "replacing",
    "set_size",
    "sync",
    "sync_file_system",
    "sync_folder",
    "write_all",
    "write_file",
    "write_vector",
]


IOVECS = 512
"""Buffers given to one system call; the system allows 1024 (IOV_MAX)."""
WRITEBACK_BYTES = 32 << 20
DIRECT_FILE_BYTES = 256 << 20
"""Size of a file from which on its bulk does not go through the page cache: a smaller one may be read again at once."""
DIRECT_BYTES = 256 << 10
"""Least bytes of one direct write: each waits for the disk."""
DIRECT_ALIGNMENT = 4096
"""Alignment of offset, length and memory that every disk accepts (open(2), O_DIRECT)."""
ALLOCATED_BYTES = 32 << 20
"""Bytes of a growing file that get blocks at once: ext4 lets an allocation wait for all direct writes under way."""
DIRECT_WRITERS = 2
"""Threads beyond one for each core, so that no core is idle while others wait for the disk."""
PRIVATE = 0o600
PUBLIC = 0o666
OPEN_FILES = "/proc/self/fd"
"""Links to the open files, by which a file without a name gets one (open(2), O_TMPFILE)."""
LEFTOVER_SECONDS = 10
"""Age from which a hidden file without a lock is a leftover: its writer takes the lock right after making it."""
NO_UNNAMED_FILES = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL)
"""Errors of open(2) where file system or kernel do not know O_TMPFILE."""


@contextmanager
def replacing(path: str | os.PathLike[str], *, public: bool = False, new: bool = False) -> Iterator[int]:
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
        new: nothing may be at `path`, not even a symbolic link. Where the file system has no files without a name,
            what another process makes there meanwhile is replaced.

    Raises:
        IsADirectoryError: `path` is a directory.
        FileExistsError: `path` is a device, pipe or socket, which a rename would only hide; with `new`, it exists.
        OSError: as the system reports it.
    """
    if new and os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    target = Path(os.path.realpath(path))
    replaced = _status(target)
    if replaced is not None and stat.S_ISDIR(replaced.st_mode):
        raise IsADirectoryError(21, os.strerror(21), str(path))
    if replaced is not None and not stat.S_ISREG(replaced.st_mode):
        raise FileExistsError(17, "is not a regular file", str(path))
    mode = PUBLIC if public else PRIVATE
    partial = target.with_name(f".{target.name[:200]}.{secrets.token_hex(4)}.partial")
    _remove_leftovers(target)
    try:
        with _as_error_of(path):  # the name that the caller knows
            fd, named = _new_file(partial, mode)
        try:
            with _named_in_errors(fd, str(path)):  # ends before another file can get the same number
                _protect(fd, None if public else PRIVATE, replaced)
                yield fd
                sync(fd)
            with _as_error_of(path):
                if not named:
                    _give_name(fd, target if new else partial)
        finally:
            os.close(fd)
        with _as_error_of(path):
            if named or not new:
                partial.rename(target)
    except BaseException:
        with suppress(OSError):  # a signal may come right after the file gets a name
            partial.unlink()
        raise
    sync_folder(target.parent)


@contextmanager
def _as_error_of(path: str | os.PathLike[str]) -> Iterator[None]:
    """Name a path in the errors of the block, which may name a hidden file or none."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_file(path: str | os.PathLike[str], data: bytes, *, public: bool = False, new: bool = False) -> None:
    """Write a whole file, which appears complete or not at all. Arguments and errors as for `replacing`."""
    with replacing(path, public=public, new=new) as fd:
        write_all(fd, memoryview(data), 0)


def _new_file(partial: Path, mode: int) -> tuple[int, bool]:
    """Return a new file, open, and whether it has its hidden name already. Raises OSError as the system reports it."""
    if os.path.isdir(OPEN_FILES):
        try:
            return os.open(partial.parent, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, mode), False
        except OSError as error:
            if error.errno not in NO_UNNAMED_FILES or not partial.parent.is_dir():
                raise
    fd = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with suppress(OSError):  # a file system without locks keeps its leftovers
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return fd, True


def _give_name(fd: int, path: Path) -> None:
    """Give a file without a name one. Raises OSError."""
    files = os.open(OPEN_FILES, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:  # with a folder's descriptor Python calls linkat, which follows the link; link does not
        os.link(str(fd), path, src_dir_fd=files, follow_symlinks=True)
    finally:
        os.close(files)


def _remove_leftovers(target: Path) -> None:
    """Remove the hidden files of a target whose writers have ended without removing them."""
    prefix, suffix = f".{target.name[:200]}.", ".partial"
    with suppress(OSError):
        found = [one for one in os.listdir(target.parent) if one.startswith(prefix) and one.endswith(suffix)]
        for name in found:
            path = target.parent / name
            with suppress(OSError), path.open("rb+") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if time.time() - os.fstat(file.fileno()).st_mtime > LEFTOVER_SECONDS:
                    path.unlink()


_names: dict[int, str] = {}
"""The name of each output, by its descriptor, for errors."""


@contextmanager
def _named_in_errors(fd: int, name: str) -> Iterator[None]:
    _names[fd] = name
    try:
        yield
    finally:
        del _names[fd]


def _at(error: OSError, fd: int, offset: int) -> OSError:
    """Return the error of a write, with the file and the byte."""
    return OSError(error.errno, f"{error.strerror}, at byte {offset}", _name_of(fd))


def _name_of(fd: int) -> str:
    """Return the name of an open file: the one that the caller of `replacing` knows, else the system's."""
    return _names.get(fd) or os.path.realpath(f"{OPEN_FILES}/{fd}")


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


def sync_folder(folder: Path) -> None:
    """Sync the entries of a folder. Raises OSError, with the folder."""
    with _as_error_of(folder):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def remove_file(path: str | os.PathLike[str]) -> None:
    """Remove a file. Raises OSError, with the file."""
    with _as_error_of(path):
        os.unlink(path)


def make_folder(path: str | os.PathLike[str]) -> None:
    """Make a folder and those above it, where they are absent, and sync each one that gets an entry.

    `replacing` syncs the folder of its file: after a loss of power a folder without an entry of its own is gone, with
    all files that were synced in it.

    Raises:
        OSError: as the system reports it.
    """
    folder = Path(os.path.realpath(path))
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    with _as_error_of(path):
        os.makedirs(path, exist_ok=True)
    for one in reversed(missing):
        sync_folder(one.parent)


def sync(fd: int) -> None:
    """Sync a file. Raises OSError, with the file."""
    try:
        os.fsync(fd)
    except OSError as error:
        raise OSError(error.errno, error.strerror, _name_of(fd)) from error


def set_size(fd: int, size_bytes: int) -> None:
    """Set the size of a file. Raises OSError, with the file."""
    try:
        os.ftruncate(fd, size_bytes)
    except OSError as error:
        raise OSError(error.errno, error.strerror, _name_of(fd)) from error


def allocate(fd: int, at: int, size_bytes: int, name: str) -> None:
    """Give a part of a file its blocks. Raises OSError, with the name."""
    try:
        os.posix_fallocate(fd, at, size_bytes)
    except OSError as error:
        raise OSError(error.errno, error.strerror, name) from error


def sync_file_system(folder: str | os.PathLike[str]) -> None:
    """Write everything that the file system of a folder still has in memory to its disk (syncfs(2)).

    For a folder of thousands of files, one call instead of a sync for each. Raises OSError, with the folder.
    """
    with _as_error_of(folder):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _syncfs(fd)
        finally:
            os.close(fd)


def _syncfs(fd: int) -> None:
    import ctypes  # Python has no os.syncfs

    if ctypes.CDLL(None, use_errno=True).syncfs(fd):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def write_all(fd: int, data: memoryview, offset: int) -> None:
    """Write all bytes at an offset (`pwrite` may write fewer). Raises OSError, with file and byte."""
    while len(data):
        try:
            done = os.pwrite(fd, data, offset)
        except OSError as error:
            raise _at(error, fd, offset) from error
        data, offset = data[done:], offset + done


def write_vector(fd: int, parts: Sequence[bytes | memoryview], offset: int) -> None:
    """Write consecutive buffers at an offset, with few system calls. Raises OSError, with file and byte."""
    for first in range(0, len(parts), IOVECS):
        some = parts[first : first + IOVECS]
        size_bytes = sum(len(part) for part in some)
        try:
            done = os.pwritev(fd, some, offset)
        except OSError as error:
            raise _at(error, fd, offset) from error
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


class BulkOutput(Closing):
    """Writes the bulk of a new file: past the page cache where the file system can, else with early writeback.

    A direct write costs no copy and no page of the cache, so that the cores are left to the codec; large and aligned
    writes of large files only. Safe for several threads.

    Args:
        fd: descriptor of the file, open for writing.
        size_bytes: expected size of the file.
        grows: whether the file grows as it is written, from its start on. One that is written directly then has the
            expected size from the first write on, and blocks ahead of the writes; the caller sets the final size, which
            frees those that are left.
        durable: whether the file is synced at its end, and writeback is started early.
    """

    def __init__(self, fd: int, size_bytes: int, *, grows: bool = False, durable: bool = True) -> None:
        self._fd = fd
        self._writeback = Writeback(fd) if durable else None
        self._direct: int | None = None
        self._grows = grows
        self._size_bytes = size_bytes
        self._allocated_bytes = 0
        self._allocating = threading.Lock()
        if durable and size_bytes >= DIRECT_FILE_BYTES:
            with suppress(OSError):  # EINVAL: the file system has no direct writes
                self._direct = os.open(f"{OPEN_FILES}/{fd}", os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
                if grows:
                    os.ftruncate(fd, size_bytes)

    def write(self, parts: Sequence[bytes | memoryview], offset: int) -> None:
        """Write consecutive buffers at an offset. Raises OSError, with file and byte."""
        size_bytes = sum(len(part) for part in parts)
        if self._direct is not None and size_bytes >= DIRECT_BYTES and _is_aligned(parts, offset):
            done = self._write_directly(self._direct, parts, offset)
            if done == size_bytes:
                return
            rest = memoryview(b"".join(parts))[done:]
            write_all(self._fd, rest, offset + done)
        else:
            write_vector(self._fd, parts, offset)
        if self._writeback is not None:
            self._writeback.wrote(size_bytes)

    def _write_directly(self, direct: int, parts: Sequence[bytes | memoryview], offset: int) -> int:
        """Return the number of bytes written directly; what is left is written, or fails, through the page cache."""
        if len(parts) > IOVECS:
            return 0
        self._allocate(direct, offset, offset + sum(len(part) for part in parts))
        try:
            return os.pwritev(direct, parts, offset)
        except OSError:
            return 0

    def _allocate(self, direct: int, begin: int, end: int) -> None:
        """Give a part its blocks, as far as there are any.

        ext4 makes direct writes to a hole or behind the end wait for each other, and an allocation for all of them.
        """
        if not self._grows:
            with suppress(OSError):
                os.posix_fallocate(direct, begin, end - begin)
            return
        with self._allocating:
            if end <= self._allocated_bytes:
                return
            ahead = max(end, min(end + ALLOCATED_BYTES, self._size_bytes))
            begin, self._allocated_bytes = self._allocated_bytes, end
            with suppress(OSError):  # too few are left for so many; those written may still fit
                os.posix_fallocate(direct, begin, ahead - begin)
                self._allocated_bytes = ahead

    def close(self) -> None:
        """Close what was opened here; the file stays open."""
        if self._direct is not None:
            os.close(self._direct)
            self._direct = None


def bulk_writers(size_bytes: int) -> int:
    """Return the number of threads that do nothing but write a file of so many bytes, besides one for each core.

    The page cache takes a smaller file at once. One writes while it is given something; workers write what it leaves.
    """
    return int(size_bytes >= DIRECT_FILE_BYTES)


def bulk_workers(size_bytes: int) -> int:
    """Return the number of threads that keep all cores at work where each of them writes its part of such a file."""
    return worker_count() + (DIRECT_WRITERS if size_bytes >= DIRECT_FILE_BYTES else 0)


def _is_aligned(parts: Sequence[bytes | memoryview], offset: int) -> bool:
    """Return whether offset, lengths and addresses are multiples of a page."""
    if offset % DIRECT_ALIGNMENT or any(len(part) % DIRECT_ALIGNMENT for part in parts):
        return False
    import numpy as np  # not at the top: the verifier of an initramfs has the standard library alone

    return not any(np.frombuffer(part, dtype=np.uint8).ctypes.data % DIRECT_ALIGNMENT for part in parts)
