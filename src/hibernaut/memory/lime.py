# SPDX-License-Identifier: GPL-2.0-or-later
"""LiME dumps, version 1: ranges of physical memory, each behind its header."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hibernaut.errors import FormatError
from hibernaut.memory import declarations as c
from hibernaut.memory.dump import Dump, Refusal
from hibernaut.memory.mapped import MappedMemory, Pieces, whole_frames
from hibernaut.memory.page import PAGE_SIZE

if TYPE_CHECKING:
    from hibernaut.volumes.files import PlainFile

__all__ = ["open_lime"]


def open_lime(plain: PlainFile) -> Dump | Refusal:
    """Open a LiME dump as physical memory.

    Frames that the dump holds only in part are left out. Where two ranges overlap, the earlier wins.

    Returns:
        The dump, which owns `plain`; a refusal if the file does not start with a LiME header of version 1.

    Raises:
        FormatError: it does, and a range runs past the end of the file or past 52 bits, or no header follows a range.
    """
    first = plain.pread(0, c.LIME_RANGE.itemsize)
    if len(first) < c.LIME_RANGE.itemsize:
        return Refusal("LiME", "shorter than its header")
    header = np.frombuffer(first, dtype=c.LIME_RANGE)[0]
    if header["magic"] != c.LIME_MAGIC:
        return Refusal("LiME", "no LiME magic")
    if header["version"] != c.LIME_VERSION:
        return Refusal("LiME", f"version {int(header['version'])}, not {c.LIME_VERSION}")
    pieces = _pieces(plain)
    if not len(pieces):
        raise FormatError("no range holds a whole page", source=plain.name)
    return Dump("lime", MappedMemory(plain, pieces))


def _pieces(plain: PlainFile) -> Pieces:
    found: list[tuple[int, int, int]] = []
    at = 0
    while at < plain.size_bytes:
        raw = plain.pread(at, c.LIME_RANGE.itemsize)
        if len(raw) < c.LIME_RANGE.itemsize:
            raise FormatError("the file ends inside a LiME header", source=plain.name, offset=at)
        magic, version, start, last, _ = np.frombuffer(raw, dtype=c.LIME_RANGE)[0].tolist()
        if (magic, version) != (c.LIME_MAGIC, c.LIME_VERSION):
            raise FormatError("no LiME header after a range", source=plain.name, offset=at, found=raw[:8].hex())
        if not start <= last < c.PADDR_LIMIT:
            raise FormatError(f"impossible range {start:#x} to {last:#x}", source=plain.name, offset=at + 8)
        size_bytes = last - start + 1
        at += c.LIME_RANGE.itemsize
        if size_bytes > plain.size_bytes - at:
            raise FormatError(
                f"range {start:#x} to {last:#x} runs past the end of the file",
                source=plain.name,
                offset=plain.size_bytes,
            )
        if size_bytes >= PAGE_SIZE:  # a shorter range holds no whole frame, and a hostile file could have many
            found.append((start, size_bytes, at))
        at += size_bytes
    return whole_frames(*np.array(found, dtype=np.int64).reshape(-1, 3).T)
