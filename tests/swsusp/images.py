# SPDX-License-Identifier: GPL-2.0-or-later
"""An image of a few pages, in a file, and writes to it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.swsusp import naive

Pages = dict[int, bytes | None]
PAGES: Pages = {pfn: None if pfn % 7 == 3 else np.random.default_rng(pfn).bytes(4096) for pfn in range(8, 40)}
LAYOUT = naive.Layout(compressor="none", shuffle_seed=7, header_block=2)
WRITES = [(11 * 4096 + 5, b"changed"), (25 * 4096, b"\x55" * 4096)]


def plain(pages: Pages) -> dict[int, bytes]:
    """Return the pages with zero pages written out."""
    return {pfn: page or bytes(4096) for pfn, page in pages.items()}


def changed_by(pages: Pages, writes: list[tuple[int, bytes]]) -> dict[int, bytes]:
    """Return the memory after the writes, applied one byte at a time."""
    memory = {pfn: bytearray(page) for pfn, page in plain(pages).items()}
    for paddr, data in writes:
        for at, byte in enumerate(data, start=paddr):
            memory[at >> 12][at & 4095] = byte
    return {pfn: bytes(page) for pfn, page in memory.items()}


def image_file(folder: Path, pages: Pages = PAGES, layout: naive.Layout = LAYOUT) -> Path:
    """Write an image into a folder."""
    path = folder / "image"
    path.write_bytes(naive.build(pages, layout))
    return path


def state_of(device: bytes) -> str:
    """Return the image that a kernel would find: none, old, new, or another one that it would accept."""
    at = LAYOUT.header_block * 4096
    if device[at + 4086 : at + 4096] != b"S1SUSPEND\0":
        assert device[at + 4086 : at + 4096] == b"SWAPSPACE2"
        return "none"
    try:
        found = plain(naive.parse(device, LAYOUT.header_block)[0])
    except Exception as error:  # whatever the naive reader stumbles over
        return f"half: {error!r}"
    if found == plain(PAGES):
        return "old"
    return "new" if found == changed_by(PAGES, WRITES) else "half: neither the old pages nor the new ones"
