# SPDX-License-Identifier: GPL-2.0-or-later
"""Raw dumps: physical memory from frame 0 on, without any header. The last resort: they have no magic number."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hibernaut.memory import declarations as c
from hibernaut.memory.dump import Dump, Refusal
from hibernaut.memory.foreign import LOOKED_AT_BYTES, foreign_format
from hibernaut.memory.mapped import MappedMemory
from hibernaut.memory.page import PAGE_SIZE

if TYPE_CHECKING:
    from hibernaut.volumes.files import PlainFile

__all__ = ["open_raw"]


def open_raw(plain: PlainFile) -> Dump | Refusal:
    """Open a file of whole pages as physical memory from frame 0 on; a file of another known format is refused.

    Returns:
        The dump, which owns `plain`, or a refusal that names the format of the file.
    """
    known = foreign_format(plain.pread(0, LOOKED_AT_BYTES))
    if known is not None:
        return Refusal("raw memory", f"this is {known.what}", known.advice)
    if plain.size_bytes % PAGE_SIZE:
        return Refusal("raw memory", f"{plain.size_bytes} bytes are not a multiple of {PAGE_SIZE}")
    if plain.size_bytes > c.PADDR_LIMIT:
        return Refusal("raw memory", f"{plain.size_bytes} bytes are more than 52 bits can address")
    return Dump("raw", MappedMemory(plain, np.array([[0, plain.size_bytes // PAGE_SIZE, 0]])))
