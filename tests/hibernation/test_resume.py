# SPDX-License-Identifier: GPL-2.0-or-later
"""The resume: the origin of each page, safe frames, temporary tables, cached translations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hibernaut.errors import HibernationRefused
from hibernaut.hibernation import BootKernel, Fixmap, Remap, Snapshot, hibernate, resume, same_data, tables_closed
from hibernaut.hibernation.source_machine import machine_from_memory
from hibernaut.hibernation.ways import FixmapNoFlush, RemapGenericAbort
from hibernaut.linux.build import build_machine
from hibernaut.linux.direct_map import FrameState
from hibernaut.linux.environment import ChooseFrames, FailAllocations
from hibernaut.linux.formula import BOOT_MARK, formula_pages
from hibernaut.linux.layout import Layout, hole_2m, hole_4k
from hibernaut.linux.machine import Machine
from hibernaut.memory.physical import PhysicalMemory
from hibernaut.memory.ranges import FrameRanges
from hibernaut.paging.entries import Level
from hibernaut.paging.tables import PageTables, Stop
from tests.linux.witness import LOW2M_CR3, LOW2M_PAGES, LOW2M_START, elf_memory, plain_image
from tests.machines import RAM
from tests.strategies import machine_layouts

if TYPE_CHECKING:
    from tests.conftest import Golden


def restored(snapshot: Snapshot, resumed: Machine) -> None:
    """Check every frame of RAM: it has the image's page, or content of the boot kernel."""
    frames = resumed.memory.ranges.pfns()
    content, present = resumed.memory.gather(frames)
    assert present.all()
    listed = snapshot.frames.contains(frames)
    expected, _ = snapshot.memory.gather(frames[listed])
    assert np.array_equal(content[listed], expected)
    untouched = (content[~listed] == formula_pages(frames[~listed], BOOT_MARK)).all(axis=1)
    copies = {page.tobytes() for page in expected}
    others = content[~listed][~untouched]
    # Safe frames hold copies, the restore code, or the temporary tables.
    assert all(page.tobytes() in copies or (page == 0xCC).all() or _is_table(page) for page in others)


