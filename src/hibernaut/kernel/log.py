# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's log, as the ring buffer of printk has it (kernel/printk/printk_ringbuffer.c), oldest record first.

Since Linux kernel commit 896fbe20b4e2 ("printk: use the lockless ringbuffer") (in v5.10); the log of older kernels is
not read. drgn's helper follows the ring without a bound, and begins the text of a record that wraps 8 bytes too early.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hibernaut.errors import FormatError

if TYPE_CHECKING:
    from typing import Any

    from hibernaut.kernel.kernel import Kernel

__all__ = ["LogRecord", "read_log"]

MAX_COUNT_BITS, MAX_TEXT_BITS = 24, 31
"""Bounds of the ring: CONFIG_LOG_BUF_SHIFT ends at 25, log_buf_len= at 2 GiB; there is a record for 32 bytes."""
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
        FormatError: the ring buffer is damaged.
        LookupError: it is unknown.
        drgn.FaultError: it is not in the memory.
    """
    if kernel.symbols.get("prb") is None:
        raise FormatError("the kernel has no printk ring buffer: its log has an older form, which is not read")
    ring = kernel["prb"]
    descriptors, text = ring.desc_ring, ring.text_data_ring
    count_bits, text_bits = descriptors.count_bits.value_(), text.size_bits.value_()
    if not (0 < count_bits <= MAX_COUNT_BITS and 0 < text_bits <= MAX_TEXT_BITS):
        raise FormatError(f"the log's ring buffer has 2^{count_bits} records and 2^{text_bits} bytes")
    head, tail = (descriptors.member_(name).counter.value_() & ID_MASK for name in ("head_id", "tail_id"))
    count = (head - tail & ID_MASK) + 1
    if count > 1 << count_bits:
        raise FormatError(f"the log's ring buffer has {count} records between tail and head, of 2^{count_bits}")
    readable = {kernel["desc_committed"].value_(), kernel["desc_finalized"].value_()}
    data = text.data.value_()
    wanted = count if last is None else min(count, last)
    records: list[LogRecord] = []
    unread = 0
    for number in range(head - wanted + 1, head + 1):
        current = number & ID_MASK
        index = current & (1 << count_bits) - 1
        try:
            descriptor = descriptors.descs[index].read_()
            state = descriptor.state_var.counter.value_() & (1 << 64) - 1
            if state & ID_MASK != current or state >> 62 not in readable:
                continue  # being written, or reused
            record = _record(kernel, descriptor, descriptors.infos[index].read_(), data, 1 << text_bits)
        except Exception:  # a page of it is not in the memory; drgn's errors share no narrower base
            unread += 1
            continue
        if record is not None:
            records.append(record)
    return records, unread


def _record(kernel: Kernel, descriptor: Any, info: Any, data: int, ring_bytes: int) -> LogRecord | None:
    """Return a record (as `get_data`); None if its text is lost. Raises FormatError if that is not in the memory."""
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
            text = kernel.read(data + start + ID_BYTES, length, "log")
    elif not (begin == end == EMPTY_LINE):
        return None
    return LogRecord(
        info.seq.value_(),
        info.ts_nsec.value_(),
        info.level.value_(),
        info.facility.value_(),
        text.decode("utf-8", "backslashreplace"),
    )
