# SPDX-License-Identifier: GPL-2.0-or-later
"""The state of a running guest, as its kernel, its module and its user space report it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from hibernaut.lab.vm.port import Port, facts_of
from hibernaut.lab.vm.qemu import Qemu

__all__ = [
    "CRASH",
    "REPORT",
    "ModuleReport",
    "RunningGuest",
    "direct_map_counters",
    "frames_of_region",
    "image_messages",
    "module_report",
    "numa_nodes",
    "region_problems",
]

REPORT = "/proc/hlab_region"
"""Report of the kernel module (guest/region); "arm" written there starts the counting of allocations."""

# "Bad page state" is a complaint, not a crash: the page is left out and the kernel continues.
CRASH = re.compile(
    r"list_(?:add|del) corruption.*|BUG: (?!Bad page state).*|Kernel panic.*|Oops.*|general protection.*|double fault.*"
)
FAILED_TO_REMAP = re.compile(r"PM: hibernation: Failed to remap page")
IMAGE_MESSAGE = re.compile(r"PM:|hibernat|swsusp|Hibernat", re.IGNORECASE)
IMAGE_CHATTER = re.compile(
    r"progress|Marking nosave|bitmaps|reseeded|Registered|resume from hibernation|signature found"
)
MAX_IMAGE_MESSAGES = 5
COMPARED_KEYS = ("pmd", "level", "present", "hidden", "none", "wrong")
"""Keys of a region's report that a resume must not change: its place, and what its entries map."""
RIGHTS = "rights"
"""Key of a region's report with a digest of its entries' flags, which a resume must not change either."""
LONE = "lone"
"""Key of a region's report with the entry of its one page that is not present, if it is a hole of one page."""


@dataclass
class RunningGuest:
    """A guest that has booted.

    Attributes:
        qemu: its machine.
        port: its commands and answers.
        session: session of this boot.
        booted: time at which the boot began, by the monotonic clock.
        cr3: CR3 at the stop before the copy loop, in hex with PCID bits cleared; None until then.
    """

    qemu: Qemu
    port: Port
    session: str
    booted: float
    cr3: str | None = None

    def crash_message(self) -> str:
        """Return the kernel's first message of a crash, else its last log lines."""
        crashes = CRASH.findall(self.qemu.console())
        return crashes[0] if crashes else " / ".join(self.qemu.last_log_lines(2))

    def copy_crash_messages(self) -> str:
        """Return the kernel's warning of a page that it could not map, if any, and its first message of a crash."""
        console = self.qemu.console()
        found = [*FAILED_TO_REMAP.findall(console)[:1], *CRASH.findall(console)[:1]]
        return "; ".join(found) or self.crash_message()


@dataclass(frozen=True)
class ModuleReport:
    """Report of the kernel module; empty if it is not loaded.

    Attributes:
        regions: keys and values of each region.
        allocator: frame of each page that an allocation changes, by name.
        control: keys and values of the splits that the module has provoked, to see that its probe works; empty if it
            has not.
    """

    regions: tuple[dict[str, str], ...] = ()
    allocator: dict[str, int] = field(default_factory=dict)
    control: dict[str, str] = field(default_factory=dict)


def module_report(guest: RunningGuest) -> ModuleReport:
    """Return the report of the guest's kernel module, which checks every page of every region for it."""
    reply = guest.port.ask(f"cat {REPORT}")
    if reply.status:
        return ModuleReport()
    by_kind = {
        kind: [facts_of(line) for line in reply.lines if line.startswith(f"{kind} ")]
        for kind in ("region", "allocator", "control")
    }
    control = {key: value for facts in by_kind["control"] for key, value in facts.items()}
    allocator = {name: int(pfn, 16) for facts in by_kind["allocator"] for name, pfn in facts.items()}
    return ModuleReport(tuple(by_kind["region"]), allocator, control)


def numa_nodes(guest: RunningGuest) -> tuple[int, ...]:
    """Return the kernel's numbers of the NUMA nodes, lowest memory first (the CPU's node is 0, wherever it lies)."""
    highest_start: dict[int, int] = {}
    node = 0
    for line in guest.port.run("cat /proc/zoneinfo"):
        words = line.split()
        if words[:1] == ["Node"]:
            node = int(words[1].rstrip(","))
        elif words[:1] == ["start_pfn:"]:
            highest_start[node] = max(highest_start.get(node, 0), int(words[1]))
    return tuple(sorted(highest_start, key=highest_start.__getitem__))


def frames_of_region(guest: RunningGuest, region: str) -> tuple[tuple[int, int, int], ...]:
    """Return (page, first frame, count) of each run of frames behind one of the guest's regions of memory."""
    found = [facts_of(line) for line in guest.port.run(f"!frames {region}")]
    return tuple((int(one["page"]), int(one["first"], 16), int(one["count"])) for one in found)


def direct_map_counters(guest: RunningGuest) -> dict[str, int]:
    """Return the kernel's counters DirectMap4k, DirectMap2M and DirectMap1G, in kB."""
    lines = guest.port.run("grep ^DirectMap /proc/meminfo")
    return {line.split()[0].rstrip(":"): int(line.split()[1]) for line in lines}


def region_problems(before: dict[str, str], after: dict[str, str]) -> Iterator[str]:
    """Yield the differences between two reports on a region: its data, its entries."""
    place = f"block {before['block']}"
    if after["damaged"] != "0":
        yield f"data: {place}: {after['damaged']} page{'s' * (after['damaged'] != '1')} damaged"
    if all(after.get(key) == before.get(key) for key in COMPARED_KEYS):
        if after.get(RIGHTS) != before.get(RIGHTS):
            key = LONE if after.get(LONE) != before.get(LONE) else RIGHTS
            yield f"direct map rights: {place}: {key} {before.get(key)} is now {after.get(key)}"
        return
    wrong = int(after.get("wrong", "512")) + max(0, int(after.get("none", "0")) - int(before.get("none", "0")))
    if wrong:
        yield f"direct map garbage: {place}: PMD entry {after.get('pmd')}, {wrong} of 512 entries wrong"
    else:
        yield f"direct map changed: {place}: PMD entry {before.get('pmd')} is now {after.get('pmd')}"


def image_messages(log: str) -> str:
    """Return the kernel's messages about an image that it did not resume from, without progress and greetings."""
    lines = [re.sub(r"^\[ *[\d.]+\] *", "", line) for line in log.splitlines()]
    found = [line for line in lines if IMAGE_MESSAGE.search(line) and not IMAGE_CHATTER.search(line)]
    return " / ".join(found[-MAX_IMAGE_MESSAGES:]) or "no message about an image"
