# SPDX-License-Identifier: GPL-2.0-or-later
"""The region of the mermap that belongs to one CPU; see `mermap`."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MermapCpu"]


@dataclass(frozen=True)
class MermapCpu:
    """`struct mermap_cpu`: the region of one CPU, and how much of it is used up.

    Attributes:
        slots: the fixmap slots that stand for its addresses, in the order of use.
        paddrs: physical addresses of their PTEs.
        next_addr: position of the next one; their number if none is left.
    """

    slots: tuple[int, ...]
    paddrs: tuple[int, ...]
    next_addr: int = 0
