# SPDX-License-Identifier: GPL-2.0-or-later
"""The machine that the demonstration hibernates, and its image, written and read back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hibernaut.exploration.fingerprint import fingerprint
from hibernaut.exploration.operations import hibernation
from hibernaut.exploration.play import SourceMachine, Written, play
from hibernaut.exploration.scenes import RunScenes, scenes_of
from hibernaut.hibernation import Fixmap, hibernate
from hibernaut.linux import build_machine
from hibernaut.linux.layout import Layout, hole_2m, hole_4k
from hibernaut.linux.rules import KernelRules
from hibernaut.memory.page import PAGE_SIZE, Bytes
from hibernaut.memory.segments import Segment
from hibernaut.studies.matrix import Situation
from hibernaut.swsusp import open_image
from hibernaut.swsusp.info import ImageInfo
from hibernaut.swsusp.writer import NewArea, write_image

__all__ = ["DEMO_BLOCK_PFN", "ImageReadBack", "demo_image", "demo_layout", "demo_pages", "demo_scenes"]

DEMO_BLOCK_PFN = 0x1000
"""First frame of the 2 MiB block that is not present in the direct map."""
DEMO_BLOCK_PAGES = 512
DEMO_SINGLE_PFNS = (0x0815, 0x2A2A, 0x2A2B, 0x3003)
"""Single pages that are not present either."""
RAM = ((0x0, 0xA0), (0x100, 0x3F00))
"""64 MiB with the gap that PCs have below 1 MiB."""


def demo_pages(start_pfn: int, pages: int) -> Bytes:
    """Return pages that name themselves, shape (pages, 4096): a line of text, repeated to the end."""
    content = np.zeros((pages, PAGE_SIZE), dtype=np.uint8)
    for row in range(pages):
        line = f"frame {start_pfn + row:#07x}: not in the direct map, to be saved all the same.\n".encode("ascii")
        text = (line * (PAGE_SIZE // len(line) + 1))[:PAGE_SIZE]
        content[row] = np.frombuffer(text, dtype=np.uint8)
    return content


def demo_layout(tables: str = "high") -> Layout:
    """Return 64 MiB with a 2 MiB not-present block and a few not-present 4K pages, all of which hold text.

    Args:
        tables: where the page tables lie: "high" (above the block: its PMD table is copied after a split in the middle
            of the copy, as on most real machines) or "low" (below: copied before).
    """
    data = [Segment(DEMO_BLOCK_PFN, demo_pages(DEMO_BLOCK_PFN, DEMO_BLOCK_PAGES))]
    data += [Segment(pfn, demo_pages(pfn, 1)) for pfn in DEMO_SINGLE_PFNS]
    holes = (hole_2m(DEMO_BLOCK_PFN), *(hole_4k(pfn) for pfn in DEMO_SINGLE_PFNS))
    return Layout(ram=RAM, holes=holes, tables=tables, data=tuple(data))


@dataclass(frozen=True)
class ImageReadBack:
    """An image that was written and then read as any other file.

    Attributes:
        pages: page frames on its lists.
        crc32: CRC-32 in its header.
        blocks: blocks of 4096 bytes in the swap area, without the header.
        listed_as_saved: whether it lists the frames of the snapshot.
        wrong_pages: pages that differ from the machine's.
    """

    pages: int
    crc32: int | None
    blocks: int
    listed_as_saved: bool
    wrong_pages: int


def demo_image(path: Path) -> ImageReadBack:
    """Write an image of the demonstration's machine by Fixmap, read it back, and compare every page.

    Raises:
        OSError: the file cannot be written.
    """
    original = build_machine(demo_layout())
    snapshot = hibernate(original.fork(), Fixmap())
    info = ImageInfo.blank(cr3=snapshot.cr3, physical_pages=original.memory.ranges.total_pages)
    written = write_image(path, snapshot.memory, snapshot.pfns, info, NewArea(), compressor="lzo", zero_pages=False)
    wrong = 0
    with open_image(path) as image:
        listed = np.array_equal(image.pfns, snapshot.pfns)
        for pfns, pages in image.chunks():
            expected, present = original.memory.gather(pfns)
            wrong += int((~present | (pages != expected).any(axis=1)).sum())
    return ImageReadBack(written.saved_pages, written.crc32, written.blocks, listed, wrong)


def demo_scenes(way: str, situation: Situation, rules: KernelRules | None = None) -> RunScenes:
    """Return a run of the matrix as a strip: nothing fails but what the way itself breaks.

    Args:
        way: name of the way.
        situation: a situation without an environment of its own.
        rules: rules of the kernel.
    """
    machine = situation.machine(rules)
    named = SourceMachine(situation.name, fingerprint(machine))
    return scenes_of(play(Written(named, machine.rules.line, hibernation(way), ()), machine), machine)
