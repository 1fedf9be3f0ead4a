# SPDX-License-Identifier: GPL-2.0-or-later
"""An ELF core of one process, as the kernel would write it (fs/binfmt_elf.c), for gdb.

It has the registers with which each thread entered the kernel, the process's auxiliary vector, the files that it maps,
and its memory. Pages that are nowhere have no segment: a debugger reports that it cannot read them, where it would show
zeroes for a segment without bytes in the file.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from hibernaut.errors import FormatError
from hibernaut.kernel.address_space import AddressSpace, PagePlace, PartState, UserMapping
from hibernaut.kernel.program import ask, each
from hibernaut.kernel.reading import list_objects
from hibernaut.memory import declarations as c
from hibernaut.memory.dump_layout import elf_head, packed_note
from hibernaut.memory.elf import Note
from hibernaut.memory.page import PAGE_SIZE
from hibernaut.volumes.output import write_all

if TYPE_CHECKING:
    from typing import Any

    from hibernaut.kernel.kernel import Kernel
    from hibernaut.memory.page import Bytes

__all__ = ["CoreSegment", "ProcessCore", "ProcessCoreVolume", "process_core", "write_process_core"]

NT_PRSTATUS, NT_PRPSINFO, NT_AUXV, NT_FILE = 1, 3, 6, 0x46494C45
"""include/uapi/linux/elf.h"""
NOTE_NAME = b"CORE"
REGISTERS = 21
"""Registers of `struct pt_regs` (arch/x86/include/asm/ptrace.h), in the order of `struct user_regs_struct`."""
USER_CODE_SEGMENTS = (0x33, 0x23)
"""`__USER_CS`, `__USER32_CS` (arch/x86/include/asm/segment.h)."""
STACK_PADDINGS = (0, 16)
"""`TOP_OF_KERNEL_STACK_PADDING` (arch/x86/include/asm/thread_info.h), without and with CONFIG_X86_FRED."""
CS_AT, SS_AT = 17, 20
MAX_THREADS = 1 << 16
CHUNK_PAGES = 1 << 12
MAX_UNTOUCHED_PAGES = 1 << 18
"""Pages of a file in a row that the process has not touched: more of them are left out (1 GiB)."""


@dataclass(frozen=True)
class CoreSegment:
    """A run of pages of one mapping that are all there, or all nowhere.

    Attributes:
        mapping: the mapping.
        first: its first page, 0 for the mapping's first.
        pages: number of pages.
        reason: why they are nowhere; None if they are there.
        is_zero: whether the process never touched them, so that they are zero: they take no room in the core.
    """

    mapping: UserMapping
    first: int
    pages: int
    reason: str | None
    is_zero: bool = False

    @property
    def start(self) -> int:
        """Its first address."""
        return self.mapping.start + self.first * PAGE_SIZE


@dataclass(frozen=True)
class ProcessCore:
    """A core before it is written.

    Attributes:
        notes: its notes.
        segments: its memory, ascending.
        remarks: what is missing in its notes.
    """

    notes: tuple[Note, ...]
    segments: tuple[CoreSegment, ...]
    remarks: tuple[str, ...]

    @property
    def missing_pages(self) -> int:
        """Pages that are nowhere."""
        return sum(one.pages for one in self.segments if one.reason is not None)


def process_core(kernel: Kernel, task: Any, space: AddressSpace) -> ProcessCore:
    """Return the core of a process.

    Args:
        kernel: the kernel.
        task: its `struct task_struct *`, a drgn object.
        space: its address space.

    Raises:
        FormatError: its mappings or its threads are not in the memory, or damaged.
    """
    remarks: list[str] = []
    notes: list[Note] = []
    for thread in _threads(kernel, task):
        pid = ask(kernel, "thread", lambda thread: int(thread.pid), thread)
        try:
            notes.append(Note(NOTE_NAME, NT_PRSTATUS, _status(kernel, task, thread)))
        except FormatError as error:
            remarks.append(f"registers of thread {pid}: {error}")
    notes.insert(min(1, len(notes)), Note(NOTE_NAME, NT_PRPSINFO, ask(kernel, "task", _identity, task)))
    notes.append(Note(NOTE_NAME, NT_AUXV, ask(kernel, "saved_auxv", _auxiliary_vector, task)))
    notes.append(Note(NOTE_NAME, NT_FILE, _mapped_files(space)))
    segments = [segment for mapping in space.mappings for segment in _segments(space, mapping)]
    return ProcessCore(tuple(notes), tuple(segments), tuple(remarks))


class ProcessCoreVolume:
    """A core as a file that is read by position, a page when it is asked for. A volume.

    Args:
        core: the core.
        space: the address space that it is of.
        name: name in messages.
    """

    def __init__(self, core: ProcessCore, space: AddressSpace, name: str) -> None:
        self.name = name
        self._space = space
        self._segments = [segment for segment in core.segments if segment.reason is None]
        packed = b"".join(packed_note(note) for note in core.notes)
        headers = np.zeros(1 + len(self._segments), dtype=c.PROGRAM_HEADER)
        head = elf_head(len(headers), c.EM_X86_64)
        notes_at = len(head) + headers.nbytes
        at = -(-(notes_at + len(packed)) // PAGE_SIZE) * PAGE_SIZE
        headers[0] = (c.PT_NOTE, 0, notes_at, 0, 0, len(packed), 0, 4)
        self._places: list[int] = []
        for number, segment in enumerate(self._segments, 1):
            rights = segment.mapping.rights
            flags = 4 * (rights[0] == "r") | 2 * (rights[1] == "w") | (rights[2] == "x")
            size = segment.pages * PAGE_SIZE
            stored = 0 if segment.is_zero else size
            headers[number] = (c.PT_LOAD, flags, at, segment.start, 0, stored, size, PAGE_SIZE)
            self._places.append(at)
            at += stored
        self._head = (head + headers.tobytes() + packed).ljust(self._places[0] if self._places else 0, b"\0")
        self.size_bytes = at if self._places else len(self._head)

    def pread(self, offset: int, size_bytes: int) -> bytes:
        """Return bytes: fewer only at the end."""
        end = min(offset + size_bytes, self.size_bytes)
        parts = [self._head[offset:end]] if offset < len(self._head) else []
        at = max(offset, len(self._head))
        while at < end:
            row = bisect_right(self._places, at) - 1
            segment, within = self._segments[row], at - self._places[row]
            first = within // PAGE_SIZE
            count = min(segment.pages - first, CHUNK_PAGES, -(-(within % PAGE_SIZE + end - at) // PAGE_SIZE))
            room = np.zeros((count, PAGE_SIZE), dtype=np.uint8)
            self._space.read_pages(segment.mapping, segment.first + first, count, room)
            part = room.reshape(-1)[within % PAGE_SIZE :][: end - at].tobytes()
            parts.append(part)
            at += len(part)
        return b"".join(parts)

    def pread_into(self, offset: int, out: Bytes) -> int:
        """Read into an array, shape (n,); returns the number of bytes."""
        found = self.pread(offset, len(out))
        out[: len(found)] = np.frombuffer(found, dtype=np.uint8)
        return len(found)


def write_process_core(core: ProcessCore, space: AddressSpace, fd: int) -> None:
    """Write a core; the arguments are those of `process_core` and its result, and the descriptor of a new file.

    Raises:
        OSError: writing fails.
    """
    volume = ProcessCoreVolume(core, space, "core")
    for at in range(0, volume.size_bytes, CHUNK_PAGES * PAGE_SIZE):
        write_all(fd, memoryview(volume.pread(at, CHUNK_PAGES * PAGE_SIZE)), at)


def _segments(space: AddressSpace, mapping: UserMapping) -> list[CoreSegment]:
    """Return the runs of a mapping. Reads all pages that have page tables, or that a file of the mapping has."""
    found: list[CoreSegment] = []
    for start, count, state in space.parts(mapping):
        if state == PartState.MISSING:
            _add(found, CoreSegment(mapping, start, count, "its page table is not in memory"))
        elif state == PartState.UNTOUCHED and mapping.untouched == PagePlace.ZERO:
            _add(found, CoreSegment(mapping, start, count, None, is_zero=True))
        elif state == PartState.UNTOUCHED and count > MAX_UNTOUCHED_PAGES:
            _add(found, CoreSegment(mapping, start, count, "the process has not touched it"))
        else:
            for first in range(start, start + count, CHUNK_PAGES):
                room = np.zeros((min(CHUNK_PAGES, start + count - first), PAGE_SIZE), dtype=np.uint8)
                for page, reason in enumerate(space.read_pages(mapping, first, len(room), room), first):
                    _add(found, CoreSegment(mapping, page, 1, reason))
    return found


def _add(found: list[CoreSegment], following: CoreSegment) -> None:
    """Add a run to those before it, or to the last one if it is of the same kind."""
    last = found[-1] if found else None
    if last is not None and ((last.reason is None), last.is_zero) == ((following.reason is None), following.is_zero):
        found[-1] = replace(last, pages=last.pages + following.pages)
    else:
        found.append(following)


def _threads(kernel: Kernel, task: Any) -> list[Any]:
    """Return the threads of a process, its leader first."""
    leader = ask(kernel, "task", lambda: task.group_leader.read_())
    head = ask(kernel, "threads", lambda: leader.signal.thread_head)
    threads = each(kernel, "threads", list_objects(head, "struct task_struct", "thread_node"), MAX_THREADS)
    return [leader, *(thread for thread in threads if int(thread) != int(leader))]


def _registers(kernel: Kernel, thread: Any) -> tuple[int, ...]:
    """Return the registers with which a thread entered the kernel: at the top of its kernel stack."""
    stack, size = ask(kernel, "stack", lambda: (int(thread.stack), int(kernel["THREAD_SIZE"])))
    for padding in STACK_PADDINGS:
        top = stack + size - padding - 8 * REGISTERS
        found = struct.unpack(f"<{REGISTERS}Q", kernel.read(top, 8 * REGISTERS, "pt_regs"))
        if found[CS_AT] & 0xFFFF in USER_CODE_SEGMENTS and found[SS_AT] & 0xFFFF == 0x2B:
            return found
    raise kernel.damaged("the registers at the top of its kernel stack are not those of user space")


def _status(kernel: Kernel, task: Any, thread: Any) -> bytes:
    """Return the `struct elf_prstatus` of a thread (include/uapi/linux/elfcore.h)."""
    registers = _registers(kernel, thread)

    def bases() -> tuple[int, int, int, int]:
        own = thread.thread
        return int(own.fsbase), int(own.gsbase), int(own.fsindex), int(own.gsindex)

    fs_base, gs_base, fs, gs = ask(kernel, "thread_struct", bases)
    numbers = ask(kernel, "task", _numbers, task, thread)
    head = struct.pack("<iiih2xQQ4i", 0, 0, 0, 0, 0, 0, *numbers)
    times = bytes(64)
    return head + times + struct.pack("<27Q", *registers, fs_base, gs_base, 0, 0, fs, gs) + struct.pack("<ii", 0, 0)


def _numbers(task: Any, thread: Any) -> tuple[int, int, int, int]:
    """Return the thread's number, that of its parent, of its group and its session."""
    return int(thread.pid), int(task.real_parent.tgid), int(task.tgid), int(task.tgid)


