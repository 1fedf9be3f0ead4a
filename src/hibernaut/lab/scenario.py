# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest's day: boot, fill memory, hibernate, be dumped on the way; and another day: resume, be verified."""

from __future__ import annotations

import dataclasses
import json
import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from hibernaut.errors import FormatError, LabError
from hibernaut.lab.copy_loop import CopyLoop, find_copy_loop, symbols_of
from hibernaut.lab.guest.initramfs import initramfs
from hibernaut.lab.guest.region import REGION_MODULE, region_module
from hibernaut.lab.host.cache import Cache
from hibernaut.lab.host.kernels import Kernel
from hibernaut.lab.host.programs import need_module
from hibernaut.lab.variants import Swap, Variant
from hibernaut.lab.vm.disks import PARTITION_START_BYTES, copy_disk, make_disk
from hibernaut.lab.vm.gdb import Debugger
from hibernaut.lab.vm.port import Port, Reply, facts_of
from hibernaut.lab.vm.qemu import Disk, Hardware, Qemu, qemu
from hibernaut.memory.physical import PAGE_SIZE
from hibernaut.swsusp.declarations import SIGNATURE
from hibernaut.volumes.output import write_file

__all__ = [
    "IMAGE_NAME",
    "LOG_NAME",
    "RECORD_NAME",
    "RESUMED_LOG_NAME",
    "SPARE_NAME",
    "Hibernated",
    "Lab",
    "Record",
    "Resumed",
    "Stop",
    "Up",
    "see_arranged",
]

BOOT_SECONDS = 120
HIBERNATE_SECONDS = 180
POWER_OFF_SECONDS = 10
LOCKED_PAGES = 1024
LOOSE_PAGES = 1024
SEED = 0x1BADB002
REPORT = "/proc/hlab_region"
RECORD_NAME = "machine.json"
LOG_NAME = "kernel.log"
RESUMED_LOG_NAME = "resumed.log"
IMAGE_NAME = "swap.img"
SPARE_NAME = "spare.img"
PROMISING = re.compile(r"PM:|hibernat|swsusp|Hibernat", re.IGNORECASE)
CHATTER = re.compile(r"progress|Marking nosave|bitmaps|reseeded|Registered|resume from hibernation|signature found")
CAME_BACK = re.compile(r"hibernation exit|Restarting tasks")
WARNING = re.compile(r"PM: hibernation: Failed to remap page")
# "Bad page state" is a complaint, not a death: the page is left out, the kernel goes on.
DEATH = re.compile(
    r"list_(?:add|del) corruption.*|BUG: (?!Bad page state).*|Kernel panic.*|Oops.*|general protection.*|double fault.*"
)


