# SPDX-License-Identifier: GPL-2.0-or-later
"""Leaf entries that are not present, as Linux uses them: for a frame, or in user tables as swap entries.

The CPU ignores such an entry. Linux reads it by where it is (arch/x86/include/asm/pgtable.h, pgtable_64.h):

- in the kernel half it is a mapping that was taken away, with its frame inverted (see `entries.entry_pfn`), or as it
  is, as KFENCE left it before `KernelRules.kfence_inverts`; the place in the direct map, or RAM, decides between them;
- in the user half with PROTNONE (GLOBAL without PRESENT) it is a mapping without access, with its frame;
- in the user half without it, it is a swap entry: a slot of a swap area, or one of the kernel's other marks
  (migration, hwpoison, device memory, markers), which take the highest types (include/linux/swap.h).

Since Linux kernel commit bcd11afa7ada ("x86/speculation/l1tf: Change order of offset/type in swap entry") (in v4.19,
and in stable releases), a swap entry has its type in bits 59-63 and its offset, inverted, in bits 9-58. Older kernels
stored the offset as it is, from bit 14, 15 or 9 on: see `_OLD_LAYOUTS`. No swap area has so many slots that the upper
bits do not tell an inverted offset.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from hibernaut.errors import FormatError
from hibernaut.linux.direct_map import DirectMap
from hibernaut.paging.entries import FRAME_MASK, Entry, Level
from hibernaut.paging.spans import Stop

if TYPE_CHECKING:
    from hibernaut.memory.ranges import FrameRanges
    from hibernaut.paging.tables import PageTables, Walk

__all__ = ["NotPresent", "NotPresentKind", "StoredFrame", "SwapSlot", "meaning_of", "not_present_entry", "swap_flags"]

SURELY_AREAS = 23
"""Types below it are swap areas: of 32, a kernel with everything configured keeps 9 for other entries (4 of device
memory, 3 of migration, hwpoison, markers: 6.1, include/linux/swap.h). Fewer are kept where less is configured."""

_USER_HALF = 1 << 63
_TYPE_SHIFT = 59
_INVERTED_TOP = 0x1FF << 50
"""Bits 50-58: all set in an inverted offset below 2^41, which is 8 PiB of slots; clear in one stored as it is."""
_OLD_LAYOUTS = ((9, 14), (9, 15), (1, 9))
"""First bits of type and offset in kernels before it (pgtable_64.h): since commit eee4818baac0 ("x86/mm: move
_PAGE_SWP_SOFT_DIRTY from bit 7 to bit 1"), since 00839ee3b299 ("x86/mm: Move swap offset/type up in PTE to work around
erratum"), and before both."""
_MASK64 = (1 << 64) - 1


class NotPresentKind(StrEnum):
    """Kinds of not-present entries."""

    FRAME = "frame"
    """A mapping of the kernel that was taken away."""
    PROTNONE = "protnone"
    """A user mapping without access (PROT_NONE, or NUMA balancing)."""
    SWAP = "swap"
    """A slot of a swap area."""
    NOT_A_SLOT = "not-a-slot"
    """A migration, hwpoison, device or marker entry: no slot of a swap area."""
    UNKNOWN = "unknown"
    """Not one of these: no kernel writes such an entry there."""


@dataclass(frozen=True)
class StoredFrame:
    """A reading of the frame in an entry.

    Attributes:
        pfn: the frame of the address itself.
        inverted: whether the entry stores it inverted.
    """

    pfn: int
    inverted: bool


@dataclass(frozen=True)
class SwapSlot:
    """A reading of a swap entry.

    Attributes:
        area: number of the swap area (the type), as in /proc/swaps from 0 on.
        slot: slot in it (the offset): of a partition the block with this number.
        inverted: whether the entry stores the slot inverted, as kernels since the L1TF mitigation do.
    """

    area: int
    slot: int
    inverted: bool


@dataclass(frozen=True)
class NotPresent:
    """The meaning of a not-present entry.

    Attributes:
        kind: its kind.
        frames: readings of its frame; more than one if nothing decides between them, none unless it holds one.
        slots: readings of its swap slot, likewise; with `NOT_A_SLOT` its type and offset.
    """

    kind: NotPresentKind
    frames: tuple[StoredFrame, ...] = ()
    slots: tuple[SwapSlot, ...] = ()


def not_present_entry(
    walk: Walk, ram: FrameRanges, direct_map: DirectMap | None = None, encryption: int = 0
) -> NotPresent:
    """Return the meaning of the entry that a walk ends at with `Stop.NOT_PRESENT`.

    Args:
        walk: the walk.
        ram: frames of the memory.
        direct_map: the direct map, where there is one.
        encryption: see `PageTables`.
    """
    if walk.level > Level.PUD:
        return NotPresent(NotPresentKind.UNKNOWN)
    readings = _frames(walk, encryption)
    if walk.vaddr >= _USER_HALF:
        return NotPresent(NotPresentKind.FRAME, _believed(readings, walk.vaddr, ram, direct_map))
    if walk.entry & Entry.GLOBAL:
        return NotPresent(NotPresentKind.PROTNONE, _in_ram(readings, ram))
    slots = _slots(walk.entry)
    if not slots or walk.level > Level.PMD:
        return NotPresent(NotPresentKind.UNKNOWN)
    if all(slot.area >= SURELY_AREAS for slot in slots):
        return NotPresent(NotPresentKind.NOT_A_SLOT, slots=slots)
    return NotPresent(NotPresentKind.SWAP, slots=slots)


def meaning_of(tables: PageTables, walk: Walk) -> NotPresent | None:
    """Return the meaning of the entry at which a walk of some tables ends; None unless it ends at a not-present one.

    The direct map is looked for only where the address may be in it.
    """
    if walk.stop != Stop.NOT_PRESENT:
        return None
    direct_map = None
    if walk.vaddr >= _USER_HALF:
        with contextlib.suppress(FormatError):  # tables without a direct map, of user mode for example
            direct_map = DirectMap.find(tables.memory, tables.cr3, tables.levels, encryption=tables.encryption)
    return not_present_entry(walk, tables.memory.ranges, direct_map, tables.encryption)


def swap_flags(entry: int) -> list[str]:
    """Return the names of the flags of a swap entry (_PAGE_SWP_SOFT_DIRTY, _UFFD_WP, _EXCLUSIVE, pgtable_types.h)."""
    names = {Entry.RW: "SWP_SOFT_DIRTY", Entry.USER: "SWP_UFFD_WP", Entry.PWT: "SWP_EXCLUSIVE"}
    return [name for bit, name in names.items() if entry & bit]


def _frames(walk: Walk, encryption: int) -> tuple[StoredFrame, StoredFrame]:
    """Return both readings: inverted, and as it is."""
    frame_mask = FRAME_MASK & ~((1 << walk.level.shift) - 1) & ~encryption
    within = (walk.vaddr >> 12) & (walk.level.pages - 1)
    return (
        StoredFrame(((~walk.entry & frame_mask) >> 12) + within, inverted=True),
        StoredFrame(((walk.entry & frame_mask) >> 12) + within, inverted=False),
    )


def _believed(
    readings: tuple[StoredFrame, ...], vaddr: int, ram: FrameRanges, direct_map: DirectMap | None
) -> tuple[StoredFrame, ...]:
    """Return the reading that is the frame of a direct-map address; elsewhere, or if none is, those in RAM."""
    if direct_map is not None and 0 <= vaddr - direct_map.base < direct_map.end_pfn << 12:
        own = (vaddr - direct_map.base) >> 12
        named = tuple(one for one in readings if one.pfn == own)
        if named:
            return named
    return _in_ram(readings, ram)


def _in_ram(readings: tuple[StoredFrame, ...], ram: FrameRanges) -> tuple[StoredFrame, ...]:
    """Return the readings that are frames of the memory; if none is, all."""
    return tuple(one for one in readings if ram.end_of(one.pfn)) or readings


def _slots(entry: int) -> tuple[SwapSlot, ...]:
    """Return the readings as a swap entry; none if no layout fits."""
    if entry & _INVERTED_TOP == _INVERTED_TOP:
        return (SwapSlot(entry >> _TYPE_SHIFT, (~entry << 5 & _MASK64) >> 14, inverted=True),)
    if entry >> 50:
        return ()
    readings = [SwapSlot(entry >> kind & 0x1F, entry >> offset, inverted=False) for kind, offset in _OLD_LAYOUTS]
    return tuple(dict.fromkeys(readings))