def _is_table(page: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> bool:
    entries = page.view("<u8")
    return bool(((entries == 0) | (entries & np.uint64(0x61) == 0x61)).all())


@given(machine_layouts(), st.integers(0, 4000), st.integers(0, 40))
def test_every_page_of_the_image_is_in_its_place_and_nothing_else_is(layout: Layout, first: int, pages: int) -> None:
    """Whatever the boot kernel uses: in place or through a safe frame, memory is the image's where it has a page."""
    machine = build_machine(layout)
    snapshot = hibernate(machine.fork(), Fixmap())
    used = FrameRanges.of([(first, pages)]).within(machine.memory.ranges)
    resumed = resume(snapshot, BootKernel.beside(snapshot, used))
    restored(snapshot, resumed)
    assert same_data(machine.memory, snapshot) == ()
    assert tables_closed(snapshot, resumed) == ()
    assert len(resumed.tlb) == 0


def test_too_few_safe_frames_is_a_refusal() -> None:
    """get_safe_page finds none: the boot kernel drops the image and continues."""
    machine = build_machine(Layout(RAM, free_pages=8))
    snapshot = hibernate(machine.fork(), Fixmap())
    assert resume(snapshot).cr3 == machine.cr3
    with pytest.raises(HibernationRefused, match="safe pages"):
        resume(snapshot, BootKernel.beside(snapshot, FrameRanges.of([(0x200, 16)])))


@pytest.mark.parametrize("levels", [4, 5])
def test_temporary_tables_map_all_ram_by_2m_pages(levels: int) -> None:
    """set_up_temporary_mappings: the direct map's addresses, holes among them; and the page with the restore code."""
    machine = build_machine(Layout(RAM, levels=levels, holes=(hole_2m(0x1000), hole_4k(0x801))))
    snapshot = hibernate(machine.fork(), Fixmap())
    boot = BootKernel.beside(snapshot, FrameRanges.of([]))
    resumed = resume(snapshot, boot)
    free = machine.allocator.free_ranges().pfns()
    root = int(free[1])  # the lowest safe frame has the code, the next is the root
    tables = PageTables(resumed.memory, root << 12, levels)
    for pfn in (0, 0x9F, 0x801, 0x1000, 0x11FF, 0x3FFF):
        walk = tables.walk(machine.vaddr(pfn))
        assert (walk.stop, walk.pfn, walk.level) == (Stop.PRESENT, pfn, Level.PMD)
    text = tables.walk(0xFFFF_FFFF_8100_0000)
    assert (text.stop, text.pfn, text.nx) == (Stop.PRESENT, 0x1000, False)


def test_a_resumed_machine_hibernates_again() -> None:
    """A machine that is saved and resumed three times is unchanged."""
    machine = build_machine(Layout(RAM, holes=(hole_2m(0x1000), hole_4k(0x801)), tables="high"))
    first = machine.memory.gather([0x1000, 0x11FF, 0x801])[0]
    for _ in range(3):
        machine = resume(hibernate(machine, Fixmap()))
        assert np.array_equal(machine.memory.gather([0x1000, 0x11FF, 0x801])[0], first)
        assert machine.direct_map.classify([0x1000, 0x801]).tolist() == [
            FrameState.NOT_PRESENT_LARGE,
            FrameState.NOT_PRESENT_4K,
        ]
    free = machine.allocator.free_ranges().total_pages
    machine.alloc_page("its allocator works")
    machine.allocator.drain_pages()
    assert machine.allocator.free_ranges().total_pages == free - 1


def test_occupied_frames_are_known_without_reading() -> None:
    """Overlay, snapshot and resumed memory say which frames are not zero as reading every page does."""
    machine = build_machine(Layout(((0, 0xA0), (0x100, 0x700)), holes=(hole_4k(0x401),)))
    machine.memory.write_page(0x300, np.zeros(4096, dtype=np.uint8))
    machine.memory.write_page(0x301, np.ones(4096, dtype=np.uint8))
    snapshot = hibernate(machine, FixmapNoFlush())
    resumed = resume(snapshot)
    resumed.memory.write_page(0x302, np.zeros(4096, dtype=np.uint8))
    for memory in (machine.memory, snapshot.memory, resumed.memory, resumed.memory.base):
        assert list(memory.occupied()) == list(PhysicalMemory.occupied(memory))
    assert not resumed.memory.occupied().contains([0x300, 0x302]).any()


def test_a_machine_that_refuses_gets_its_cpus_back() -> None:
    """suspend_enable_secondary_cpus: after a refusal all CPUs are online, with empty TLBs."""
    layout = Layout(RAM, holes=(hole_2m(0x1000),), cpus=2)
    machine = build_machine(layout, FailAllocations(1))
    assert machine.tlbs[1] is not None
    machine.tlbs[1].insert(machine.vaddr(0x200), Level.PMD, 0x200, 0x200 << 12 | 0x81)
    with pytest.raises(HibernationRefused):
        hibernate(machine, RemapGenericAbort())
    assert machine.tlbs[1] is not None
    assert len(machine.tlbs[1]) == 0
    saved = build_machine(layout)
    hibernate(saved, Fixmap())
    assert saved.tlbs[1] is None


def test_a_real_machine_comes_back_with_the_same_garbage(golden: Golden) -> None:
    """6.1 as the kernel saved it: all 512 entries of the block come from a frame that the image lacks.

    The kernel's own image names that frame: its PMD entry points to a table that is not in it. Through the slot: none.
    """
    pfns, blocks, where = plain_image(golden("swap-6.1-low2m.img"))
    row = int(np.flatnonzero(pfns == 0x4402)[0])
    entry = int(blocks[where[row]].view("<u8")[2])
    assert (entry >> 12, entry >> 12 in pfns.tolist()) == (0xAAC8, False)
    memory = elf_memory(golden("ram-6.1-low2m.elf"))
    torn = hibernate(machine_from_memory(memory, LOW2M_CR3, 4, pfns, ChooseFrames(0xAAC8), np.array([0xAAC8])), Remap())
    resumed = resume(torn)
    states = resumed.direct_map.classify(np.arange(LOW2M_START - 512, LOW2M_START + LOW2M_PAGES + 512))
    good = np.isin(states, [FrameState.PRESENT, FrameState.NOT_PRESENT_4K, FrameState.NOT_PRESENT_LARGE])
    assert np.flatnonzero(~good).tolist() == list(range(512, 1024))
    assert [violation.start_pfn for violation in tables_closed(torn, resumed)] == [0xAAC8]
    whole = hibernate(machine_from_memory(memory, LOW2M_CR3, 4, pfns), Fixmap())
    back = resume(whole)
    assert back.direct_map.classify([LOW2M_START, LOW2M_START + 511]).tolist() == [FrameState.NOT_PRESENT_LARGE] * 2
    assert tables_closed(whole, back) == ()
