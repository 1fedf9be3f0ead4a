# SPDX-License-Identifier: GPL-2.0-or-later
"""The machine in an image: witnesses are the kernel's own log, the info page, drgn's helpers and plain reads by BTF."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from hibernaut.kernel.banner import find_banner
from hibernaut.kernel.btf import BtfKind
from hibernaut.kernel.clock import read_clock
from hibernaut.kernel.identity import MachineIdentity, read_identity
from hibernaut.kernel.image_area import device_number
from hibernaut.kernel.kernel import Kernel
from hibernaut.kernel.log import read_log
from hibernaut.kernel.mounts import cached_start, link_target, resolve
from hibernaut.kernel.processes import Process, processes, read_processes
from hibernaut.kernel.reading import FactReader, rb_objects, text_at
from hibernaut.kernel.swapped_pages import SwappedPages
from hibernaut.memory.overlay import Overlay
from hibernaut.memory.physical import PhysicalMemory
from hibernaut.sources import Source, open_memory
from tests.conftest import Golden

pytest.importorskip("drgn", reason="drgn is not installed: pip install drgn")

IMAGE = "swap-6.1-lzo.img"
IMAGES = {
    IMAGE: ("console=ttyS0 loglevel=7 no_console_suspend nokaslr hlab.wait=1", "2026-11-16", 0),
    "swap-6.12-lz4.img": (
        "console=ttyS0 loglevel=7 no_console_suspend hlab.wait=1 hlab.comp=lz4",
        "2026-08-29",
        0x16000000,
    ),
}
RTC_LINE = re.compile(r"setting system clock to \S+ UTC \((\d+)\)")
SWAP_LINE = re.compile(r"Adding (\d+)k swap on (\S+)\. +Priority:(-?\d+)")


def identity_of(kernel: Kernel) -> MachineIdentity:
    """Return the identity of a kernel's machine."""
    return read_identity(FactReader(kernel))


@pytest.mark.parametrize("image", sorted(IMAGES))
def test_facts_are_those_of_the_guest(golden: Golden, image: str) -> None:
    """Command line, versions, CPUs, DMI, swap, RAM: as the generator set them and as the kernel logged them."""
    command_line, build_date, kaslr_offset = IMAGES[image]
    with open_memory(golden(image)) as source:
        kernel = Kernel.of(source)
        found = identity_of(kernel)
        log = [record.text for record in read_log(kernel)[0]]
        assert source.image is not None
        info = source.image.info
        assert info.jump_address is not None
        banner = find_banner(source.memory, info.cr3, info.jump_address)
    assert found.remarks == ()
    assert found.banner == banner == log[0]
    assert found.banner is not None
    assert found.build is not None
    assert found.banner.endswith(found.build)
    assert (found.build_date, found.levels, found.kaslr_offset) == (build_date, 4, kaslr_offset)
    assert len(found.build_id or "") == 40
    assert found.command_line == command_line
    assert f"Command line: {command_line}" in log
    assert (found.taint, found.taint_letters, found.hostname, found.domain) == (0, "", "(none)", "(none)")
    assert (found.cpus, found.cpu_model, found.hypervisor) == (1, "QEMU TCG CPU version 2.5+", "unknown")
    dmi = next(line for line in log if line.startswith("DMI: "))
    assert f"DMI: {found.vendor} {found.product}, BIOS {found.bios} " in dmi
    assert found.ram_pages == info.physical_pages
    kib, path, priority = next(match.groups() for line in log if (match := SWAP_LINE.search(line)))
    assert found.swap is not None
    (swap,) = found.swap
    assert (swap.name, 4 * (swap.slots - 1), swap.priority) == (path, int(kib), int(priority))
    assert swap.device is not None
    assert (device_number(swap.device), found.image_area) == ("254:0", 0)
    assert [one.text for one in found.log or ()] == log[-5:]
    assert (found.machine_id, found.zone, found.minutes_west, found.dm_crypt) == (None, None, 0, ())