@dataclass(frozen=True)
class Record:
    """What is known of a guest that hibernated: what another needs to resume it, and what it must find again.

    Attributes:
        session: of the machine that was saved.
        release: of its kernel.
        kernel: its kernel's name in tables.
        variant: what guest it was.
        partition: number of the swap partition, None for a whole disk.
        offset: `resume_offset`, pages.
        regions: what the module said of each region before, by key.
        frames: (page of the locked region, first frame, count), as the guest said.
        direct_map: the kernel's own counters DirectMap4k, DirectMap2M, DirectMap1G, in kB.
        saved_pages: what the kernel announced to copy ("Need to copy N pages"), None if it did not come to that.
        allocator: frames of what changes when the hibernating process is given a page: of the page ("free"), its
            `struct page` ("mem-map"), its zone ("zone") and the CPU's list ("pcp"), as the module said; empty without
            it.
    """

    session: str
    release: str
    kernel: str
    variant: Variant
    partition: int | None
    offset: int
    regions: tuple[dict[str, str], ...]
    frames: tuple[tuple[int, int, int], ...]
    direct_map: dict[str, int]
    saved_pages: int | None = None
    allocator: dict[str, int] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write it beside the image."""
        text = json.dumps(dataclasses.asdict(self), indent=1) + "\n"
        write_file(folder / RECORD_NAME, text.encode(), public=True)

    @classmethod
    def load(cls, folder: Path) -> Record:
        """Read it. Raises FormatError if it is damaged, OSError if it is not there."""
        path = folder / RECORD_NAME
        try:
            found: dict[str, Any] = json.loads(path.read_text())
            found["variant"] = Variant.of(found["variant"])
            found["regions"] = tuple(found["regions"])
            found["frames"] = tuple(tuple(run) for run in found["frames"])
            return cls(**found)
        except (ValueError, TypeError, KeyError) as error:
            raise FormatError(f"not a record of a laboratory guest: {error}", source=str(path)) from error


@dataclass(frozen=True)
class Stop:
    """Where a hibernating guest is stopped and its RAM dumped: `before` or `after` the copy loop of `swsusp_save`."""

    before: Path | None = None
    after: Path | None = None
    disk: Path | None = None
    """Where to put a copy of the swap disk as it is before the loop; nothing is written to it from then on."""

    @property
    def wanted(self) -> bool:
        """Whether there is any stop."""
        return self.before is not None or self.after is not None


@dataclass(frozen=True)
class Hibernated:
    """How a hibernation ended.

    Attributes:
        outcome: hibernated; died; refused.
        reason: of the last two, in the kernel's words.
        folder: with `swap.img`, the spare disk and the record.
        record: what is in it.
        log: everything that the kernel printed.
        seconds: from boot to end.
        cr3: at the stop before the copy, as QEMU says (PCID bits cleared), in hex; None without that stop.
    """

    outcome: str
    reason: str
    folder: Path
    record: Record
    log: str
    seconds: float
    cr3: str | None = None

    @property
    def image(self) -> Path:
        """The disk with the swap area."""
        return self.folder / IMAGE_NAME


@dataclass(frozen=True)
class Resumed:
    """Whether a kernel resumed, and what the resumed guest found.

    Attributes:
        passed: resumed, all its pages right, its direct map what it was.
        reason: one line: what was verified, or why not.
        log: everything that the kernel printed.
        seconds: from boot to end.
        facts: what the guest said, by name.
    """

    passed: bool
    reason: str
    log: str
    seconds: float
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class Up:
    """A guest that is up."""

    qemu: Qemu
    port: Port
    session: str
    booted: float
    cr3: str | None = None
    """At the stop before the copy loop."""

    def words(self) -> str:
        """What the kernel said when it died, else its last words."""
        deaths = DEATH.findall(self.qemu.console())
        return deaths[0] if deaths else " / ".join(self.qemu.last_words(2))


class Lab:
    """The laboratory: guests of one kernel.

    Args:
        kernel: which.
        cache: for what is built.
        accelerator: tcg or kvm.
        mirror: of Debian's archive, for the module's headers.
    """

    def __init__(
        self, kernel: Kernel, cache: Cache | None = None, accelerator: str = "tcg", mirror: str | None = None
    ) -> None:
        self.kernel = kernel
        self.cache = cache or Cache()
        self.accelerator = accelerator
        self.mirror = mirror

    # ---- booting ----

    def hardware(self, variant: Variant, folder: Path, disks: Sequence[Disk], session: str, gdb: bool) -> Hardware:
        """The machine of a guest; its initramfs is `folder`/initramfs."""
        words = [f"hlab_session={session}", "oops=panic"]
        if not variant.kaslr:
            words.append("nokaslr")
        if variant.compressor == "none":
            words.append("hibernate=nocompress")
        if variant.secret_pages:
            words.append("secretmem.enable=1")
        return Hardware(
            kernel=self.kernel.vmlinuz,
            initramfs=folder / "initramfs",
            parameters=" ".join(words),
            disks=tuple(disks),
            memory_mib=variant.memory_mib,
            levels=variant.levels,
            accelerator=self.accelerator,
            gdb=gdb,
            cpu_node=int(variant.lists == "above") if variant.two_nodes else None,
        )

    @contextmanager
    def boot(
        self, variant: Variant, folder: Path, disks: Sequence[Disk], *, with_module: bool = False, gdb: bool = False
    ) -> Iterator[Up]:
        """A guest that is up; dead on leaving.

        Args:
            variant: which.
            folder: for the initramfs.
            disks: vda, vdb.
            with_module: whether /modules has the module that makes regions.
            gdb: whether a debugger can be attached.

        Raises:
            LabUnavailable: something is missing here.
            LabError: it does not come up.
        """
        extra = [region_module(self.cache, self.kernel, self.mirror)] if with_module else []
        (folder / "initramfs").write_bytes(initramfs(self.cache, self.kernel, extra))
        session = secrets.token_hex(4)
        started = time.monotonic()
        with qemu(self.hardware(variant, folder, disks, session, gdb)) as guest:
            port = Port(guest)
            port.hello(BOOT_SECONDS)
            yield Up(guest, port, session, started)

    # ---- hibernating ----

    def hibernate(
        self, variant: Variant, folder: Path, stop: Stop | None = None, ask: Callable[[Up], None] | None = None
    ) -> Hibernated:
        """Boot a guest on fresh disks, fill its memory and let it hibernate.

        Args:
            variant: which guest.
            folder: an existing folder for its disks and record.
            stop: where to dump its RAM on the way.
            ask: called when it is ready to hibernate.

        Raises:
            LabUnavailable: something is missing here.
            LabError: the guest does not do as it is told.
        """
        where = stop or Stop()
        if where.wanted:
            need_module("capstone")
        with self._prepared(variant, folder, gdb=where.wanted) as (guest, record):
            record.save(folder)
            if ask:
                ask(guest)
            outcome, reason = self._go(guest, where, folder / IMAGE_NAME, record)
            log = guest.qemu.console()
            announced = re.search(r"Need to copy (\d+) pages", log)
            record = dataclasses.replace(record, saved_pages=int(announced[1]) if announced else None)
            record.save(folder)
            seconds = time.monotonic() - guest.booted
            return Hibernated(outcome, reason, folder, record, log, seconds, guest.cr3)

    def ready(self, variant: Variant, folder: Path, then: Callable[[Up], None]) -> Record:
        """Boot a guest up to the moment of hibernating, do something with it, end it. See `hibernate`."""
        with self._prepared(variant, folder, gdb=False) as (guest, record):
            then(guest)
            return record

    @contextmanager
    def _prepared(self, variant: Variant, folder: Path, gdb: bool) -> Iterator[tuple[Up, Record]]:
        """A guest on fresh disks, ready to hibernate."""
        size_mib = variant.memory_mib * 3 // 2
        make_disk(folder / IMAGE_NAME, size_mib, variant.swap)
        make_disk(folder / SPARE_NAME, size_mib, Swap.DISK)
        disks = [Disk(folder / IMAGE_NAME, keep=True), Disk(folder / SPARE_NAME, keep=True)]
        with self.boot(variant, folder, disks, with_module=bool(variant.regions), gdb=gdb) as guest:
            yield guest, self._prepare(guest, variant)

    def _prepare(self, guest: Up, variant: Variant) -> Record:
        """Swap, memory, regions: everything up to the moment of hibernating."""
        run = guest.port.run
        nodes = _nodes(guest) if variant.two_nodes else ()
        if variant.regions:
            if nodes:
                run(f"!prefer {nodes[-1]}")
            self._take_out(guest, variant)  # first, while whole blocks are free
        device, partition, offset = self._swap_on(guest, variant)
        run("echo 0 > /proc/sys/vm/compact_unevictable_allowed")  # locked pages stay where they are
        run(f"!fill locked {LOCKED_PAGES} {SEED:#x}")
        run(f"!fill loose {LOOSE_PAGES} {SEED + 1:#x}")
        if variant.secret_pages:
            run(f"!fill secret {variant.secret_pages} {SEED + 2:#x}")
        if variant.compressor == "lz4":
            run("echo lz4 > /sys/module/hibernate/parameters/compressor")
        if offset:
            run(f"echo {offset} > /sys/power/resume_offset")
        run(f"cat /sys/class/block/{device}/dev > /sys/power/resume")
        if not variant.secret_pages:
            run("echo shutdown > /sys/power/disk")
        run("echo 1 > /sys/power/pm_debug_messages || true")  # newer kernels do not say otherwise what they save
        if nodes:
            run(f"!prefer {nodes[variant.pages == 'above']}")
        report = _report(guest)
        record = Record(
            session=guest.session,
            release=self.kernel.release,
            kernel=self.kernel.name,
            variant=variant,
            partition=partition,
            offset=offset,
            regions=_regions(report),
            frames=_frames(guest, "locked"),
            direct_map=_direct_map_counters(guest),
            allocator=_allocator(report),
        )
        if variant.two_nodes:
            see_arranged(record)
        return record

    def _swap_on(self, guest: Up, variant: Variant) -> tuple[str, int | None, int]:
        """(block device, partition, resume_offset) of the guest's swap, switched on."""
        run = guest.port.run
        if variant.swap is Swap.FILE:
            run("mount -t ext4 /dev/vda /mnt")
            run(f"dd if=/dev/zero of=/mnt/swapfile bs=1M count={variant.memory_mib} 2>/dev/null", 300)
            run("chmod 600 /mnt/swapfile && mkswap /mnt/swapfile && swapon /mnt/swapfile && sync")
            (extent,) = (facts_of(line) for line in run("!extent /mnt/swapfile"))
            return "vda", None, int(extent["block"])
        device, partition = ("vda1", 1) if variant.swap is Swap.PARTITION else ("vda", None)
        run(f"mkswap /dev/{device} && swapon /dev/{device}")
        return device, partition, 0

    def _take_out(self, guest: Up, variant: Variant) -> None:
        listed = guest.port.run("grep -w -E 'alloc_pages|alloc_pages_noprof' /proc/kallsyms || true")
        allocator = next((line.split()[2] for line in listed), "")
        words = [f"make={','.join(variant.regions)}", f"seed={variant.seed}"]
        if variant.fail_allocations:
            words += [f"allocator={allocator}", f"fail={variant.fail_allocations}"]
        guest.port.run(f"!insmod /modules/{REGION_MODULE} {' '.join(words)}")
        guest.port.run(f"echo arm > {REPORT}")

    def _go(self, guest: Up, stop: Stop, disk: Path, record: Record) -> tuple[str, str]:
        """Hibernate to a disk; (outcome, reason)."""
        command = "echo disk > /sys/power/state"
        if not stop.wanted:
            return self._end_of_day(guest, guest.port.send(command), disk, record)
        loop, debugger = self._debugger(guest)
        for address in loop.before:
            debugger.add_breakpoint(address)
        debugger.go_on()
        sequence = guest.port.send(command)
        refusal = _come_to_the_loop(guest, debugger, sequence)
        if refusal is not None:
            return _refused(refusal)
        if stop.before:
            registers = guest.qemu.execute("human-monitor-command", **{"command-line": "info registers"})
            guest.cr3 = f"{int(re.findall(r'CR3=([0-9a-f]+)', registers)[0], 16) & ~0xFFF:#x}"
            guest.qemu.dump(stop.before)
            if stop.disk:
                copy_disk(disk, stop.disk)
        for address in loop.before:
            debugger.remove_breakpoint(address)
        if stop.after:
            debugger.add_breakpoint(loop.after)
            debugger.go_on()
            debugger.wait_for_stop(HIBERNATE_SECONDS)
            guest.qemu.dump(stop.after)
        debugger.close()
        return self._end_of_day(guest, sequence, disk, record)

    def _debugger(self, guest: Up) -> tuple[CopyLoop, Debugger]:
        lines = guest.port.run("grep -w -A 4 -E 'swsusp_save|memory_bm_next_pfn' /proc/kallsyms")
        debugger = Debugger(guest.qemu)
        return find_copy_loop(debugger.read, symbols_of(lines)), debugger

    def _end_of_day(self, guest: Up, sequence: int, disk: Path, record: Record) -> tuple[str, str]:
        """Wait for the power to go off, for death (the disk says which), or for the kernel's refusal."""
        try:
            reply = guest.port.reply(sequence, HIBERNATE_SECONDS, "hibernating")
        except LabError:
            if not guest.port.ended:
                raise
            guest.qemu.wait(POWER_OFF_SECONDS)
            if _signature(disk, record) == SIGNATURE:
                return "hibernated", ""
            console = guest.qemu.console()
            died = [*WARNING.findall(console)[:1], *DEATH.findall(console)[:1]]
            return "died", "; ".join(died) or guest.words()
        return _refused(reply)

    # ---- resuming ----

    def resume(
        self,
        record: Record,
        disks: Sequence[Path],
        folder: Path,
        *,
        device: str = "vda",
        partition: int | None = None,
        offset: int = 0,
        dump: Path | None = None,
        questions: Sequence[str] = (),
    ) -> Resumed:
        """Boot a fresh machine, let its kernel resume, and ask the resumed guest what it finds.

        Args:
            record: of the guest that was saved.
            disks: vda, vdb as it had them; copies are used, they stay as they are.
            folder: for the initramfs.
            device: the disk that the image is on.
            partition: the partition that it is in.
            offset: `resume_offset`.
            dump: where to put the resumed guest's RAM.
            questions: commands for the resumed guest; their output becomes the fact "answers".

        Raises:
            LabUnavailable: something is missing here.
            LabError: the fresh machine does not even come up.
        """
        with self.boot(record.variant, folder, [Disk(path, keep=False) for path in disks]) as guest:
            said_before = len(guest.qemu.console())
            _ask_to_resume(guest, device, partition, offset)
            verdict = partial(_resumed, guest)
            try:
                reply = guest.port.reply(None, HIBERNATE_SECONDS, "resuming")
                if reply.session == guest.session:
                    return verdict(False, f"fresh boot: {_kernels_words(guest.qemu.console()[said_before:])}")
                if reply.session != record.session:
                    return verdict(False, f"another machine came back (session {reply.session})")
                passed, reason, facts = self._verify(guest, record, reply)
                facts["answers"] = [guest.port.ask(question).lines for question in questions]
                if dump:
                    guest.qemu.execute("stop")
                    guest.qemu.dump(dump)
                return verdict(passed, reason, **facts)
            except LabError as error:
                return verdict(False, f"dead: {guest.words()}" if guest.port.ended else f"timeout: {error}")

    def resume_stranger(
        self, variant: Variant, disk: Path, folder: Path, *, partition: int | None = None, offset: int = 0
    ) -> Resumed:
        """Boot a fresh machine on an image of a guest that is not the laboratory's: nothing in it can be verified.

        That it came back shows in what its kernel prints, if that has its console on the first serial line.

        Args:
            variant: memory and levels of paging.
            disk: its only disk; a copy is used.
            folder: for the initramfs.
            partition: the partition that the image is in.
            offset: `resume_offset`.

        Raises:
            LabUnavailable, LabError: see `resume`.
        """
        with self.boot(variant, folder, [Disk(disk, keep=False)]) as guest:
            said_before = len(guest.qemu.console())
            sequence = _ask_to_resume(guest, "vda", partition, offset)
            end = time.monotonic() + HIBERNATE_SECONDS
            verdict = partial(_resumed, guest)
            while time.monotonic() < end:
                said = guest.qemu.console()[said_before:]
                if CAME_BACK.search(said):
                    return verdict(True, "resumed; nothing was verified, the guest is not the laboratory's")
                if guest.port.poll(sequence, 0.2) is not None:
                    return verdict(False, f"fresh boot: {_kernels_words(guest.qemu.console()[said_before:])}")
                if guest.port.ended:
                    return verdict(False, f"dead: {guest.words()}")
            return verdict(False, "timeout: neither a resumed machine nor a refusal")

    def _verify(self, guest: Up, record: Record, reply: Reply) -> tuple[bool, str, dict[str, Any]]:
        """(all right, one line, facts) of a resumed guest."""
        wrong = []
        if reply.status:
            wrong.append(f"hibernation ended with status {reply.status}")
        pages = 0
        for region in ("locked", "loose"):
            check = guest.port.ask(f"!verify {region}")
            pages += int(facts_of(check.lines[-1]).get("pages", "0")) if check.lines else 0
            if check.status:
                wrong.append(f"data: {'; '.join(check.lines) or f'no region {region}'}")
        after = _regions(_report(guest)) if record.regions else ()
        if len(after) != len(record.regions):
            wrong.append(f"the module tells of {len(after)} regions, there were {len(record.regions)}")
        wrong += [problem for pair in zip(record.regions, after, strict=False) for problem in _region_problems(*pair)]
        counters = _direct_map_counters(guest)
        if not wrong and counters != record.direct_map:
            wrong.append(f"direct map: counters {counters}, were {record.direct_map}")
        facts = {"pages": pages, "regions": list(after), "direct_map": counters}
        if wrong:
            return False, "; ".join(wrong), facts
        blocks = f" and {len(after)} region{'s' * (len(after) > 1)} of the direct map" if after else ""
        return True, f"resumed, {pages} pages{blocks} as they were", facts


