# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine that has booted and waits for the name of its image: begun again and again from one saved state.

A boot takes most of the time of a resume, and is the same for each image. QEMU saves the state when user space has said
hello: the kernel has not looked at any disk then but for its partitions.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hibernaut.errors import LabError
from hibernaut.lab.guest_state import RunningGuest, image_messages
from hibernaut.lab.laboratory import Lab, silent_since_a_crash, start_resume
from hibernaut.lab.record import GuestRecord
from hibernaut.lab.verification import verify_resumed
from hibernaut.lab.vm.port import Port
from hibernaut.lab.vm.qemu import Disk, Hardware, qemu

__all__ = ["ACCEPTED", "OUTCOMES", "ResumeOutcome", "WaitingMachine"]

OUTCOMES = ("refused", "whole", "wrong", "crashed while reading", "crashed after", "hung while reading", "hung after")
"""Refused; resumed, every page as it was; resumed, and something differs; crashed or hung, before or after the whole
image was read."""
ACCEPTED = frozenset({"whole", "wrong", "crashed after", "hung after"})
"""The outcomes of an image that the kernel read to its end and did not refuse."""
READ = re.compile(r"Image loading done")
"""Printed when all units are read, before the CRC is compared (`load_image_lzo`, kernel/power/swap.c).

Read in linux-source-6.1 6.1.192-2."""
HANG_SECONDS = 60
"""Silence after which a machine hangs: a resume takes some three seconds, ten on a busy host."""


@dataclass(frozen=True)
class ResumeOutcome:
    """The outcome of one resume.

    Attributes:
        outcome: one of `OUTCOMES`.
        says: the kernel's words about the image, what was verified, or what differs.
        log: everything that the kernel printed since its state was saved.
        seconds: duration.
    """

    outcome: str
    says: str
    log: str
    seconds: float


class WaitingMachine:
    """A booted machine, saved as a file.

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
            guest.qemu.save_state(self._state)

    def resume(self, disk: Path) -> ResumeOutcome:
        """Let the machine resume from an image on its first disk, whose file stays as it is. Safe for several threads.

        Raises:
            LabError: QEMU does not begin from the state.
        """
        hardware = self._hardware[0]
        first, *others = hardware.disks
        hardware = replace(hardware, disks=(replace(first, path=disk), *others), state=self._state)
        started = time.monotonic()
        with qemu(hardware) as machine:
            port = Port(machine)
            machine.continue_from_state()
            guest = RunningGuest(machine, port, self._session, started)
            outcome, says = self._outcome(guest)
            return ResumeOutcome(outcome, says, machine.console(), time.monotonic() - started)

    def _outcome(self, guest: RunningGuest) -> tuple[str, str]:
        record, port = self._record, guest.port
        port.is_lost = silent_since_a_crash(guest, 0)
        try:
            start_resume(guest, "vda", record.partition, record.offset)
            reply = port.reply(None, HANG_SECONDS, "resuming")
            if reply.session == guest.session:
                return "refused", image_messages(guest.qemu.console())
            if reply.session != record.session:
                return "wrong", f"another machine was resumed (session {reply.session})"
            passed, says, _ = verify_resumed(guest, record, reply)
            return "whole" if passed else "wrong", says
        except LabError as error:
            when = "after" if READ.search(guest.qemu.console()) else "while reading"
            if port.ended or port.lost:
                return f"crashed {when}", guest.crash_message()
            return f"hung {when}", str(error)