@pytest.mark.parametrize("image", sorted(IMAGES))
def test_time_is_the_kernels(golden: Golden, image: str) -> None:
    """Bytes at the offsets of BTF give the same time, and the log has the time of the hardware's clock at boot."""
    with open_memory(golden(image)) as source:
        kernel = Kernel.of(source)
        clock = read_clock(kernel)
        records = read_log(kernel)[0]
        at = kernel.symbols["tk_core"].address + 8  # after a seqcount_t of 4 bytes, aligned

        def u64(*path: str) -> int:
            """Return the value of a member of a member of the timekeeper."""
            return kernel.u64(at + _offset(kernel, "timekeeper", path), "timekeeper")

        shift = u64("tkr_mono", "shift") & 0xFFFFFFFF
        now_ns = u64("xtime_sec") * 10**9 + (u64("tkr_mono", "xtime_nsec") >> shift)
        booted_ns = u64("offs_real") - u64("offs_boot")
    assert (clock.now_ns, clock.booted_ns, clock.source) == (now_ns, booted_ns, "tsc")
    rtc_ns, logged_ns = next(
        (int(match[1]) * 10**9, one.time_ns) for one in records if (match := RTC_LINE.search(one.text))
    )
    assert abs(booted_ns + logged_ns - rtc_ns) < 2 * 10**9
    assert abs(clock.uptime_ns - records[-1].time_ns) < 10**9


def _offset(kernel: Kernel, tag: str, path: tuple[str, ...]) -> int:
    """Return the offset of a member of a structure, by BTF alone."""
    btf = kernel.btf
    assert btf is not None
    (number,) = btf.find(tag, BtfKind.STRUCT)
    offset = 0
    for name in path:
        member = next(one for one in btf.members(number) if one.name == name)
        offset += member.bit_offset // 8
        number = member.type
    return offset


@pytest.mark.parametrize("image", sorted(IMAGES))
def test_lists_are_those_that_drgn_reads(golden: Golden, image: str) -> None:
    """Processes with their pages, modules, mounts and log: drgn's helpers take other ways through the kernel."""
    from drgn.helpers.linux.fs import for_each_mount, mount_dst, mount_fstype, mount_src
    from drgn.helpers.linux.mm import task_rss
    from drgn.helpers.linux.module import for_each_module
    from drgn.helpers.linux.pid import find_task, for_each_task
    from drgn.helpers.linux.printk import get_printk_records

    with open_memory(golden(image)) as source:
        kernel = Kernel.of(source)
        program = kernel.drgn()
        found = identity_of(kernel)
        assert found.modules == tuple(module.name.string_().decode() for module in for_each_module(program))
        theirs = {
            tuple(part.decode() for part in (mount_src(one), mount_dst(one), mount_fstype(one)))
            for one in for_each_mount(program["init_pid_ns"].child_reaper.nsproxy.mnt_ns)
        }
        assert {(one.source, one.path, one.type) for one in found.mounts or ()} == theirs
        assert ("none", "/tmp", "tmpfs") in theirs
        records, unread = read_log(kernel)
        assert not unread
        assert [(one.sequence, one.time_ns, one.level, one.text.encode()) for one in records] == [
            (one.seq, one.timestamp, one.level, one.text) for one in get_printk_records(program)
        ]
        listed = read_processes(FactReader(kernel), found.clock)
        assert listed is not None
        leaders = {task.pid.value_() for task in for_each_task(program) if task.pid.value_() == task.tgid.value_()}
        assert [one.pid for one in listed] == sorted(leaders)
        first, thread = listed[0], listed[1]
        rss = task_rss(program, find_task(program, 1))
        assert (first.name, first.ppid, first.uid, first.is_kernel) == ("init", 0, 0, False)
        assert (first.resident_pages, first.swapped_pages) == (rss.total, rss.swap)
        assert (thread.pid, thread.name, thread.is_kernel, thread.arguments) == (2, "kthreadd", True, None)
        assert found.clock is not None
        assert all(_is_between(one, found) for one in listed)


def _is_between(process: Process, found: MachineIdentity) -> bool:
    """Return whether a process started between boot and the copy."""
    clock, started = found.clock, process.started_ns
    return clock is not None and started is not None and clock.booted_ns <= started <= clock.now_ns