def _signature(disk: Path, record: Record) -> bytes:
    """The signature of a guest's swap area."""
    base_bytes = 0 if record.partition is None else PARTITION_START_BYTES
    with disk.open("rb") as file:
        file.seek(base_bytes + (record.offset + 1) * PAGE_SIZE - len(SIGNATURE))
        return file.read(len(SIGNATURE))


def _come_to_the_loop(guest: Up, debugger: Debugger, sequence: int) -> Reply | None:
    """Wait until a hibernating guest is at a breakpoint, or give its kernel's refusal. Raises LabError if neither."""
    end = time.monotonic() + HIBERNATE_SECONDS
    while not debugger.stopped(0.2):
        reply = guest.port.poll(sequence, 0)
        if reply is not None:
            return reply
        if guest.port.ended or time.monotonic() > end:
            raise LabError("the guest did not come to the copy loop", log=guest.qemu.last_words())
    return None


def _refused(reply: Reply) -> tuple[str, str]:
    return "refused", f"exit status {reply.status}: {' / '.join(reply.lines)}"


def _ask_to_resume(guest: Up, device: str, partition: int | None, offset: int) -> int:
    """Tell a fresh machine's kernel where the image is; returns the sequence number of the reply of a refusal."""
    set_offset = f"echo {offset} > /sys/power/resume_offset; " if offset else ""
    return guest.port.send(f"{set_offset}cat /sys/class/block/{device}{partition or ''}/dev > /sys/power/resume")


