# SPDX-License-Identifier: GPL-2.0-or-later
"""The model against a real kernel on the same memory: 6.1 with a 2 MiB block not present, its table copied last.

`ram-6.1-low2m.elf` is the machine right before the copy loop, `swap-6.1-low2m.img` the image that its kernel then made.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pytest

from hibernaut.errors import MachineFault
from hibernaut.hibernation import Fixmap, Remap, Snapshot, hibernate, resume
from hibernaut.hibernation.source_machine import machine_from_memory
from hibernaut.kernel.suspend import kernel_state
from hibernaut.kernel.symbols import kernel_symbols
from hibernaut.linux.direct_map import DirectMap, FrameState
from hibernaut.linux.environment import ChooseFrames, Environment, FailAllocations
from hibernaut.linux.machine import Machine
from hibernaut.linux.pgtable import pfn_entry
from hibernaut.linux.rules import rules_named
from hibernaut.memory.page import PAGE_SHIFT, Bytes
from hibernaut.memory.physical import PhysicalMemory
from hibernaut.memory.ranges import FrameRanges
from hibernaut.memory.segments import Segment, SegmentMemory
from tests.hibernation.explain_pages import Explained, Explainer, Kind, naive_tables
from tests.linux.witness import (
    LOW2M_CR3,
    LOW2M_PAGES,
    LOW2M_PMD_TABLE,
    LOW2M_START,
    elf_memory,
    npregion_pages,
    plain_image,
)

if TYPE_CHECKING:
    from pathlib import Path

    from hibernaut.memory.page import Pfns
    from tests.conftest import Golden

NEW_TABLE = 0xAAC8
"""The frame that the kernel's split got: its own words, and its image's PMD entry."""
BLOCK = range(LOW2M_START, LOW2M_START + LOW2M_PAGES)
PMD_INDEX = LOW2M_START // 512


class Real:
    """Data of the real kernel: its memory before the copy, its list and its image."""

    def __init__(self, dump: Path, image: Path) -> None:
        self.memory: PhysicalMemory = elf_memory(dump)
        self.pfns, blocks, where = plain_image(image)
        self.image: dict[int, Bytes] = {
            pfn: blocks[row] for pfn, row in zip(self.pfns.tolist(), where.tolist(), strict=True)
        }

    def machine(self, environment: Environment) -> Machine:
        """The model of it, with the kernel's list; page tables get the frame that the kernel's split got."""
        return machine_from_memory(
            self.memory, LOW2M_CR3, 4, self.pfns, environment, np.array([NEW_TABLE]), rules_named("6.1")
        )

    def dumped(self, pfn: int) -> Bytes:
        """A page as it was before the copy."""
        page = self.memory.page(pfn)
        assert page is not None
        return page

    def image_memory(self) -> PhysicalMemory:
        """The kernel's image as memory, by nothing but its list and its blocks."""
        starts = np.flatnonzero(np.diff(self.pfns, prepend=-2) != 1).tolist()
        edges = [*starts, len(self.pfns)]
        return SegmentMemory(
            [
                Segment(int(self.pfns[first]), np.stack([self.image[int(pfn)] for pfn in self.pfns[first:last]]))
                for first, last in pairwise(edges)
            ]
        )

    def differing(self, pages: dict[int, Bytes]) -> list[int]:
        """Return the frames whose pages differ from the dump."""
        return [pfn for pfn, page in pages.items() if not np.array_equal(page, self.dumped(pfn))]


@cache
def remapped(real: Real) -> Snapshot:
    """The image of the model's kernel."""
    return hibernate(real.machine(ChooseFrames(NEW_TABLE)), Remap())


@pytest.fixture(scope="module")
def real(golden: Golden) -> Real:
    """The real machine."""
    return Real(golden("ram-6.1-low2m.elf"), golden("swap-6.1-low2m.img"))


