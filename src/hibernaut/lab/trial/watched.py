# SPDX-License-Identifier: GPL-2.0-or-later
"""A hibernation that is watched: the kernel's page tables right before and right after `swsusp_save`.

The guest is stopped at the first instruction of `swsusp_save` and at its return address. The function is called from
assembly, so that no compiler inlines it (Clang with LTO makes it local); its inner functions are not needed.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path

from hibernaut.errors import HibernautError, LabError
from hibernaut.lab.guest_state import REPORT, RunningGuest, module_report
from hibernaut.lab.laboratory import HIBERNATE, Hibernated, Lab, Resumed, outcome_of, reached_end_of_copy, wait_for_stop
from hibernaut.lab.listed_functions import listed_functions
from hibernaut.lab.page_tables import KernelTables, reachable_tables
from hibernaut.lab.preparation import CHURN
from hibernaut.lab.record import IMAGE_NAME, SPARE_NAME, GuestRecord
from hibernaut.lab.trial.situations import TrialSituation
from hibernaut.lab.verification import verify_resumed
from hibernaut.lab.vm.gdb import Debugger
from hibernaut.lab.vm.port import Reply
from hibernaut.swsusp import open_image

__all__ = ["Watched", "watch"]

COPY = "swsusp_save"
WRITE_SECONDS = 300
BUSY = "Device or resource busy"
TEST_RESUME = "echo test_resume > /sys/power/disk"
AFTERWARDS = (
    "dd if=/dev/zero of=/tmp/work bs=1M count=16 2>/dev/null && rm /tmp/work",
    "i=0; while [ $i -lt 40 ]; do true | cat; i=$((i+1)); done",
)
"""Work of a resumed guest: it allocates and frees pages and starts processes."""
OWNER = f"echo owner > {REPORT}"
CHURNS = 8


@dataclass(frozen=True)
class Watched:
    """Observations of a guest that hibernates in a situation.

    Attributes:
        done: outcome of the hibernation.
        before: kernel page tables before the copy; None if the guest did not get there.
        after: kernel page tables after the copy; None if the guest did not get out of it.
        lacking: frames of page tables that the image's own tables point to and that it lacks; None without an image.
        resumed: outcome of the resume, and of the work afterwards; None if there was none.
        counted: whether the module would have counted an allocation of the copy: it did count that of a provoked split.
    """

    done: Hibernated
    before: KernelTables | None
    after: KernelTables | None
    lacking: tuple[int, ...] | None = None
    resumed: Resumed | None = None
    counted: bool = False


def watch(lab: Lab, situation: TrialSituation, folder: Path, *, quick: bool = False) -> Watched:
    """Let a guest hibernate in a situation, watch the copy, and resume it on a fresh machine.

    Args:
        lab: laboratory with the kernel.
        situation: the situation.
        folder: existing folder for disks and record.
        quick: resume in the same boot, by the kernel's own `test_resume`.

    Raises:
        LabUnavailable: the laboratory lacks something on this machine.
        LabError: the guest cannot be brought into the situation, or times out.
    """
    with lab.prepared(situation.variant, folder, gdb=True, shared_ram=True) as (guest, record):
        if quick:
            guest.port.run(TEST_RESUME)
        counted = module_report(guest).control.get("seen") == "1"
        sequence, before, after, refusal = _stopped_twice(guest)
        resumed = None
        if refusal is not None:
            outcome, reason = "refused", _refusal_text(refusal)
        elif quick and before:
            outcome, reason, resumed = _resumed_at_once(guest, sequence, record, situation)
        else:
            outcome, reason = outcome_of(guest, sequence, folder / IMAGE_NAME, record)
        log = guest.qemu.console()
        record = record.with_announced_pages(log)
        record.save(folder)
        done = Hibernated(outcome, reason, folder, record, log, time.monotonic() - guest.booted)
    if quick or outcome != "hibernated":
        return Watched(done, before, after, None, resumed, counted)
    lacking = () if before is None else _lacking_tables(done, before.levels)
    resumed = lab.resume(
        record,
        [folder / IMAGE_NAME, folder / SPARE_NAME],
        folder,
        partition=record.partition,
        offset=record.offset,
        questions=afterwards(situation),
    )
    return Watched(done, before, after, lacking, resumed, counted)


def afterwards(situation: TrialSituation) -> list[str]:
    """Return the commands with which a resumed guest shows that it continues to work."""
    owner = [OWNER, f"cat {REPORT}"] if situation.variant.regions else []
    return [*(owner or ([CHURN] * CHURNS if situation.variant.kfence else [])), *AFTERWARDS]


def _stopped_twice(
    guest: RunningGuest,
) -> tuple[int, KernelTables | None, KernelTables | None, Reply | None]:
    """Hibernate and read the kernel's page tables before and after the copy.

    Returns:
        The command's number, both readings as far as the guest got there, and the kernel's refusal if it did not.
    """
    listed = listed_functions(guest, [COPY])
    if len(listed) != 1:
        raise LabError(
            f"the kernel's symbols have {COPY} {len(listed)} times",
            advice="build it with CONFIG_KALLSYMS and hibernation",
        )
    start = listed[0].address
    debugger = Debugger(guest.qemu)
    debugger.add_breakpoint(start)
    debugger.resume()
    sequence = guest.port.send(HIBERNATE)
    refusal = wait_for_stop(guest, debugger, sequence)
    if refusal is not None:
        return sequence, None, None, refusal
    before = _tables(guest)
    back = int.from_bytes(debugger.read(guest.qemu.registers()["RSP"], 8), "little")
    debugger.remove_breakpoint(start)
    debugger.add_breakpoint(back)
    debugger.resume()
    if not reached_end_of_copy(guest, debugger):
        return sequence, before, None, None
    after = _tables(guest)
    debugger.remove_breakpoint(back)
    debugger.close()
    return sequence, before, after, None


def _refusal_text(reply: Reply) -> str:
    return f"exit status {reply.status}: {' / '.join(reply.lines)}"


def _tables(guest: RunningGuest) -> KernelTables:
    """Return the page tables that a stopped guest's CPU uses."""
    if guest.qemu.ram is None:
        raise LabError("the guest's RAM is not shared")
    return KernelTables.read(guest.qemu.ram.memory, *guest.qemu.paging())


