# SPDX-License-Identifier: GPL-2.0-or-later
"""Cases of swapped-out pages: a guest's memory, read from its image, slots and zswap, by the formula of its pages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hibernaut.kernel.address_space import AddressSpace, PagePlace, UserPages
from hibernaut.kernel.kernel import Kernel
from hibernaut.kernel.swapped_pages import SwappedPages
from hibernaut.kernel.zswap import ZswapPages
from hibernaut.lab.cases.case import CaseFailed
from hibernaut.lab.cases.steps import hibernate, open_saved
from hibernaut.lab.laboratory import Lab
from hibernaut.lab.preparation import LOOSE_PAGES, SEED
from hibernaut.lab.variants import variant_named
from hibernaut.memory.page import PAGE_SIZE
from hibernaut.sources import Source

if TYPE_CHECKING:
    from typing import Any

    from hibernaut.memory.page import Bytes

__all__ = ["SWAPPED_RIGHT", "guest_page", "swapped_out"]

SWAPPED_RIGHT = "every page of the guest's process is right, wherever it is"
HEAD_BYTES = 80
MASK = (1 << 64) - 1


def swapped_out(variant: str, lab: Lab, folder: Path) -> str:
    """Read the pages of the guest's process from the image that its kernel wrote, most of which it swapped out."""
    saved = hibernate(lab, variant_named(variant), folder)
    with open_saved(saved) as image:
        source = Source(image.memory(), "swsusp", str(saved.image), image.info.cr3, image=image)
        kernel = Kernel.of(source)
        swapped = SwappedPages.of(kernel, source)
        space = AddressSpace(kernel, _process(kernel).mm, swapped)
        first = guest_page(0, "loose", SEED + 1)[:HEAD_BYTES]
        for mapping in space.mappings:
            count = (mapping.end - mapping.start) // PAGE_SIZE
            if mapping.mapping or count < LOOSE_PAGES:
                continue
            room = np.zeros((count, PAGE_SIZE), dtype=np.uint8)
            reasons = space.read_pages(mapping, 0, count, room)
            heads = [page for page in range(count) if room[page, :HEAD_BYTES].tobytes() == first]
            if heads:
                found = space.pages(mapping, heads[0], LOOSE_PAGES)
                wrong = _wrong(room[heads[0] :], reasons[heads[0] :])
                if wrong:
                    raise CaseFailed(f"{len(wrong)} of {LOOSE_PAGES} pages are wrong, {wrong[0]}")
                return _counted(kernel, swapped, found, zswap=saved.record.variant.zswap)
    raise CaseFailed("the guest's process has no such pages")


def guest_page(index: int, region: str, seed: int) -> bytes:
    """Return page `index` of a region of the guest (lab/guest/guest.c, `write_page`), by its formula."""
    head = f"hibernaut lab: page {index} of {region}, seed {seed:016x}\n".encode().ljust(HEAD_BYTES, b"\0")
    count = (PAGE_SIZE - HEAD_BYTES) // 8
    kind = index % 4
    random = {0: count, 1: count, 2: 0, 3: count // 2}[kind]
    words = (_mix(seed ^ index << 32 ^ (0 if kind == 1 else word)) for word in range(random))
    return (head + b"".join(word.to_bytes(8, "little") for word in words)).ljust(PAGE_SIZE, b"\0")


def _mix(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & MASK
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & MASK
    value = (value ^ value >> 27) * 0x94D049BB133111EB & MASK
    return value ^ value >> 31


def _process(kernel: Kernel) -> Any:
    """Return the guest's only process."""
    from drgn.helpers.linux.pid import find_task

    return find_task(kernel.drgn(), 1)


def _wrong(pages: Bytes, reasons: Sequence[str | None]) -> list[str]:
    """Return a word on each page that is not as the guest wrote it."""
    wrong = []
    for index in range(LOOSE_PAGES):
        reason = reasons[index]
        if reason is not None:
            wrong.append(f"page {index}: {reason}")
        elif pages[index].tobytes() != guest_page(index, "loose", SEED + 1):
            wrong.append(f"page {index} has other bytes")
    return wrong


def _counted(kernel: Kernel, swapped: SwappedPages, pages: UserPages, *, zswap: bool) -> str:
    """Return how many pages are where. Raises CaseFailed if none is where the variant puts it."""
    is_swapped = pages.places == PagePlace.SWAP
    slots = pages.slots[is_swapped]
    compressed = sum(
        int(ZswapPages(kernel, swapped.areas[area]).has(slots[pages.areas[is_swapped] == area]).sum())
        for area in np.unique(pages.areas[is_swapped]).tolist()
    )
    if not (compressed if zswap else len(slots)):
        raise CaseFailed(f"no page is {'in zswap' if zswap else 'swapped out'}")
    told = f"{LOOSE_PAGES} pages right, {LOOSE_PAGES - len(slots)} in memory, {len(slots)} swapped out"
    return f"{told}, {compressed} of them in zswap" if zswap else told
