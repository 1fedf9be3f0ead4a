# SPDX-License-Identifier: GPL-2.0-or-later
"""VMCOREINFO by the kernel's own variables: the same text as by a search of all memory, in a part of it."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hibernaut.cli.options import MemoryOptions, StatedTables
from hibernaut.kernel.core_file import convert, core_layout
from hibernaut.kernel.own_vmcoreinfo import kernel_by_pointers
from hibernaut.kernel.restore_entry import data_loaded_at_restore_entry
from hibernaut.kernel.symbols import SymbolicKernel, kernel_symbols
from hibernaut.kernel.vmcoreinfo_pointers import TEXT_IN_NOTE, PointedText, text_by_pointers
from hibernaut.linux.direct_map import DirectMap
from hibernaut.linux.source_tables import direct_map_of
from hibernaut.memory.declarations import START_KERNEL_MAP
from hibernaut.memory.dump import Dump
from hibernaut.memory.dump_layout import DumpVolume
from hibernaut.memory.elf import open_elf
from hibernaut.memory.overlay import Overlay
from hibernaut.memory.page import PAGE_SIZE, Bytes
from hibernaut.memory.physical import PhysicalMemory
from hibernaut.memory.ranges import FrameRanges
from hibernaut.memory.segments import Segment, SegmentMemory
from hibernaut.memory.vmcoreinfo import find_vmcoreinfo
from hibernaut.sources import Source, open_memory
from tests.conftest import Golden
from tests.machines import BASE4, BASE5

IMAGES = ("swap-6.1-lzo.img", "swap-6.1-low2m.img", "swap-6.12-lz4.img")
SOURCES = (*IMAGES, "ram-6.1-lzo.elf")


class Counted(PhysicalMemory):
    """A memory that notes which of its frames are read."""

    def __init__(self, memory: PhysicalMemory) -> None:
        self._memory = memory
        self.read_pfns: set[int] = set()

    @property
    def ranges(self) -> FrameRanges:
        """See `PhysicalMemory`."""
        return self._memory.ranges

    def run(self, pfn: int, nr_pages: int) -> Bytes:
        """See `PhysicalMemory`."""
        got = self._memory.run(pfn, nr_pages)
        self.read_pfns.update(range(pfn, pfn + len(got)))
        return got


def root_of(found: DirectMap) -> tuple[int, int]:
    """Return CR3 and levels of page tables."""
    return found.cr3, found.levels


def without_variables(source: Source, text: bytes) -> Source:
    """Return a source whose size of VMCOREINFO, wherever a word has it, is another one."""
    overlay = Overlay(source.memory)
    for pfns in source.memory.ranges.chunks(1024):
        words = source.memory.gather(pfns)[0].view(np.uint64)
        for row in np.flatnonzero((words == len(text)).any(axis=1)).tolist():
            page = words[row].copy()
            page[page == len(text)] += 1
            overlay.write(int(pfns[row]) * PAGE_SIZE, page.tobytes())
    return replace(source, memory=overlay)


@pytest.mark.parametrize("name", SOURCES)
def test_the_variables_lead_to_the_text(golden: Golden, name: str) -> None:
    """The text of a search of everything, and fewer than a tenth of the frames are read."""
    with open_memory(golden(name)) as source:
        memory = Counted(source.memory)
        direct_map = direct_map_of(source)
        found = text_by_pointers(memory, *root_of(direct_map))
        assert found == PointedText(find_vmcoreinfo(source.memory) or b"", direct_map.base)
        assert len(memory.read_pfns) < memory.ranges.total_pages / 10


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_says_where_they_are_near(golden: Golden, name: str) -> None:
    """The code at the restore entry loads `saved_context`: from there down less than a fiftieth of the frames is read.

    Given another address, or without one, the same text is found.
    """
    with open_memory(golden(name)) as source:
        root = root_of(direct_map_of(source))
        loaded = data_loaded_at_restore_entry(source)
        assert loaded == kernel_symbols(source.memory)["saved_context"].address
        expected = text_by_pointers(source.memory, *root)
        assert expected is not None
        for below in (loaded, 0, loaded - (8 << 20), START_KERNEL_MAP, (1 << 64) - 1):
            memory = Counted(source.memory)
            assert text_by_pointers(memory, *root, below) == expected
            if below == loaded:
                assert len(memory.read_pfns) < memory.ranges.total_pages / 50


@pytest.mark.parametrize("name", SOURCES)
def test_the_kernel_of_a_root(golden: Golden, name: str) -> None:
    """Text, levels and base by the root that the file names alone; none for a root that is not one."""
    with open_memory(golden(name)) as source:
        direct_map = direct_map_of(source)
        found = kernel_by_pointers(source)
        assert found is not None
        assert (found.text, found.cr3) == (find_vmcoreinfo(source.memory), source.cr3)
        assert (found.levels, found.direct_map_base) == (direct_map.levels, direct_map.base)
        assert kernel_by_pointers(source, (int(source.memory.ranges.starts[0]) * PAGE_SIZE, None)) is None
        assert kernel_by_pointers(source, (direct_map.cr3, 5)) is None
        assert kernel_by_pointers(replace(source, cr3=None)) is None


@pytest.mark.parametrize("name", IMAGES)
def test_a_core_states_what_the_page_tables_say(golden: Golden, name: str) -> None:
    """By the kernel's pointers the same base, root and levels as by all page tables, in a tenth of the frames.

    Where the pointers contradict each other, or the levels are given and wrong, all page tables decide.
    """
    with open_memory(golden(name)) as source:
        direct_map = direct_map_of(source)
        expected = StatedTables(direct_map.base, direct_map.cr3, direct_map.levels)
        memory = Counted(source.memory)
        found, tables = MemoryOptions().with_tables(replace(source, memory=memory), ["elf", "raw"], quiet=True)
        assert tables == expected
        assert found.vmcoreinfo == find_vmcoreinfo(source.memory)
        assert len(memory.read_pfns) < memory.ranges.total_pages / 10
        kernel = SymbolicKernel(source.memory, found.vmcoreinfo)
        paddr = kernel.tables.walk(kernel.symbols["vmcoreinfo_note"].address).paddr
        assert paddr is not None
        for elsewhere in (kernel.symbols["init_task"].address, direct_map.base + (1 << 40)):
            overlay = Overlay(source.memory)
            overlay.write(paddr, elsewhere.to_bytes(8, "little"))
            changed = replace(source, memory=overlay)
            pointed = kernel_by_pointers(changed)
            assert pointed is None or pointed.direct_map_base is None
            assert MemoryOptions().with_tables(changed, ["elf"], quiet=True) == (changed, expected)
        assert MemoryOptions(levels=5).with_tables(source, ["elf"], quiet=True) == (source, None)
        assert MemoryOptions(levels=4).with_tables(source, ["elf"], quiet=True)[1] == expected
        assert MemoryOptions(cr3=expected.cr3).with_tables(source, ["elf"], quiet=True) == (source, expected)
        assert MemoryOptions().with_tables(source, ["raw"], quiet=True) == (source, None)


def test_an_image_without_its_restore_entry(golden: Golden) -> None:
    """An info page without its address, and code that is not there, name nothing."""
    with open_memory(golden(IMAGES[0])) as source:
        assert source.image is not None
        info = source.image.info
        for wrong in (
            {"jump_address": None},
            {"jump_address_phys": None},
            {"jump_address_phys": source.memory.ranges.end * PAGE_SIZE},
            {"jump_address_phys": (1 << 64) - 1},
            {"jump_address_phys": int(source.memory.ranges.starts[0]) * PAGE_SIZE},
        ):
            image = replace(source.image, info=replace(info, **wrong))
            assert data_loaded_at_restore_entry(replace(source, image=image)) is None
        assert data_loaded_at_restore_entry(replace(source, image=None)) is None


CODE, DATA = 0xFFFF_FFFF_8100_0000, 0xFFFF_FFFF_8212_3458


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (b"\x48\xc7\xc0" + struct.pack("<i", DATA - (1 << 64)), DATA),
        (b"\x48\xc7\xc3" + struct.pack("<i", DATA - (1 << 64)), DATA),
        (b"\x90\x48\x8d\x05" + struct.pack("<i", DATA - CODE - 8), DATA),
        (b"\x48\x8d\x2d" + struct.pack("<i", DATA - CODE - 7), DATA),
        (b"\x48\xc7\xc1\x05\x00\x00\x00" + b"\x48\xc7\xc0" + struct.pack("<i", DATA - (1 << 64)), DATA),
        (b"\x48\x8b\x05" + struct.pack("<i", DATA - CODE - 7), None),  # loads what lies there, not the address
        (b"\x48\xc7\x00" + struct.pack("<i", DATA - (1 << 64)), None),  # stores it
    ],
)
def test_instructions_that_load_an_address(golden: Golden, code: bytes, expected: int | None) -> None:
    """MOV of a constant and LEA relative to RIP, whatever the register; the first that names the kernel's image."""
    with open_memory(golden(IMAGES[0])) as source:
        assert source.image is not None
        pfn = int(source.memory.ranges.starts[0])
        overlay = Overlay(source.memory)
        overlay.write_page(pfn, np.frombuffer(code.ljust(PAGE_SIZE, b"\xcc"), dtype=np.uint8))
        info = replace(source.image.info, jump_address=CODE, jump_address_phys=pfn * PAGE_SIZE)
        changed = replace(source, memory=overlay, image=replace(source.image, info=info))
        assert data_loaded_at_restore_entry(changed) == expected


