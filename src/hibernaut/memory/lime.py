# SPDX-License-Identifier: GPL-2.0-or-later
"""LiME dumps, version 1: ranges of physical memory, each behind its header."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hibernaut.errors import FormatError
from hibernaut.memory import declarations as c
from hibernaut.memory.dump import Dump, Refusal
from hibernaut.memory.joined import ByteRanges, memory_of
from hibernaut.memory.page import PAGE_SIZE

if TYPE_CHECKING:
    from hibernaut.volumes.volume import Volume

__all__ = ["open_lime", "refusal_of_header"]

UNKNOWN_RANGES = "and whether there were others after it is not known"


def open_lime(plain: Volume) -> Dump | Refusal:
    """Open a LiME dump as physical memory.

    A frame that two ranges hold in parts is put together; one that the dump holds only in part is left out. Where two
    ranges overlap, the earlier wins.

    Returns:
        The dump, which owns `plain`; a refusal if the file does not start with a LiME header of version 1.

    Raises:
        FormatError: it does, and a range runs past 52 bits, or no header follows a range, or no page is in the file.
    """
    refusal = refusal_of_header(plain, "LiME", c.LIME_MAGIC, c.LIME_VERSION)
    if refusal is not None:
        return refusal
    spans, remarks = _spans(plain)
    memory = memory_of(plain, spans)
    if not memory.ranges.total_pages:
        raise FormatError("no range holds a whole page", source=plain.name)
    return Dump("lime", memory, remarks=remarks)


def refusal_of_header(plain: Volume, format_name: str, magic: int, version: int) -> Refusal | None:
    """Return why a file does not start with a range's header of LiME's layout, magic and version; None if it does."""
    first = plain.pread(0, c.LIME_RANGE.itemsize)
    if len(first) < c.LIME_RANGE.itemsize:
        return Refusal(format_name, "shorter than its header")
    header = np.frombuffer(first, dtype=c.LIME_RANGE)[0]
    if header["magic"] != magic:
        return Refusal(format_name, f"no {format_name} magic")
    if header["version"] != version:
        return Refusal(format_name, f"version {int(header['version'])}, not {version}")
    return None


def _spans(plain: Volume) -> tuple[ByteRanges, tuple[str, ...]]:
    """Return the ranges, cut at the end of the file, and the remark on what is missing there."""
    remarks: tuple[str, ...] = ()
    found: list[tuple[int, int, int]] = []
    at = 0
    while at < plain.size_bytes:
        raw = plain.pread(at, c.LIME_RANGE.itemsize)
        if len(raw) < c.LIME_RANGE.itemsize:
            remarks = (f"the dump is incomplete: the file ends inside a LiME header, {UNKNOWN_RANGES}",)
            break
        magic, version, start, last, _ = np.frombuffer(raw, dtype=c.LIME_RANGE)[0].tolist()
        if (magic, version) != (c.LIME_MAGIC, c.LIME_VERSION):
            raise FormatError("no LiME header after a range", source=plain.name, offset=at, found=raw[:8].hex())
        if not start <= last < c.PADDR_LIMIT:
            raise FormatError(f"impossible range {start:#x} to {last:#x}", source=plain.name, offset=at + 8)
        size_bytes = last - start + 1
        at += c.LIME_RANGE.itemsize
        there = plain.size_bytes - at
        if size_bytes > there:
            missing = (last + 1) // PAGE_SIZE - (start + there) // PAGE_SIZE
            where = f"{start:#x} to {last:#x}"
            lost = f"{missing} pages of its last range, {where}, are not in the file"
            remarks = (f"the dump is incomplete: {lost}, {UNKNOWN_RANGES}",)
            size_bytes = there
        found.append((start, size_bytes, at))
        if len(found) > c.MOST_LIME_RANGES:
            raise FormatError(f"more than {c.MOST_LIME_RANGES} ranges", source=plain.name, offset=at)
        at += size_bytes
    return ByteRanges(*np.array(found, dtype=np.int64).reshape(-1, 3).T), remarks