@pytest.fixture(scope="module")
def explainer(real: Real) -> Explainer:
    """The explainer for the kernel in the dump."""
    pytest.importorskip("drgn", reason="the kernel's symbols are read by drgn: pip install drgn capstone")
    return Explainer(real.memory, LOW2M_CR3, 4)


def pages_of(snapshot: Snapshot) -> dict[int, Bytes]:
    """Frame -> page."""
    return {int(pfn): page for pfns, content in snapshot.chunks() for pfn, page in zip(pfns, content, strict=True)}


def frames(pfns: list[int]) -> FrameRanges:
    """As ranges, which read well in a failure."""
    return FrameRanges.of_pfns(np.array(pfns, dtype=np.int64))


def explained(explainer: Explainer, real: Real, pages: dict[int, Bytes]) -> dict[int, list[Explained]]:
    """Return the changed words of each page that differs from the dump; each must have an explanation."""
    found = {pfn: explainer.explain(pfn, real.dumped(pfn), pages[pfn]) for pfn in real.differing(pages)}
    without = [str(word) for words in found.values() for word in words if word.kind is None]
    assert not without, "\n".join(without)
    return found


def test_the_kernels_list_is_the_images(real: Real) -> None:
    """The list in the dump (`orig_bm`), which the model gets, and the one in the image are one."""
    pytest.importorskip("drgn", reason="the kernel's symbols are read by drgn: pip install drgn capstone")
    assert np.array_equal(kernel_state(real.memory).pfns, real.pfns)


def test_remap_writes_every_page_table_as_the_kernel_did(real: Real) -> None:
    """All 113 page tables of the image equal the kernel's byte by byte, and the split's new one is in neither image."""
    tables, missing = naive_tables(real.memory.page, LOW2M_CR3, 4)
    snapshot = remapped(real)
    assert (len(tables), missing) == (113, set())
    assert [hex(pfn) for pfn in tables if not np.array_equal(snapshot.page(pfn), real.image[pfn])] == []
    for read in (real.image.get, snapshot.memory.page):
        reached, absent = naive_tables(read, LOW2M_CR3, 4)
        assert (reached - tables, absent) == ({NEW_TABLE}, {NEW_TABLE})
    assert int(snapshot.page(LOW2M_PMD_TABLE).view("<u8")[PMD_INDEX]) == pfn_entry(NEW_TABLE, 0x63)


def test_every_page_in_which_the_kernels_image_differs_is_explained(real: Real, explainer: Explainer) -> None:
    """30 of its pages differ from the dump; each changed word has a reason; one entry of one table is among them."""
    found = explained(explainer, real, real.image)
    assert len(found) == 30
    kinds = {kind: {pfn for pfn, words in found.items() if any(word.kind == kind for word in words)} for kind in Kind}
    assert kinds[Kind.PAGE_TABLE] == {LOW2M_PMD_TABLE}
    (entry,) = found[LOW2M_PMD_TABLE]
    assert (entry.offset, entry.before, entry.after) == (8 * PMD_INDEX, 0x800FFFFFFFBFF062, 0x000000000AAC8063)
    assert all(kinds.values()), {kind: pfns for kind, pfns in kinds.items() if not pfns}
    assert set(found) == set().union(*kinds.values())


def test_the_allocated_page_shows_in_the_kernels_image(real: Real, explainer: Explainer) -> None:
    """The allocator's own pages lie above the block, were copied after the split, and agree with one another."""
    words = [word for words in explained(explainer, real, real.image).values() for word in words]
    lists = [word for word in words if word.kind in (Kind.FREE_LISTS, Kind.STRUCT_PAGE)]
    assert all(word.pfn > BLOCK[-1] for word in lists)
    buddy = int(explainer.facts["NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)"]) & 0xFFFFFFFF
    mapcount = [word for word in lists if word.evidence.endswith("+48")]
    left = [word for word in mapcount if word.before & 0xFFFFFFFF == buddy]
    joined = [word for word in mapcount if word.after & 0xFFFFFFFF == buddy]
    assert (len(left), len(joined)) == (15, 1)
    assert [word.evidence for word in mapcount if word.after >> 32] == [f"struct page of frame {NEW_TABLE:#x} +48"]


