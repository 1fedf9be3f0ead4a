# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel's record of swap slots: pages of the swap cache, slots known to be zero, slots in use.

The slot of a cached page may be older than the page, and that of a page of zeroes is never written, so memory is asked
before the disk. Where the kernel keeps this differs, and is found by the members of its structures:

- `swapper_spaces` (mm/swap_state.c): one `struct address_space` for 2^14 slots, an XArray of pages; else a table in
  each `struct swap_cluster_info` (mm/swap_table.h): an entry is a value (bit 0 set; not cached), a page frame (bits 0-1
  are 2), or the address of a folio (bits 0-2 clear).
- `zeromap` of `struct swap_info_struct`, `zero_bitmap` of a cluster, or bit 59 of an entry of its table.
- `swap_map` of `struct swap_info_struct`: a byte for each slot, 0 if it is free; else the entries of that table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from hibernaut.kernel.folios import frames_of_pages, pages_within_folios
from hibernaut.kernel.program import ask
from hibernaut.kernel.swap_areas import SwapAreaInUse
from hibernaut.kernel.xarray import read_xarray
from hibernaut.memory.page import PAGE_SIZE
from hibernaut.paging.tables import Stop

if TYPE_CHECKING:
    from typing import Any

    from hibernaut.kernel.kernel import Kernel
    from hibernaut.memory.page import BoolArray, Pfns

__all__ = ["SlotStates", "slot_states"]

SPACE_SLOTS = 1 << 14
"""`SWAP_ADDRESS_SPACE_PAGES` (mm/swap.h)."""
MAX_CLUSTERS = 1 << 20
CHUNK_PAGES = 1 << 10
FLAG_BITS = 5
"""`SWP_TB_FLAGS_BITS` (mm/swap_table.h) on x86-64: the upper bits of an entry for a page frame; the lowest of them says
that the slot is zero."""
ZERO_FLAG = np.uint64(1 << 64 - FLAG_BITS)
UNFLAGGED = np.uint64((1 << 64 - FLAG_BITS) - 1)

Words = npt.NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class SlotStates:
    """The kernel's record of an area's slots.

    Attributes:
        cached: int64, shape (slots,): the page frame of the page in the swap cache, -1 for a slot that is not cached.
        zero: bool, shape (slots,): slots of pages of zeroes, which are not written.
        used: bool, shape (slots,): slots in use; all of them where that is unknown.
        unknown: bool, shape (slots,): slots whose state is not in the memory.
    """

    cached: Pfns
    zero: BoolArray
    used: BoolArray
    unknown: BoolArray


def slot_states(kernel: Kernel, area: SwapAreaInUse) -> SlotStates:
    """Return the state of all slots of an area.

    Raises:
        FormatError: the kernel's data is damaged, or of an unknown layout.
    """
    states = SlotStates(
        np.full(area.slots, -1, dtype=np.int64), *(np.zeros(area.slots, dtype=np.bool_) for _ in range(3))
    )
    info = ask(kernel, f"swap area {area.number}", lambda: kernel.object("struct swap_info_struct", area.address))
    members = _members(info.type_)
    if "swap_map" in members:
        _note_bytes(kernel, int(info.swap_map), states)
    if "zeromap" in members:
        _note_bits(kernel, int(info.zeromap), states.zero, states.unknown)
    if kernel.symbols.get("swapper_spaces") is not None:
        _note_spaces(kernel, area, states)
    else:
        _note_clusters(kernel, info, members, states)
    slots = np.flatnonzero(states.cached >= 0)
    states.cached[slots] += pages_within_folios(kernel, states.cached[slots], slots)
    return states


def _note_clusters(kernel: Kernel, info: Any, members: dict[str, int], states: SlotStates) -> None:
    """Note the tables of an area that has them."""
    program = kernel.drgn()
    cluster = ask(kernel, "struct swap_cluster_info", lambda: program.type("struct swap_cluster_info"))
    if "table" not in _members(cluster):
        raise kernel.damaged("the kernel has neither swapper_spaces nor a table in struct swap_cluster_info")
    _note_tables(
        kernel, int(info.cluster_info), states, has_map="swap_map" in members, has_zeromap="zeromap" in members
    )


def _note_bytes(kernel: Kernel, address: int, states: SlotStates) -> None:
    counts, is_read = _bytes_at(kernel, address, len(states.used))
    states.used[:] = (counts != 0) | ~is_read
    states.unknown[:] |= ~is_read


