# SPDX-License-Identifier: GPL-2.0-or-later
"""The check of saved data."""

from __future__ import annotations

import numpy as np

from hibernaut.hibernation.checks.violation import Violation, violations_at
from hibernaut.hibernation.snapshot import Snapshot
from hibernaut.memory.overlay import Overlay
from hibernaut.memory.page import CHUNK_PAGES, Pfns
from hibernaut.memory.physical import PhysicalMemory

__all__ = ["same_data"]

_WRONG = "saved with other bytes than it held"


def same_data(before: PhysicalMemory, snapshot: Snapshot) -> tuple[Violation, ...]:
    """Return the listed pages that were not saved with the bytes that they held when the copy began.

    Pages that hibernation itself writes to (`Snapshot.written`: page tables, allocator state) are left out: their bytes
    depend on the time of copy. If `before` and the snapshot have the same base, only pages that either of them changed
    are read; else all pages.

    Args:
        before: the memory before the copy.
        snapshot: the snapshot to check.
    """
    if isinstance(before, Overlay) and before.base is snapshot.base:
        own = {*before.written_frames, *snapshot.changed}.difference(snapshot.written.tolist())
        image = snapshot.memory
        differing = [
            pfn
            for pfn in sorted(own)
            if snapshot.frames.end_of(pfn) and before.page_digest(pfn) != image.page_digest(pfn)
        ]
        return violations_at("same-data", _WRONG, differing)
    if before is snapshot.base:
        candidates = np.array(sorted(snapshot.changed), dtype=np.int64)
        chunks = iter([candidates[snapshot.frames.contains(candidates)]])
    else:
        chunks = snapshot.frames.chunks(CHUNK_PAGES)
    wrong: list[Pfns] = []
    image = snapshot.memory
    for pfns in chunks:
        pages, _ = image.gather(pfns)
        expected, present = before.gather(pfns)
        equal = (expected.view(np.uint64) == pages.view(np.uint64)).all(axis=1) & present
        wrong.append(pfns[~equal])
    found = np.concatenate(wrong) if wrong else np.empty(0, dtype=np.int64)
    found = found[~np.isin(found, snapshot.written)]
    return violations_at("same-data", _WRONG, found)
