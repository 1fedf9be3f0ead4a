# SPDX-License-Identifier: GPL-2.0-or-later
"""The check of saved data."""

from __future__ import annotations

import numpy as np

from hibernaut.hibernation.checks.violation import Violation, violations_at
from hibernaut.hibernation.snapshot import Snapshot
from hibernaut.memory.overlay import Overlay
from hibernaut.memory.page import CHUNK_PAGES, Frames
from hibernaut.memory.physical import PhysicalMemory

__all__ = ["same_data"]


def same_data(before: PhysicalMemory, snapshot: Snapshot) -> tuple[Violation, ...]:
    """Every listed page was saved with the bytes that it had when the copy began.

    Pages that the copy itself wrote to (`Snapshot.written`: page tables, the allocator's own) are left out: when they
    were copied decides what they hold. Where `before` lies over the memory that the snapshot refers to, only what
    either of them changed is read; else everything.

    Args:
        before: the memory before the copy.
        snapshot: the copy.
    """
    common = isinstance(before, Overlay) and before.base is snapshot.base
    if common or before is snapshot.base:
        own = before.written if isinstance(before, Overlay) else np.empty(0, dtype=np.int64)
        candidates = np.union1d(own, np.array(sorted(snapshot.changed), dtype=np.int64))
        chunks = iter([candidates[snapshot.frames.contains(candidates)]])
    else:
        chunks = snapshot.frames.chunks(CHUNK_PAGES)
    wrong: list[Frames] = []
    image = snapshot.memory
    for pfns in chunks:
        content, _ = image.gather(pfns)
        expected, present = before.gather(pfns)
        equal = (expected.view(np.uint64) == content.view(np.uint64)).all(axis=1) & present
        wrong.append(pfns[~equal])
    differing = np.concatenate(wrong) if wrong else np.empty(0, dtype=np.int64)
    differing = differing[~np.isin(differing, snapshot.written)]
    return violations_at("same-data", "saved with other bytes than it held", differing)
