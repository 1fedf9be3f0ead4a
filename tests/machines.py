# SPDX-License-Identifier: GPL-2.0-or-later
"""Sizes and machines that the tests of several rooms share."""

from __future__ import annotations

__all__ = ["BASE4", "BASE5", "GIB", "RAM"]

RAM = ((0, 0xA0), (0x100, 0x3F00))
"""(first frame, pages) of the RAM of a machine of 64 MiB, with the gap that PCs have below 1 MiB."""
GIB = 1 << 18
"""Pages of 1 GiB."""
BASE4 = 0xFFFF_8880_0000_0000
"""Base of the direct map with 4 levels and without KASLR (Documentation/arch/x86/x86_64/mm.rst)."""
BASE5 = 0xFF11_0000_0000_0000
"""Base of the direct map with 5 levels and without KASLR (same file)."""