def _resumed_at_once(
    guest: RunningGuest, sequence: int, record: GuestRecord, situation: TrialSituation
) -> tuple[str, str, Resumed | None]:
    """Wait for the end of a `test_resume`; return outcome and reason of the hibernation, and the verified guest.

    Kernels that open the resume device exclusively (6.1) make the image and cannot resume from it while they swap there
    (EBUSY); they continue, and it is this machine that is verified: the one whose page tables the copy has changed.
    """
    try:
        reply = guest.port.reply(sequence, WRITE_SECONDS, "hibernating and resuming")
        busy = bool(reply.status) and any(line.endswith(BUSY) for line in reply.lines)
        if reply.status and not busy:
            return "refused", _refusal_text(reply), None
        passed, reason, facts = verify_resumed(guest, record, dataclasses.replace(reply, status=0))
        if busy:
            reason = reason.replace("resumed,", "continued after the copy, not resumed (test_resume: EBUSY):", 1)
        facts["answers"] = [guest.port.ask(command).lines for command in afterwards(situation)]
    except LabError:
        if not guest.port.ended:
            raise
        return "died", guest.copy_crash_messages(), None
    return "hibernated", "", Resumed(passed, reason, guest.qemu.console(), time.monotonic() - guest.booted, facts)


def _lacking_tables(done: Hibernated, levels: int) -> tuple[int, ...]:
    """Return the frames of page tables that an image's own tables point to and that it lacks."""
    with open_image(done.image, offset=done.record.offset, partition=done.record.partition) as image:
        try:
            _, missing = reachable_tables(image.memory(), image.info.cr3, levels)
        except HibernautError as error:
            raise LabError(f"the image cannot be read: {error}") from error
    return tuple(sorted(missing))
