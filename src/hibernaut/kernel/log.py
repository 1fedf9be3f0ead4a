# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's log, as the ring buffer of printk has it (kernel/printk/printk_ringbuffer.c), oldest record first.

Since Linux kernel commit 896fbe20b4e2 ("printk: use the lockless ringbuffer") (in v5.10); the log of older kernels is
not read. drgn's helper follows the ring without a bound, and begins the text of a record that wraps 8 bytes too early.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hibernaut.errors import FormatError
from hibernaut.kernel.program import ask

if TYPE_CHECKING:
    from hibernaut.kernel.kernel import Kernel

__all__ = ["LogRecord", "read_log"]

MAX_COUNT_BITS, MAX_TEXT_BITS = 24, 31
"""Bounds of the ring: CONFIG_LOG_BUF_SHIFT ends at 25, log_buf_len= at 2 GiB; there is a record for 32 bytes."""
CHUNK_RECORDS = 1 << 16
ID_BYTES = 8
"""A block of text begins with the ID of its record."""
EMPTY_LINE = 3
"""Position of a block that an empty line does without (`EMPTY_LINE_LPOS`, earlier `NO_LPOS`); 1 is a lost one."""
ID_MASK = (1 << 62) - 1
"""Below the state of a record in its `state_var`."""


@dataclass(frozen=True)
class LogRecord:
    """A message of the kernel's log.

    Attributes:
        sequence: its number, from 0 at boot.
        time_ns: nanoseconds of the local clock (`local_clock`), about the time since boot without time of suspend.
        level: 0 (emergency) to 7 (debug).
        facility: 0 for the kernel's own.
        text: the message; it may have several lines.
    """

    sequence: int
    time_ns: int
    level: int
    facility: int
    text: str


def read_log(kernel: Kernel, last: int | None = None) -> tuple[list[LogRecord], int]:
    """Return the records of a kernel's log, and the number of those that cannot be read.

    Args:
        kernel: the kernel.
        last: only so many of the newest; all if None.

    Raises:
        FormatError: the ring buffer is damaged, unknown, or not in the memory.
    """
    if kernel.symbols.get("prb") is None:
        raise FormatError("the kernel has no printk ring buffer: its log has an older form, which is not read")
    ring = ask(kernel, "the kernel's log", _ring, kernel)
    wanted = ring.records if last is None else min(ring.records, last)
    records: list[LogRecord] = []
    unread = 0
    for first in range(ring.head - wanted + 1, ring.head + 1, CHUNK_RECORDS):
        numbers = np.arange(first, min(first + CHUNK_RECORDS, ring.head + 1)) & ID_MASK
        states, is_read = kernel.read_records(ring.states + ring.step * (numbers & ring.mask).astype(np.uint64), 8)
        values = np.ascontiguousarray(states).view(np.uint64)[:, 0]
        is_whole = is_read & (values & np.uint64(ID_MASK) == numbers.astype(np.uint64))
        is_whole &= np.isin(values >> np.uint64(62), list(ring.readable))  # others are being written, or reused
        unread += int((~is_read).sum())
        for current in numbers[is_whole].tolist():
            try:
                record = _record(kernel, ring, current & ring.mask)
            except Exception:  # a page of it is not in the memory; drgn's errors share no narrower base
                unread += 1
                continue
            if record is not None:
                records.append(record)
    return records, unread


class _Ring(NamedTuple):
    """The ring buffer of the log.

    Attributes:
        descriptors: its `struct prb_desc_ring`.
        head: number of the newest record.
        records: number of records.
        mask: bits of a record's number that are its place in the ring.
        states: address of the state of the record in the first place.
        step: bytes from a place to the next one.
        readable: states of records that can be read.
        data: address of the text.
        data_bytes: size of the text.
    """

    descriptors: Any
    head: int
    records: int
    mask: int
    states: np.uint64
    step: np.uint64
    readable: frozenset[int]
    data: int
    data_bytes: int


def _ring(kernel: Kernel) -> _Ring:
    ring = kernel["prb"]
    descriptors, text = ring.desc_ring, ring.text_data_ring
    count_bits, text_bits = descriptors.count_bits.value_(), text.size_bits.value_()
    if not (0 < count_bits <= MAX_COUNT_BITS and 0 < text_bits <= MAX_TEXT_BITS):
        raise FormatError(f"the log's ring buffer has 2^{count_bits} records and 2^{text_bits} bytes")
    head, tail = (descriptors.member_(name).counter.value_() & ID_MASK for name in ("head_id", "tail_id"))
    count = (head - tail & ID_MASK) + 1
    if count > 1 << count_bits:
        raise FormatError(f"the log's ring buffer has {count} records between tail and head, of 2^{count_bits}")
    return _Ring(
        descriptors,
        head,
        count,
        (1 << count_bits) - 1,
        np.uint64(descriptors.descs[0].state_var.address_of_().value_()),
        np.uint64(descriptors.descs[0].type_.size),
        frozenset({kernel["desc_committed"].value_(), kernel["desc_finalized"].value_()}),
        text.data.value_(),
        1 << text_bits,
    )


def _record(kernel: Kernel, ring: _Ring, index: int) -> LogRecord | None:
    """Return a record (as `get_data`); None if its text is lost. Raises FormatError if that is not in the memory."""
    descriptor, info = ring.descriptors.descs[index].read_(), ring.descriptors.infos[index].read_()
    ring_bytes = ring.data_bytes
    begin, end = descriptor.text_blk_lpos.begin.value_(), descriptor.text_blk_lpos.next.value_()
    text = b""
    if not (begin & 1 or end & 1):  # odd positions mark records without text
        start, stop = begin % ring_bytes, end % ring_bytes
        if begin // ring_bytes == (end - 1) // ring_bytes:
            stop = stop or ring_bytes
        elif (begin + ring_bytes) // ring_bytes == (end - 1) // ring_bytes:
            start = 0  # the block does not fit before the end of the ring: its text is at the start
        else:
            return None
        length = min(info.text_len.value_(), stop - start - ID_BYTES)
        if length > 0:
            text = kernel.read(ring.data + start + ID_BYTES, length, "log")
    elif not (begin == end == EMPTY_LINE):
        return None
    return LogRecord(
        info.seq.value_(),
        info.ts_nsec.value_(),
        info.level.value_(),
        info.facility.value_(),
        text.decode("utf-8", "backslashreplace"),
    )
