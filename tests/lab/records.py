# SPDX-License-Identifier: GPL-2.0-or-later
"""A record of a guest, for tests."""

from __future__ import annotations

from hibernaut.lab.record import GuestRecord
from hibernaut.lab.variants import VARIANTS

RECORD = GuestRecord(
    "aa", "6.1.0-56-amd64", "6.1", VARIANTS[0], None, 0, (), ((0, 0x1E02, 4),), {"DirectMap4k": 4}, 20000
)