ROOT = 1
TEXT = b"OSRELEASE=7.0.0\nSYMBOL(swapper_pg_dir)=ffffffff80001000\nNUMBER(phys_base)=0\n"


class Tables:
    """A machine of 16 MiB: the kernel's image and the direct map by one page of 2 MiB each, from frame 0 on.

    Frame 1 is the root, frame 0x100 has the three variables, frame 0x110 the text, frame 0x120 the note.

    Args:
        levels: levels of paging.
        base: address of the direct map.
        pointers: the two pointers, as offsets from it.
        size_bytes: the size between them.
    """

    def __init__(self, levels: int, base: int, pointers: tuple[int, int], size_bytes: int) -> None:
        self.pages = np.zeros((4096, PAGE_SIZE), dtype=np.uint8)
        self._next = ROOT + 1
        self._map(levels, START_KERNEL_MAP)
        self._map(levels, base)
        words = self.pages[0x100].view(np.uint64)
        words[5:8] = (base + pointers[0], size_bytes, base + pointers[1])
        for at, text in ((0x110000, TEXT), (0x120000 + TEXT_IN_NOTE, TEXT)):
            self.pages.reshape(-1)[at : at + len(text)] = np.frombuffer(text, dtype=np.uint8)

    def _map(self, levels: int, vaddr: int) -> None:
        """Map 2 MiB from frame 0 on at an address, writable and not executable."""
        table = ROOT
        for level in range(levels, 2, -1):
            entry = self.pages[table].view(np.uint64)[vaddr >> (3 + 9 * level) & 511 :][:1]
            if not entry[0]:
                entry[0] = self._next * PAGE_SIZE | 0x3
                self._next += 1
            table = int(entry[0]) // PAGE_SIZE
        self.pages[table].view(np.uint64)[vaddr >> 21 & 511] = 0x83 | 1 << 63

    @property
    def memory(self) -> PhysicalMemory:
        """The memory."""
        return SegmentMemory([Segment(0, self.pages)])


