# SPDX-License-Identifier: GPL-2.0-or-later
"""Cases of swapped-out pages: a guest's memory, read from its image, slots and zswap, by the formula of its pages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hibernaut.kernel.address_space import AddressSpace, PagePlace, UserPages
from hibernaut.kernel.cached_files import find_file, read_file
from hibernaut.kernel.kernel import Kernel
from hibernaut.kernel.swapped_pages import SwappedPages
from hibernaut.kernel.zswap import ZswapPages
from hibernaut.lab.cases.case import CaseFailed
from hibernaut.lab.cases.steps import hibernate, open_saved
from hibernaut.lab.laboratory import Lab
from hibernaut.lab.preparation import HUGE_FILE, HUGE_FILE_LINES, HUGE_PAGES, LOOSE_PAGES, SEED
from hibernaut.lab.variants import Variant, variant_named
from hibernaut.memory.page import PAGE_SIZE
from hibernaut.sources import Source

if TYPE_CHECKING:
    from typing import Any

    from hibernaut.memory.page import Bytes

__all__ = ["SWAPPED_RIGHT", "guest_page", "huge_pages_right", "swapped_out"]

SWAPPED_RIGHT = "every page of the guest's process is right, wherever it is"
HEAD_BYTES = 80
MASK = (1 << 64) - 1


def swapped_out(variant: str, lab: Lab, folder: Path) -> str:
    """Read the pages of the guest's process from the image that its kernel wrote, most of which it swapped out."""
    with _opened(variant, lab, folder) as guest:
        found = _read_region(guest, "loose", LOOSE_PAGES, SEED + 1)
        return _counted(guest, found, variant_named(variant))


def huge_pages_right(variant: str, lab: Lab, folder: Path) -> str:
    """Read huge pages of the guest's process, and those of a file of tmpfs, in memory or swapped out."""
    pages = HUGE_PAGES * variant_named(variant).huge_pages
    with _opened(variant, lab, folder) as guest:
        places = _counted(guest, _read_region(guest, "huge", pages, SEED + 3), variant_named(variant))
        kernel = guest.kernel
        file = find_file(kernel, HUGE_FILE)
        content = b"".join(part for _, part, _ in read_file(file, guest.swapped))
        if content != b"".join(b"%d\n" % line for line in range(1, HUGE_FILE_LINES + 1)):
            raise CaseFailed(f"{HUGE_FILE} has other bytes")
        made, whole, split = (_event(kernel, f"THP_{name}") for name in ("FAULT_ALLOC", "SWPOUT", "SWPOUT_FALLBACK"))
        large = file.pages.lengths > 1
        swapped = file.pages.areas >= 0
        return (
            f"{places}; {made} huge pages of the process; {whole} huge pages swapped out whole, {split} split before; "
            f"{HUGE_FILE} right, "
            f"{int(file.pages.lengths[swapped].sum())} of its {int(file.pages.lengths.sum())} pages swapped out, "
            f"{int((large & ~swapped).sum())} huge entries in memory, {int((large & swapped).sum())} swapped out"
        )


class _Guest(NamedTuple):
    """A kernel in its image, the memory of its process, and the pages that it swapped out."""

    kernel: Kernel
    space: AddressSpace
    swapped: SwappedPages


@contextmanager
def _opened(variant: str, lab: Lab, folder: Path) -> Iterator[_Guest]:
    """Let a guest hibernate, and open its image."""
    saved = hibernate(lab, variant_named(variant), folder)
    with open_saved(saved) as image:
        source = Source(image.memory(), "swsusp", str(saved.image), image.info.cr3, image=image)
        kernel = Kernel.of(source)
        swapped = SwappedPages.of(kernel, source)
        yield _Guest(kernel, AddressSpace(kernel, _process(kernel).mm, swapped), swapped)


def _read_region(guest: _Guest, region: str, pages: int, seed: int) -> UserPages:
    """Read a region of the guest's process; returns where its pages are. Raises CaseFailed if one is wrong."""
    first = guest_page(0, region, seed)[:HEAD_BYTES]
    for mapping in guest.space.mappings:
        count = (mapping.end - mapping.start) // PAGE_SIZE
        if mapping.mapping or count < pages:
            continue
        room = np.zeros((count, PAGE_SIZE), dtype=np.uint8)
        reasons = guest.space.read_pages(mapping, 0, count, room)
        heads = [page for page in range(count) if room[page, :HEAD_BYTES].tobytes() == first]
        if heads:
            wrong = _wrong(room[heads[0] :], reasons[heads[0] :], region, pages, seed)
            if wrong:
                raise CaseFailed(f"{len(wrong)} of {pages} pages are wrong, {wrong[0]}")
            return guest.space.pages(mapping, heads[0], pages)
    raise CaseFailed("the guest's process has no such pages")


def _event(kernel: Kernel, name: str) -> int:
    """Return how often the kernel counted an event of its memory (`enum vm_event_item`), on all CPUs."""
    from drgn.helpers.linux.percpu import per_cpu

    counters, number = kernel["vm_event_states"], int(kernel[name])
    return sum(int(per_cpu(counters, cpu).event[number]) for cpu in range(int(kernel["nr_cpu_ids"])))


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


def _wrong(pages: Bytes, reasons: Sequence[str | None], region: str, count: int, seed: int) -> list[str]:
    """Return a word on each page that is not as the guest wrote it."""
    wrong = []
    for index in range(count):
        reason = reasons[index]
        if reason is not None:
            wrong.append(f"page {index}: {reason}")
        elif pages[index].tobytes() != guest_page(index, region, seed):
            wrong.append(f"page {index} has other bytes")
    return wrong


def _counted(guest: _Guest, pages: UserPages, variant: Variant) -> str:
    """Return how many pages are where. Raises CaseFailed if none is where the variant puts it."""
    is_swapped = pages.places == PagePlace.SWAP
    slots = pages.slots[is_swapped]
    count = len(pages.places)
    compressed = sum(
        int(ZswapPages(guest.kernel, guest.swapped.areas[area]).has(slots[pages.areas[is_swapped] == area]).sum())
        for area in np.unique(pages.areas[is_swapped]).tolist()
    )
    if variant.swaps_out and not (compressed if variant.zswap else len(slots)):
        raise CaseFailed(f"no page is {'in zswap' if variant.zswap else 'swapped out'}")
    told = f"{count} pages right, {count - len(slots)} in memory, {len(slots)} swapped out"
    return f"{told}, {compressed} of them in zswap" if variant.zswap else told
