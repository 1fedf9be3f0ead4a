# SPDX-License-Identifier: GPL-2.0-or-later
"""The second mapping of the kernel's own text and data, at 0xffffffff80000000 and up."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["KernelImage"]


@dataclass(frozen=True)
class KernelImage:
    """Where the kernel image lies and where it is mapped besides the direct map.

    Attributes:
        start_pfn: frame of `_text`.
        end_pfn: one past the last frame of `_brk_end`, rounded up to 2 MiB.
        vaddr: where `_text` is mapped.
        rodata_start_pfn: first frame of `__start_rodata`; None if that is not known.
        rodata_end_pfn: one past the last frame of it.
    """

    start_pfn: int
    end_pfn: int
    vaddr: int
    rodata_start_pfn: int | None = None
    rodata_end_pfn: int | None = None
