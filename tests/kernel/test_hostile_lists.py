# SPDX-License-Identifier: GPL-2.0-or-later
"""Lists and trees of a kernel that return to themselves, and sizes beyond reason: each ends in one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hibernaut.errors import FormatError, HibernautError
from hibernaut.kernel import read_limit
from hibernaut.kernel.address_space import AddressSpace
from hibernaut.kernel.cached_files import cached_files, find_file
from hibernaut.kernel.kernel import Kernel
from hibernaut.kernel.log import read_log
from hibernaut.kernel.process_core import process_core
from hibernaut.kernel.processes import read_processes
from hibernaut.kernel.program import ask, each
from hibernaut.kernel.reading import FactReader
from hibernaut.kernel.swap_areas import swap_areas
from hibernaut.kernel.swapped_pages import SwappedPages
from hibernaut.memory.overlay import Overlay
from tests.kernel.stopped import StoppedKernel

drgn = pytest.importorskip("drgn", reason="drgn is not installed: pip install drgn")

LIMIT = 20_000
"""Reads of a question in these tests; those of sound memory need less."""


@pytest.fixture(autouse=True)
def few_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lower the limit, so that a question without an end takes no time."""
    monkeypatch.setattr(read_limit, "MAX_READS", LIMIT)


class Machine:
    """A kernel in memory that a test changes."""

    def __init__(self, stopped: StoppedKernel) -> None:
        self.memory = Overlay(stopped.memory)
        self.before = Kernel(stopped.memory, stopped.text)

    def put(self, place: Any, value: int) -> None:
        """Change a number or a pointer."""
        paddr = self.before.tables.walk(int(place.address_)).paddr
        assert paddr is not None
        self.memory.write(paddr, value.to_bytes(drgn.sizeof(place), "little"))

    @property
    def kernel(self) -> Kernel:
        """The changed kernel."""
        return Kernel(self.memory, self.before.vmcoreinfo)

    def task(self, pid: int = 1) -> Any:
        """Return a process of the kernel as it was."""
        from drgn.helpers.linux.pid import find_task

        return find_task(self.before.drgn(), pid)

    def node(self, path: bytes) -> Any:
        """Return the directory entry of a path."""
        from drgn.helpers.linux.fs import path_lookup

        return path_lookup(self.task().fs.root.address_of_(), path).dentry


@pytest.fixture
def machine(kernel: StoppedKernel) -> Machine:
    """A guest's kernel, whose process 1 has files, mappings and threads."""
    return Machine(kernel)


def test_a_directory_that_is_in_its_child(machine: Machine) -> None:
    """Files are listed without a path; one of another file system keeps its own."""
    child = machine.node(b"/bin")
    machine.put(child.d_parent[0].d_parent, int(child))
    found = list(cached_files(machine.kernel))
    assert len(found) == len(list(cached_files(machine.before)))
    assert sum(one.path is None for one in found) > 3
    with pytest.raises(HibernautError) as error:
        find_file(machine.kernel, "/bin/../../no-such-file")
    assert "\n" not in str(error.value)


def test_lists_that_return_to_themselves(machine: Machine) -> None:
    """Mounts, file systems, their inodes, tasks."""
    block = machine.node(b"/tmp/data").d_sb
    first = drgn.container_of(block.s_mounts.next, "struct mount", "mnt_instance")
    machine.put(first.mnt_instance.next, int(first.mnt_instance.address_))
    assert len(list(cached_files(machine.kernel))) == len(list(cached_files(machine.before)))
    inode = drgn.container_of(block.s_inodes.next, "struct inode", "i_sb_list")
    machine.put(inode.i_sb_list.next, int(inode.i_sb_list.address_))
    with pytest.raises(FormatError, match=r"s_inodes cannot be read|it returns to") as error:
        list(cached_files(machine.kernel))
    assert "\n" not in str(error.value)
    task = machine.task(2)
    machine.put(task.tasks.next, int(machine.task(1).tasks.address_))
    reader = FactReader(machine.kernel)
    listed = read_processes(reader, None)
    assert listed is not None
    assert [one.pid for one in listed] == [1, 2]
    assert any("breaks off after 2" in remark for remark in reader.remarks)


def spoil_maple(machine: Machine) -> None:
    """Make the root node of a process's mappings its own first child."""
    tree = machine.task().mm.mm_mt
    node = drgn.Object(machine.before.drgn(), "struct maple_node *", int(tree.ma_root) & ~0xFF)
    machine.put(node.mr64.slot[0], int(tree.ma_root))