def test_every_page_in_which_the_models_image_differs_is_explained(real: Real, explainer: Explainer) -> None:
    """Of the model's image one page differs from the dump, in one entry: the table that was split; nothing else."""
    found = explained(explainer, real, pages_of(remapped(real)))
    assert set(found) == {LOW2M_PMD_TABLE}
    (entry,) = found[LOW2M_PMD_TABLE]
    assert (entry.kind, entry.offset, entry.before, entry.after) == (
        Kind.PAGE_TABLE,
        8 * PMD_INDEX,
        0x800FFFFFFFBFF062,
        0x000000000AAC8063,
    )


def flipped(page: Bytes) -> Bytes:
    """The page with one bit of its first word flipped."""
    other = page.copy()
    other[0] ^= 1
    return other


def test_an_unknown_change_is_not_explained(real: Real, explainer: Explainer) -> None:
    """The explanations can fail: words of the block's data, of kernel text, or of a zone's watermarks have none."""
    text = kernel_symbols(real.memory)["swsusp_save"].address - 0xFFFFFFFF80000000 >> PAGE_SHIFT
    zone = (explainer.node - explainer.page_offset) >> PAGE_SHIFT
    for pfn in (LOW2M_START, text, zone):
        (word,) = explainer.explain(pfn, real.dumped(pfn), flipped(real.dumped(pfn)))
        assert word.kind is None


def test_a_failing_allocation_ends_as_the_kernel_ended(real: Real) -> None:
    """The warning, then the page fault at the block's first address while `swsusp_save` copies that frame."""
    machine = real.machine(FailAllocations(1))
    with pytest.raises(MachineFault, match="in swsusp_save") as fault:
        hibernate(machine, Remap())
    assert fault.value.log[-5:-1] == (
        "PM: hibernation: Failed to remap page",
        "BUG: unable to handle page fault for address: ffff888000400000",
        "#PF: supervisor read access in kernel mode",
        "#PF: error_code(0x0000) - not-present page",
    )
    assert fault.value.log[-1].endswith(f"PMD {0x800FFFFFFFBFF062:x}")
    assert (fault.value.address, fault.value.entry) == (0xFFFF888000400000, 0x800FFFFFFFBFF062)
    assert fault.value.pfn == LOW2M_START


def test_the_slot_saves_every_page_as_the_dump_has_it(real: Real) -> None:
    """All listed frames, page tables included, equal the dump: the machine did not change."""
    pages = pages_of(hibernate(real.machine(FailAllocations(1)), Fixmap()))
    assert list(pages) == real.pfns.tolist()
    assert real.differing(pages) == []
    block = np.stack([pages[pfn] for pfn in BLOCK])
    assert np.array_equal(block, npregion_pages(0, 0, LOW2M_PAGES))


def test_the_garbage_after_resume_is_where_the_kernels_image_has_no_table(real: Real) -> None:
    """The frames whose table is not in the kernel's image are those whose entries the model's resumed machine lost."""
    kernels = DirectMap.find(real.image_memory(), LOW2M_CR3)
    lost = real.pfns[kernels.classify(real.pfns) == FrameState.TABLE_MISSING]
    assert lost.tolist() == list(BLOCK)
    assert garbage(real.machine(Environment()), resume(remapped(real)), real.pfns).tolist() == list(BLOCK)
    whole = resume(hibernate(real.machine(Environment()), Fixmap()))
    assert garbage(real.machine(Environment()), whole, real.pfns).tolist() == []


def garbage(before: Machine, after: Machine, pfns: Pfns) -> Pfns:
    """Return the frames whose entry in the direct map has changed."""
    states_before, states_after = before.direct_map.classify(pfns), after.direct_map.classify(pfns)
    lost: Pfns = pfns[states_before != states_after]
    return lost
