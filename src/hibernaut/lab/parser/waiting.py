# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine that has booted and waits for the name of its image: begun again and again from one saved state.

A boot takes most of the time of a resume, and is the same for each image. QEMU saves the state when user space has said
hello: the kernel has not looked at any disk then but for its partitions.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from hibernaut.errors import LabError
from hibernaut.lab.guest_state import CRASH, RunningGuest, image_messages
from hibernaut.lab.laboratory import CRASH_SECONDS, Lab, start_resume
from hibernaut.lab.record import GuestRecord
from hibernaut.lab.verification import verify_resumed
from hibernaut.lab.vm.port import Port, Reply
from hibernaut.lab.vm.qemu import Disk, Hardware, qemu
from hibernaut.memory.ranges import FrameRanges

__all__ = ["ACCEPTED", "IN_THE_PARSER", "OUTCOMES", "ResumeOutcome", "WaitingMachine"]

OUTCOMES = ("refused", "whole", "wrong", "crashed while reading", "crashed after", "hung while reading", "hung after")
"""Refused; resumed, every page as it was; resumed, and something differs; crashed or hung, before or after the kernel
had loaded the whole image."""
ACCEPTED = frozenset({"whole", "wrong", "crashed after", "hung after"})
"""The outcomes of an image that the kernel read to its end and did not refuse."""
IN_THE_PARSER = frozenset({"crashed while reading", "hung while reading"})
READ = re.compile(r"PM: (?:hibernation: )?Read \d+ kbytes in")
"""Printed when the kernel has loaded the image, or has given up (`swsusp_show_speed`, kernel/power/hibernate.c).

"Image loading done" comes before `snapshot_write_finalize`, in which kernels of 7.3 crashed. Read in linux-source-6.1
6.1.192-2."""
LEAVES = re.compile(r"Disabling non-boot CPUs")
"""Printed by the resuming kernel right before it puts the image in its place (`resume_target_kernel`)."""
SANITIZER = re.compile(r"BUG: KASAN: [^\n]+|UBSAN: [^\n]+|list_(?:add|del) corruption[^\n]*")
"""First lines of what KASAN (mm/kasan/report.c), UBSAN (lib/ubsan.c) and DEBUG_LIST (lib/list_debug.c) print."""
HANG_SECONDS = 180
"""Time after which a machine hangs, without that in which it waits for a CPU of the host: a resume takes some three
seconds; the longest refusal known is that of a map whose chain loops, which is read until the memory is full: 6.12 took
more than a minute on a busy host."""


@dataclass(frozen=True)
class ResumeOutcome:
    """The outcome of one resume.

    Attributes:
        outcome: one of `OUTCOMES`.
        says: the kernel's words about the image, what was verified, or what differs.
        log: everything that the kernel printed since its state was saved.
        seconds: duration.
        reports: reports of sanitizers, printed before the image was put in its place.
    """

    outcome: str
    says: str
    log: str
    seconds: float
    reports: tuple[str, ...] = ()


