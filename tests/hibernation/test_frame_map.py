# SPDX-License-Identifier: GPL-2.0-or-later
"""The map of physical memory and the order of the copy: simulated machines, and real ones with known answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hibernaut.hibernation import Fixmap, hibernate
from hibernaut.hibernation.audit import Order, audit
from hibernaut.hibernation.copy_order import MAX_REGIONS, copy_order
from hibernaut.hibernation.examination import difference_between, examine
from hibernaut.hibernation.frame_map import Fate, FrameMap, FrameUse, MappedBy, frame_map
from hibernaut.hibernation.machine_in_source import machine_in
from hibernaut.linux.build import build_machine
from hibernaut.linux.layout import HoleSpec, Layout, hole_1g, hole_2m, hole_4k, no_table
from hibernaut.linux.source_tables import Paging, find_paging
from hibernaut.memory.contents import page_contents
from hibernaut.memory.ranges import FrameRanges
from hibernaut.paging.entries import Level
from hibernaut.sources import Source, open_memory
from hibernaut.swsusp.info import ImageInfo
from hibernaut.swsusp.writer import NewArea, write_image
from tests.conftest import Golden
from tests.machines import RAM


def source_of(
    *holes: HoleSpec, ram: tuple[tuple[int, int], ...] = RAM, tables: str = "high", largest: Level = Level.PMD
) -> tuple[Source, Paging]:
    """Return the memory of a simulated machine as a dump, and its page tables."""
    machine = build_machine(Layout(ram, holes=holes, tables=tables, largest=largest))
    source = Source(machine.memory, "raw", "simulated", cr3=machine.cr3, levels=machine.levels, gaps_from="--gap")
    return source, find_paging(source)


def image_of(path: Path, *holes: HoleSpec) -> Path:
    """Write the image of a simulated machine."""
    snapshot = hibernate(build_machine(Layout(RAM, holes=holes)), Fixmap())
    info = ImageInfo.blank(cr3=snapshot.cr3, physical_pages=0x4000)
    write_image(path, snapshot.memory, snapshot.pfns, info, NewArea(), compressor="lzo", zero_pages=True)
    return path


def check_whole(found: FrameMap) -> None:
    """Every frame is in one run, neighbours differ, and each total is the number of frames."""
    assert found.start_pfn[0] == 0
    assert (np.diff(found.start_pfn, append=found.end_pfn) == found.pages).all()
    codes = np.stack([found.mapped, found.fate, found.use])
    assert (codes[:, 1:] != codes[:, :-1]).any(axis=0).all()
    for some in (found.mapped, found.fate, found.use):
        assert sum(found.totals(some).values()) == found.end_pfn


def test_frames_are_classed_by_their_entry() -> None:
    """Each kind of hole as its own class, with the frames that were taken out."""
    source, paging = source_of(hole_4k(0x801, 3), hole_2m(0x1000, 2), no_table(0x1800))
    found = frame_map(source, paging)
    check_whole(found)
    assert list(found.frames(found.mapped, MappedBy.NOT_PRESENT_4K)) == [(0x801, 3)]
    assert list(found.frames(found.mapped, MappedBy.NOT_PRESENT_2M)) == [(0x1000, 1024)]
    assert found.frames(found.mapped, MappedBy.NO_ENTRY).end_of(0x1800) == 0x1A00
    assert found.at(0x801) == (MappedBy.NOT_PRESENT_4K, Fate.IN_FILE, FrameUse.UNKNOWN)
    assert paging.direct_map is not None
    tables = paging.direct_map.tables.pfns()
    assert found.frames(found.use, FrameUse.PAGE_TABLE).pfns().tolist() == tables.tolist()
    assert found.pages_from == "direct-map"
    assert any("struct page" in remark for remark in found.remarks)


def test_1g_entries_and_zero_pages_are_classed() -> None:
    """A not-present 1 GiB entry; zero pages if they are given, and no others."""
    source, paging = source_of(hole_1g(0x40000), ram=((0, 0xA0), (0x100, 0x80000 - 0x100)), largest=Level.PUD)
    zero = page_contents(source.memory).zero
    found = frame_map(source, paging, zero)
    check_whole(found)
    assert list(found.frames(found.mapped, MappedBy.NOT_PRESENT_1G)) == [(0x40000, 0x40000)]
    assert found.frames(found.fate, Fate.ZERO_IN_FILE).total_pages == zero.total_pages
    assert found.zeroes_known
    without = frame_map(source, paging)
    assert Fate.ZERO_IN_FILE not in without.totals(without.fate)
    assert not without.zeroes_known


def test_without_page_tables_nothing_is_said_of_entries() -> None:
    """The class of all frames is `UNKNOWN`, and none is a page table."""
    source, _ = source_of()
    found = frame_map(source, None)
    check_whole(found)
    assert set(found.totals(found.mapped)) == {MappedBy.UNKNOWN}
    assert set(found.totals(found.use)) == {FrameUse.UNKNOWN}
    assert copy_order(found).regions == ()


@pytest.mark.parametrize("tables", ["low", "high"])
def test_the_order_of_the_copy_is_that_of_the_audit(tables: str) -> None:
    """On a machine without a list of pages the order is not known; with one it is the audit's for every split."""
    source, paging = source_of(hole_2m(0x1000, 2), tables=tables)
    assert [one.order for one in copy_order(frame_map(source, paging)).regions] == [None, None]
    machine = build_machine(Layout(RAM, holes=(hole_2m(0x1000, 2),), tables=tables))
    splits = audit(machine).splits
    assert [split.order for split in splits] == [Order.BELOW if tables == "low" else Order.ABOVE] * 2


