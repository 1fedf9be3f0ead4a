# SPDX-License-Identifier: GPL-2.0-or-later
"""Depletion in a guest: how many splits its kernel has pages for, predicted from its memory, and how many it makes.

The guest has blocks of 2 MiB out of its direct map, each with one page to save, and a driver that takes pages while
devices are frozen, so many that the prediction is what is wanted. No failure is injected.
"""

from __future__ import annotations

import bisect
import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path

from hibernaut.errors import LabError
from hibernaut.hibernation.depletion import CountsBefore, Depletion, deplete_in_copy
from hibernaut.kernel.kernel import Kernel
from hibernaut.kernel.reserves import memory_reserves
from hibernaut.lab.guest_state import RunningGuest
from hibernaut.lab.host.programs import need_module
from hibernaut.lab.laboratory import HIBERNATE, Lab, Resumed, attach, copy_loop_symbols, outcome_of, wait_for_stop
from hibernaut.lab.record import IMAGE_NAME, LOG_NAME, RESUMED_LOG_NAME, SPARE_NAME, GuestRecord
from hibernaut.lab.variants import Variant
from hibernaut.memory.vmcoreinfo import find_vmcoreinfo
from hibernaut.volumes.output import write_file

__all__ = ["DepletedGuest", "deplete_guest", "depletion_variant", "resume_depleted"]

HOLD = "/sys/module/hlab_region/parameters/hold"
HUNG = "hung"
SPLIT = re.compile(r"hlab_region: allocation (\d+) for a split, from [^,\s]+(, interrupts enabled)?")
COUNTED = re.compile(r"Normal pages needed: (\d+) \+ \d+, available pages: (\d+)")
ALLOCATED = re.compile(r"Allocated (\d+) pages for snapshot")
FAILURE = re.compile(r"page allocation failure")
OPENED = re.compile(r"Interrupts enabled before system core resume")
CACHE_SECONDS = 120
CACHED_DEVICE = "/dev/vdb"
MOST_BELOW = 300
LEFT_PAGES = 50
"""Pages above the marks that a guest's drivers leave at least."""


@dataclass(frozen=True)
class DepletedGuest:
    """A guest that hibernated with few free pages.

    Attributes:
        release: release of its kernel.
        blocks: blocks out of its direct map.
        before: prediction from its memory before it hibernated.
        in_copy: prediction from its memory at the beginning of the copy.
        kernels_image_pages: pages that it allocated for the image, by its own message.
        kernels_free_pages: free pages by its own messages, right before the copy; None if it has no such message.
        served: splits whose request got a page without reclaiming memory.
        splits: all splits that got a page.
        failed: whether the kernel logged that an allocation failed.
        interrupts: whether the copy, which begins with interrupts off, continued with interrupts enabled.
        outcome: hibernated, died, refused or hung.
        reason: the kernel's words of the last three.
        log: its kernel's log.
        record: its record.
    """

    release: str
    blocks: int
    before: Depletion
    in_copy: Depletion
    kernels_image_pages: int
    kernels_free_pages: int | None
    served: int
    splits: int
    failed: bool
    interrupts: bool
    outcome: str
    reason: str
    log: str = dataclasses.field(repr=False)
    record: GuestRecord = dataclasses.field(repr=False)

    @property
    def unknown_pages(self) -> int:
        """Pages by which the first prediction may be wrong: twice what was taken or freed until the image was made."""
        return 2 * abs(self.kernels_image_pages - self.before.image_pages)

    @property
    def as_predicted(self) -> bool:
        """Whether as many splits were served without reclaim as both predictions allow.

        A kernel that copies all pages without a split contradicts none.
        """
        if not self.splits and self.outcome == "hibernated":
            return True
        first = self._fits(self.before.least - self.unknown_pages, self.before.most + self.unknown_pages)
        return first and self._fits(self.in_copy.least, self.in_copy.most)

    def _fits(self, least: int, most: int) -> bool:
        return min(least, self.blocks) <= self.served <= min(most, self.blocks)


def depletion_variant(blocks: int, memory_mib: int) -> Variant:
    """Return a guest with blocks of which one page each is saved.

    Up to `MOST_BELOW` have their tables below them, so that no table is lost and the image can be resumed; of more
    blocks the tables lie wherever they are.
    """
    side = "below" if blocks <= MOST_BELOW else "any"
    return Variant(
        f"depletion-{blocks}",
        f"{blocks} blocks of 2 MiB not present, one page of each to save",
        memory_mib=memory_mib,
        compressor="none",
        regions=(f"2m-thin:{side}",) * blocks,
    )