BASES = [(4, BASE4), (5, BASE5)]


@pytest.mark.parametrize(("levels", "base"), BASES)
@pytest.mark.parametrize("pointers", [(0x110000, 0x120000), (0x120000, 0x110000)])
def test_a_made_up_kernel(levels: int, base: int, pointers: tuple[int, int]) -> None:
    """4 and 5 levels, the variables in either order."""
    found = text_by_pointers(Tables(levels, base, pointers, len(TEXT)).memory, ROOT * PAGE_SIZE, levels)
    assert found == PointedText(TEXT, base)
    assert text_by_pointers(Tables(levels, base, pointers, len(TEXT) + 1).memory, ROOT * PAGE_SIZE, levels) is None


@pytest.mark.parametrize(("levels", "base"), BASES)
def test_a_text_of_a_round_size_is_found_last(levels: int, base: int) -> None:
    """A size like that of a table is one of a text, too, where no other variables lead to one."""
    tables = Tables(levels, base, (0x110000, 0x120000), 512)
    text = TEXT + b"X=".ljust(512 - len(TEXT), b"x")
    tables.pages.reshape(-1)[0x110000 : 0x110000 + 512] = np.frombuffer(text, dtype=np.uint8)
    assert text_by_pointers(tables.memory, ROOT * PAGE_SIZE, levels) == PointedText(text, base)
    words = tables.pages[0x108].view(np.uint64)  # searched after the first ones
    words[5:8] = (base + 0x130000, len(TEXT), base + 0x140000)
    tables.pages.reshape(-1)[0x140000 : 0x140000 + len(TEXT)] = np.frombuffer(TEXT, dtype=np.uint8)
    assert text_by_pointers(tables.memory, ROOT * PAGE_SIZE, levels) == PointedText(TEXT, base)


