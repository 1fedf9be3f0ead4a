# SPDX-License-Identifier: GPL-2.0-or-later
"""The second mapping of the kernel's own text and data, from 0xffffffff80000000 on."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["KernelImage"]


@dataclass(frozen=True)
class KernelImage:
    """Frames of the kernel image, and its mapping besides the direct map.

    Attributes:
        start_pfn: frame of `_text`.
        end_pfn: one past the last frame of `_brk_end`, rounded up to 2 MiB.
        vaddr: address of `_text`.
        rodata_start_pfn: frame of `__start_rodata`; None if unknown.
        rodata_end_pfn: one past the last frame of the read-only data.
    """

    start_pfn: int
    end_pfn: int
    vaddr: int
    rodata_start_pfn: int | None = None
    rodata_end_pfn: int | None = None