def deplete_guest(
    lab: Lab, variant: Variant, folder: Path, *, wanted: int | None = None, cached_mib: int = 0
) -> DepletedGuest:
    """Let a guest hibernate whose drivers take so many pages that `wanted` splits have one.

    Args:
        lab: laboratory with the kernel.
        variant: see `depletion_variant`.
        folder: existing folder for its disks.
        wanted: number of splits that shall succeed, as far as it can be predicted; None: drivers take no page.
        cached_mib: MiB of a disk that its page cache holds, clean.

    Raises:
        LabUnavailable: the laboratory lacks something on this machine.
        LabError: the guest fails or times out, or does not tell what it has to.
        HibernautError: its memory does not have the counts.
    """
    need_module("drgn")
    need_module("capstone")
    with lab.prepared(variant, folder, gdb=True, shared_ram=True) as (guest, record):
        if cached_mib:
            _fill_page_cache(guest, cached_mib)
        symbols = copy_loop_symbols(guest)  # before the prediction: it uses memory
        counts = _counts(guest)
        drivers = 0 if wanted is None else _drivers_for(counts, wanted)
        before = counts.predict(drivers)
        guest.port.run(f"echo {drivers} > {HOLD}")
        loop, debugger = attach(guest, symbols)
        for address in loop.before:
            debugger.add_breakpoint(address)
        debugger.resume()
        sequence = guest.port.send(HIBERNATE)
        refused = wait_for_stop(guest, debugger, sequence)
        if refused is not None:
            what = " / ".join(refused.lines)
            raise LabError(f"the guest did not begin to copy: {what}", log=guest.qemu.last_log_lines())
        in_copy = deplete_in_copy(memory_reserves(_kernel(guest)))
        for address in loop.before:
            debugger.remove_breakpoint(address)
        debugger.close()
        try:
            outcome, reason = outcome_of(guest, sequence, folder / IMAGE_NAME, record)
        except LabError as error:  # a machine that reclaimed in the copy may hang for good
            if not guest.qemu.running:
                raise
            outcome, reason = HUNG, str(error)
        log = guest.qemu.console()
    write_file(folder / LOG_NAME, log.encode())
    return _read_log(log, lab, variant, before, in_copy, outcome, reason, record)


def resume_depleted(lab: Lab, done: DepletedGuest, folder: Path) -> Resumed:
    """Let another machine resume from the image of such a guest, and verify what it resumed. Raises as `Lab.resume`."""
    resumed = lab.resume(done.record, [folder / IMAGE_NAME, folder / SPARE_NAME], folder)
    write_file(folder / RESUMED_LOG_NAME, resumed.log.encode())
    return resumed


def _fill_page_cache(guest: RunningGuest, mib: int) -> None:
    """Read a part of a disk that stays open, so that its pages stay in the page cache."""
    guest.port.run(f"(sleep 99999 < {CACHED_DEVICE} > /dev/null 2>&1 &)")
    guest.port.run(f"dd if={CACHED_DEVICE} of=/dev/null bs=1M count={mib} 2> /dev/null", CACHE_SECONDS)


def _kernel(guest: RunningGuest) -> Kernel:
    """Return the kernel of a stopped guest, read from its RAM."""
    ram = guest.qemu.ram
    if ram is None:
        raise LabError("the guest's RAM is not shared")
    vmcoreinfo = find_vmcoreinfo(ram.memory)
    if not vmcoreinfo:
        raise LabError("the guest's RAM has no VMCOREINFO")
    return Kernel(ram.memory, vmcoreinfo, "the guest's RAM")


def _counts(guest: RunningGuest) -> CountsBefore:
    """Return the counts of a guest that runs; it is stopped for the time."""
    guest.qemu.execute("stop")
    try:
        kernel = _kernel(guest)
        return CountsBefore.of(kernel, kernel.memory.ranges.end)
    finally:
        guest.qemu.execute("cont")


def _drivers_for(counts: CountsBefore, splits: int) -> int:
    """Return how many pages drivers have to take so that about so many splits have a page.

    They never take so many that the zones are below their marks: then devices cannot be frozen any more, and the
    kernel does not get to the copy.
    """
    every = range(counts.predict().free_pages)
    enough = bisect.bisect_left(every, -splits, key=lambda one: -counts.predict(one).most)
    above = bisect.bisect_left(every, -LEFT_PAGES, key=lambda one: -_above_marks(counts.predict(one)))
    return min(enough, above)


def _above_marks(found: Depletion) -> int:
    return found.free_pages - found.kept_pages


def _read_log(
    log: str, lab: Lab, variant: Variant, before: Depletion, in_copy: Depletion, outcome: str, reason: str,
    record: GuestRecord,
) -> DepletedGuest:  # fmt: skip
    counted, allocated = COUNTED.search(log), ALLOCATED.search(log)
    if allocated is None:
        raise LabError("the kernel did not say how many pages it allocated for the image")
    made = [bool(opened) for _, opened in SPLIT.findall(log)]
    failed = bool(FAILURE.search(log))
    interrupts = any(made) or bool(OPENED.search(log))
    # The request that reclaims is logged before it does, with interrupts still off.
    served = made.index(True) - 1 if any(made) else len(made) - (failed or interrupts)
    return DepletedGuest(
        release=lab.kernel.release,
        blocks=len(variant.regions),
        before=before,
        in_copy=in_copy,
        kernels_image_pages=int(allocated[1]),
        kernels_free_pages=int(counted[2]) - max(int(allocated[1]), int(counted[1])) if counted else None,
        served=served,
        splits=len(made) - failed,
        failed=failed,
        interrupts=interrupts,
        outcome=outcome,
        reason=reason,
        log=log,
        record=record,
    )
