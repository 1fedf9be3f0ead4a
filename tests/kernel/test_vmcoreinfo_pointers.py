# SPDX-License-Identifier: GPL-2.0-or-later
"""VMCOREINFO by the kernel's own variables: the same text as by a search of all memory, in a part of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hibernaut.kernel.core_file import convert, core_layout
from hibernaut.kernel.vmcoreinfo_pointers import texts_by_pointers
from hibernaut.linux.direct_map import DirectMap
from hibernaut.linux.source_tables import direct_map_of
from hibernaut.memory.dump import Dump
from hibernaut.memory.dump_layout import DumpVolume
from hibernaut.memory.elf import open_elf
from hibernaut.memory.overlay import Overlay
from hibernaut.memory.page import PAGE_SIZE, Bytes
from hibernaut.memory.physical import PhysicalMemory
from hibernaut.memory.ranges import FrameRanges
from hibernaut.memory.vmcoreinfo import find_vmcoreinfo
from hibernaut.sources import Source, open_memory
from tests.conftest import Golden

SOURCES = ("swap-6.1-lzo.img", "swap-6.12-lz4.img", "ram-6.1-lzo.elf")


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
        found = texts_by_pointers(memory, *root_of(direct_map_of(source)))
        assert found == (find_vmcoreinfo(source.memory),)
        assert len(memory.read_pfns) < memory.ranges.total_pages / 10


def test_other_variables_lead_nowhere(golden: Golden, tmp_path: Path) -> None:
    """With another size than that of the text nothing is found, and a search of all memory finds it as before."""
    with open_memory(golden("ram-6.1-lzo.elf")) as opened:
        root = root_of(direct_map_of(opened))
        text = find_vmcoreinfo(opened.memory)
        assert text is not None
        source = without_variables(opened, text)
        assert texts_by_pointers(source.memory, *root) == ()
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
            assert texts_by_pointers(source.memory, pfn * PAGE_SIZE, 4) == ()