class WaitingMachine:
    """A booted machine, saved as a file.

    Attributes:
        frames: page frames in its populated zones, holes included.

    Args:
        lab: laboratory with the kernel.
        record: record of the guest that was saved, whose machine it is.
        disks: vda, vdb as the guest had them.
        folder: existing folder for its state.

    Raises:
        LabUnavailable: the laboratory lacks something on this machine.
        LabError: it does not boot, or QEMU does not save its state.
    """

    def __init__(self, lab: Lab, record: GuestRecord, disks: Sequence[Path], folder: Path) -> None:
        self._record = record
        self._state = folder / "waiting-state"
        self._hardware: list[Hardware] = []

        def noted(hardware: Hardware) -> Hardware:
            self._hardware.append(hardware)
            return hardware

        with lab.boot(record.variant, folder, [Disk(path, keep=False) for path in disks], adapt=noted) as guest:
            self._session = guest.session
            self.frames = frames_in_zones(guest.port.run("cat /proc/zoneinfo"))
            guest.qemu.save_state(self._state)

    def resume(self, disk: Path, before: Sequence[str] = ()) -> ResumeOutcome:
        """Let the machine resume from an image on its first disk, whose file stays as it is. Safe for several threads.

        Args:
            disk: the disk.
            before: commands that the guest runs before.

        Raises:
            LabError: QEMU does not begin from the state, or a command fails.
        """
        hardware = self._hardware[0]
        first, *others = hardware.disks
        hardware = replace(hardware, disks=(replace(first, path=disk), *others), state=self._state)
        started = time.monotonic()
        with qemu(hardware) as machine:
            port = Port(machine)
            machine.continue_from_state()
            guest = RunningGuest(machine, port, self._session, started)
            for command in before:
                port.run(command)
            outcome, says = self._outcome(guest)
            log = machine.console()
            return ResumeOutcome(outcome, says, log, time.monotonic() - started, reports_in(log))

    def _outcome(self, guest: RunningGuest) -> tuple[str, str]:
        record, port = self._record, guest.port
        port.is_lost = lambda silent: silent > CRASH_SECONDS and crash_in(guest.qemu.console()) is not None
        try:
            start_resume(guest, "vda", record.partition, record.offset)
            reply = _reply_of_resume(guest)
            if reply.session == guest.session:
                return "refused", image_messages(guest.qemu.console())
            if reply.session != record.session:
                return "wrong", f"another machine was resumed (session {reply.session})"
            passed, says, _ = verify_resumed(guest, record, reply)
            return "whole" if passed else "wrong", says
        except LabError:
            when = "after" if READ.search(guest.qemu.console()) else "while reading"
            if port.ended or port.lost:
                return f"crashed {when}", crash_in(guest.qemu.console()) or guest.crash_message()
            last = " / ".join(guest.qemu.last_log_lines(2))
            silent = f"no answer for {HANG_SECONDS} s, waits for the host left out"
            return f"hung {when}", f"{silent}; last log lines: {last}"


def _reply_of_resume(guest: RunningGuest) -> Reply:
    """Wait for the end of a resume, or of the command that began it. Raises LabError if the guest ends or hangs."""
    started, waited_before = time.monotonic(), waited_seconds(guest.qemu.process.pid)
    left: float = HANG_SECONDS
    while True:
        try:
            return guest.port.reply(None, left, "resuming")
        except LabError:
            waited = waited_seconds(guest.qemu.process.pid) - waited_before
            left = HANG_SECONDS - (time.monotonic() - started - waited)
            if guest.port.ended or guest.port.lost or left < 1:
                raise


def waited_seconds(process: int) -> float:
    """Return how long the threads of a process have waited for a CPU, all of them together; 0 if the host is silent.

    A virtual CPU that reads a disk block by block waits for another thread, and that one for a CPU.
    """
    waited = 0
    for path in Path(f"/proc/{process}/task").glob("*/schedstat"):
        with suppress(OSError, ValueError, IndexError):  # a thread can end meanwhile
            waited += int(path.read_text().split()[1])
    return waited / 1e9


def frames_in_zones(lines: Iterable[str]) -> FrameRanges:
    """Return the page frames that a kernel's bitmaps of memory have, from the lines of /proc/zoneinfo.

    They are those from the first one of each populated zone to its last one (`create_mem_extents`,
    kernel/power/snapshot.c).
    """
    zones, spanned, present = [], 0, 0
    for line in lines:
        words = line.split()
        if words[:1] == ["spanned"]:
            spanned = int(words[1])
        elif words[:1] == ["present"]:
            present = int(words[1])
        elif words[:1] == ["start_pfn:"] and present:
            zones.append((int(words[1]), spanned))
            present = 0
        elif words[:1] == ["Node"]:
            spanned = present = 0
    return FrameRanges.of(zones)


def reports_in(log: str) -> tuple[str, ...]:
    """Return the reports of sanitizers in a log of a resuming kernel; those of the resumed one do not count."""
    leaves = LEAVES.search(log)
    return tuple(SANITIZER.findall(log[: leaves.start()] if leaves else log))


def crash_in(log: str) -> str | None:
    """Return the first message of a crash in a log; None if there is none. The kernel survives what KASAN reports."""
    return next((found for found in CRASH.findall(log) if not SANITIZER.match(found)), None)