def test_arguments_and_small_files(golden: Golden) -> None:
    """Arguments where their page is in memory; the start of a file in tmpfs; a link; nothing for what is not there."""
    with open_memory(golden("swap-6.12-lz4.img")) as source:
        kernel = Kernel.of(source)
        found = read_processes(FactReader(kernel), None)
        assert found is not None
        assert found[0].arguments == ("/bin/busybox", "sh", "/init")
        assert found[0].started_ns is None
        marker, shell = resolve(kernel, "/tmp/marker"), resolve(kernel, "/bin/ls")
        assert cached_start(kernel, marker) == b"MARKER-hlab-0123456789-hibernated\n"
        assert link_target(kernel, marker) is None
        assert link_target(kernel, shell) == "/bin/busybox"
        assert resolve(kernel, "/etc/machine-id") is None
        assert resolve(kernel, "/no/such/path") is None
    with open_memory(golden(IMAGE)) as source:  # the page of the arguments is in swap
        kernel = Kernel.of(source)
        (first, *_) = read_processes(FactReader(kernel), None) or ()
        assert (first.arguments, first.name) == (None, "init")
        swapped = SwappedPages.of(kernel, source)
        (first, *_) = read_processes(FactReader(kernel), None, swapped) or ()
    assert first.arguments == ("/bin/busybox", "sh", "/init", "nokaslr")


class Changed:
    """A kernel whose memory a test changes: `write` before `kernel`."""

    def __init__(self, source: Source) -> None:
        self.before = Kernel.of(source)
        self.memory = Overlay(source.memory)

    def write(self, vaddr: int, data: bytes) -> None:
        """Write bytes at a virtual address, of one page."""
        paddr = self.before.tables.walk(vaddr).paddr
        assert paddr is not None
        self.memory.write(paddr, data)

    def kernel(self, memory: PhysicalMemory | None = None) -> Kernel:
        """Return the kernel in the changed memory."""
        return Kernel(memory or self.memory, self.before.vmcoreinfo)


def address(value: Any) -> int:
    """Return the address of an object."""
    return int(value.address_of_().value_())


def test_hostile_facts_are_bounded_and_kept_apart(golden: Golden) -> None:
    """A name with an escape sequence, a command line without end, a set clock that is none: the rest stays."""
    with open_memory(golden(IMAGE)) as source:
        changed = Changed(source)
        before = changed.before
        changed.write(address(before["init_uts_ns"].name.nodename), b"\x1b[31mred\nline\0")
        changed.write(before.symbols["tainted_mask"].address, (1 << 12 | 1 | 1 << 60).to_bytes(8, "little"))
        changed.write(address(before["tk_core"].timekeeper.tkr_mono.clock), bytes(8))
        changed.write(address(before["x86_hyper_type"]), before["X86_HYPER_KVM"].value_().to_bytes(4, "little"))
        thread = next(one for one in processes(before) if one.pid.value_() == 2)
        other = next(one for one in processes(before) if one.comm.string_() == b"kswapd0")
        for task in (thread, other):
            changed.write(address(task.comm), b"dmcrypt_write/2\0")
        full = before.object("struct kthread", other.worker_private.value_()).full_name
        changed.write(address(full), before.symbols["linux_banner"].address.to_bytes(8, "little"))
        long = before["saved_command_line"].value_()
        page = long & ~4095
        changed.write(page, b"a" * 4096)
        found = identity_of(changed.kernel())
    assert found.hostname == "\x1b[31mred\nline"
    assert (found.taint, found.taint_letters) == (1 << 60 | 1 << 12 | 1, "PO?")
    assert (found.clock, found.hypervisor) == (None, "KVM")
    assert "clock: not known: the timekeeper has no clock source: it is not set up" in found.remarks
    assert found.dm_crypt is not None
    assert found.dm_crypt[0] == "?"  # the name is cut, and there is no full one
    assert found.dm_crypt[1].startswith("Linux version")
    assert found.command_line is not None
    assert found.command_line.startswith("aaaa")
    assert len(found.command_line) <= 4096
    assert len(found.modules or ()) == 6
    assert found.swap is not None


def test_strings_have_a_bound(golden: Golden) -> None:
    """A string is read up to its bound, over pages, and one that is cut has a remark; a page that lacks ends it."""
    with open_memory(golden(IMAGE)) as source:
        kernel = Kernel.of(source)
        start = kernel.symbols["linux_banner"].address
        assert text_at(kernel, start, 9) == "Linux ver"
        assert text_at(kernel, start, 1 << 20).startswith("Linux version 6.1.0-56-amd64 ")
        reader = FactReader(kernel)
        assert reader.text("banner", lambda: start, 9) == "Linux ver"
        assert reader.text("nothing", lambda: 8, 9) is None
    assert reader.remarks[0] == "banner: cut after 9 bytes"
    assert reader.remarks[1].startswith("nothing: not known: string: nothing to read at 0x8: ")
    assert "swap-6.1" not in " ".join(reader.remarks)


