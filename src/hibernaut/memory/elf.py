# SPDX-License-Identifier: GPL-2.0-or-later
"""ELF cores of machines: QEMU's `dump-guest-memory`, kdump's vmcore, makedumpfile -E, /proc/kcore's kind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hibernaut.errors import FormatError
from hibernaut.memory import declarations as c
from hibernaut.memory.dump import Dump, Refusal, RootHint, incomplete
from hibernaut.memory.joined import ByteRanges, memory_of
from hibernaut.memory.mapped import first_wins, whole_frames
from hibernaut.memory.page import PAGE_SIZE
from hibernaut.memory.vmcoreinfo import page_table_root, parse_vmcoreinfo

if TYPE_CHECKING:
    from hibernaut.memory.physical import PhysicalMemory
    from hibernaut.volumes.volume import Volume

__all__ = ["Note", "open_elf"]

Headers = NDArray[np.void]
"""Program headers: a structured array of `PROGRAM_HEADER`."""

NOTES_LIMIT = 1 << 16
"""Most notes that a valid file has: a dump has a few for each CPU."""
SECTION_NAMES_BYTES = 1 << 16
"""Most bytes of names of sections that are searched."""
XEN_ADVICE = "take the dump from inside the guest: makedumpfile, LiME or AVML"
NOTE_BYTES = 1 << 20
"""A longer description is skipped: those read here have a few KiB."""
ALL_NOTES_BYTES = 1 << 26
"""Most bytes of descriptions: 8192 CPUs have some 4 MiB."""


class Note(NamedTuple):
    """One note: its name without the NUL, type, description."""

    name: bytes
    kind: int
    description: bytes


def open_elf(plain: Volume) -> Dump | Refusal:
    """Open an ELF64 core as physical memory, by `p_paddr`.

    Memory that `p_filesz` covers exists, the rest of `p_memsz` does not; nor does what lies beyond the end of a file
    that was cut. Where several headers cover a frame (kdump's segment for kernel text), the first wins; a frame that
    two of them hold in parts is put together, and one that is covered only in part is left out. Headers without a
    physical address are skipped: those marked so (`PADDR_UNKNOWN`), and, where several have physical address 0, those
    whose virtual address is not at the offset of the others (cores of processes; old /proc/kcore). Since Linux kernel
    commit 464920104bf7 ("/proc/kcore: update physical address for kcore ram and text") (in v4.11), /proc/kcore has
    physical addresses.

    CR3 and levels are those of the first CPU in kernel mode in QEMU's notes (page-table isolation gives user mode
    tables without the direct map), else those of VMCOREINFO, else those of QEMU's first CPU; `Dump.roots` has them all.

    Returns:
        The dump, which owns `plain`; a refusal if the file is not an ELF core of an x86-64 machine.

    Raises:
        FormatError: it is one, and its headers contradict each other or lie beyond the end of the file.
    """
    head = plain.pread(0, c.ELF_HEADER.itemsize)
    reason = _why_not(head)
    if reason is not None:
        return Refusal("ELF core", reason)
    header = np.frombuffer(head, dtype=c.ELF_HEADER)[0]
    headers = _program_headers(plain, header)
    loads = headers[headers["p_type"] == c.PT_LOAD]
    physical, lost = _inside(plain, loads)
    notes = _machine_notes(plain, headers[headers["p_type"] == c.PT_NOTE])
    if any(note.name in c.XEN_NOTES for note in notes):
        return Refusal("ELF core", "a crash dump of Xen, whose page tables hold machine frames", XEN_ADVICE)
    memory = memory_of(plain, _spans(plain, physical))
    total = memory.ranges.total_pages
    if total * PAGE_SIZE > plain.size_bytes:
        raise FormatError(
            f"its segments share bytes: {total} pages in a file of {plain.size_bytes} bytes",
            source=plain.name,
            advice="dump it again",
        )
    if not total and c.XEN_SECTIONS in _section_names(plain, header):
        return Refusal("ELF core", "a dump of a Xen guest (xl dump-core), whose memory is in sections", XEN_ADVICE)
    if not total:
        _check_inside(plain, loads, "segment")
        return Refusal("ELF core", "no segment holds physical memory (a process's core has none)")
    marked = bool(header["e_flags"] & c.ELF_INCOMPLETE)
    return _dump(memory, notes, incomplete(lost, lost + total, marked=marked))


class _NoteBudget:
    """Notes, and bytes of their descriptions, that one file may have, however many headers name them."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._notes = NOTES_LIMIT
        self._left_bytes = ALL_NOTES_BYTES

    def take(self, at: int, description_bytes: int) -> None:
        """Count a note at a byte of the file. Raise FormatError if there are too many."""
        self._notes -= 1
        self._left_bytes -= description_bytes
        if self._notes < 0 or self._left_bytes < 0:
            raise FormatError(
                f"more than {NOTES_LIMIT} notes, or than {ALL_NOTES_BYTES} bytes of them",
                source=self._name,
                offset=at,
                advice="dump it again",
            )


