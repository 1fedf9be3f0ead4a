# SPDX-License-Identifier: GPL-2.0-or-later
"""The laboratory: guests of one kernel that boot, hibernate, are dumped on the way, and resume elsewhere."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hibernaut.errors import LabError
from hibernaut.lab.copy_loop import CopyLoop, find_copy_loop, symbols_of
from hibernaut.lab.guest.initramfs import initramfs
from hibernaut.lab.guest.region import region_module
from hibernaut.lab.guest_state import CRASH, RunningGuest, image_messages
from hibernaut.lab.host.cache import Cache
from hibernaut.lab.host.kernels import GuestKernel
from hibernaut.lab.host.programs import need_module
from hibernaut.lab.preparation import prepare
from hibernaut.lab.record import IMAGE_NAME, SPARE_NAME, GuestRecord
from hibernaut.lab.threads import BLOCK_PAGES, continue_threads
from hibernaut.lab.variants import Swap, Variant
from hibernaut.lab.verification import verify_resumed
from hibernaut.lab.vm.disks import PARTITION_START_BYTES, copy_disk, make_disk
from hibernaut.lab.vm.gdb import Debugger
from hibernaut.lab.vm.port import Port, Reply
from hibernaut.lab.vm.qemu import Disk, Hardware, Qemu, qemu
from hibernaut.memory.page import PAGE_SIZE
from hibernaut.swsusp.declarations import SIGNATURE

__all__ = [
    "HIBERNATE",
    "DumpPoints",
    "Hibernated",
    "Lab",
    "Resumed",
    "attach",
    "outcome_of",
    "reached_end_of_copy",
    "silent_since_a_crash",
    "start_resume",
    "wait_for_stop",
]

BOOT_SECONDS = 120
HIBERNATE_SECONDS = 180
COPY_SECONDS = 300
CRASH_SECONDS = 10
"""Silence after a kernel's message of a crash that ends the wait for a resumed guest: with torn lists it prints
warnings by the thousand, a minute and a half long, before it stops."""
POWER_OFF_SECONDS = 10
HIBERNATE = "echo disk > /sys/power/state"
RESUMED_MESSAGE = re.compile(r"hibernation exit")
"""Printed by `hibernate` (kernel/power/hibernate.c), which only a resumed kernel returns from. A kernel that refuses an
image has frozen its own tasks, and prints "Restarting tasks" as well."""


@dataclass(frozen=True)
class DumpPoints:
    """Points at which a hibernating guest is stopped and its RAM dumped.

    Attributes:
        before: file for the dump right before the copy loop of `swsusp_save`.
        after: file for the dump right after it.
        disk: file for a copy of the swap disk as it is before the loop; nothing is written to the copy afterwards.
    """

    before: Path | None = None
    after: Path | None = None
    disk: Path | None = None

    @property
    def wanted(self) -> bool:
        """Whether the guest is stopped at all."""
        return self.before is not None or self.after is not None


@dataclass(frozen=True)
class Hibernated:
    """Outcome of a hibernation.

    Attributes:
        outcome: hibernated, died or refused.
        reason: of the last two, in the kernel's words.
        folder: folder with `swap.img`, the spare disk and the record.
        record: the record in that folder.
        log: everything that the kernel printed.
        seconds: time from boot to end.
        cr3: CR3 at the stop before the copy, from QEMU, PCID bits cleared, in hex; None without that stop.
    """

    outcome: str
    reason: str
    folder: Path
    record: GuestRecord
    log: str
    seconds: float
    cr3: str | None = None

    @property
    def image(self) -> Path:
        """The disk with the swap area."""
        return self.folder / IMAGE_NAME

    @property
    def summary(self) -> str:
        """Outcome and reason in one line: hibernated, crashed or refused."""
        word = "crashed" if self.outcome == "died" else self.outcome
        return f"{word}: {self.reason}" if self.reason else word


@dataclass(frozen=True)
class Resumed:
    """Outcome of a resume.

    Attributes:
        passed: whether the kernel resumed and the guest found its pages and its direct map unchanged.
        reason: one line: what was verified, or why not.
        log: everything that the kernel printed.
        seconds: time from boot to end.
        facts: the guest's findings, by name.
    """

    passed: bool
    reason: str
    log: str
    seconds: float
    facts: dict[str, Any] = field(default_factory=dict)


class Lab:
    """The laboratory for one kernel.

    Args:
        kernel: kernel that the guests boot.
        cache: cache for programs and modules that are built; the user's own if None.
        accelerator: tcg or kvm.
        mirror: mirror of Debian's archive, for the module's headers; as apt is configured if None.
        module: the module that makes regions, built for this kernel by its owner; built when needed if None.
    """

    def __init__(
        self,
        kernel: GuestKernel,
        cache: Cache | None = None,
        accelerator: str = "tcg",
        mirror: str | None = None,
        module: Path | None = None,
    ) -> None:
        self.module = module
        self.kernel = kernel
        self.cache = cache or Cache()
        self.accelerator = accelerator
        self.mirror = mirror
        self._guests: list[Qemu] = []
        self._closed = False

    def close(self) -> None:
        """Kill all guests, and boot no other: whatever other threads do with them ends soon."""
        self._closed = True
        for guest in tuple(self._guests):
            guest.process.kill()

    def reopen(self) -> None:
        """Boot guests again."""
        self._closed = False

    # ---- booting ----

    def hardware(
        self,
        variant: Variant,
        folder: Path,
        disks: Sequence[Disk],
        session: str,
        gdb: bool,
        shared_ram: bool = False,
    ) -> Hardware:
        """Return the machine of a guest whose initramfs is `folder`/initramfs."""
        words = [f"hlab_session={session}", "oops=panic"]
        if not variant.kaslr:
            words.append("nokaslr")
        if variant.compressor == "none":
            words.append("hibernate=nocompress")
        if variant.secret_pages:
            words.append("secretmem.enable=1")
        if variant.kfence:
            words.append("kfence.skip_covered_thresh=100")  # one place may use all of the pool
        return Hardware(
            kernel=self.kernel.vmlinuz,
            initramfs=folder / "initramfs",
            parameters=" ".join(words),
            disks=tuple(disks),
            memory_mib=variant.memory_mib,
            levels=variant.levels,
            accelerator=self.accelerator,
            gdb=gdb,
            shared_ram=shared_ram,
            cpu_node=int(variant.lists == "above") if variant.two_nodes else None,
        )

    @contextmanager
    def boot(
        self,
        variant: Variant,
        folder: Path,
        disks: Sequence[Disk],
        *,
        with_module: bool = False,
        gdb: bool = False,
        shared_ram: bool = False,
        files: Sequence[Path] = (),
        adapt: Callable[[Hardware], Hardware] | None = None,
    ) -> Iterator[RunningGuest]:
        """Boot a guest and yield it; it is killed on leaving.

        Args:
            variant: kind of guest.
            folder: folder for the initramfs.
            disks: vda, vdb.
            with_module: whether /modules has the module that makes regions.
            gdb: whether a debugger can be attached.
            shared_ram: whether its RAM can be read (`Qemu.ram`).
            files: further files for its /modules, decompressed there.
            adapt: function that changes its machine.

        Raises:
            LabUnavailable: the laboratory lacks something on this machine.
            LabError: the guest does not boot, or the laboratory is closed.
        """
        extra = [self.module or region_module(self.cache, self.kernel, self.mirror)] if with_module else []
        (folder / "initramfs").write_bytes(initramfs(self.cache, self.kernel, [*extra, *files]))
        session = secrets.token_hex(4)
        started = time.monotonic()
        hardware = self.hardware(variant, folder, disks, session, gdb, shared_ram)
        with qemu(adapt(hardware) if adapt else hardware) as machine:
            self._guests.append(machine)
            try:
                if self._closed:  # looked at when `close` can see the guest
                    raise LabError("the laboratory is closed")
                port = Port(machine)
                port.hello(BOOT_SECONDS)
                yield RunningGuest(machine, port, session, started)
            finally:
                self._guests.remove(machine)

    # ---- hibernating ----

    def hibernate(
        self,
        variant: Variant,
        folder: Path,
        dumps: DumpPoints | None = None,
        ask: Callable[[RunningGuest], None] | None = None,
    ) -> Hibernated:
        """Boot a guest on fresh disks, fill its memory and let it hibernate.

        Args:
            variant: kind of guest.
            folder: existing folder for its disks and record.
            dumps: points at which its RAM is dumped.
            ask: called when it is ready to hibernate.

        Raises:
            LabUnavailable: the laboratory lacks something on this machine.
            LabError: the guest fails or times out.
        """
        points = dumps or DumpPoints()
        if points.wanted:
            need_module("capstone")
        with self.prepared(variant, folder, gdb=points.wanted) as (guest, record):
            record.save(folder)
            if ask:
                ask(guest)
            outcome, reason = _hibernate(guest, points, folder / IMAGE_NAME, record)
            log = guest.qemu.console()
            record = record.with_announced_pages(log)
            record.save(folder)
            seconds = time.monotonic() - guest.booted
            return Hibernated(outcome, reason, folder, record, log, seconds, guest.cr3)

    def ready(self, variant: Variant, folder: Path, use: Callable[[RunningGuest], None]) -> GuestRecord:
        """Boot a guest up to the moment of hibernating, call `use` with it, and end it. See `hibernate`."""
        with self.prepared(variant, folder) as (guest, record):
            use(guest)
            return record

    @contextmanager
    def prepared(
        self, variant: Variant, folder: Path, *, gdb: bool = False, shared_ram: bool = False, traced: int = 0
    ) -> Iterator[tuple[RunningGuest, GuestRecord]]:
        """Boot a guest on fresh disks and yield it ready to hibernate, with its record; it is killed on leaving.

        Args:
            variant: kind of guest.
            folder: existing folder for its disks.
            gdb: whether a debugger can be attached.
            shared_ram: whether its RAM can be read while it is stopped (`Qemu.ram`).
            traced: number of calls of the copy loop that its module has room to record; 0 for no recording.

        Raises:
            LabUnavailable: the laboratory lacks something on this machine.
            LabError: the guest does not boot, or cannot be arranged.
        """
        size_mib = variant.memory_mib * 3 // 2
        make_disk(folder / IMAGE_NAME, size_mib, variant.swap)
        make_disk(folder / SPARE_NAME, size_mib, Swap.DISK)
        disks = [Disk(folder / IMAGE_NAME, keep=True), Disk(folder / SPARE_NAME, keep=True)]
        with_module = bool(variant.regions) or traced > 0
        with self.boot(variant, folder, disks, with_module=with_module, gdb=gdb, shared_ram=shared_ram) as guest:
            yield guest, prepare(guest, variant, self.kernel, traced=traced)

    # ---- resuming ----

    def resume(
        self,
        record: GuestRecord,
        disks: Sequence[Path],
        folder: Path,
        *,
        device: str = "vda",
        partition: int | None = None,
        offset: int = 0,
        dump: Path | None = None,
        questions: Sequence[str] = (),
    ) -> Resumed:
        """Boot a fresh machine, let its kernel resume, and verify the resumed guest.

        Args:
            record: record of the guest that was saved.
            disks: vda, vdb as the guest had them; the machine gets copies, the files stay unchanged.
            folder: folder for the initramfs.
            device: disk with the image.
            partition: partition with the image.
            offset: `resume_offset`.
            dump: file for a dump of the resumed guest's RAM.
            questions: commands for the resumed guest; their output becomes the fact "answers".

        Raises:
            LabUnavailable: the laboratory lacks something on this machine.
            LabError: the fresh machine does not boot.
        """
        with self.boot(record.variant, folder, [Disk(path, keep=False) for path in disks]) as guest:
            printed_before = len(guest.qemu.console())
            start_resume(guest, device, partition, offset)
            guest.port.is_lost = silent_since_a_crash(guest, printed_before)
            try:
                reply = guest.port.reply(None, HIBERNATE_SECONDS, "resuming")
                if reply.session == guest.session:
                    return _resumed(guest, False, _fresh_boot(guest, printed_before))
                if reply.session != record.session:
                    return _resumed(guest, False, f"another machine was resumed (session {reply.session})")
                passed, reason, facts = verify_resumed(guest, record, reply)
                facts["answers"] = [guest.port.ask(question).lines for question in questions]
                if dump:
                    guest.qemu.execute("stop")
                    guest.qemu.dump(dump)
                if record.variant.has_threads:
                    if dump:
                        guest.qemu.execute("cont")
                    passed, reason, facts = _with_threads(guest, passed, reason, facts)
                return _resumed(guest, passed, reason, **facts)
            except LabError as error:
                crashed = guest.port.ended or guest.port.lost
                return _resumed(guest, False, f"crashed: {guest.crash_message()}" if crashed else f"timeout: {error}")

    def resume_foreign(
        self, variant: Variant, disk: Disk, folder: Path, *, partition: int | None = None, offset: int = 0
    ) -> Resumed:
        """Boot a fresh machine on an image without a record: whether it resumes shows, but nothing can be verified.

        The resume is recognized by the kernel's messages, if the saved kernel has its console on the first serial line.

        Args:
            variant: memory and levels of paging.
            disk: the machine's only disk.
            folder: folder for the initramfs.
            partition: partition with the image.
            offset: `resume_offset`.

        Raises:
            LabUnavailable, LabError: see `resume`.
        """
        with self.boot(variant, folder, [disk]) as guest:
            printed_before = len(guest.qemu.console())
            sequence = start_resume(guest, "vda", partition, offset)
            end = time.monotonic() + HIBERNATE_SECONDS
            while time.monotonic() < end:
                if RESUMED_MESSAGE.search(guest.qemu.console()[printed_before:]):
                    return _resumed(guest, True, "resumed; nothing was verified: the image has no lab record")
                if guest.port.poll(sequence, 0.2) is not None:
                    return _resumed(guest, False, _fresh_boot(guest, printed_before))
                if guest.port.ended:
                    return _resumed(guest, False, f"crashed: {guest.crash_message()}")
            return _resumed(guest, False, "timeout: neither a resumed machine nor a refusal")


def _hibernate(guest: RunningGuest, points: DumpPoints, disk: Path, record: GuestRecord) -> tuple[str, str]:
    """Hibernate to a disk, dump RAM on the way, and return outcome and reason."""
    if not points.wanted:
        return outcome_of(guest, guest.port.send(HIBERNATE), disk, record)
    loop, debugger = attach(guest)
    for address in loop.before:
        debugger.add_breakpoint(address)
    debugger.resume()
    sequence = guest.port.send(HIBERNATE)
    refusal = wait_for_stop(guest, debugger, sequence)
    if refusal is not None:
        return _refused(refusal)
    if points.before:
        guest.cr3 = f"{guest.qemu.paging()[0] & ~0xFFF:#x}"
        guest.qemu.dump(points.before)
        if points.disk:
            copy_disk(disk, points.disk)
    for address in loop.before:
        debugger.remove_breakpoint(address)
    if points.after:
        debugger.add_breakpoint(loop.after)
        debugger.resume()
        debugger.wait_for_stop(HIBERNATE_SECONDS)
        guest.qemu.dump(points.after)
    debugger.close()
    return outcome_of(guest, sequence, disk, record)


def copy_loop_symbols(guest: RunningGuest) -> tuple[str, ...]:
    """Return the lines of a guest's /proc/kallsyms that `attach` needs."""
    return guest.port.run("grep -w -A 4 -E 'swsusp_save|memory_bm_next_pfn' /proc/kallsyms")