def cyclic(kernel: Kernel) -> tuple[int, int]:
    """Return the `next` link of the tenth process, and the address of the second one's links."""
    tasks = list(processes(kernel))
    return address(tasks[9].tasks.next), address(tasks[1].tasks)


def test_lists_end(golden: Golden) -> None:
    """A list of processes that returns to itself, one that leads out of memory: the part before is shown."""
    with open_memory(golden(IMAGE)) as source:
        changed = Changed(source)
        link, back = cyclic(changed.before)
        changed.write(link, back.to_bytes(8, "little"))
        reader = FactReader(changed.kernel())
        found = read_processes(reader, None)
        assert found is not None
        assert len(found) == 10
        assert reader.remarks == [f"processes: the list breaks off after 10: it returns to {back:#x} and has no end"]
        changed.write(link, (0xFFFF888000000000 + (1 << 44)).to_bytes(8, "little"))
        reader = FactReader(changed.kernel())
        assert len(read_processes(reader, None) or ()) == 10
        assert reader.remarks[0].startswith("processes: the list breaks off after 1")
        kernel = changed.before
        reader = FactReader(kernel)
        assert reader.items("tasks", lambda: processes(kernel), lambda one: one.pid.value_(), 3) == (1, 2, 3)
        assert reader.items("none", lambda: kernel["no_such_list"], str, 3) is None
        assert reader.items("odd", lambda: range(3), lambda one: 1 // one, 3) == (1, 0)
    assert reader.remarks[0] == "tasks: the first 3 are read, there are more"
    assert reader.remarks[1].startswith("none: not known: could not find 'no_such_list'")
    assert reader.remarks[2].startswith("odd: 1 of 3 could not be read, the first: ")


def test_trees_end(golden: Golden) -> None:
    """A red-black tree is read in order, and a node that is its own child ends it."""
    with open_memory(golden("swap-6.12-lz4.img")) as source:
        changed = Changed(source)
        space = changed.before["init_pid_ns"].child_reaper.nsproxy.mnt_ns
        ids = [one.mnt_id_unique.value_() for one in rb_objects(space.mounts, "struct mount", "mnt_node")]
        assert ids == sorted(ids)
        assert len(ids) == 5
        root = space.mounts.rb_node
        changed.write(address(root.rb_left), root.value_().to_bytes(8, "little"))
        found = identity_of(changed.kernel())
    assert found.mounts is None
    assert any(remark.startswith("mounts: not known: it returns to 0x") for remark in found.remarks)
    assert found.hostname == "(none)"


Change = Callable[[Kernel, Changed], None]


def _head(kernel: Kernel, changed: Changed) -> None:
    changed.write(address(kernel["prb"].desc_ring.head_id.counter), (1 << 40).to_bytes(8, "little"))


def _bits(kernel: Kernel, changed: Changed) -> None:
    changed.write(address(kernel["prb"].desc_ring.count_bits), (60).to_bytes(4, "little"))


@pytest.mark.parametrize("change", [_head, _bits])
def test_a_damaged_ring_of_the_log_is_refused(golden: Golden, change: Change) -> None:
    """More records than the ring has, or an impossible size, are not followed."""
    with open_memory(golden(IMAGE)) as source:
        changed = Changed(source)
        change(changed.before, changed)
        found = identity_of(changed.kernel())
    assert found.log is None
    assert any(remark.startswith("log: not known: the log's ring buffer has ") for remark in found.remarks)
    assert found.clock is not None


def test_a_record_that_wraps(golden: Golden) -> None:
    """The text of a block that does not fit before the end of the ring lies at its start, after the block's ID."""
    with open_memory(golden(IMAGE)) as source:
        changed = Changed(source)
        ring = changed.before["prb"]
        data, ring_bytes = ring.text_data_ring.data.value_(), 1 << ring.text_data_ring.size_bits.value_()
        number = ring.desc_ring.head_id.counter.value_() & (1 << ring.desc_ring.count_bits.value_()) - 1
        position = ring.desc_ring.descs[number].text_blk_lpos
        changed.write(address(position.begin), (3 * ring_bytes - 16).to_bytes(8, "little"))
        changed.write(address(position.next), (3 * ring_bytes + 24).to_bytes(8, "little"))
        changed.write(data, b"IDIDIDIDwraps at the\x00\x1b")
        (record,), unread = read_log(changed.kernel(), 1)
    assert (record.text[:12], unread) == ("wraps at the", 0)
    assert len(record.text) == 16
