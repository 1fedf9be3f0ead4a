# SPDX-License-Identifier: GPL-2.0-or-later
"""The RAM of the machines that these tests build."""

from __future__ import annotations

from tests.machines import GIB, RAM

__all__ = ["BIG", "GIB", "RAM"]

"""64 MiB with the gap that PCs have below 1 MiB."""
BIG = ((0, 2 * GIB),)
"""2 GiB, so that one of them can be a single entry."""