def attach(guest: RunningGuest, lines: Sequence[str] = ()) -> tuple[CopyLoop, Debugger]:
    """Attach a debugger to a guest, and find the copy loop in its kernel.

    Args:
        guest: the guest.
        lines: `copy_loop_symbols`, if they were asked for before: the guest uses memory to tell them.
    """
    lines = lines or copy_loop_symbols(guest)
    debugger = Debugger(guest.qemu)
    return find_copy_loop(debugger.read, symbols_of(lines)), debugger


def wait_for_stop(guest: RunningGuest, debugger: Debugger, sequence: int) -> Reply | None:
    """Wait for the breakpoint in the copy and return None, or return the kernel's refusal.

    Args:
        guest: a guest that hibernates.
        debugger: debugger with the breakpoint.
        sequence: number of the command to hibernate.

    Raises:
        LabError: neither comes.
    """
    end = time.monotonic() + HIBERNATE_SECONDS
    while not debugger.stopped(0.2):
        reply = guest.port.poll(sequence, 0)
        if reply is not None:
            return reply
        if guest.port.ended or time.monotonic() > end:
            raise LabError("the guest did not reach the copy loop", log=guest.qemu.last_log_lines())
    return None


def reached_end_of_copy(guest: RunningGuest, debugger: Debugger) -> bool:
    """Wait for the breakpoint behind the copy; return False if the guest ends before.

    Raises:
        LabError: neither comes.
    """
    end = time.monotonic() + COPY_SECONDS
    while not debugger.stopped(0.1):
        if not guest.qemu.running:
            return False
        if time.monotonic() > end:
            raise LabError(f"the copy did not end within {COPY_SECONDS} s", log=guest.qemu.last_log_lines())
    return True


