# SPDX-License-Identifier: GPL-2.0-or-later
"""A tree of virtual files as a file system, by libfuse through mfusepy (the extra `mount`).

libfuse calls from several threads at once. It takes SIGINT, SIGTERM and SIGHUP, unmounts, and returns.
"""

from __future__ import annotations

import ctypes
import errno
import importlib
import os
import shutil
import signal
import stat
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hibernaut.errors import HibernautError, how_to_install
from hibernaut.mount.tree import Node, VirtualFile, VirtualFolder, node_at

__all__ = ["require_fuse", "serve", "unmount_command"]

DEVICE = Path("/dev/fuse")
EMPTY_FOLDER = "give an empty folder"
FILE_MODE = stat.S_IFREG | 0o400
FOLDER_MODE = stat.S_IFDIR | 0o500
IDLE_THREADS = 10
"""Most idle threads that libfuse 3 keeps, as libfuse 2 does; 3.12 refuses its own default with a line on stderr."""
BOUNDED_THREADS = (3, 12)
"""Version of libfuse since which it starts 10 threads at most, none of which ends before the mount."""
MOST_REPORTED = 1000
"""Most failures of reads that are reported: a damaged file would fill the terminal."""


def require_fuse(directory: Path) -> None:
    """Raise HibernautError if nothing can be mounted on a folder: it is not an empty one, or FUSE is missing."""
    _require_empty(directory)
    _library()
    if not DEVICE.exists():
        raise HibernautError(
            f"{DEVICE} does not exist: the kernel or the container has no FUSE",
            advice="load it with `modprobe fuse`, or start the container with the device",
        )
    if os.geteuid() == 0:
        try:
            os.close(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            raise HibernautError(
                f"{DEVICE} cannot be opened: {error.strerror}",
                advice="load it with `modprobe fuse`, or start the container with the device",
            ) from error
    elif not _unmounter():
        raise HibernautError(
            "fusermount is not installed, by which users other than root mount",
            advice="install the package fuse3, or run it as root",
        )


def unmount_command(directory: Path) -> list[str]:
    """Return the words of the command that unmounts a folder."""
    unmounter = None if os.geteuid() == 0 else _unmounter()
    return [*([unmounter, "-u"] if unmounter else ["umount"]), str(directory)]


def serve(
    root: VirtualFolder,
    directory: Path,
    *,
    modified_ns: int,
    ready: Callable[[], None],
    report: Callable[[str], None],
) -> None:
    """Mount a tree on an empty folder and serve it, read-only, to its owner alone, until a signal or until unmounted.

    A file that cannot be read fails with EIO, and is reported; the others stay readable.

    Args:
        root: the tree.
        directory: the folder.
        modified_ns: time of modification of all files, in ns since 1970.
        ready: is called once when the tree is mounted; an exception ends the mount and is raised.
        report: is called with a line about each failure, from any thread.

    Raises:
        HibernautError: see `require_fuse`; or the system refuses the mount.
    """
    require_fuse(directory)
    library = _library()
    operations = _Operations(root, modified_ns, ready, report, keeps_threads=_version(library) >= BOUNDED_THREADS)
    where = str(directory.resolve())
    try:
        options = {"max_idle_threads": IDLE_THREADS} if _version(library) >= (3, 0) else {}
        with _signals_left_to_libfuse():
            library.FUSE(operations, where, raw_fi=True, foreground=True, ro=True, fsname="hibernaut", **options)
    except RuntimeError as error:  # libfuse 3 also returns an error if a signal ended it
        if not operations.mounted:
            raise HibernautError(
                f"FUSE cannot mount on {directory} (libfuse returned {error})",
                advice="check that you may mount there: `fusermount3 -V`, /etc/fuse.conf, the container's rights",
            ) from error
    if operations.failure is not None:
        raise operations.failure


@contextmanager
def _signals_left_to_libfuse() -> Iterator[None]:
    """Restore the default action of SIGTERM and SIGHUP within the block: libfuse handles only signals that have it.

    mfusepy itself does so for SIGINT. An ignored signal stays ignored.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if callable(signal.getsignal(number)):
                before[number] = signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _require_empty(directory: Path) -> None:
    """Raise HibernautError if a folder does not exist, is something else, or has entries."""
    try:
        entries = os.listdir(directory)
    except FileNotFoundError:
        raise HibernautError(f"{directory} does not exist", advice=EMPTY_FOLDER) from None
    except NotADirectoryError:
        raise HibernautError(f"{directory} is not a folder", advice=EMPTY_FOLDER) from None
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            raise HibernautError(
                f"{directory} is a mount whose program has ended",
                advice=f"unmount it with `{' '.join(unmount_command(directory))}`",
            ) from error
        raise
    if entries:
        raise HibernautError(f"{directory} is not empty", advice=EMPTY_FOLDER)


def _unmounter() -> str | None:
    return next((name for name in ("fusermount3", "fusermount") if shutil.which(name)), None)


def _library() -> Any:
    """Return mfusepy, which loads libfuse. Raises HibernautError if either is not installed."""
    try:
        return importlib.import_module("mfusepy")
    except ImportError as error:
        raise HibernautError(
            "mfusepy is not installed: sources are mounted with it", advice=f"try: {how_to_install('mfusepy')}"
        ) from error
    except (OSError, AttributeError) as error:
        raise HibernautError(
            f"libfuse cannot be loaded: {error}", advice="install libfuse (Debian: the package fuse3)"
        ) from error


def _version(library: Any) -> tuple[int, int]:
    """Return the version of libfuse."""
    return library.fuse_version_major, library.fuse_version_minor


class _Operations:
    """The calls of libfuse, as mfusepy names them.

    Attributes:
        mounted: whether the tree was mounted.
        failure: exception of `ready`.
    """

    use_ns = True

    def __init__(
        self,
        root: VirtualFolder,
        modified_ns: int,
        ready: Callable[[], None],
        report: Callable[[str], None],
        *,
        keeps_threads: bool,
    ) -> None:
        self.mounted = False
        self.failure: BaseException | None = None
        self._root = root
        self._modified_ns = modified_ns
        self._ready = ready
        self._report = report
        self._reported: set[str] = set()
        self._keeps_threads = keeps_threads
        self._thread = threading.local()

    def init(self, _path: str) -> None:
        """Tell that the tree is mounted."""
        self.mounted = True
        try:
            self._ready()
        except BaseException as error:
            self.failure = error
            os.kill(os.getpid(), signal.SIGTERM)

    def getattr(self, path: str, _handle: object = None) -> dict[str, int]:
        """Return the attributes of a file or folder, see stat(2)."""
        with self._failing_as_eio(path):
            node = self._node(path)
            folder = isinstance(node, VirtualFolder)
            size_bytes = 0 if isinstance(node, VirtualFolder) else node.size_bytes() or 0
        return {
            "st_mode": FOLDER_MODE if folder else FILE_MODE,
            "st_nlink": 2 if folder else 1,
            "st_size": size_bytes,
            "st_blocks": -(-size_bytes // 512),
            "st_uid": os.getuid(),
            "st_gid": os.getgid(),
            **dict.fromkeys(("st_atime", "st_mtime", "st_ctime"), self._modified_ns),
        }

    def readdir(self, path: str, _handle: object) -> list[str]:
        """Return the names in a folder."""
        with self._failing_as_eio(path):
            node = self._node(path)
            if not isinstance(node, VirtualFolder):
                raise _refusal(errno.ENOTDIR)
            return [".", "..", *node.entries()]

    def open(self, path: str, info: Any) -> int:
        """Open a file. One whose length is not known yet is read to its end, past the page cache."""
        with self._failing_as_eio(path):
            known = self._file(path).size_bytes() is not None
        info.keep_cache = int(known)
        info.direct_io = int(not known)
        return 0

    def read(self, path: str, size_bytes: int, offset: int, _info: object) -> bytes:
        """Return bytes of a file."""
        self._keep_thread()
        with self._failing_as_eio(path, offset):
            return self._file(path).read(offset, size_bytes)

    def _keep_thread(self) -> None:
        """Keep what Python has of the calling thread of libfuse until the program ends.

        It is made for each call, and ended after it with all buffers that belong to the thread, which costs as much as
        a read. A call of `PyGILState_Ensure` without its counterpart keeps it. Only where the number of threads is
        bounded: nothing ends what is kept of a thread that has ended.
        """
        if self._keeps_threads and not hasattr(self._thread, "kept"):
            ctypes.pythonapi.PyGILState_Ensure()
            self._thread.kept = True

    def _node(self, path: str) -> Node:
        node = node_at(self._root, path)
        if node is None:
            raise _refusal(errno.ENOENT)
        return node

    def _file(self, path: str) -> VirtualFile:
        node = self._node(path)
        if isinstance(node, VirtualFolder):
            raise _refusal(errno.EISDIR)
        return node

    @contextmanager
    def _failing_as_eio(self, path: str, offset: int | None = None) -> Iterator[None]:
        """Report an exception, and raise OSError with EIO in its place. Refusals of paths stay as they are."""
        try:
            yield
        except _Refusal:
            raise
        except Exception as error:
            place = path.lstrip("/") or "/"
            if not isinstance(error, HibernautError | OSError):
                self._say("".join(traceback.format_exception(error)))
            self._say(f"{place}{'' if offset is None else f', byte {offset}'}: {error}")
            raise OSError(errno.EIO, os.strerror(errno.EIO)) from error

    def _say(self, line: str) -> None:
        if line not in self._reported and len(self._reported) < MOST_REPORTED:
            self._reported.add(line)
            self._report(line)


class _Refusal(OSError):
    """An error of the path, not of the source."""


def _refusal(number: int) -> _Refusal:
    return _Refusal(number, os.strerror(number))
