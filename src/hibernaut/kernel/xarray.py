# SPDX-License-Identifier: GPL-2.0-or-later
"""Entries of a `struct xarray`: the page cache of a file, the swap cache, zswap's trees.

A node has 64 slots (include/linux/xarray.h, lib/xarray.c). A slot holds an entry: a pointer, or a value, which has bit
0 set; or another node, or a mark of the XArray's own, which have bits 0-1 = 2. An entry may cover several indices: it
lies in a node above the lowest level, or has siblings, which refer to its slot. Nodes are read level by level, all of
a level at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hibernaut.errors import FormatError
from hibernaut.kernel.btf import Btf, BtfKind
from hibernaut.kernel.btf_layouts import member_offsets
from hibernaut.kernel.kernel_memory import u64_at
from hibernaut.kernel.symbols import SymbolicKernel

__all__ = ["XArrayEntries", "read_xarray", "xarray_entry"]

SLOTS = 64
"""`XA_CHUNK_SIZE` (include/linux/xarray.h), without CONFIG_BASE_SMALL."""
SHIFT = 6
INTERNAL_MASK, INTERNAL = 3, 2
FIRST_NODE = 4096
"""An internal entry above it is the address of a node plus 2 (`xa_is_node`)."""
MAX_NODES = 1 << 20
"""Bound for the nodes of one XArray: 256 GiB of page cache."""


@dataclass(frozen=True, eq=False)
class XArrayEntries:
    """The entries of an XArray, in the order of their indices.

    Attributes:
        indices: uint64, shape (n,): first index of each.
        lengths: uint64, shape (n,): number of indices that it covers.
        entries: uint64, shape (n,): pointer, or value with bit 0 set.
        missing: indices under nodes that are not in the memory: uint64, shape (m, 2), first index and length.
    """

    indices: npt.NDArray[np.uint64]
    lengths: npt.NDArray[np.uint64]
    entries: npt.NDArray[np.uint64]
    missing: npt.NDArray[np.uint64]


def read_xarray(kernel: SymbolicKernel, address: int) -> XArrayEntries:
    """Return all entries of the `struct xarray` at an address.

    Args:
        kernel: the kernel.
        address: virtual address.

    Raises:
        FormatError: the kernel has no types; its head is not in the memory; or its nodes contradict each other, or are
            without an end.
    """
    btf = kernel.btf
    if btf is None:
        raise kernel.damaged(kernel.btf_trouble or "the kernel has no types")
    (head_at,), (shift_at, slots_at) = _offsets(btf, "xarray", "xa_head"), _offsets(btf, "xa_node", "shift", "slots")
    head = kernel.u64(address + head_at, "xa_head")
    if head & INTERNAL_MASK != INTERNAL or head <= FIRST_NODE:
        only = np.array([head] if head else [], dtype=np.uint64)
        return XArrayEntries(np.zeros_like(only), np.ones_like(only), only, np.empty((0, 2), dtype=np.uint64))
    found: list[tuple[npt.NDArray[np.uint64], ...]] = []
    missing: list[npt.NDArray[np.uint64]] = []
    nodes = np.array([head - INTERNAL], dtype=np.uint64)
    bases = np.zeros(1, dtype=np.uint64)
    below: int | None = None
    visited = 0
    while len(nodes):
        visited += len(nodes)
        if visited > MAX_NODES:
            raise kernel.damaged(f"the XArray at {address:#x} has more than {MAX_NODES} nodes")
        records, is_read = kernel.read_records(nodes, slots_at + 8 * SLOTS)
        shifts = records[:, shift_at]
        level = int(shifts[is_read][0]) if below is None and is_read.any() else below
        if level is None:  # the topmost node is not there: it may cover everything
            missing.append(np.array([[0, (1 << 64) - 1]], dtype=np.uint64))
            break
        if (shifts[is_read] != level).any() or level % SHIFT or level >= 64:
            raise kernel.damaged(f"the XArray at {address:#x} has a node of another level than its neighbours")
        span = np.uint64(1) << np.uint64(level)
        lost = bases[~is_read]
        missing.append(np.stack((lost, np.full_like(lost, int(span) * SLOTS)), axis=1))
        bases = bases[is_read]
        slots = np.ascontiguousarray(records[is_read, slots_at : slots_at + 8 * SLOTS]).view(np.uint64)
        is_internal = slots & np.uint64(INTERNAL_MASK) == INTERNAL
        is_node = is_internal & (slots > FIRST_NODE)
        is_entry = (slots != 0) & ~is_internal
        row, slot = np.nonzero(is_entry)
        lengths = span * (np.uint64(1) + _siblings(slots, is_internal)[row, slot])
        found.append((bases[row] + slot.astype(np.uint64) * span, lengths, slots[row, slot]))
        row, slot = np.nonzero(is_node)
        if len(row) and level == 0:
            raise kernel.damaged(f"the XArray at {address:#x} has nodes below its lowest level")
        nodes = slots[row, slot] - np.uint64(INTERNAL)
        bases = bases[row] + slot.astype(np.uint64) * span
        below = level - SHIFT
    empty = (np.empty(0, dtype=np.uint64),) * 3
    indices, lengths, entries = (np.concatenate(column) for column in zip(*(found or [empty]), strict=True))
    order = np.argsort(indices, kind="stable")
    gone = np.concatenate(missing) if missing else np.empty((0, 2), dtype=np.uint64)
    return XArrayEntries(indices[order], lengths[order], entries[order], gone)


def xarray_entry(kernel: SymbolicKernel, address: int, index: int) -> int:
    """Return the entry of one index of the `struct xarray` at an address, 0 if there is none.

    An entry that covers several indices is found at its first one only. Raises FormatError as `read_xarray`.
    """
    btf = kernel.btf
    if btf is None:
        raise kernel.damaged(kernel.btf_trouble or "the kernel has no types")
    (head_at,), (shift_at, slots_at) = _offsets(btf, "xarray", "xa_head"), _offsets(btf, "xa_node", "shift", "slots")
    entry = kernel.u64(address + head_at, "xa_head")
    above = 64
    while entry & INTERNAL_MASK == INTERNAL and entry > FIRST_NODE:
        node = kernel.read(entry - INTERNAL, slots_at + 8 * SLOTS, "xa_node")
        shift = node[shift_at]
        if shift >= above or shift % SHIFT:
            raise kernel.damaged(f"the XArray at {address:#x} has a node of level {shift} below one of {above}")
        if above == 64 and index >> shift >= SLOTS:
            return 0
        entry, above = u64_at(node, slots_at + 8 * (index >> shift & SLOTS - 1)), shift
    return 0 if entry & INTERNAL_MASK == INTERNAL or (above == 64 and index) else entry


def _siblings(slots: npt.NDArray[np.uint64], is_internal: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint64]:
    """Return how many siblings each slot's entry has, shape as `slots`."""
    counts = np.zeros(slots.shape, dtype=np.uint64)
    row, slot = np.nonzero(is_internal & (slots < SLOTS << 2))
    of = (slots[row, slot] >> np.uint64(2)).astype(np.int64)
    np.add.at(counts, (row, of), np.uint64(1))
    return counts


def _offsets(btf: Btf, name: str, *members: str) -> list[int]:
    """Return the offsets of members of a structure. Raises FormatError if it lacks one."""
    found = btf.find(name, BtfKind.STRUCT)
    offsets = member_offsets(btf, found[0]) if found else {}
    lacking = [member for member in members if member not in offsets]
    if lacking:
        raise FormatError(f"the kernel's types have no struct {name} with a member {lacking[0]}")
    return [offsets[member] for member in members]
