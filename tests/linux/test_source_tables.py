# SPDX-License-Identifier: GPL-2.0-or-later
"""Page tables of dumps that name several roots, not each of which is one of the kernel's."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from hibernaut.errors import FormatError
from hibernaut.linux.source_tables import Paging, find_paging, page_tables_of
from hibernaut.sources import Source, open_memory
from tests.cli.run import NEXT, hibernaut
from tests.machines import BASE4, BASE5
from tests.memory.naive import Load, elf_core, note, qemu_cpu
from tests.paging.layouts import KERNEL, TABLE_FLAGS, TableLayout

PAGES = 4096
ROOT = 0x100 << 12
USER = ROOT | 0x1000
OTHER = 0x180 << 12
USER_MODE = 0x33


def machine(levels: int = 4) -> bytes:
    """16 MiB with the kernel's root at 0x100, its twin for user mode behind it, and a root of something else."""
    layout = TableLayout(levels=levels, next_pfn=0x200)
    layout.fill(BASE4 if levels == 4 else BASE5, 1, 0, 0x400)
    layout.fill((BASE4 if levels == 4 else BASE5) + (0x400 << 12), 2, 0x400, PAGES - 0x400)
    layout.fill(0xFFFF_FFFF_8100_0000, 2, 0x800, 1024, flags=KERNEL)
    layout.tables[USER >> 12] = {0: 0x350 << 12 | TABLE_FLAGS, 511: layout.tables[0x100][511]}
    layout.tables[0x350] = {}
    layout.tables[OTHER >> 12] = {0: 0x350 << 12 | TABLE_FLAGS, 511: 0x350 << 12 | TABLE_FLAGS}
    pages = np.zeros((PAGES, 512), dtype="<u8")
    pages[:, 1] = np.arange(PAGES) + 1  # no frame is all zeroes
    for pfn, entries in layout.tables.items():
        pages[pfn] = 0
        for index, entry in entries.items():
            pages[pfn, index] = entry
    return pages.tobytes()


def vmcoreinfo(root: int, levels: int = 4) -> bytes:
    """Return the note of a kernel whose root is there."""
    symbol = 0xFFFF_FFFF_8000_0000 + root
    text = f"OSRELEASE=6.1.0\nSYMBOL(swapper_pg_dir)={symbol:x}\nNUMBER(phys_base)=0\n"
    return note(b"VMCOREINFO", 0, f"{text}NUMBER(pgtable_l5_enabled)={levels - 4}\n".encode())


def dump(folder: Path, notes: bytes, levels: int = 4) -> Path:
    """Write a core of the machine with these notes."""
    path = folder / "ram.elf"
    path.write_bytes(elf_core([Load(0, machine(levels))], notes))
    return path


CASES: dict[str, tuple[bytes, str, list[int]]] = {
    "the first CPU": (qemu_cpu(ROOT | 5), "CPU 0", []),
    "a CPU in user mode": (qemu_cpu(USER | 0x800, cs=USER_MODE), "CPU 0, kernel half of PTI", [USER]),
    "user mode, and a second CPU": (qemu_cpu(USER, cs=USER_MODE) + qemu_cpu(ROOT), "CPU 1", []),
    "in kernel mode with the user's root": (qemu_cpu(USER), "CPU 0, kernel half of PTI", [USER]),
    "user mode without PTI": (qemu_cpu(ROOT, cs=USER_MODE), "CPU 0", []),
    "firmware, and a second CPU": (qemu_cpu(OTHER) + qemu_cpu(ROOT), "CPU 1", [OTHER]),
    "firmware, and a note": (qemu_cpu(OTHER) + vmcoreinfo(ROOT), "VMCOREINFO", [OTHER]),
    "a root outside RAM, and a note": (qemu_cpu(0x7F00_0000) + vmcoreinfo(ROOT), "VMCOREINFO", [0x7F00_0000]),
    "two notes": (vmcoreinfo(OTHER) + vmcoreinfo(ROOT), "VMCOREINFO", [OTHER]),
    "a hundred CPUs elsewhere": (
        b"".join(qemu_cpu(0x400000 + (number << 12)) for number in range(100)),
        "the search of memory",
        [0x400000 + (number << 12) for number in range(32)],
    ),
    "another kernel's note": (vmcoreinfo(OTHER), "the search of memory", [OTHER]),
    "firmware alone": (qemu_cpu(OTHER), "the search of memory", [OTHER]),
    "firmware, and user mode": (
        qemu_cpu(OTHER) + qemu_cpu(USER, cs=USER_MODE),
        "CPU 1, kernel half of PTI",
        [OTHER, USER],
    ),
    "no paging": (qemu_cpu(OTHER, cr0=0x10), "the search of memory", []),
    "nothing": (note(b"CORE", 1, b"x"), "the search of memory", []),
}


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("case", sorted(CASES))
def test_the_first_root_that_maps_a_direct_map(tmp_path: Path, case: str, levels: int) -> None:
    """Whatever the notes name, the kernel's root and its direct map are found; the roots left aside are reported."""
    notes, origin, rejected = CASES[case]
    with open_memory(dump(tmp_path, notes, levels)) as source:
        found = find_paging(source)
        tables = page_tables_of(source)
    assert (found.cr3, found.levels, found.origin) == (ROOT, levels, origin)
    assert [one.cr3 for one in found.rejected] == rejected
    assert (tables.cr3, tables.levels) == (ROOT, levels)
    assert found.direct_map is None or found.direct_map.base == (BASE4 if levels == 4 else BASE5)


