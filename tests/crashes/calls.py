# SPDX-License-Identifier: GPL-2.0-or-later
"""A recorder of all calls of this process that change files below a folder.

It takes the place of the functions of `os` and of file objects that write. `tests/crashes/test_witness.py` runs the
same commands under strace: what strace sees, the recorder has.
"""

from __future__ import annotations

import builtins
import io
import os
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any, Literal
from unittest import mock

from hibernaut.volumes import output

__all__ = ["Call", "Place", "Recorder", "Tree"]

Place = tuple[int, str]
"""A folder, by its number, and a name in it."""
What = Literal["make", "folder", "symlink", "write", "size", "link", "rename", "unlink", "rmdir", "sync", "sync all"]
TMPFILE = os.O_TMPFILE
SOURCE = str(Path(output.__file__).resolve().parent.parent) + os.sep
HELPERS = {
    "write_all", "write_vector", "write", "_write_directly", "sync", "set_size", "sync_folder",
    "sync_file_system", "_syncfs", "_allocate",
    "_write_blocks", "_put", "_write_batch",
}  # fmt: skip
"""Functions of the library that write or sync for another one: a call site is that of their caller."""


@dataclass(frozen=True)
class Call:
    """A call that changed a file or a folder.

    Attributes:
        what: its kind. "make" and "folder" make an inode, "size" is a truncation or an allocation.
        file: number of the file or folder; 0 for "sync all".
        place: the entry that is made or removed; None for a file without a name.
        old: the entry that a rename takes away.
        offset: first byte of a write, or the new size.
        data: bytes of a write, or the target of a symbolic link.
        site: function of the library that asked for it, with its line.
    """

    what: What
    file: int
    place: Place | None = None
    old: Place | None = None
    offset: int = 0
    data: bytes = b""
    site: str = ""


@dataclass
class Tree:
    """Folders and files by number; the root is 1.

    Attributes:
        folders: entries of each folder.
        files: content of each file.
        links: target of each symbolic link.
    """

    folders: dict[int, dict[str, int]] = field(default_factory=dict)
    files: dict[int, bytes] = field(default_factory=dict)
    links: dict[int, bytes] = field(default_factory=dict)


class _Raw(io.FileIO):
    """A file whose writes are recorded."""

    recorder: Recorder

    def write(self, data: Any) -> int:
        return self.recorder.wrote(self.fileno(), memoryview(data).cast("B"), None, lambda: io.FileIO.write(self, data))

    def truncate(self, size: int | None = None) -> int:
        to = self.tell() if size is None else size
        self.recorder.sized(self.fileno(), to, lambda: io.FileIO.truncate(self, to))
        return to