def _resumed(guest: Up, passed: bool, reason: str, **facts: Any) -> Resumed:
    return Resumed(passed, reason, guest.qemu.console(), time.monotonic() - guest.booted, facts)


def _report(guest: Up) -> Sequence[str]:
    """What the module says; nothing if it is not loaded. It looks at every page of every region for that."""
    reply = guest.port.ask(f"cat {REPORT}")
    return () if reply.status else reply.lines


def _regions(report: Sequence[str]) -> tuple[dict[str, str], ...]:
    """Of the module's report what became of each region."""
    return tuple(facts_of(line) for line in report if line.startswith("region "))


def _allocator(report: Sequence[str]) -> dict[str, int]:
    """Of the module's report where the allocator has what it changes."""
    said = (facts_of(line) for line in report if line.startswith("allocator "))
    return {name: int(pfn, 16) for facts in said for name, pfn in facts.items()}


def see_arranged(record: Record) -> None:
    """See that the allocator has its own where the variant wants it. Raises LabError if not."""
    blocks = [int(region["block"], 16) for region in record.regions]
    for name in ("mem-map", "zone", "pcp"):
        wanted = record.variant.lists if name == "pcp" else record.variant.pages
        pfn = record.allocator.get(name, 0)
        if blocks and not (pfn > max(blocks) if wanted == "above" else 0 < pfn < min(blocks)):
            where = f"{wanted} its regions (frames {min(blocks):#x} to {max(blocks):#x})"
            raise LabError(f"the guest's {name} lies at frame {pfn:#x}, not {where}")


