# SPDX-License-Identifier: GPL-2.0-or-later
"""The state of a machine and of a copy, encoded: everything that decides what follows, whatever the choices.

That is memory as far as it was written to, TLBs, the pool of tables, the list of pages, the copies kept of them and the
cursor, and whether one-time warnings are spent. The record of past events is left out: log, schedule, number of
allocations.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from hibernaut.exploration.encoding import Value, encode, encode_pages
from hibernaut.hibernation.swsusp_save import Copy
from hibernaut.linux.machine import Machine
from hibernaut.linux.page_alloc import BuddyAllocator
from hibernaut.memory.ranges import FrameRanges

__all__ = ["DIGEST_BYTES", "digest_of", "encoded_copy", "encoded_machine", "frame_ranges"]

DIGEST_BYTES = 16


def digest_of(parts: Iterable[bytes | memoryview]) -> bytes:
    """Return the digest of encoded values."""
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for part in parts:
        digest.update(part)
    return digest.digest()


def frame_ranges(frames: FrameRanges | None) -> Value:
    """Return ranges of frames as a value to encode."""
    return None if frames is None else list(frames)


def encoded_machine(machine: Machine) -> Iterator[bytes | memoryview]:
    """Yield the encoded state of a machine.

    The buddy allocator's own state lies in the machine's memory; of another allocator the free frames are encoded.
    """
    flags = machine.page_flags
    buddy = isinstance(machine.allocator, BuddyAllocator)
    yield encode(
        [
            machine.cpu,
            machine.table_pool,
            sorted(machine.log.once),
            [None if tlb is None else sorted(tlb.translations()) for tlb in machine.tlbs],
            frame_ranges(None if flags is None else flags.nosave),
            frame_ranges(None if buddy else machine.allocator.free_ranges()),
        ]
    )
    memory = machine.memory
    yield from encode_pages({pfn: memory.page(pfn) for pfn in memory.written.tolist()})


def encoded_copy(copy: Copy) -> Iterator[bytes | memoryview]:
    """Yield the encoded state of a copy that is under way, its machine's left out."""
    recorder = copy.recorder
    yield encode([recorder.cursor, recorder.skipped, sorted(recorder.written), copy.pending, frame_ranges(copy.frames)])
    yield from encode_pages(recorder.kept)