def _note_bits(kernel: Kernel, address: int, bits: BoolArray, unknown: BoolArray) -> None:
    if not address:
        return
    found, is_read = _bytes_at(kernel, address, -(-len(bits) // 8))
    bits[:] = np.unpackbits(found, bitorder="little")[: len(bits)]
    unknown[:] |= np.repeat(~is_read, 8)[: len(bits)]


def _bytes_at(kernel: Kernel, address: int, count: int) -> tuple[npt.NDArray[np.uint8], BoolArray]:
    """Return bytes of the kernel's memory, shape (count,), and whether each is in it.

    Raises:
        FormatError: they are not all mapped, as an array of the kernel's is.
    """
    if kernel.tables.walk(address + count - 1).stop != Stop.PRESENT:
        raise kernel.damaged(f"an array of {count} bytes at {address:#x} ends where nothing is mapped")
    data, known = np.zeros(count, dtype=np.uint8), np.zeros(count, dtype=np.bool_)
    first = address & ~(PAGE_SIZE - 1)
    for start in range(first, address + count, CHUNK_PAGES * PAGE_SIZE):
        end = min(start + CHUNK_PAGES * PAGE_SIZE, address + count)
        pages, is_read = kernel.read_records(np.arange(start, end, PAGE_SIZE, dtype=np.uint64), PAGE_SIZE)
        within = slice(max(start, address) - start, end - start)
        place = slice(max(start, address) - address, end - address)
        data[place], known[place] = pages.reshape(-1)[within], np.repeat(is_read, PAGE_SIZE)[within]
    return data, known


def _note_spaces(kernel: Kernel, area: SwapAreaInUse, states: SlotStates) -> None:
    """Note the pages in the XArrays of an area: a folio's first one, for each of its slots."""
    spaces = ask(kernel, "swapper_spaces", lambda: kernel["swapper_spaces"][area.number])
    count = -(-area.slots // SPACE_SLOTS)
    for number in range(count if spaces else 0):
        tree = ask(kernel, "swapper_spaces", lambda number: int(spaces[number].i_pages.address_of_()), number)
        first = number * SPACE_SLOTS
        found = read_xarray(kernel, tree)
        is_page = found.entries & np.uint64(1) == 0
        pfns = frames_of_pages(kernel, found.entries[is_page])
        # The index is the slot's, in older kernels of the area, in newer ones of these 2^14.
        starts = first + (found.indices[is_page].astype(np.int64) & SPACE_SLOTS - 1)
        for start, length, pfn in zip(starts.tolist(), found.lengths[is_page].tolist(), pfns.tolist(), strict=True):
            end = min(start + length, area.slots)
            states.cached[start:end] = pfn
        for start, length in found.missing.tolist():
            at = first + (start & SPACE_SLOTS - 1)
            states.unknown[at : at + min(length, SPACE_SLOTS)] = True


def _note_tables(kernel: Kernel, clusters: int, states: SlotStates, *, has_map: bool, has_zeromap: bool) -> None:
    """Note the entries of the tables of an area's clusters; all slots of a folio have its first page."""
    program = kernel.drgn()
    layout = ask(kernel, "struct swap_cluster_info", lambda: program.type("struct swap_cluster_info"))
    each = ask(kernel, "struct swap_table", lambda: program.type("struct swap_table").size) // 8
    if not 0 < each <= 512:
        raise kernel.damaged(f"a table of swap slots has {each} entries", "1 to 512")
    members = _members(layout)
    count = -(-len(states.used) // each)
    if count > MAX_CLUSTERS:
        raise kernel.damaged(f"a swap area has {count} clusters", f"at most {MAX_CLUSTERS}")
    addresses = np.uint64(clusters) + np.arange(count, dtype=np.uint64) * np.uint64(layout.size)
    records, is_read = kernel.read_records(addresses, layout.size)
    entries, has_table = _tables(kernel, records, members["table"], each)
    shape = len(states.used)
    flat = entries.reshape(-1)[:shape]
    lost = np.repeat(~is_read | (has_table < 0), each)[:shape]
    states.unknown[:] |= lost
    if not has_map:
        states.used[:] = (flat != 0) | lost
    is_frame = flat & np.uint64(3) == 2
    is_folio = (flat & np.uint64(7) == 0) & (flat != 0)
    states.cached[is_frame] = ((flat[is_frame] & UNFLAGGED) >> np.uint64(2)).astype(np.int64)
    states.cached[is_folio] = frames_of_pages(kernel, flat[is_folio])
    if "zero_bitmap" in members:
        bitmaps = np.ascontiguousarray(records[:, members["zero_bitmap"] :][:, :8]).view(np.uint64)[:, 0]
        there = np.flatnonzero(bitmaps)
        bits, known = kernel.read_records(bitmaps[there], each // 8)
        zero = np.zeros((count, each), dtype=np.bool_)
        zero[there] = np.unpackbits(bits, axis=1, bitorder="little")
        states.zero[:] = zero.reshape(-1)[:shape]
        unknown = np.zeros(count, dtype=np.bool_)
        unknown[there] = ~known
        states.unknown[:] |= np.repeat(unknown, each)[:shape]
    elif not has_zeromap:
        states.zero[:] = (flat & ZERO_FLAG != 0) & (flat & np.uint64(3) != 0)


def _tables(
    kernel: Kernel, records: npt.NDArray[np.uint8], table_at: int, each: int
) -> tuple[Words, npt.NDArray[np.int8]]:
    """Return the entries of all clusters, shape (n, each), and 1, 0, -1 for a table that is there, none, or missing."""
    pointers = np.ascontiguousarray(records[:, table_at : table_at + 8]).view(np.uint64)[:, 0]
    there = np.flatnonzero(pointers)
    found, is_read = kernel.read_records(pointers[there], 8 * each)
    entries = np.zeros((len(records), each), dtype=np.uint64)
    entries[there] = np.ascontiguousarray(found).view(np.uint64)
    states = np.zeros(len(records), dtype=np.int8)
    states[there] = np.where(is_read, 1, -1)
    return entries, states


def _members(type_: Any) -> dict[str, int]:
    """Return the byte offset of each member of a structure by name."""
    return {member.name: member.bit_offset // 8 for member in type_.members if member.name}
