# SPDX-License-Identifier: GPL-2.0-or-later
"""The machine inside a source, as files: its log, its processes, its files, its symbols.

drgn is not made for several threads at once: one lock orders everything that asks it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np

from hibernaut.errors import FormatError
from hibernaut.kernel.address_space import AddressSpace
from hibernaut.kernel.cached_files import cached_files
from hibernaut.kernel.isf import isf_bytes, isf_document
from hibernaut.kernel.kernel import Kernel
from hibernaut.kernel.log import read_log
from hibernaut.kernel.process_core import ProcessCoreVolume, process_core
from hibernaut.kernel.processes import processes
from hibernaut.kernel.program import ask
from hibernaut.kernel.swapped_pages import SwappedPages
from hibernaut.memory.page import PAGE_SIZE
from hibernaut.mount.tree import ComputedFile, Node, PlacedFile, VirtualFile, VirtualFolder
from hibernaut.report.identity import dmesg_document, dmesg_text

if TYPE_CHECKING:
    from typing import Any

    from hibernaut.kernel.cached_files import CachedFile
    from hibernaut.sources import Source

__all__ = ["machine_files"]

MAX_STRING_BYTES = 1 << 22


def machine_files(source: Source) -> dict[str, Node]:
    """Return the files of the machine in a source by name; nothing is read before one is looked at."""
    machine = _Machine(source)
    return {
        "symbols.json": machine.computed(lambda kernel, _: isf_bytes(isf_document(kernel, version("hibernaut")))),
        "log.txt": machine.computed(lambda kernel, _: _log(kernel)),
        "processes": machine.folder(lambda: _processes(machine)),
        "files": machine.folder(lambda: _files(machine)),
    }


class _Machine:
    """The kernel of a source, opened when it is first needed, and the lock around everything that asks it."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._opened: tuple[Kernel, SwappedPages] | None = None
        self.lock = threading.RLock()

    def opened(self) -> tuple[Kernel, SwappedPages]:
        """Return kernel and swapped-out pages. Raises as `Kernel.of`."""
        with self.lock:
            if self._opened is None:
                kernel = Kernel.of(self._source)
                self._opened = kernel, SwappedPages.of(kernel, self._source)
            return self._opened

    def computed(self, content: Callable[[Kernel, SwappedPages], bytes]) -> ComputedFile:
        """Return a file whose content is computed of them."""

        def compute() -> bytes:
            with self.lock:
                return content(*self.opened())

        return ComputedFile(compute)

    def folder(self, entries: Callable[[], Mapping[str, Node]]) -> VirtualFolder:
        """Return a folder whose entries are found under the lock."""

        def find() -> Mapping[str, Node]:
            with self.lock:
                return entries()

        return VirtualFolder(find)


def _log(kernel: Kernel) -> bytes:
    records, unread = read_log(kernel)
    return (dmesg_text(dmesg_document(kernel.release, records, unread)) + "\n").encode()


def _processes(machine: _Machine) -> dict[str, Node]:
    """Return a folder for each process that has an address space."""
    kernel, _ = machine.opened()
    found: dict[str, Node] = {}
    for task in processes(kernel):
        pid, has_memory = ask(kernel, "task", lambda task: (int(task.tgid), bool(task.mm)), task)
        if has_memory:
            found[str(pid)] = machine.folder(partial(_process, machine, task, pid))
    return found


def _process(machine: _Machine, task: Any, pid: int) -> dict[str, Node]:
    """Return the files of a process, named as in /proc."""
    kernel, swapped = machine.opened()
    space = AddressSpace(kernel, task.mm, swapped)

    def strings(first: str, last: str) -> bytes:
        bounds = ask(kernel, "mm_struct", lambda: (int(task.mm.member_(first)), int(task.mm.member_(last))))
        return space.read(bounds[0], min(max(0, bounds[1] - bounds[0]), MAX_STRING_BYTES))

    def core() -> _Locked:
        with machine.lock:
            return _Locked(ProcessCoreVolume(process_core(kernel, task, space), space, f"core of {pid}"), machine.lock)

    return {
        "maps": machine.computed(lambda _kernel, _swapped: _maps(space)),
        "core": PlacedFile(core),
        "cmdline": machine.computed(lambda _kernel, _swapped: strings("arg_start", "arg_end")),
        "environ": machine.computed(lambda _kernel, _swapped: strings("env_start", "env_end")),
    }


def _maps(space: AddressSpace) -> bytes:
    """Return the mappings, a line each as in /proc/PID/maps, without device and inode."""
    lines = [
        f"{one.start:x}-{one.end:x} {one.rights} {one.offset:08x} 00:00 0".ljust(73) + (one.name or "") + "\n"
        for one in space.mappings
    ]
    return "".join(lines).encode("utf-8", "surrogateescape")


class _Locked:
    """A volume that is read under a lock."""

    def __init__(self, volume: ProcessCoreVolume, lock: threading.RLock) -> None:
        self._volume = volume
        self._lock = lock
        self.name = volume.name
        self.size_bytes = volume.size_bytes

    def pread(self, offset: int, size_bytes: int) -> bytes:
        """See `ProcessCoreVolume.pread`."""
        with self._lock:
            return self._volume.pread(offset, size_bytes)

    def pread_into(self, offset: int, out: Any) -> int:
        """See `ProcessCoreVolume.pread_into`."""
        with self._lock:
            return self._volume.pread_into(offset, out)


class _FileOfMachine(VirtualFile):
    """A file of the page cache or of tmpfs."""

    def __init__(self, machine: _Machine, file: CachedFile) -> None:
        self._machine = machine
        self._file = file

    def size_bytes(self) -> int:
        """See `VirtualFile`."""
        return self._file.size_bytes

    def read(self, offset: int, size_bytes: int) -> bytes:
        """See `VirtualFile`; raises FormatError for a page that is nowhere."""
        end = min(offset + size_bytes, self._file.size_bytes)
        if offset >= end:
            return b""
        first, last = offset // PAGE_SIZE, (end - 1) // PAGE_SIZE
        room = np.zeros((last - first + 1, PAGE_SIZE), dtype=np.uint8)
        with self._machine.lock:
            _, swapped = self._machine.opened()
            reasons = self._file.pages.read(np.arange(first, last + 1, dtype=np.int64), swapped, room)
        for page, reason in enumerate(reasons, first):
            if reason is not None:
                raise FormatError(f"page {page} of it is nowhere: {reason}", source=self._file.path)
        return room.reshape(-1)[offset - first * PAGE_SIZE : end - first * PAGE_SIZE].tobytes()


def _files(machine: _Machine) -> dict[str, Node]:
    """Return the tree of the files that have a path; of two with the same one, the first."""
    kernel, _ = machine.opened()
    tree: dict[str, Any] = {}
    for file in cached_files(kernel):
        names = [name for name in (file.path or "").split("/") if name not in ("", ".", "..")]
        folder = tree
        for name in names[:-1]:
            below = folder.setdefault(name, {})
            if not isinstance(below, dict):
                break
            folder = below
        else:
            if names:
                folder.setdefault(names[-1], _FileOfMachine(machine, file))
    return _nodes(tree)


def _nodes(tree: dict[str, Any]) -> dict[str, Node]:
    return {name: VirtualFolder(_nodes(one)) if isinstance(one, dict) else one for name, one in tree.items()}
