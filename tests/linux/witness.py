# SPDX-License-Identifier: GPL-2.0-or-later
"""Second, naive readers of the golden files for tests of the model: nothing of hibernaut's own readers is used."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from elftools.elf.elffile import ELFFile

from hibernaut.memory.page import Bytes, Pfns
from hibernaut.memory.segments import Segment, SegmentMemory

LOW2M_CR3 = 0x487C000
LOW2M_START, LOW2M_PAGES = 0x400, 512
LOW2M_PMD_TABLE = 0x4402


def elf_memory(path: Path) -> SegmentMemory:
    """The RAM of an ELF core, by pyelftools."""
    raw = np.memmap(path, dtype=np.uint8, mode="r")
    segments = []
    with path.open("rb") as file:
        for header in ELFFile(file).iter_segments("PT_LOAD"):
            pages = header["p_filesz"] // 4096
            content = raw[header["p_offset"] : header["p_offset"] + pages * 4096].reshape(pages, 4096)
            segments.append(Segment(header["p_paddr"] >> 12, content))
    return SegmentMemory(segments)


def plain_image(path: Path) -> tuple[Pfns, Bytes, Pfns]:
    """An uncompressed image of a swap partition: its frames, the whole device, and the block of each frame's page."""
    blocks = np.memmap(path, dtype=np.uint8, mode="r").reshape(-1, 4096)
    at = struct.unpack_from("<Q", blocks[0].tobytes(), 4064)[0]
    entries: list[int] = []
    while at:
        table = blocks[at].view("<u8")
        entries += table[:511].tolist()
        at = int(table[511])
    pages = struct.unpack_from("<Q", blocks[entries[0]].tobytes(), 416)[0]
    meta = -(-pages // 512)
    pfns = np.concatenate([blocks[block].view("<u8") for block in entries[1 : 1 + meta]])[:pages].astype(np.int64)
    return pfns, blocks, np.array(entries[1 + meta : 1 + meta + pages], dtype=np.int64)


def npregion_pages(region: int, first: int, pages: int) -> Bytes:
    """Return the content that generator/npregion.c writes to pages `first` ... of a region (counted from 0)."""
    seed = (region + 1) << 56
    words = np.arange(512, dtype=np.uint64)[None, :] + (
        np.arange(first, first + pages, dtype=np.uint64)[:, None] << np.uint64(32)
    )
    return (words + np.uint64(0x4E50524547494F4E ^ seed)).view(np.uint8)
