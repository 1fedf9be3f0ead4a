# SPDX-License-Identifier: GPL-2.0-or-later
"""The generations of the info page on x86-64: which fields there are is decided by its magic, never by a release.

Distributions backport them, so that the release of a kernel does not tell.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hibernaut.swsusp.declarations import (
    ARCH_MAGIC,
    INFO,
    MAGIC_2_6_24,
    MAGIC_4_8,
    MAGIC_4_10,
    MAGIC_TRIMMED,
    RECORD_2_6_24,
)
from hibernaut.swsusp.e820 import E820Check

__all__ = ["GENERATIONS", "Generation", "generation_of"]


@dataclass(frozen=True)
class Generation:
    """One shape of `restore_data_record` (arch/x86/power/hibernate.c).

    Attributes:
        magic: its `RESTORE_MAGIC`.
        kernels: kernels that write it.
        change: the change that brings it.
        e820: the way in which it keeps the firmware's memory map.
        record: its fields, `INFO` or `RECORD_2_6_24`.
        known: False for a generation newer than any whose source was read: fields after the magic are not read.
    """

    magic: int
    kernels: str
    change: str
    e820: E820Check
    record: np.dtype[np.void] = INFO
    known: bool = True


GENERATIONS = {
    one.magic: one
    for one in (
        Generation(MAGIC_2_6_24, "2.6.24 to 4.7", "commit d158cbdf39ff", E820Check.NONE, RECORD_2_6_24),
        Generation(MAGIC_4_8, "4.8 and 4.9", "the change of 4.8", E820Check.NONE),
        Generation(MAGIC_4_10, "4.10 to 5.12", "commit 62a03defeabd", E820Check.MD5),
        Generation(ARCH_MAGIC, "5.13 and later", "commit f5d1499ae209", E820Check.CRC32),
        Generation(MAGIC_TRIMMED, "with commit 29671cabfc09", "commit 29671cabfc09", E820Check.TRIMMED_CRC32),
    )
}
"""By magic, oldest first."""

NEXT_MAGICS = range(MAGIC_TRIMMED + 1, (MAGIC_TRIMMED & ~0xF) + 0x10)
"""Each change of the record has so far raised the last digit by one."""


def generation_of(page: bytes) -> Generation | None:
    """Return the generation of an info page of 4096 bytes; None if it has no magic of x86-64."""
    magic = int(np.frombuffer(page, dtype=INFO)[0]["magic"])
    found = GENERATIONS.get(magic)
    if found is not None and found.record is INFO:
        return found
    oldest = GENERATIONS[MAGIC_2_6_24]
    if int(np.frombuffer(page, dtype=oldest.record)[0]["magic"]) == oldest.magic:
        return oldest
    if magic in NEXT_MAGICS:
        return Generation(magic, "newer than any that is known", "an unknown change", E820Check.UNKNOWN, known=False)
    return None
