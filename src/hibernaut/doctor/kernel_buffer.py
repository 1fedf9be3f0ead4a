# SPDX-License-Identifier: GPL-2.0-or-later
"""The running kernel's own log, from /dev/kmsg, which is read record by record without consuming anything."""

from __future__ import annotations

import os

from hibernaut.doctor.evidence import LOG_BYTES, Evidence, unknown
from hibernaut.doctor.log import BootLog, LogLine

__all__ = ["KMSG", "kernel_buffer", "parse_record"]

KMSG = "/dev/kmsg"
RECORD_BYTES = 1 << 13
"""`CONSOLE_EXT_LOG_MAX` (include/linux/printk.h): a longer read never returns more than one record."""
KERNEL_FACILITY = 0


def kernel_buffer() -> Evidence[tuple[BootLog, ...]]:
    """Return the log of this boot, as far as the kernel's buffer still has it."""
    lines: list[LogLine] = []
    try:
        fd = os.open(KMSG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        return unknown(KMSG, error.strerror or "it cannot be read")
    try:
        total = 0
        while total < LOG_BYTES:
            try:
                record = os.read(fd, RECORD_BYTES)
            except BlockingIOError:
                break
            except BrokenPipeError:  # records were overwritten: the next read has the oldest one left
                continue
            if not record:
                break
            total += len(record)
            line = parse_record(record, len(lines) + 1)
            if line is not None:
                lines.append(line)
    except OSError as error:
        return unknown(KMSG, error.strerror or "it cannot be read")
    finally:
        os.close(fd)
    if not lines:
        return unknown(KMSG, "it has no record")
    return Evidence((BootLog(KMSG, tuple(lines)),), KMSG)


def parse_record(record: bytes, number: int) -> LogLine | None:
    """Return a record (Documentation/ABI/testing/dev-kmsg): "priority,sequence,microseconds,flags;text"."""
    head, semicolon, text = record.decode("utf-8", "replace").partition(";")
    fields = head.split(",")
    if not semicolon or len(fields) < 3 or not (fields[0].isdecimal() and fields[2].isdecimal()):
        return None
    program = "kernel" if int(fields[0]) >> 3 == KERNEL_FACILITY else ""
    said = text.partition("\n")[0].rstrip()
    if not program:  # "systemd[1]: ..." of a process that writes to /dev/kmsg
        name, colon, rest = said.partition(": ")
        program, said = (name.partition("[")[0], rest) if colon else ("", said)
    return LogLine(said, number, int(fields[2]) / 1e6, program=program)