def spoil_pids(machine: Machine) -> None:
    """Make the root node of the tree of processes its own child."""
    head = machine.before["init_pid_ns"].idr.idr_rt.xa_head
    node = drgn.Object(machine.before.drgn(), "struct xa_node *", int(head) & ~3)
    for slot in range(4):
        machine.put(node.slots[slot], int(head))


def spoil_threads(machine: Machine) -> None:
    """Let the list of a process's threads return to itself."""
    task = machine.task()
    machine.put(task.thread_node.next, int(task.thread_node.address_))
    machine.put(task.signal.thread_head.next, int(task.thread_node.address_))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_maple, "vm_area_struct"),
        (spoil_pids, "mm_struct|process 1"),
        (spoil_threads, "threads cannot be read: it returns to .* and has no end"),
    ],
)
def test_a_process_of_damaged_trees(machine: Machine, spoil: Callable[[Machine], None], words: str) -> None:
    """The command's question ends in one line; the list of processes is whole."""
    spoil(machine)
    from drgn.helpers.linux.pid import find_task

    kernel = machine.kernel

    def core() -> None:
        task = ask(kernel, "process 1", lambda: find_task(kernel.drgn(), 1))
        process_core(kernel, task, AddressSpace(kernel, task.mm))

    with pytest.raises(FormatError, match=words) as error:
        core()
    assert "\n" not in str(error.value)
    reader = FactReader(machine.kernel)
    assert len(read_processes(reader, None) or ()) == len(read_processes(FactReader(machine.before), None) or ())


def test_questions_without_an_end_get_less_each_time(machine: Machine) -> None:
    """Many of them together have an end, too; a list whose objects take many reads each is read whole."""
    kernel = machine.kernel
    address = kernel.symbols["init_task"].address
    reads = 0

    def read() -> int:
        nonlocal reads
        reads += 1
        return int(kernel.drgn().read_u64(address))

    def endless() -> None:
        while True:
            read()

    counts = []
    for _ in range(9):
        reads = 0
        with pytest.raises(FormatError, match="loop cannot be read: too many reads: a list or a tree in it has no end"):
            ask(kernel, "loop", endless)
        counts.append(reads)
    assert counts == [LIMIT >> number for number in range(7)] + [256, 256]
    others = machine.kernel
    several = each(others, "some", ([others.drgn().read_u64(address) for _ in range(9000)] for _ in range(5)), 5)
    with pytest.raises(FormatError, match="some: there are more than 5"):
        list(several)


@pytest.mark.parametrize(
    ("member", "value", "words"),
    [
        ("desc_ring.count_bits", 60, "has 2\\^60 records"),
        ("text_data_ring.size_bits", 0, "and 2\\^0 bytes"),
        ("desc_ring.tail_id", 5 << 40, "records between tail and head"),
        ("desc_ring.descs", 0x1000, "nothing is read"),
        ("desc_ring.infos", 1 << 63, "nothing is read"),
    ],
)
def test_a_log_of_absurd_sizes(machine: Machine, member: str, value: int, words: str) -> None:
    """Refused, or no message is read; each is counted."""
    ring = machine.before["prb"][0]
    place = ring
    for name in member.split("."):
        place = place.member_(name)
    machine.put(place.counter if member.endswith("id") else place, value)
    if words == "nothing is read":
        assert read_log(machine.kernel)[0] == []
        assert read_log(machine.kernel)[1] > 100
        return
    with pytest.raises(FormatError, match=words):
        read_log(machine.kernel)


def test_a_log_that_is_nowhere(machine: Machine) -> None:
    """A pointer to nothing is one line."""
    machine.put(machine.before["prb"], 0x1234)
    with pytest.raises(FormatError, match="the kernel's log: nothing to read at"):
        read_log(machine.kernel)


def test_swap_areas_of_absurd_sizes(machine: Machine) -> None:
    """More slots than there can be, a table that ends where nothing is mapped, areas without an end."""
    (area,) = swap_areas(machine.before)
    info = machine.before.object("struct swap_info_struct", area.address)
    machine.put(info.max, 0xFFFFFFF0)
    with pytest.raises(FormatError, match="swap area 0 has 4294967280 slots"):
        swap_areas(machine.kernel)
    machine.put(info.max, 1 << 27)
    swapped = SwappedPages(machine.kernel, {})
    with pytest.raises(FormatError, match="ends where nothing is mapped"):
        swapped.read(0, np.array([5]), np.zeros((1, 4096), dtype=np.uint8))
    machine.put(machine.before["nr_swapfiles"], 0xFFFFFFFF)
    with pytest.raises(FormatError, match="nr_swapfiles is"):
        swap_areas(machine.kernel)
