# SPDX-License-Identifier: GPL-2.0-or-later
"""Threads of a guest that are not frozen and free a block, each caught by the copy before it maps the pages again.

The module in the guest (guest/region/hlab_thread.h) stops them in that window, in which `vm_reset_perms`
(mm/vmalloc.c) can sleep. On the machine that writes the image they continue by themselves; on the resumed one, step by
step as this module says.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from hibernaut.errors import LabError, LabUnavailable
from hibernaut.lab.guest_state import REPORT, RunningGuest, module_report
from hibernaut.lab.vm.port import facts_of

__all__ = ["BLOCK_PAGES", "Continued", "continue_threads", "live_threads", "start_threads", "thread_problems"]

BLOCK_PAGES = 512
STEPS = ("continue", "free")
"""Words to the module: the threads map their pages; they free them, and the next user of the pages clears them."""
LINE = re.compile(r"hlab_region: thread (block=0x[0-9a-f]+ error=.*)")
UNSUPPORTED = "not supported"
"""Part of the text of EOPNOTSUPP, with which the module refuses if the kernel lacks a function or a lock."""
THREAD_SECONDS = 60


@dataclass
class Continued:
    """Outcome of threads that continue on a resumed machine.

    Attributes:
        reports: keys and values of each thread's region, after the last step whose report could be read.
        problems: one line each.
        crash: the kernel's first message of a crash; empty if it continues.
    """

    reports: list[dict[str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    crash: str = ""


def start_threads(guest: RunningGuest) -> None:
    """Start the threads of a guest's regions, and return when each is in its window.

    Raises:
        LabUnavailable: the kernel lacks a function or a lock that the module looks up.
        LabError: a thread does not get there.
    """
    reply = guest.port.ask(f"echo thread > {REPORT}", THREAD_SECONDS)
    said = " / ".join(reply.lines)
    if reply.status and UNSUPPORTED in said:
        raise LabUnavailable(f"the kernel lacks a function or lock by which a thread frees a block: {said}")
    if reply.status:
        raise LabError(f"a thread did not hide its block: {said}", log=guest.qemu.last_log_lines())


def live_threads(log: str) -> tuple[dict[str, str], ...]:
    """Return keys and values of each thread that continued on the machine that wrote the image, from its log."""
    return tuple(facts_of(line) for line in LINE.findall(log))


def continue_threads(guest: RunningGuest) -> Continued:
    """Let the threads of a resumed guest map their pages, read them and free them, and the next user clear them.

    A guest that crashes raises nothing: the crash is a finding.
    """
    found = Continued()
    for step in STEPS:
        try:
            guest.port.run(f"echo {step} > {REPORT}", THREAD_SECONDS)
            regions = module_report(guest).regions
        except LabError as error:
            found.crash = guest.crash_message() if guest.port.ended or guest.port.lost else str(error)
            found.problems.append(f"thread: at the step {step!r}: {found.crash}")
            return found
        found.reports = [one for one in regions if "thread" in one]
        if step == "continue":
            found.problems += thread_problems(found.reports)
    unused = [one["block"] for one in found.reports if one["used"] == "0"]
    found.problems += [f"thread: block {block}: none of the freed pages was allocated again" for block in unused]
    return found


def thread_problems(reports: Sequence[dict[str, str]]) -> list[str]:
    """Return one line for each thread whose pages are not all mapped, or not read as they were written."""
    problems = []
    for one in reports:
        place = f"thread: block {one['block']}"
        if one["error"] != "0":
            problems.append(f"{place}: error {one['error']} of the calls that hide and map")
        if one.get("present") != str(BLOCK_PAGES):
            counts = ", ".join(f"{one.get(key, '0')} {key}" for key in ("present", "hidden", "none", "wrong"))
            problems.append(f"{place}: of 512 pages that the thread mapped: {counts}")
        if int(one["right"]) != BLOCK_PAGES and not _freed(one):
            read = f"{one['right']} right, {one['other']} with other data, {one['faults']} fault"
            problems.append(f"{place}: of 512 pages that the thread read: {read}")
    return problems


def _freed(report: dict[str, str]) -> bool:
    """Return whether the kernel freed the pages as soon as they were mapped, so that none was read (`vfree`)."""
    return report["thread"] in ("freed", "used") and (report["right"], report["other"], report["faults"]) == ("0",) * 3
