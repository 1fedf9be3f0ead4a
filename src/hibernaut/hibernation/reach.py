# SPDX-License-Identifier: GPL-2.0-or-later
"""The outcome of a way for a page, by the state of its frame in the direct map: for the copy and for the audit.

`swsusp_save` reads a page at its address if `kernel_page_present` returns true, and maps it first if not. The outcome
of either depends on the entry alone: each `FrameState` has one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from hibernaut.linux.direct_map import FrameState

__all__ = ["AS_IT_IS", "BY_FIXMAP", "COPIED", "NO_SLOT", "TODAY", "Reach"]


@dataclass(frozen=True)
class Reach:
    """The outcome of a way for a page.

    Attributes:
        outcome: the outcome, a clause.
        certain: whether the page's own bytes are saved, whatever fails.
    """

    outcome: str
    certain: bool = False


COPIED: Final = Reach("copied", certain=True)
NO_SLOT: Final = Reach("no free slot in the fixmap of these page tables")
"""Every page that a slot is needed for, on a machine without one."""

AS_IT_IS: Final = frozenset({FrameState.PRESENT})
"""States in which the copy reads the frame's own bytes at its address; all others are visited page by page."""

_PAGE_FAULT = Reach("page fault, no warning")
_ANOTHER = Reach("mapped to another frame: page fault, or wrong bytes")
_NAMED = Reach("the frame that the entry names is saved in its place, or page fault")
_RESERVED = Reach("page fault: the entry has reserved bits set")
_DEPENDS = Reach("depends on the content of the table's frame")

TODAY: Final[Mapping[FrameState, Reach]] = MappingProxyType(
    {
        FrameState.PRESENT: COPIED,
        FrameState.NOT_PRESENT_4K: Reach("mapped, copied, unmapped again", certain=True),
        FrameState.NOT_PRESENT_PLAIN: _ANOTHER,
        FrameState.NOT_PRESENT_LARGE: Reach("split in the copy; page fault if an allocation fails"),
        FrameState.NOT_PRESENT_LARGE_PLAIN: _ANOTHER,
        FrameState.NOT_PRESENT_OTHER: _ANOTHER,
        FrameState.NOT_PRESENT_ABOVE: Reach('"Failed to remap page", then page fault'),
        FrameState.NONE_IN_TABLE: _PAGE_FAULT,
        FrameState.NONE_ABOVE: Reach("NULL dereference"),
        FrameState.TABLE_MISSING: _DEPENDS,
        FrameState.NOT_FOLLOWED: _DEPENDS,
        FrameState.OTHER_FRAME: _NAMED,
        FrameState.RESERVED_BITS: _RESERVED,
    }
)
"""Mainline's way (`ways.Remap`). With `KernelRules.checks_null_pte`, NONE_ABOVE is as NONE_IN_TABLE."""

BY_FIXMAP: Final[Mapping[FrameState, Reach]] = MappingProxyType(
    {
        **dict.fromkeys(FrameState, COPIED),
        FrameState.NOT_FOLLOWED: _DEPENDS,
        FrameState.OTHER_FRAME: _NAMED,
        FrameState.RESERVED_BITS: _RESERVED,
    }
)
"""A fixmap slot with the NULL check (`ways.Fixmap`): whatever is not present is read through the slot, by frame."""
