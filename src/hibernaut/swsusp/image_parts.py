# SPDX-License-Identifier: GPL-2.0-or-later
"""The units and the blocks of an image that are read, in one form for images that are whole and those that are not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["ImageBlocks", "ReadUnits"]


@dataclass(frozen=True, eq=False)
class ReadUnits:
    """Units that decompress; none of an image that is not compressed.

    Attributes:
        number: number of each, int64, shape (n,); -1 where it is not certain.
        rows: rows of 4096 bytes in each, int64, shape (n,).
        compressed_bytes: length of its compressed data, int64, shape (n,).
        total: number of all units of the image; None if it is not known.
        unit_rows: rows of a unit, the last one apart.
        stored_rows: rows that can be read, of units or not compressed.
    """

    number: NDArray[np.int64]
    rows: NDArray[np.int64]
    compressed_bytes: NDArray[np.int64]
    total: int | None
    unit_rows: int
    stored_rows: int

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, eq=False)
class ImageBlocks:
    """Blocks of an image in its swap area, int64, shape (n,) each, in no order.

    Attributes:
        pages: those with its info page and with the pages or units that can be read.
        maps: those with the pages of its swap map.
        lost: those that the swap map names and that cannot be read.
    """

    pages: NDArray[np.int64]
    maps: NDArray[np.int64]
    lost: NDArray[np.int64]

    @property
    def all(self) -> NDArray[np.int64]:
        """All of them, ascending, each once."""
        return np.unique(np.concatenate((self.pages, self.maps, self.lost)))