@pytest.mark.parametrize(("levels", "base"), BASES)
def test_pointers_that_state_no_direct_map(levels: int, base: int) -> None:
    """Two that contradict each other, and a map that is not at a multiple of 1 GiB: the text has no base."""
    tables = Tables(levels, base, (0x110000, 0x1FF000), len(TEXT))
    tables._map(levels, base + (1 << 30))
    tables.pages[0x100].view(np.uint64)[7] = base + (1 << 30) + 0x120000
    assert text_by_pointers(tables.memory, ROOT * PAGE_SIZE, levels) == PointedText(TEXT, None)
    tables = Tables(levels, base + (2 << 20), (0x110000, 0x120000), len(TEXT))
    assert text_by_pointers(tables.memory, ROOT * PAGE_SIZE, levels) == PointedText(TEXT, None)


def test_other_variables_lead_nowhere(golden: Golden, tmp_path: Path) -> None:
    """With another size than that of the text nothing is found, and a search of all memory finds it as before."""
    with open_memory(golden("ram-6.1-lzo.elf")) as opened:
        root = root_of(direct_map_of(opened))
        text = find_vmcoreinfo(opened.memory)
        assert text is not None
        source = without_variables(opened, text)
        assert text_by_pointers(source.memory, *root) is None
        for number, one in enumerate((opened, source)):
            out = tmp_path / str(number)
            assert convert(one, out, "elf", root=root).vmcoreinfo
            layout = core_layout(one, "elf", root=root)
            volume = DumpVolume(layout, one.memory, "core")
            assert volume.pread(layout.size_bytes - 4096, 8192) == out.read_bytes()[-4096:]
            dump = open_elf(volume)
            assert isinstance(dump, Dump)
            assert dump.vmcoreinfo == text


def test_tables_of_no_kernel_lead_nowhere(golden: Golden) -> None:
    """A frame without page tables, and one that is not there."""
    with open_memory(golden("swap-6.1-lzo.img")) as source:
        first = int(source.memory.ranges.starts[0])
        for pfn in (first, source.memory.ranges.end + 5):
            assert text_by_pointers(source.memory, pfn * PAGE_SIZE, 4) is None
