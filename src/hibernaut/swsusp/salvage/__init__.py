# SPDX-License-Identifier: GPL-2.0-or-later
"""Damaged and used-up images: everything that can still be read of them, and a list of everything that cannot.

Facts that this rests on (kernel/power/swap.c): map page k lists the blocks of entries 511 k to 511 k + 510 of the image
and the block of the next one; unit k of the stream always holds rows 32 k to 32 k + 31, whatever became unreadable
before it; a resume writes `orig_sig` over `sig` and leaves the rest of the header as it is.
"""

from __future__ import annotations

from hibernaut.swsusp.salvage.memory import SalvagedMemory
from hibernaut.swsusp.salvage.remains import Remains, scan_area
from hibernaut.swsusp.salvage.salvaged import SalvagedImage, salvage_image

__all__ = ["Remains", "SalvagedImage", "SalvagedMemory", "salvage_image", "scan_area"]
