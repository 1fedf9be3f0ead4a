# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel stopped in `swsusp_save`, whose memory tests change."""

from __future__ import annotations

import pytest

from hibernaut.errors import HibernautError
from hibernaut.kernel.suspend import kernel_state
from hibernaut.kernel.symbol_table import KernelSymbols
from hibernaut.kernel.symbols import kernel_symbols
from hibernaut.memory.declarations import START_KERNEL_MAP
from hibernaut.memory.overlay import Overlay
from hibernaut.memory.physical import PhysicalMemory
from hibernaut.memory.vmcoreinfo import find_vmcoreinfo, page_table_root, parse_vmcoreinfo
from hibernaut.paging.tables import PageTables
from hibernaut.sources import Source

DUMP = "ram-6.1-lzo.elf"


class StoppedKernel:
    """A kernel stopped in `swsusp_save`, and the places in its memory that the readers use."""

    def __init__(self, source: Source) -> None:
        self.memory: PhysicalMemory = source.memory
        text = find_vmcoreinfo(source.memory)
        assert text is not None
        self.text = text
        self.facts = parse_vmcoreinfo(text)
        root, levels = page_table_root(self.facts)
        assert root is not None
        assert levels is not None
        self.tables = PageTables(source.memory, root, levels)
        self.symbols: KernelSymbols = kernel_symbols(source.memory, text)

    def paddr(self, vaddr: int) -> int:
        """Return the physical address of a virtual one, by the kernel's own tables."""
        found = self.tables.walk(vaddr).paddr
        assert found is not None
        return found

    def u64(self, vaddr: int) -> int:
        """Read 8 bytes at a virtual address."""
        found = self.memory.read_u64(self.paddr(vaddr))
        assert found is not None
        return found

    def address(self, symbol: str) -> int:
        """Return the virtual address of a symbol."""
        return self.symbols[symbol].address

    def with_u64(self, vaddr: int, value: int, size_bytes: int = 8) -> Overlay:
        """Return the memory with one value changed."""
        overlay = Overlay(self.memory)
        overlay.write(self.paddr(vaddr), value.to_bytes(size_bytes, "little"))
        return overlay

    @property
    def zone(self) -> int:
        """The virtual address of the first zone of `orig_bm`."""
        return self.u64(self.address("orig_bm"))

    @property
    def leaf(self) -> int:
        """The virtual address of the first leaf of that zone."""
        return self.u64(self.zone + 32)

    def frames(self) -> dict[str, list[int]]:
        """Frames by what they hold."""
        node = self.u64(self.address("node_data"))
        vaddrs = {
            "bitmaps": [self.address("orig_bm")],
            "zone": [self.zone],
            "leaf": [self.leaf],
            "bits": [self.u64(self.leaf + 16)],
            "e820": [self.u64(self.address("e820_table_firmware")), self.address("e820_table_firmware")],
            "node_data": [
                self.address("node_data"),
                node,
                node + int(self.facts["OFFSET(pglist_data.node_start_pfn)"]),
            ],
        }
        for name in ("names", "num_syms", "token_table", "token_index", "offsets", "relative_base"):
            start = int(self.facts[f"SYMBOL(kallsyms_{name})"], 16)
            vaddrs[name] = [start + 4096 * page for page in range(4)]
        frames = {name: [self.paddr(vaddr) >> 12 for vaddr in some] for name, some in vaddrs.items()}
        frames["tables"] = [
            step.table_pfn for at in (self.zone, START_KERNEL_MAP) for step in self.tables.walk(at).steps
        ]
        return frames


def refusal(kernel: StoppedKernel, memory: PhysicalMemory) -> str:
    """Return the one line with which a memory is refused."""
    with pytest.raises(HibernautError) as error:
        kernel_state(memory, kernel.text)
    line = str(error.value)
    assert "\n" not in line
    return line
