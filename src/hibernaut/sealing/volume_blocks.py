# SPDX-License-Identifier: GPL-2.0-or-later
"""The blocks of a swap area inside any volume: a partition of a virtual disk, a logical volume, a swap file."""

from __future__ import annotations

import numpy as np

from hibernaut.errors import FormatError
from hibernaut.sealing.blocks import BLOCK_BYTES
from hibernaut.swsusp.area import SwapArea

__all__ = ["AreaBlocks"]


class AreaBlocks:
    """A swap area of x86-64 as `Blocks`.

    Attributes:
        name: name in messages.
        blocks: number of whole blocks of the device.

    Args:
        area: the area; it stays open.

    Raises:
        FormatError: its pages have another size than those of x86-64.
    """

    def __init__(self, area: SwapArea) -> None:
        if area.page_size != BLOCK_BYTES or area.sector_bytes != 8 or area.big_endian:
            raise FormatError(
                "the area is not one of x86-64, which alone are sealed",
                source=area.file.name,
                expected=f"pages of {BLOCK_BYTES} bytes, little-endian words of 64 bits",
                advice="give an image of x86-64",
            )
        self.name = area.file.name
        self.blocks = area.blocks
        self._area = area

    def read_into(self, block: int, out: memoryview) -> int:
        """See `Blocks`."""
        size_bytes = min(len(out), max(self.blocks - block, 0) * BLOCK_BYTES)
        if not size_bytes:
            return 0
        return self._area.file.pread_into(self._area.offset_of(block), np.frombuffer(out[:size_bytes], dtype=np.uint8))