def outcome_of(guest: RunningGuest, sequence: int, disk: Path, record: GuestRecord) -> tuple[str, str]:
    """Wait for power off, a crash (the signature on the disk tells them apart) or the kernel's refusal.

    Args:
        guest: a guest that hibernates.
        sequence: number of the command to hibernate.
        disk: disk with its swap area.
        record: its record.

    Returns:
        The outcome (hibernated, died or refused) and the reason of the last two, in the kernel's words.

    Raises:
        LabError: none of them comes.
    """
    try:
        reply = guest.port.reply(sequence, HIBERNATE_SECONDS, "hibernating")
    except LabError:
        if not guest.port.ended:
            raise
        guest.qemu.wait(POWER_OFF_SECONDS)
        if _signature(disk, record) == SIGNATURE:
            return "hibernated", ""
        return "died", guest.copy_crash_messages()
    return _refused(reply)


def _signature(disk: Path, record: GuestRecord) -> bytes:
    """Return the signature of a guest's swap area."""
    base_bytes = 0 if record.partition is None else PARTITION_START_BYTES
    with disk.open("rb") as file:
        file.seek(base_bytes + (record.offset + 1) * PAGE_SIZE - len(SIGNATURE))
        return file.read(len(SIGNATURE))


def _refused(reply: Reply) -> tuple[str, str]:
    return "refused", f"exit status {reply.status}: {' / '.join(reply.lines)}"


