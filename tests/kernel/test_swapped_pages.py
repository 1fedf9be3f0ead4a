# SPDX-License-Identifier: GPL-2.0-or-later
"""Swapped-out pages, files and address spaces of guests. Witnesses: the marker pages' formula, Debian's package."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from hibernaut.errors import FormatError, HibernautError
from hibernaut.kernel.address_space import AddressSpace, PageCounts, PagePlace, PartState
from hibernaut.kernel.cached_files import CachedFile, cached_files, find_file, read_file
from hibernaut.kernel.kernel import Kernel
from hibernaut.kernel.swap_areas import SlotFile, swap_areas, uuid_of
from hibernaut.kernel.swapped_pages import SwappedPages, slot_files
from hibernaut.kernel.xarray import read_xarray
from hibernaut.memory.overlay import Overlay
from hibernaut.memory.page import PAGE_SIZE
from hibernaut.sources import Source, open_memory
from tests.conftest import Golden
from tests.kernel.marker_pages import marker_page

pytest.importorskip("drgn", reason="drgn is not installed: pip install drgn")

BUSYBOX = "3d9f2889d6782537624a4e1a10e68a2ddd53e0ee8bac02676f27308f42ec6bf6"
"""SHA-256 of /bin/busybox in Debian's package busybox 1:1.35.0-4 (bookworm, amd64)."""
MARKERS = {"swap-6.1-lzo.img": (574, 450), "swap-6.1-low2m.img": (481, 543), "swap-6.12-lz4.img": (1024, 0)}
"""Pages of /tmp/data in memory and swapped out (shared/facts/kernel-state.md; 6.12: counted here, all in memory)."""