def test_an_image_has_its_list_and_its_zero_pages(tmp_path: Path) -> None:
    """All listed frames are saved, those that the image marks as zero apart; what it lacks is left out."""
    with open_memory(image_of(tmp_path / "image", hole_2m(0x1000, 1))) as source:
        image = source.image
        assert image is not None
        found = frame_map(source, find_paging(source))
        check_whole(found)
        totals = found.totals(found.fate)
        assert totals[Fate.ZERO] == image.zero_pages
        assert totals[Fate.SAVED] == image.saved_pages - image.zero_pages
        assert found.pages_from == "image"
        (region,) = copy_order(found).regions
        assert (region.start_pfn, region.level, region.lost_pfn) == (0x1000, Level.PMD, None)
        assert (region.first_pfn, region.listed_pages) == (0x1000, 512)


def test_many_regions_are_counted() -> None:
    """The first 256 are returned, the others counted, without a step for each."""
    source, paging = source_of(hole_2m(0x1000, 400), ram=((0, 0xA0), (0x100, 0x40000)))
    found = copy_order(frame_map(source, paging))
    assert (len(found.regions), found.more) == (MAX_REGIONS, 400 - MAX_REGIONS)


def test_the_lost_table_of_a_real_image(golden: Golden) -> None:
    """The image's PMD entry 0x000000000aac8063 points to table frame 0xaac8, which is not in the image."""
    with open_memory(golden("swap-6.1-low2m.img")) as source:
        found = examine(source)
    check_whole(found.frames)
    assert list(found.frames.frames(found.frames.fate, Fate.LOST)) == [(0xAAC8, 1)]
    assert list(found.frames.frames(found.frames.mapped, MappedBy.TABLE_MISSING)) == [(0x400, 0x200)]
    (region,) = found.order.regions
    assert (region.start_pfn, region.table_pfn, region.lost_pfn) == (0x400, 0x4402, 0xAAC8)
    assert (region.entry, region.order, region.torn) == (0xAAC8063, Order.ABOVE, True)
    expected = golden.expected["swap-6.1-low2m.img"]
    totals = found.frames.totals(found.frames.fate)
    assert totals[Fate.SAVED] + totals[Fate.ZERO] == expected["saved_pages"]
    assert found.identity is not None
    assert found.checksum is not None
    assert found.checksum.ok is None  # not compressed: the kernel stores no CRC


def test_a_stopped_kernel_has_frees_and_copies(golden: Golden) -> None:
    """Saved, free and set aside have no frame in common with each other's lists, and add up to all of RAM."""
    with open_memory(golden("ram-6.1-low2m.elf")) as source:
        found = examine(source)
        splits = audit(machine_in(source).machine).splits
    totals = found.frames.totals(found.frames.fate)
    assert totals[Fate.SAVED] + totals[Fate.ZERO] == 20164
    # "Normal pages needed: 20164 + 1024, available pages: 45227", logged before the copies were set aside.
    assert abs(totals[Fate.FREE] + totals[Fate.SET_ASIDE] - 45227) < 64
    (region,) = found.order.regions
    assert (region.entry, region.table_pfn, region.order) == (0x800FFFFFFFBFF062, splits[0].table_pfn, splits[0].order)
    assert region.torn


def test_the_image_differs_from_its_dump_by_the_split(golden: Golden) -> None:
    """One entry of one page table: the block that the copy split."""
    with open_memory(golden("ram-6.1-low2m.elf")) as dump, open_memory(golden("swap-6.1-low2m.img")) as image:
        found = difference_between(examine(dump), examine(image))
    (entry,) = found.entries
    assert (entry.table_pfn, entry.index) == (0x4402, 2)
    assert (entry.first, entry.second) == (0x800FFFFFFFBFF062, 0xAAC8063)
    assert found.memory.equal.total_pages + found.memory.different.total_pages == 20164


def test_secret_pages_are_those_that_the_guest_printed(golden: Golden) -> None:
    """1 292 not-present 4K entries; no list of pages, so that nothing is said to be saved."""
    with open_memory(golden("ram-6.1-secretmem.elf")) as source:
        found = frame_map(source, find_paging(source))
    expected = golden.expected["ram-6.1-secretmem.elf"]["secret_pages_as_printed_by_the_guest"]
    secret = FrameRanges.of([(int(first, 16), pages) for first, pages in expected])
    assert list(found.frames(found.mapped, MappedBy.NOT_PRESENT_4K)) == list(secret)
    assert not {Fate.SAVED, Fate.ZERO, Fate.LEFT_OUT} & set(found.totals(found.fate))


def test_damage_is_met_and_named(tmp_path: Path) -> None:
    """A changed byte of a compressed image is the damage of its checksum, and its contents are not counted."""
    path = image_of(tmp_path / "image")
    with open_memory(path) as source:
        assert source.image is not None
        block = int(source.image.swap_map.entries[40])
        assert examine(source).checksum is not None
    with path.open("r+b") as file:
        file.seek(4096 * block + 100)
        file.write(b"\xff" * 64)
    with open_memory(path) as source:
        found = examine(source)
    assert found.checksum is not None
    assert found.checksum.ok is False


def test_frames_of_both_halves_are_sets() -> None:
    """`FrameRanges.of` of a class is what `at` says of its frames."""
    source, paging = source_of(hole_4k(0x801, 3))
    found = frame_map(source, paging)
    for code in found.totals(found.mapped):
        frames = found.frames(found.mapped, code)
        assert isinstance(frames, FrameRanges)
        assert all(found.at(start)[0] == code for start, _ in frames)