def start_resume(guest: RunningGuest, device: str, partition: int | None, offset: int) -> int:
    """Name the image to a fresh machine's kernel and return the sequence number of the reply in case it refuses."""
    set_offset = f"echo {offset} > /sys/power/resume_offset; " if offset else ""
    return guest.port.send(f"{set_offset}cat /sys/class/block/{device}{partition or ''}/dev > /sys/power/resume")


def _fresh_boot(guest: RunningGuest, printed_before: int) -> str:
    """Return the reason of a refusal: the kernel's messages since the command to resume."""
    return f"fresh boot: {image_messages(guest.qemu.console()[printed_before:])}"


def silent_since_a_crash(guest: RunningGuest, printed_before: int) -> Callable[[float], bool]:
    """Return a function that says whether a silent guest has crashed.

    Args:
        guest: the guest.
        printed_before: length of its log before which no message counts.
    """
    return lambda silent: silent > CRASH_SECONDS and bool(CRASH.search(guest.qemu.console(), printed_before))


def _with_threads(
    guest: RunningGuest, passed: bool, reason: str, facts: dict[str, Any]
) -> tuple[bool, str, dict[str, Any]]:
    """Let the threads of a resumed guest continue, and return its verification with what they did."""
    done = continue_threads(guest)
    facts = {**facts, "threads": done.reports, "thread_crash": done.crash}
    if done.problems:
        return False, "; ".join([*([] if passed else [reason]), *done.problems]), facts
    freed = f"its thread mapped and freed {len(done.reports) * BLOCK_PAGES} pages"
    return passed, f"{reason}; {freed}", facts


def _resumed(guest: RunningGuest, passed: bool, reason: str, **facts: Any) -> Resumed:
    return Resumed(passed, reason, guest.qemu.console(), time.monotonic() - guest.booted, facts)