class Guest:
    """A kernel in an image, and what it swapped out."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.kernel = Kernel.of(source)
        self.files = slot_files(self.kernel, source, swap_areas(self.kernel))
        self.swapped = SwappedPages(self.kernel, self.files)

    def content(self, file: CachedFile) -> tuple[bytes, list[str | None]]:
        """A whole file and the reasons of its pages."""
        parts = list(read_file(file, self.swapped))
        return b"".join(part for _, part, _ in parts), [reason for *_, some in parts for reason in some]

    def space(self, pid: int) -> AddressSpace:
        """The address space of a process."""
        from drgn.helpers.linux.pid import find_task

        return AddressSpace(self.kernel, find_task(self.kernel.drgn(), pid).mm, self.swapped)


@pytest.fixture(params=sorted(MARKERS))
def guest(request: pytest.FixtureRequest, golden: Golden) -> Iterator[Guest]:
    """Each golden image."""
    with open_memory(golden(request.param)) as source:
        yield Guest(source)


def test_the_uuid_of_an_area(golden: Golden, lzo: Guest) -> None:
    """It is that of the header, where the page cache still has the page that `swapon` read; else it is unknown."""
    assert [area.uuid for area in swap_areas(lzo.kernel)] == [None]
    with open_memory(golden("swap-6.12-lz4.img")) as source:
        (area,) = swap_areas(Kernel.of(source))
        assert source.image is not None
        assert str(area.uuid) == "6000302d-c6b6-4131-956e-78cba1a95531"
        assert area.uuid == uuid_of(source.image.header.block)
        assert area.fits(source.image.header.block, 0)
        header = bytearray(source.image.header.block)
        header[1040] ^= 1
        assert "its UUID is 6000302d-" in str(area.mismatch(bytes(header)))
        assert not area.fits(bytes(header), 0)


@pytest.fixture
def lzo(golden: Golden) -> Iterator[Guest]:
    """The image of 6.1 with 1097 slots in use."""
    with open_memory(golden("swap-6.1-lzo.img")) as source:
        yield Guest(source)


def test_marker_pages_are_right_by_their_formula(guest: Guest) -> None:
    """All 1024, of which some are in the image and some in slots of the same area; KASLR and not."""
    file = find_file(guest.kernel, "/tmp/data")
    image = guest.source.name.rsplit("/", 1)[-1]
    assert (file.pages.resident, file.pages.swapped) == MARKERS[image]
    content, reasons = guest.content(file)
    assert reasons == [None] * 1024
    seed = int(content.split(b"SEED ", 1)[1][:16], 16)
    for index in range(1024):
        assert content[index * PAGE_SIZE : (index + 1) * PAGE_SIZE] == marker_page(index, seed)


def test_busybox_is_the_file_of_debians_package(guest: Guest) -> None:
    """Put together of page cache and swap, by name, and by walking all file systems."""
    content, reasons = guest.content(find_file(guest.kernel, "/bin/busybox"))
    assert hashlib.sha256(content).hexdigest() == BUSYBOX
    assert set(reasons) == {None}
    listed = {file.path: file for file in cached_files(guest.kernel)}
    assert {"/bin/busybox", "/tmp/data", "/tmp/marker"} <= set(listed)
    assert guest.content(listed["/bin/busybox"])[0] == content
    assert guest.content(listed["/tmp/marker"])[0] == b"MARKER-hlab-0123456789-hibernated\n"


def test_a_process_is_read_through_swap(guest: Guest) -> None:
    """Arguments of init; its text equals the file; what it never touched is zero, what the kernel fills is not told."""
    space = guest.space(1)
    stack = next(one for one in space.mappings if one.name == "[stack]")
    room = np.zeros(((stack.end - stack.start) // PAGE_SIZE, PAGE_SIZE), dtype=np.uint8)
    assert set(space.read_pages(stack, 0, len(room), room)) == {None}
    assert b"/bin/busybox\0sh\0/init\0" in room.tobytes()
    content, _ = guest.content(find_file(guest.kernel, "/bin/busybox"))
    text = next(one for one in space.mappings if one.rights == "r-xp" and one.name == "/bin/busybox")
    found = space.read(text.start, text.end - text.start)
    assert found == content[text.offset : text.offset + len(found)]
    vvar = next(one for one in space.mappings if one.name == "[vvar]")
    with pytest.raises(FormatError, match="only the kernel knows"):
        space.read(vvar.start, 8)
    with pytest.raises(FormatError, match="nothing mapped at 0x10000"):
        space.read(0x10000, 8)
    counted = [space.counts(one) for one in space.mappings]
    assert sum(one.lost for one in counted) == 0
    assert sum(one.resident for one in counted) > 0


def test_areas_and_the_one_of_the_image(lzo: Guest) -> None:
    """One area, that of the image, by the number of its slots; another number of slots is not taken for it."""
    (area,) = swap_areas(lzo.kernel)
    assert (area.number, area.name, area.slots, area.used, area.header_block) == (0, "/dev/vda", 98304, 1097, 0)
    assert list(lzo.files) == [0]
    assert lzo.source.image is not None
    header = bytearray(lzo.source.image.header.block)
    assert area.fits(bytes(header), 0)
    assert not area.fits(bytes(header), 8)
    header[1028] ^= 1
    assert not area.fits(bytes(header), 0)


def test_extents_that_return_to_themselves(lzo: Guest) -> None:
    """A cycle in the tree of extents, to the left and to the right, ends in one line."""
    (area,) = swap_areas(lzo.kernel)
    info = lzo.kernel.object("struct swap_info_struct", area.address)
    node = info.swap_extent_root.rb_node
    for link in (node.rb_left, node.rb_right):
        memory = Overlay(lzo.kernel.memory)
        paddr = lzo.kernel.tables.walk(int(link.address_)).paddr
        assert paddr is not None
        memory.write(paddr, int(node).to_bytes(8, "little"))
        with pytest.raises(FormatError, match=r"and has no end|extents of a swap area overlap"):
            swap_areas(Kernel(memory, lzo.kernel.vmcoreinfo))


def test_slots_that_cannot_hold_a_page(lzo: Guest) -> None:
    """The header, a slot outside, a free one, one under the image, another area, an area that is not given."""
    assert lzo.source.image is not None
    taken = int(lzo.source.image.swap_map.blocks[0])
    room = np.empty((4, PAGE_SIZE), dtype=np.uint8)
    told = lzo.swapped.read(0, np.array([0, 98304, 98303, taken]), room)
    assert [reason and reason.split(" ", 1)[1] for reason in told[:2]] == ["area 0 has no such slot"] * 2
    assert told[2:] == ["its slot of swap area 0 is free"] * 2
    assert not room.any()
    assert lzo.swapped.read(3, np.array([5]), room[:1]) == ["the kernel uses no swap area 3"]
    file = find_file(lzo.kernel, "/tmp/data")
    alone = SwappedPages(lzo.kernel, {})
    reasons = [reason for *_, some in read_file(file, alone) for reason in some]
    cached = reasons.count(None)
    assert set(reasons) == {None, "swap area 0 (/dev/vda) is not given"}
    assert cached >= 574  # pages of the swap cache are in memory, too


def test_an_image_over_a_used_slot_and_a_short_file_are_reported(lzo: Guest) -> None:
    """Mutants of the disk: the image's own blocks where slots are in use, and a file that ends before them."""
    file = find_file(lzo.kernel, "/tmp/data")
    on_disk = file.pages.slots[file.pages.slots >= 0]
    image = lzo.source.image
    assert image is not None
    moved = replace(image.swap_map, entries=np.concatenate((image.swap_map.entries, on_disk)))
    over = SwappedPages(lzo.kernel, {0: SlotFile(image.area.file, 0, replace(image, swap_map=moved))})
    room = np.empty((len(on_disk), PAGE_SIZE), dtype=np.uint8)
    assert set(over.read(0, on_disk, room)) <= {None, "the hibernation image lies in its slot"}
    assert "the hibernation image lies in its slot" in over.read(0, on_disk, room)
    far = SwappedPages(lzo.kernel, {0: SlotFile(image.area.file, image.area.file.size_bytes - PAGE_SIZE, None)})
    assert any("ends before its slot" in (reason or "") for reason in far.read(0, on_disk, room))