def _identity(task: Any) -> bytes:
    """Return the `struct elf_prpsinfo` of a process."""
    credentials = task.real_cred
    name = task.comm.string_()[:15]
    numbers = _numbers(task, task)
    return struct.pack(
        "<BBBb4xQII4i16s80s",
        0,
        ord("S"),
        0,
        0,
        int(task.flags),
        int(credentials.uid.val),
        int(credentials.gid.val),
        *numbers,
        name,
        name,
    )


def _auxiliary_vector(task: Any) -> bytes:
    """Return the auxiliary vector up to its end, AT_NULL."""
    words = [int(word) for word in task.mm.saved_auxv]
    end = next((at for at in range(0, len(words) - 1, 2) if words[at] == 0), len(words) - 2)
    return struct.pack(f"<{end + 2}Q", *words[: end + 2])


def _mapped_files(space: AddressSpace) -> bytes:
    """Return the description of NT_FILE: number and page size, address ranges with their pages, names."""
    mapped = [one for one in space.mappings if one.mapping and one.name]
    table = b"".join(struct.pack("<QQQ", one.start, one.end, one.offset // PAGE_SIZE) for one in mapped)
    names = b"".join((one.name or "").encode("utf-8", "surrogateescape") + b"\0" for one in mapped)
    return struct.pack("<QQ", len(mapped), PAGE_SIZE) + table + names