class Recorder:
    """Records the calls below a folder.

    Args:
        root: the folder, as it is now.
        before: called once with the number of each call, from 0, right before it happens; it may raise OSError.
        contents: whether to keep the contents of all files as they are now.
    """

    def __init__(
        self, root: Path, before: Callable[[int], None] = lambda _number: None, *, contents: bool = True
    ) -> None:
        self._contents = contents
        self.root = os.path.realpath(root)
        self.calls: list[Call] = []
        self.tree = Tree()
        self._before = before
        self._numbers: dict[tuple[int, int], int] = {}
        self._last = 0
        self._announced = -1
        self._lock = threading.RLock()
        self._note_tree(self.root)

    def _note_tree(self, path: str) -> int:
        number = self._new(os.lstat(path))
        if os.path.islink(path):
            self.tree.links[number] = os.fsencode(os.readlink(path))
        elif os.path.isdir(path):
            self.tree.folders[number] = {name: self._note_tree(f"{path}/{name}") for name in sorted(os.listdir(path))}
        else:
            self.tree.files[number] = Path(path).read_bytes() if self._contents else b""
        return number

    def _new(self, status: os.stat_result) -> int:
        self._last += 1
        self._numbers[status.st_dev, status.st_ino] = self._last
        return self._last

    def _number(self, status: os.stat_result) -> int | None:
        return self._numbers.get((status.st_dev, status.st_ino))

    def _path(self, path: Any, dir_fd: int | None = None) -> str:
        """Return the absolute path of an entry: its folder's links are followed, its own is not."""
        text = os.fsdecode(path)
        if dir_fd is not None and not os.path.isabs(text):
            text = f"{os.readlink(f'/proc/self/fd/{dir_fd}')}/{text}"
        folder, name = os.path.split(os.path.abspath(text))
        return os.path.join(os.path.realpath(folder), name)

    def _inside(self, path: str) -> bool:
        return path.startswith(f"{self.root}/")

    def _place(self, path: str) -> Place:
        folder, name = os.path.split(path)
        number = self._number(os.lstat(folder))
        assert number is not None, f"{folder} is not known"
        return number, name

    def _step(self) -> None:
        if len(self.calls) > self._announced:  # what is done after an interrupted call has its number, too
            self._announced = len(self.calls)
            self._before(self._announced)

    def _note(self, call: Call) -> None:
        self.calls.append(replace(call, site=_site(sys._getframe(2))))

    def wrote(self, fd: int, data: memoryview, offset: int | None, act: Callable[[], int | None]) -> int:
        """Do a write, and record what was written."""
        with self._lock:
            number = self._number(os.fstat(fd))
            if number is None:
                return act() or 0
            if offset is None:
                append = _flags(fd) & os.O_APPEND
                offset = os.fstat(fd).st_size if append else os.lseek(fd, 0, os.SEEK_CUR)
            self._step()
            done = act() or 0
            self._note(Call("write", number, offset=offset, data=bytes(data[:done])))
            return done

    def sized(self, fd: int, size: int, act: Callable[[], object]) -> None:
        """Change a size, and record it if it differs."""
        with self._lock:
            number = self._number(os.fstat(fd))
            if number is not None:
                self._step()
            act()
            if number is not None:
                self._note(Call("size", number, offset=size))

    def _open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        def act() -> int:
            return self._real["open"](path, flags, mode, **({} if dir_fd is None else {"dir_fd": dir_fd}))  # type: ignore[no-any-return]

        with self._lock:
            if flags & TMPFILE == TMPFILE:
                inside = self._number(os.stat(path)) is not None
                if inside:
                    self._step()
                fd = act()
                self._forget(fd)
                if inside:
                    self._note(Call("make", self._new(os.fstat(fd))))
                return fd
            if not flags & (os.O_CREAT | os.O_TRUNC):
                return act()
            full = self._path(path, dir_fd)
            if not self._inside(os.path.realpath(full)):
                fd = act()
                if flags & os.O_CREAT and flags & os.O_EXCL:
                    self._forget(fd)
                return fd
            full = os.path.realpath(full)
            existed = os.path.exists(full)
            truncates = existed and flags & os.O_TRUNC and os.stat(full).st_size
            if not existed or truncates:
                self._step()
            fd = act()
            if not existed:
                self._note(Call("make", self._new(os.fstat(fd)), self._place(full)))
            elif truncates:
                self._note(Call("size", self._number(os.fstat(fd)) or 0))
            return fd

    def _forget(self, fd: int) -> None:
        """Forget a deleted file whose inode number a new one has."""
        status = os.fstat(fd)
        self._numbers.pop((status.st_dev, status.st_ino), None)

    def _entry(self, what: What, name: str) -> Callable[..., None]:
        """Return the function that takes the place of os.unlink, os.mkdir, os.rmdir."""

        def act(path: Any, *more: Any, dir_fd: int | None = None) -> None:
            with self._lock:
                full = self._path(path, dir_fd)
                inside = self._inside(full)
                number = self._number(os.lstat(full)) if inside and os.path.lexists(full) else None
                if inside and (number is not None) == (what != "folder"):  # else it fails
                    self._step()
                self._real[name](path, *more, **({} if dir_fd is None else {"dir_fd": dir_fd}))
                if inside:
                    place = self._place(full)
                    if what == "folder":
                        number = self._new(os.lstat(full))
                    assert number is not None
                    self._note(Call(what, number, place))

        return act

    def _rename(
        self, source: Any, target: Any, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None
    ) -> None:
        with self._lock:
            old, new = self._path(source, src_dir_fd), self._path(target, dst_dir_fd)
            inside = self._inside(new) or self._inside(old)
            if inside and os.path.lexists(old):
                self._step()
            number = self._number(os.lstat(old)) if inside and os.path.lexists(old) else None
            self._real["rename"](source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
            if inside:
                assert number is not None, f"{source} is not below {self.root}"
                self._note(Call("rename", number, self._place(new), self._place(old)))

    def _link(self, source: Any, target: Any, **options: Any) -> None:
        with self._lock:
            full = self._path(target, options.get("dst_dir_fd"))
            inside = self._inside(full)
            if inside:
                self._step()
            self._real["link"](source, target, **options)
            if inside:
                number = self._number(os.lstat(full))
                assert number is not None, f"{source} is not below {self.root}"
                self._note(Call("link", number, self._place(full)))

    def _symlink(self, source: Any, target: Any, *more: Any, dir_fd: int | None = None) -> None:
        with self._lock:
            full = self._path(target, dir_fd)
            inside = self._inside(full)
            if inside:
                self._step()
            self._real["symlink"](source, target, *more, dir_fd=dir_fd)
            if inside:
                self._note(Call("symlink", self._new(os.lstat(full)), self._place(full), data=os.fsencode(source)))

    def _synced(self, name: str) -> Callable[[Any], None]:
        def act(file: Any) -> None:
            fd = file if isinstance(file, int) else file.fileno()
            with self._lock:
                number = self._number(os.fstat(fd))
                if number is not None:
                    self._step()
                self._real[name](file)
                if number is not None:
                    self._note(Call("sync", number))

        return act

    def _all_synced(self, name: str) -> Callable[..., None]:
        def act(*arguments: Any) -> None:
            with self._lock:
                self._step()
                self._real[name](*arguments)
                self._note(Call("sync all", 0))

        return act

    def _sent(self, out_fd: int, in_fd: int, offset: int | None, count: int, *more: Any) -> int:
        """Take the place of os.sendfile."""
        start = os.lseek(in_fd, 0, os.SEEK_CUR) if offset is None else offset
        data = os.pread(in_fd, count, start)
        if not data:
            return int(self._real["sendfile"](out_fd, in_fd, offset, count, *more))
        return self.wrote(
            out_fd, memoryview(data), None, lambda: self._real["sendfile"](out_fd, in_fd, offset, len(data), *more)
        )

    def _opened(
        self, file: Any, mode: str = "r", buffering: int = -1, encoding: str | None = None, errors: str | None = None,
        newline: str | None = None, closefd: bool = True, opener: Any = None,
    ) -> Any:  # fmt: skip
        """Take the place of open()."""
        real = self._real["builtin open"]
        writes = set(mode) & set("wax+")
        if isinstance(file, int):
            known = self._number(os.fstat(file)) is not None
        else:
            known = self._inside(os.path.realpath(os.fsdecode(file)))
        if not writes or not known:
            return real(file, mode, buffering, encoding, errors, newline, closefd, opener)
        raw = _Raw(
            file,
            mode.replace("b", "").replace("t", ""),
            closefd=closefd,
            opener=opener or (None if isinstance(file, int) else lambda path, flags: os.open(path, flags, 0o666)),
        )
        raw.recorder = self
        if buffering == 0:
            return raw
        made = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return made if "b" in mode else io.TextIOWrapper(made, encoding, errors, newline, line_buffering=buffering == 1)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Record every call within."""
        names = (
            "open", "write", "pwrite", "pwritev", "writev", "ftruncate", "truncate", "posix_fallocate", "link",
            "symlink",
            "rename", "replace", "unlink", "remove", "rmdir", "mkdir", "fsync", "fdatasync", "sync", "sendfile",
        )  # fmt: skip
        self._real: dict[str, Callable[..., Any]] = {name: getattr(os, name) for name in names}
        self._real["syncfs"], self._real["builtin open"] = output._syncfs, io.open
        real = self._real

        def truncate(path: Any, size: int) -> None:
            if isinstance(path, int):
                self.sized(path, size, lambda: real["truncate"](path, size))
                return
            fd = real["open"](path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                self.sized(fd, size, lambda: real["truncate"](path, size))
            finally:
                os.close(fd)

        def allocate(fd: int, at: int, size: int) -> None:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or at + size <= status.st_size:
                with self._lock:  # it fills holes, which read as zeroes before and after
                    if self._number(status) is not None:
                        self._step()
                    real["posix_fallocate"](fd, at, size)
                    if self._number(status) is not None:
                        self._note(Call("size", self._number(status) or 0, offset=status.st_size))
            else:
                self.sized(fd, at + size, lambda: real["posix_fallocate"](fd, at, size))

        def joined(parts: Any) -> memoryview:
            return memoryview(b"".join(parts))

        fakes: dict[str, Callable[..., Any]] = {
            "open": self._open,
            "write": lambda fd, data: self.wrote(fd, memoryview(data).cast("B"), None, lambda: real["write"](fd, data)),
            "pwrite": lambda fd, data, at: self.wrote(
                fd, memoryview(data).cast("B"), at, lambda: real["pwrite"](fd, data, at)
            ),
            "pwritev": lambda fd, parts, at, *flags: self.wrote(
                fd, joined(parts), at, lambda: real["pwritev"](fd, parts, at, *flags)
            ),
            "writev": lambda fd, parts: self.wrote(fd, joined(parts), None, lambda: real["writev"](fd, parts)),
            "ftruncate": lambda fd, size: self.sized(fd, size, lambda: real["ftruncate"](fd, size)),
            "truncate": truncate,
            "posix_fallocate": allocate,
            "link": self._link,
            "symlink": self._symlink,
            "rename": self._rename,
            "replace": self._rename,
            "unlink": self._entry("unlink", "unlink"),
            "remove": self._entry("unlink", "remove"),
            "rmdir": self._entry("rmdir", "rmdir"),
            "mkdir": self._entry("folder", "mkdir"),
            "fsync": self._synced("fsync"),
            "fdatasync": self._synced("fdatasync"),
            "sync": self._all_synced("sync"),
            "sendfile": self._sent,
        }
        with ExitStack() as stack:
            for name, fake in fakes.items():
                stack.enter_context(mock.patch.object(os, name, fake))
            stack.enter_context(mock.patch.object(output, "_syncfs", self._all_synced("syncfs")))
            stack.enter_context(mock.patch.object(io, "open", self._opened))
            stack.enter_context(mock.patch.object(builtins, "open", self._opened))
            yield


def _flags(fd: int) -> int:
    import fcntl

    return fcntl.fcntl(fd, fcntl.F_GETFL)


def _site(frame: FrameType | None) -> str:
    """Return the function of the library that made a call, past those that only write."""
    found = ""
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(SOURCE):
            found = f"{name.removeprefix(SOURCE)}:{frame.f_code.co_name}:{frame.f_lineno}"
            if frame.f_code.co_name not in HELPERS:
                return found
        elif found and "contextlib" not in name:
            return found
        frame = frame.f_back
    return found