def _read_notes(plain: Volume, offset: int, size_bytes: int, budget: _NoteBudget) -> Iterator[Note]:
    """Yield the notes of one PT_NOTE segment that lies inside the file.

    Raises:
        FormatError: a note runs past its segment, or there are too many.
    """
    at, end = offset, offset + size_bytes
    while at + c.NOTE_HEADER.itemsize <= end:
        header = np.frombuffer(plain.pread(at, c.NOTE_HEADER.itemsize), dtype=c.NOTE_HEADER)[0]
        name_bytes, description_bytes, kind = (int(header[name]) for name in c.NOTE_HEADER.names or ())
        name_at = at + c.NOTE_HEADER.itemsize
        description_at = name_at + -(-name_bytes // 4) * 4
        if description_at + description_bytes > end:
            raise FormatError("note runs past its segment", source=plain.name, offset=at)
        wanted = name_bytes <= 256 and description_bytes <= NOTE_BYTES
        budget.take(at, description_bytes if wanted else 0)
        if wanted:
            name = plain.pread(name_at, name_bytes).split(b"\x00", 1)[0]
            yield Note(name, kind, plain.pread(description_at, description_bytes))
        at = description_at + -(-description_bytes // 4) * 4


def _why_not(head: bytes) -> str | None:
    """Return why a file with these first bytes is not an ELF core of an x86-64 machine; None if it is one."""
    if not head.startswith(c.ELF_MAGIC):
        return "no ELF magic"
    if len(head) < c.ELF_HEADER.itemsize:
        return "shorter than an ELF header"
    header = np.frombuffer(head, dtype=c.ELF_HEADER)[0]
    if header["e_ident"][4] != c.ELFCLASS64 or header["e_ident"][5] != c.ELFDATA2LSB:
        return "not 64-bit little-endian"
    if header["e_type"] != c.ET_CORE:
        return f"an ELF file of type {int(header['e_type'])}, not a core ({c.ET_CORE})"
    if header["e_machine"] != c.EM_X86_64:
        return f"a core of machine {int(header['e_machine'])}, not x86-64 ({c.EM_X86_64})"
    return None


def _program_headers(plain: Volume, header: Any) -> Headers:
    """Return all program headers, however many (PN_XNUM)."""
    if header["e_phentsize"] != c.PROGRAM_HEADER.itemsize:
        raise FormatError(
            "wrong size of program headers",
            source=plain.name,
            offset=54,
            expected=str(c.PROGRAM_HEADER.itemsize),
            found=str(int(header["e_phentsize"])),
        )
    number, at = int(header["e_phnum"]), int(header["e_phoff"])
    if number == c.PN_XNUM:
        section = plain.pread(int(header["e_shoff"]), c.SECTION_HEADER.itemsize)
        if len(section) < c.SECTION_HEADER.itemsize:
            raise FormatError("section header 0 lies beyond the end", source=plain.name, offset=int(header["e_shoff"]))
        number = int(np.frombuffer(section, dtype=c.SECTION_HEADER)[0]["sh_info"])
    if number > c.MOST_ELF_HEADERS:
        raise FormatError(f"more than {c.MOST_ELF_HEADERS} program headers", source=plain.name, found=str(number))
    raw = plain.pread(at, number * c.PROGRAM_HEADER.itemsize)
    if len(raw) < number * c.PROGRAM_HEADER.itemsize:
        raise FormatError(f"{number} program headers run past the end of the file", source=plain.name, offset=at)
    return np.frombuffer(raw, dtype=c.PROGRAM_HEADER)


def _section_names(plain: Volume, header: Any) -> bytes:
    """Return the names of all sections, joined, each with its NUL; nothing if there are none."""
    size_bytes = c.SECTION_HEADER.itemsize
    at = int(header["e_shoff"]) + int(header["e_shstrndx"]) * size_bytes
    raw = plain.pread(at, size_bytes) if header["e_shoff"] and header["e_shentsize"] == size_bytes else b""
    if len(raw) < size_bytes:
        return b""
    names = np.frombuffer(raw, dtype=c.SECTION_HEADER)[0]
    return plain.pread(int(names["sh_offset"]), min(int(names["sh_size"]), SECTION_NAMES_BYTES))


def _check_inside(plain: Volume, headers: Headers, what: str) -> None:
    """Raise FormatError for the first header whose bytes are not all in the file."""
    size = np.uint64(plain.size_bytes)
    outside = (headers["p_offset"] > size) | (headers["p_filesz"] > size - np.minimum(headers["p_offset"], size))
    for header in headers[outside & (headers["p_filesz"] > 0)][:1]:
        raise FormatError(
            f"{what} of {int(header['p_filesz'])} bytes at {int(header['p_offset'])}, physical "
            f"{int(header['p_paddr']):#x}, runs past the end of the file",
            source=plain.name,
            offset=plain.size_bytes,
        )


def _inside(plain: Volume, loads: Headers) -> tuple[Headers, int]:
    """Return the segments of physical memory, cut at the end of the file, and the number of pages that lie beyond it.

    Raises:
        FormatError: a segment is longer than physical memory can be.
    """
    physical = loads[_has_paddr(loads)]
    size, limit = np.uint64(plain.size_bytes), np.uint64(c.PADDR_LIMIT)
    huge = physical["p_filesz"] > limit
    _check_inside(plain, physical[huge], "segment")
    announced = _total(_spans(plain, physical))
    cut = physical.copy()
    cut["p_offset"] = np.minimum(physical["p_offset"], size)
    cut["p_filesz"] = np.minimum(physical["p_filesz"], size - cut["p_offset"])
    return cut, announced - _total(_spans(plain, cut))


def _total(spans: ByteRanges) -> int:
    """Return the number of frames that lie wholly in one of some ranges."""
    return int(first_wins(whole_frames(*spans))[:, 1].sum())


def _has_paddr(loads: Headers) -> NDArray[np.bool_]:
    """Return which segments hold bytes with a physical address."""
    known = (loads["p_filesz"] > 0) & (loads["p_paddr"] != np.uint64(c.PADDR_UNKNOWN))
    at_zero = known & (loads["p_paddr"] == 0) & (loads["p_vaddr"] != 0)
    if np.count_nonzero(at_zero) > 1:
        elsewhere = loads[known & (loads["p_paddr"] != 0)]
        known &= ~at_zero | np.isin(loads["p_vaddr"], elsewhere["p_vaddr"] - elsewhere["p_paddr"])
    return np.asarray(known, dtype=np.bool_)


def _spans(plain: Volume, physical: Headers) -> ByteRanges:
    """Return the places of the segments' bytes. Raises FormatError if one is beyond physical memory."""
    limit = np.uint64(c.PADDR_LIMIT)
    beyond = physical["p_paddr"] > limit - np.minimum(physical["p_filesz"], limit)
    for header in physical[beyond][:1]:
        raise FormatError(f"segment at physical {int(header['p_paddr']):#x} runs beyond 52 bits", source=plain.name)
    return ByteRanges(*(physical[field].astype(np.int64) for field in ("p_paddr", "p_filesz", "p_offset")))


def _machine_notes(plain: Volume, headers: Headers) -> list[Note]:
    _check_inside(plain, headers, "notes")
    spans = dict.fromkeys(headers[["p_offset", "p_filesz"]].tolist())
    budget = _NoteBudget(plain.name)
    return [note for offset, size_bytes in spans for note in _read_notes(plain, offset, size_bytes, budget)]


def _dump(memory: PhysicalMemory, notes: list[Note], remarks: tuple[str, ...]) -> Dump:
    """Return the dump with the facts of its notes."""
    texts = [note.description.split(b"\x00", 1)[0] for note in notes if note.name == c.VMCOREINFO_NOTE]
    text = max(texts, key=len, default=None)
    facts = {} if text is None else parse_vmcoreinfo(text)
    cpus = [state for note in notes if (state := _cpu_state(note)) is not None]
    if cpus:
        facts["qemu.cpus"] = str(len(cpus))
        facts["qemu.cr3"] = " ".join(f"{int(state['cr'][3]):#x}" for state in cpus)
    roots = tuple(_roots(cpus, texts))
    first = roots[0] if roots else RootHint(0, None, "")
    return Dump("elf", memory, first.cr3 or None, first.levels, facts, text, roots, remarks)


def _roots(cpus: list[Any], texts: list[bytes]) -> Iterator[RootHint]:
    """Yield the roots that QEMU's CPUs and VMCOREINFO name, the likeliest first.

    A CPU in kernel mode may be in firmware (SMM) or in a nested guest. One in user mode has tables without the direct
    map under page-table isolation; the kernel's are the frame below (PTI_USER_PGTABLE_BIT, arch/x86/mm/pti.c).
    """
    paged = [(number, state) for number, state in enumerate(cpus) if int(state["cr"][0]) & c.CR0_PG]
    in_user_mode = [one for one in paged if int(one[1]["cs"]["selector"]) & 3]
    for number, state in paged:
        if not int(state["cs"]["selector"]) & 3:
            yield _root_of_cpu(number, state)
    for text in sorted(texts, key=len, reverse=True):
        cr3, levels = page_table_root(parse_vmcoreinfo(text))
        if cr3 is not None:
            yield RootHint(cr3, levels, "VMCOREINFO")
    for number, state in in_user_mode:
        yield _root_of_cpu(number, state)
    for number, state in paged:
        hint = _root_of_cpu(number, state)
        if hint.cr3 & c.PTI_USER_PGTABLE:
            yield RootHint(hint.cr3 & ~c.PTI_USER_PGTABLE, hint.levels, f"{hint.origin}, kernel half of PTI")


def _root_of_cpu(number: int, state: Any) -> RootHint:
    levels = 5 if int(state["cr"][4]) & c.CR4_LA57 else 4
    return RootHint(int(state["cr"][3]) & c.CR3_FRAME, levels, f"CPU {number}")


def _cpu_state(note: Note) -> Any:
    """Return QEMU's state of one CPU, a record of `QEMU_CPU_STATE`; None if the note is something else."""
    if note.name != c.QEMU_NOTE or len(note.description) < c.QEMU_CPU_STATE.itemsize:
        return None
    state = np.frombuffer(note.description, dtype=c.QEMU_CPU_STATE, count=1)[0]
    fits = c.QEMU_CPU_STATE.itemsize <= state["size"] <= len(note.description)
    return state if state["version"] == c.QEMU_CPU_VERSION and fits else None
