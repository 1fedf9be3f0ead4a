# SPDX-License-Identifier: GPL-2.0-or-later
"""The state of a machine and of a copy, encoded: everything that decides what follows, whatever the choices.

That is memory as far as it was written to, TLBs, the pool of tables, the list of pages, the copies kept of them and the
cursor, and whether one-time warnings are spent. The record of past events is left out: log, schedule, number of
allocations.
"""

from __future__ import annotations

import hashlib
import marshal
from collections.abc import Iterable, Iterator
from typing import Any

from hibernaut.exploration.encoding import Value, encode, encode_pages
from hibernaut.hibernation.recorder import Recorder
from hibernaut.hibernation.swsusp_save import Copy
from hibernaut.linux.machine import Machine
from hibernaut.linux.page_alloc import BuddyAllocator
from hibernaut.memory.ranges import FrameRanges

__all__ = [
    "DIGEST_BYTES",
    "digest_of",
    "digest_of_copy",
    "digest_of_machine",
    "digest_of_values",
    "encoded_copy",
    "encoded_machine",
    "frame_ranges",
]

DIGEST_BYTES = 16


def digest_of(parts: Iterable[bytes | memoryview]) -> bytes:
    """Return the digest of encoded values."""
    return hashlib.blake2b(b"".join(parts), digest_size=DIGEST_BYTES).digest()


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
    if machine.mermap:
        yield encode([[cpu, one.next_addr] for cpu, one in machine.mermap])
    memory = machine.memory
    yield from encode_pages({pfn: memory.page(pfn) for pfn in memory.written_frames})


def encoded_copy(copy: Copy) -> Iterator[bytes | memoryview]:
    """Yield the encoded state of a copy that is under way, its machine's left out."""
    recorder = copy.recorder
    yield encode([recorder.cursor, recorder.skipped, sorted(recorder.written), copy.pending, frame_ranges(copy.frames)])
    yield from encode_pages(recorder.kept)


def digest_of_machine(machine: Machine) -> bytes:
    """Return a digest of the state of a machine: equal for equal `encoded_machine`.

    Pages take part by their own digests, which an overlay computes once for each version of a page.
    """
    flags = machine.page_flags
    buddy = isinstance(machine.allocator, BuddyAllocator)
    memory = machine.memory
    numbers = (
        machine.cpu,
        machine.table_pool,
        sorted(machine.log.once),
        [None if tlb is None else tlb.state() for tlb in machine.tlbs],
        None if flags is None else flags.nosave.digest,
        None if buddy else list(machine.allocator.free_ranges()),
        repr(machine.mermap) if machine.mermap else None,
        memory.written_frames,
    )
    return digest_of_values(numbers, memory.written_digests().values())


def digest_of_copy(copy: Copy) -> bytes:
    """Return a digest of the state of a copy that is under way: equal for equal `encoded_copy`."""
    recorder: Recorder = copy.recorder
    kept = sorted(recorder.kept)
    frames = None if copy.frames is None else copy.frames.digest
    numbers = recorder.cursor, recorder.skipped, sorted(recorder.written), copy.pending, frames, kept
    return digest_of_values(numbers, map(recorder.kept_digest, kept))


def digest_of_values(values: Any, digests: Iterable[bytes] = ()) -> bytes:
    """Return a digest of plain values, and of digests that they count: equal for equal ones alone.

    Args:
        values: Python's numbers, text, bytes, None, in tuples and lists. Each is written with its type and length
            (`marshal` in version 0, which writes equal values alike, whichever objects they share). A number of NumPy
            would count as bytes.
        digests: digests.

    Raises:
        ValueError: a value of another type.
    """
    return digest_of((marshal.dumps(values, 0), *digests))