def test_no_such_file(lzo: Guest) -> None:
    """A name that is not cached, and a folder."""
    with pytest.raises(HibernautError, match="not in the kernel's cache of names"):
        find_file(lzo.kernel, "/no/such/file")
    with pytest.raises(HibernautError, match="/tmp is not a regular file"):
        find_file(lzo.kernel, "/tmp")


def test_xarrays_are_those_that_drgn_reads(guest: Guest) -> None:
    """Index and entry of every page of every file."""
    from drgn.helpers.linux.xarray import xa_for_each

    for path in ("/tmp/data", "/bin/busybox", "/tmp/marker"):
        from drgn.helpers.linux.fs import path_lookup
        from drgn.helpers.linux.pid import find_task

        root = find_task(guest.kernel.drgn(), 1).fs.root.address_of_()
        tree = path_lookup(root, path.encode()).dentry.d_inode.i_mapping.i_pages.address_of_()
        found = read_xarray(guest.kernel, int(tree))
        theirs = [(index, int(entry)) for index, entry in xa_for_each(tree)]
        assert list(zip(found.indices.tolist(), found.entries.tolist(), strict=True)) == theirs
        assert not len(found.missing)


def test_a_large_reservation_has_few_parts(lzo: Guest) -> None:
    """64 TiB that the process never touched cost a walk for each empty entry of an upper level, and no bytes."""
    space = lzo.space(1)
    heap = next(one for one in space.mappings if one.name == "[heap]")
    reserved = replace(heap, start=0x1000_0000_0000, end=0x5000_0000_0000, name=None)
    pages = (reserved.end - reserved.start) // PAGE_SIZE
    assert list(space.parts(reserved)) == [(0, pages, PartState.UNTOUCHED)]
    assert space.counts(reserved) == PageCounts(0, 0, 0, pages)
    wide = replace(heap, start=0x10000, end=heap.end + (1 << 30))
    parts = list(space.parts(wide))
    assert sum(count for _, count, _ in parts) == (wide.end - wide.start) // PAGE_SIZE
    assert PartState.TABLES in {state for *_, state in parts}


def test_places_add_up(guest: Guest) -> None:
    """Every page of every mapping has one place."""
    for mapping in guest.space(1).mappings:
        counts = guest.space(1).counts(mapping)
        total = (mapping.end - mapping.start) // PAGE_SIZE
        assert counts.resident + counts.swapped + counts.lost + counts.untouched == total
        total = (mapping.end - mapping.start) // PAGE_SIZE
        places = guest.space(1).pages(mapping, 0, total).places
        assert len(places) == total
        assert PagePlace.NOWHERE not in places
