# SPDX-License-Identifier: GPL-2.0-or-later
"""Facts of its machine that a kernel keeps and that a resuming kernel compares, read from its memory."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hibernaut.kernel.kernel_memory import KernelMemory, string_at, u64_at
from hibernaut.kernel.layouts import (
    MAX_E820_ENTRIES,
    MAX_NODE_BYTES,
    MAX_NODES,
    NODE_PRESENT_PAGES_AFTER_START_PFN,
    NODE_SPANNED_PAGES_AFTER_START_PFN,
)
from hibernaut.kernel.symbols import SymbolicKernel
from hibernaut.swsusp.codecs import CompressorName
from hibernaut.swsusp.declarations import MAX_PFN
from hibernaut.swsusp.e820 import E820Sums

if TYPE_CHECKING:
    from hibernaut.memory.physical import PhysicalMemory

__all__ = [
    "MachineFacts",
    "compute_e820_crc32",
    "e820_table_firmware",
    "get_num_physpages",
    "image_compressor",
    "machine_facts",
    "node_addresses",
]


@dataclass(frozen=True)
class MachineFacts:
    """Facts that a resuming kernel compares with the machine that it runs on.

    Attributes:
        release: kernel release, as `uname -r` prints it.
        e820: checksums of the firmware's memory map (arch/x86/power/hibernate.c).
        physical_pages: `get_num_physpages()`: present pages of all nodes.
    """

    release: str
    e820: E820Sums
    physical_pages: int


def machine_facts(memory: PhysicalMemory, vmcoreinfo: bytes | None = None, *, name: str | None = None) -> MachineFacts:
    """Return the machine facts of the kernel in a memory, hibernating or not.

    Arguments and errors as for `kernel_symbols`; FormatError also if the facts contradict each other.
    """
    kernel = SymbolicKernel(memory, vmcoreinfo, name)
    return MachineFacts(kernel.release, E820Sums.of_table(e820_table_firmware(kernel)), get_num_physpages(kernel))


def compute_e820_crc32(kernel: SymbolicKernel) -> int:
    """Return `compute_e820_crc32(e820_table_firmware)`. Raises FormatError as `e820_table_firmware`."""
    return zlib.crc32(e820_table_firmware(kernel))


def e820_table_firmware(kernel: SymbolicKernel) -> bytes:
    """Return the firmware's memory map, a `struct e820_table`: its count and that many packed entries.

    Raises:
        FormatError: the table is not mapped, or its count is impossible.
    """
    what = "e820_table_firmware"
    table = kernel.u64_variable(what)
    header, entry = (kernel.layouts.structure(tag) for tag in ("e820_table", "e820_entry"))
    count = kernel.u32(table + header.offsets["nr_entries"], what)
    if not 0 < count <= MAX_E820_ENTRIES:
        raise kernel.damaged(f"{what} has {count} entries", f"1 to {MAX_E820_ENTRIES}")
    return kernel.read(table, header.offsets["entries"] + count * entry.size_bytes, what)


def get_num_physpages(kernel: KernelMemory) -> int:
    """Return `get_num_physpages()`: the sum of `node_present_pages` over all online nodes.

    Raises:
        FormatError: a node is not mapped, or its fields are not where they are expected.
    """
    at = _node_present_pages(kernel)
    total = sum(kernel.u64(node + at, "node_present_pages") for node in node_addresses(kernel))
    if not 0 < total <= MAX_PFN:
        raise kernel.damaged(f"the machine has {total} present pages", f"1 to {MAX_PFN}")
    return total


def _node_present_pages(kernel: KernelMemory) -> int:
    """Return the offset of `node_present_pages`: that of the kernel's types, else the one between its neighbours."""
    start, spanned = (kernel.number(f"OFFSET(pglist_data.{name})") for name in ("node_start_pfn", "node_spanned_pages"))
    try:
        offsets = kernel.layouts.structure("pglist_data").offsets
    except KeyError:
        if spanned != start + NODE_SPANNED_PAGES_AFTER_START_PFN:
            raise kernel.damaged(
                "unknown layout of struct pglist_data",
                f"node_spanned_pages at node_start_pfn + {NODE_SPANNED_PAGES_AFTER_START_PFN}",
            ) from None
        return start + NODE_PRESENT_PAGES_AFTER_START_PFN
    if (offsets.get("node_start_pfn"), offsets.get("node_spanned_pages")) != (start, spanned):
        raise kernel.damaged("VMCOREINFO and BTF have other offsets in struct pglist_data, node_spanned_pages for one")
    return offsets["node_present_pages"]


def node_addresses(kernel: KernelMemory) -> list[int]:
    """Return the address of each node's `struct pglist_data`. Raises FormatError if the table of nodes is damaged."""
    if "SYMBOL(node_data)" not in kernel.facts:  # without CONFIG_NUMA there is one node and no table
        return [kernel.number("SYMBOL(contig_page_data)", 16)]
    count = kernel.number("LENGTH(node_data)")
    if not 0 < count <= MAX_NODES:
        raise kernel.damaged(f"LENGTH(node_data) is {count}", f"1 to {MAX_NODES}")
    table = kernel.read(kernel.number("SYMBOL(node_data)", 16), 8 * count, "node_data")
    nodes = [u64_at(table, at) for at in range(0, len(table), 8)]
    for node in nodes:
        if 0 < node < 1 << 63 or node >= (1 << 64) - MAX_NODE_BYTES:
            raise kernel.damaged(f"node_data has an entry {node:#x}", "0 or a kernel address")
    return [node for node in nodes if node]


CRYPTO_MAX_ALG_NAME = 128
"""include/linux/crypto.h."""


def image_compressor(kernel: SymbolicKernel) -> CompressorName | None:
    """Return the compressor of a kernel's next image; None if it has another one than lzo and lz4.

    `hibernate_compressor` (kernel/power/hibernate.c), which /sys/module/hibernate/parameters/compressor sets; a kernel
    without it has LZO alone. Read in linux-source-6.1 6.1.192-2, -6.12 6.12.118-1 and -7.3 7.3.4-1~bpo13+1.

    Raises:
        FormatError: it is not in the memory.
    """
    symbol = kernel.symbols.get("hibernate_compressor")
    if symbol is None:
        return "lzo"
    known: dict[bytes, CompressorName] = {b"lzo": "lzo", b"lz4": "lz4"}
    return known.get(string_at(kernel, symbol.address, CRYPTO_MAX_ALG_NAME))