def _nodes(guest: Up) -> tuple[int, ...]:
    """The kernel's numbers of the NUMA nodes, that of the lowest memory first (the CPU's is 0, wherever it lies)."""
    found: dict[int, int] = {}
    node = 0
    for line in guest.port.run("cat /proc/zoneinfo"):
        words = line.split()
        if words[:1] == ["Node"]:
            node = int(words[1].rstrip(","))
        elif words[:1] == ["start_pfn:"]:
            found[node] = max(found.get(node, 0), int(words[1]))
    return tuple(sorted(found, key=found.__getitem__))


def _frames(guest: Up, region: str) -> tuple[tuple[int, int, int], ...]:
    found = [facts_of(line) for line in guest.port.run(f"!frames {region}")]
    return tuple((int(one["page"]), int(one["first"], 16), int(one["count"])) for one in found)


def _direct_map_counters(guest: Up) -> dict[str, int]:
    lines = guest.port.run("grep ^DirectMap /proc/meminfo")
    return {line.split()[0].rstrip(":"): int(line.split()[1]) for line in lines}


def _region_problems(before: dict[str, str], after: dict[str, str]) -> Iterator[str]:
    """What became of a region: its data, its entries."""
    place = f"block {before['block']}"
    if after["damaged"] != "0":
        yield f"data: {place}: {after['damaged']} pages damaged"
    if all(after.get(key) == before.get(key) for key in ("pmd", "level", "present", "hidden", "none", "wrong")):
        return
    bad = int(after.get("wrong", "512")) + max(0, int(after.get("none", "0")) - int(before.get("none", "0")))
    if bad:
        yield f"direct map garbage: {place}: PMD entry {after.get('pmd')}, {bad} of 512 entries wrong"
    else:
        yield f"direct map changed: {place}: PMD entry {before.get('pmd')} is now {after.get('pmd')}"


def _kernels_words(log: str) -> str:
    """What a kernel said of an image that it did not resume from."""
    lines = [re.sub(r"^\[ *[\d.]+\] *", "", line) for line in log.splitlines()]
    told = [line for line in lines if PROMISING.search(line) and not CHATTER.search(line)]
    return " / ".join(told[-5:]) or "no word about an image"
