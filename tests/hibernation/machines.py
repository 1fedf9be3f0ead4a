# SPDX-License-Identifier: GPL-2.0-or-later
"""The RAM of the machines that these tests build."""

from __future__ import annotations

__all__ = ["BIG", "GIB", "RAM"]

RAM = ((0, 0xA0), (0x100, 0x3F00))
"""64 MiB with the gap that PCs have below 1 MiB."""
GIB = 1 << 18
BIG = ((0, 2 * GIB),)
"""2 GiB, so that one of them can be a single entry."""