@pytest.mark.parametrize("case", sorted(CASES))
def test_map_says_which_root_it_took(tmp_path: Path, case: str) -> None:
    """A remark for roots that were left aside, and `root_from` in the document."""
    notes, origin, rejected = CASES[case]
    path = dump(tmp_path, notes)
    result = hibernaut("map", path, "--json")
    assert (result.status, result.document["cr3"], result.document["root_from"]) == (0, f"{ROOT:#x}", origin)
    assert all(f"{one:#x}" in result.err for one in rejected[:4])
    assert bool(result.err) is bool(rejected)
    walked = hibernaut("walk", path, f"{BASE4 + 0x123000:#x}", "--json")
    assert (walked.status, walked.document["pfn"]) == (0, "0x123")


def test_the_levels_that_a_note_says_are_a_hint_too(tmp_path: Path) -> None:
    """A note without pgtable_l5_enabled means 4 levels; the tables of this root have 5."""
    with open_memory(dump(tmp_path, vmcoreinfo(ROOT, 4), levels=5)) as source:
        found = find_paging(source)
    assert (found.cr3, found.levels, found.origin, found.rejected) == (ROOT, 5, "VMCOREINFO", ())


def test_a_root_on_the_command_line_is_taken_as_it_is(tmp_path: Path) -> None:
    """--cr3 decides: a root without a direct map is refused, in one line that names it."""
    path = dump(tmp_path, qemu_cpu(ROOT))
    with open_memory(path) as source:
        assert find_paging(source, OTHER) == Paging(OTHER, 4, "--cr3") or find_paging(source, OTHER).cr3 == OTHER
    result = hibernaut("map", path, "--cr3", f"{OTHER:#x}")
    assert (result.status, result.err.count("\n")) == (2, 1)
    assert f"{OTHER:#x}" in result.err


def test_no_root_at_all(tmp_path: Path) -> None:
    """Memory without page tables: one line that says what the note named, and what the search found."""
    path = tmp_path / "empty.elf"
    path.write_bytes(elf_core([Load(0, struct.pack("<Q", 7) * 512 * 64)], qemu_cpu(0x5000)))
    result = hibernaut("map", path)
    assert (result.status, result.err.count("\n")) == (2, 1)
    assert "0x5000" in result.err
    assert NEXT.search(result.err.strip())
    walked = hibernaut("walk", path, "0xffff888000000000", "--json")  # one address needs no direct map
    assert (walked.status, walked.document["levels"][0]["table_pfn"]) == (0, "0x5")


def hints(source: Source) -> Sequence[str]:
    """Return the origins of the roots of a source."""
    return [one.origin for one in source.root_hints]


def test_the_order_of_roots(tmp_path: Path) -> None:
    """CPUs in kernel mode, VMCOREINFO, CPUs in user mode, and what page-table isolation has beside them."""
    notes = qemu_cpu(USER, cs=USER_MODE) + qemu_cpu(OTHER) + vmcoreinfo(ROOT)
    with open_memory(dump(tmp_path, notes)) as source:
        assert hints(source) == ["CPU 1", "VMCOREINFO", "CPU 0", "CPU 0, kernel half of PTI"]
        assert (source.cr3, source.levels) == (OTHER, 4)


def test_two_kernels_are_not_guessed(tmp_path: Path) -> None:
    """Two equal roots, and a note that names neither: the search says both, and nothing is taken."""
    data = bytearray(machine())
    twin = 0x240 << 12
    data[twin : twin + 4096] = data[ROOT : ROOT + 4096]
    path = tmp_path / "ram.elf"
    path.write_bytes(elf_core([Load(0, bytes(data))], qemu_cpu(OTHER)))
    with open_memory(path) as source, pytest.raises(FormatError, match="not unique"):
        find_paging(source)


@pytest.mark.parametrize("texts", [1, 2])
def test_a_text_in_memory_decides_between_equal_roots(tmp_path: Path, texts: int) -> None:
    """A copy of the root beside it, as a freed PGD is; VMCOREINFO in RAM names one. Two do not decide."""
    data = bytearray(machine())
    twin = 0x240 << 12
    data[twin : twin + 4096] = data[ROOT : ROOT + 4096]
    for number, root in enumerate((ROOT, twin)[:texts]):
        text = f"OSRELEASE=6.1.0\nSYMBOL(swapper_pg_dir)={0xFFFFFFFF80000000 + root:x}\nNUMBER(phys_base)=0\n\0"
        at = (0x700 + number) << 12
        data[at : at + len(text)] = text.encode()
    path = tmp_path / "ram.raw"
    path.write_bytes(bytes(data))
    with open_memory(path) as source:
        if texts == 2:
            with pytest.raises(FormatError, match="not unique"):
                find_paging(source)
            return
        found = find_paging(source)
    assert (found.cr3, found.levels, found.origin) == (ROOT, 4, "VMCOREINFO in memory")
