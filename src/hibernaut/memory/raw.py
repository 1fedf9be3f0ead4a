# SPDX-License-Identifier: GPL-2.0-or-later
"""Raw dumps: physical memory from frame 0 on, without any header. The last resort: they have no magic number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hibernaut.memory import declarations as c
from hibernaut.memory.dump import Dump, Refusal
from hibernaut.memory.foreign import LOOKED_AT_BYTES, foreign_format
from hibernaut.memory.gaps import MemoryGap, pieces_around
from hibernaut.memory.mapped import MappedMemory
from hibernaut.memory.page import PAGE_SIZE

if TYPE_CHECKING:
    from hibernaut.volumes.volume import Volume

__all__ = ["RawMemory", "open_raw"]

_LIME_RAW = "give --gap START+SIZE for each range that is not in it, if it is LiME's format=raw"
_WORTH_A_GAP_BYTES = 1 << 24


class RawMemory(MappedMemory):
    """Raw memory, with the gaps put back that its file leaves out.

    Args:
        plain: the file; closing this memory closes it.
        gaps: the gaps, in any order.

    Raises:
        FormatError: there can be no such gaps, see `pieces_around`; or the file cannot be mapped.

    Attributes:
        gaps: the gaps, ascending.
        file_bytes: length of the file.
    """

    def __init__(self, plain: Volume, gaps: Sequence[MemoryGap] = ()) -> None:
        super().__init__(plain, pieces_around(plain.size_bytes, gaps, plain.name))
        self.gaps = tuple(sorted(gaps))
        self.file_bytes = plain.size_bytes

    def with_gaps(self, gaps: Sequence[MemoryGap]) -> RawMemory:
        """Return the same file's memory with other gaps; closing either closes the file."""
        return RawMemory(self._plain, gaps)


def open_raw(plain: Volume, gaps: Sequence[MemoryGap] = ()) -> Dump | Refusal:
    """Open a file of whole pages as physical memory from frame 0 on; a file of another known format is refused.

    Args:
        plain: the file.
        gaps: gaps that it leaves out. With gaps its length may be any: a range of RAM can end within a page.

    Returns:
        The dump, which owns `plain`, or a refusal that names the format of the file.

    Raises:
        FormatError: see `RawMemory`.
    """
    known = foreign_format(plain.pread(0, LOOKED_AT_BYTES))
    if known is not None:
        return Refusal("raw memory", f"this is {known.what}", known.advice)
    if plain.size_bytes % PAGE_SIZE and not gaps:
        advice = _LIME_RAW if plain.size_bytes >= _WORTH_A_GAP_BYTES else None
        return Refusal("raw memory", f"{plain.size_bytes} bytes are not a multiple of {PAGE_SIZE}", advice)
    if plain.size_bytes > c.PADDR_LIMIT:
        return Refusal("raw memory", f"{plain.size_bytes} bytes are more than 52 bits can address")
    return Dump("raw", RawMemory(plain, gaps))
