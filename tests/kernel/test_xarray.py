# SPDX-License-Identifier: GPL-2.0-or-later
"""XArrays of a real kernel, damaged: a node that is absent, of another level, or its own child."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from hibernaut.errors import FormatError
from hibernaut.kernel.cached_files import find_file
from hibernaut.kernel.kernel import Kernel
from hibernaut.kernel.page_cache import file_pages
from hibernaut.kernel.xarray import read_xarray, xarray_entry
from hibernaut.memory.overlay import Overlay
from hibernaut.memory.page import PAGE_SIZE
from hibernaut.memory.physical import PhysicalMemory
from hibernaut.sources import open_memory
from tests.conftest import Golden

pytest.importorskip("drgn", reason="drgn is not installed: pip install drgn")


class Tree:
    """The XArray of /tmp/data (1024 pages: 16 leaves under one node) in the golden dump of 6.1."""

    def __init__(self, memory: PhysicalMemory) -> None:
        self.memory = memory
        self.kernel = Kernel(memory)
        file = find_file(self.kernel, "/tmp/data")
        assert len(file.pages.indices) == 1024
        self.mapping = self._mapping()
        self.address = int(self.mapping.i_pages.address_of_())
        self.top = int(self.mapping.i_pages.xa_head) - 2
        node = self.kernel.object("struct xa_node", self.top)
        self.leaf = int(node.slots[3]) - 2
        self.shift_at = int(node.shift.address_) - self.top
        self.slots_at = int(node.slots.address_) - self.top

    def _mapping(self) -> Any:
        from drgn.helpers.linux.fs import path_lookup
        from drgn.helpers.linux.pid import find_task

        root = find_task(self.kernel.drgn(), 1).fs.root.address_of_()
        return path_lookup(root, b"/tmp/data").dentry.d_inode.i_mapping

    def paddr(self, vaddr: int) -> int:
        """Return the physical address."""
        found = self.kernel.tables.walk(vaddr).paddr
        assert found is not None
        return found

    def changed(self, vaddr: int, data: bytes) -> Kernel:
        """Return the kernel in memory with some bytes changed."""
        overlay = Overlay(self.memory)
        overlay.write(self.paddr(vaddr), data)
        return Kernel(overlay, self.kernel.vmcoreinfo)


@pytest.fixture(scope="module")
def tree(golden: Golden) -> Iterator[Tree]:
    """The tree in a dump; its pages are in memory and in slots."""
    with open_memory(golden("ram-6.1-lzo.elf")) as source:
        yield Tree(source.memory)


DAMAGE: dict[str, tuple[Callable[[Tree], tuple[int, bytes]], str]] = {
    "a leaf of the level above": (lambda tree: (tree.leaf + tree.shift_at, b"\6"), "another level than its neighbours"),
    "a level that is not a multiple of 6": (lambda tree: (tree.top + tree.shift_at, b"\7"), "another level"),
    "a node that is its own child": (
        lambda tree: (tree.top + tree.slots_at + 8, (tree.top + 2).to_bytes(8, "little")),
        "another level than its neighbours",
    ),
    "a node below a leaf": (
        lambda tree: (tree.leaf + tree.slots_at, (tree.leaf + 2).to_bytes(8, "little")),
        "nodes below its lowest level",
    ),
}


@pytest.mark.parametrize("name", sorted(DAMAGE))
def test_damaged_nodes_are_refused(tree: Tree, name: str) -> None:
    """One line; no endless walk."""
    make, words = DAMAGE[name]
    with pytest.raises(FormatError, match=words):
        read_xarray(tree.changed(*make(tree)), tree.address)


def test_an_absent_leaf_is_64_missing_pages(tree: Tree) -> None:
    """Its pages have that reason when they are read; all others are as before."""
    slot = tree.top + tree.slots_at + 8 * 3
    gone = tree.changed(slot, (0xFFFF_8880_7FFF_0000 + 2).to_bytes(8, "little"))
    found = read_xarray(gone, tree.address)
    assert found.missing.tolist() == [[3 * 64, 64]]
    assert len(found.indices) == 1024 - 64
    mapping = gone.object("struct address_space", int(tree.mapping)).address_of_()
    pages = file_pages(gone, mapping)
    room = np.zeros((3, PAGE_SIZE), dtype=np.uint8)
    told = pages.read(np.array([3 * 64, 4 * 64 - 1, 1024]), None, room)
    assert told == ["the kernel's record of its place is not in memory"] * 2 + [None]  # the last one is a hole


def test_siblings_and_entries_above_the_leaves(tree: Tree) -> None:
    """A large folio takes several slots of a leaf, or one of a node above: every index that it covers is listed."""
    leaf = tree.leaf + tree.slots_at
    first = int.from_bytes(tree.kernel.read(leaf, 8, "slot"), "little")
    sibling = (0 << 2 | 2).to_bytes(8, "little")
    found = read_xarray(tree.changed(leaf + 8, sibling * 3), tree.address)
    row = found.indices.tolist().index(3 * 64)
    assert (int(found.lengths[row]), int(found.entries[row])) == (4, first)
    whole = read_xarray(tree.changed(tree.top + tree.slots_at + 24, first.to_bytes(8, "little")), tree.address)
    row = whole.indices.tolist().index(3 * 64)
    assert (int(whole.lengths[row]), int(whole.entries[row])) == (64, first)


def test_an_xarray_of_one_entry_or_none(tree: Tree) -> None:
    """The head itself is the entry; an empty one has none."""
    head = int(tree.mapping.i_pages.xa_head.address_)
    value = 5 << 1 | 1
    one = read_xarray(tree.changed(head, value.to_bytes(8, "little")), tree.address)
    assert (one.indices.tolist(), one.lengths.tolist(), one.entries.tolist()) == ([0], [1], [value])
    assert not len(read_xarray(tree.changed(head, bytes(8)), tree.address).indices)


def test_one_entry_is_that_of_all_entries(tree: Tree) -> None:
    """Each index has its entry, and others have none; a node that is its own child is refused."""
    found = read_xarray(tree.kernel, tree.address)
    for index, entry in list(zip(found.indices.tolist(), found.entries.tolist(), strict=True))[::37]:
        assert xarray_entry(tree.kernel, tree.address, index) == entry
    assert [xarray_entry(tree.kernel, tree.address, index) for index in (1024, 4095, 4096, 1 << 40)] == [0] * 4
    looping = tree.changed(tree.top + tree.slots_at, (tree.top + 2).to_bytes(8, "little"))
    with pytest.raises(FormatError, match="has a node of level 6 below one of 6"):
        xarray_entry(looping, tree.address, 5)
    lone = tree.changed(int(tree.mapping.i_pages.xa_head.address_), (0x1230).to_bytes(8, "little"))
    assert [xarray_entry(lone, tree.address, index) for index in (0, 1)] == [0x1230, 0]
