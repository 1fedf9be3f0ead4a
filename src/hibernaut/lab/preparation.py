# SPDX-License-Identifier: GPL-2.0-or-later
"""The preparation of a guest up to the moment of hibernating: swap, memory, regions out of the direct map."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from hibernaut.errors import LabError, LabUnavailable
from hibernaut.lab.guest.region import REGION_MODULE
from hibernaut.lab.guest_state import (
    REPORT,
    ModuleReport,
    RunningGuest,
    direct_map_counters,
    frames_of_region,
    module_report,
    numa_nodes,
)
from hibernaut.lab.host.kernels import GuestKernel
from hibernaut.lab.listed_functions import listed_functions
from hibernaut.lab.record import GuestRecord, require_arranged
from hibernaut.lab.threads import start_threads
from hibernaut.lab.variants import Swap, Variant
from hibernaut.lab.vm.port import facts_of

__all__ = ["CHURN", "prepare", "require_control", "use_kfence"]

LOCKED_PAGES = 1024
LOOSE_PAGES = 1024
SEED = 0x1BADB002
SWAP_FILE_SECONDS = 300
HUGE_FILE_SECONDS = 120
MODULE_SECONDS = 120
NO_BLOCK = "No such device or address"
"""Text of ENXIO, with which the module refuses if no block fits."""

ALLOCATORS = ("__alloc_frozen_pages_noprof", "__alloc_pages_noprof", "__alloc_pages", "__alloc_pages_nodemask")
"""Functions that every allocation of pages goes through, by ascending age: those of 6.14, 6.10, 5.13 and before."""

ZSWAP = "/sys/module/zswap/parameters"
HUGE = "/sys/kernel/mm/transparent_hugepage"
"""The kernel switches huge pages off where there are less than 512 MiB (`hugepage_init`, mm/huge_memory.c)."""
HUGE_PAGES = 512
HUGE_FILE, HUGE_FILE_LINES = "/tmp/huge", 1_200_000  # nosec B108 # in a guest, which has no other users
"""A file of tmpfs with huge pages: these numbers, a line each."""
KFENCE_PARAMETERS = "/sys/module/kfence/parameters"
KFENCE_STATS = "/sys/kernel/debug/kfence/stats"
KFENCE_SLOTS = 255
CHURNS = 120
CHURN = "!churn 64"


def prepare(guest: RunningGuest, variant: Variant, kernel: GuestKernel, *, traced: int = 0) -> GuestRecord:
    """Prepare a guest for hibernation and return its record.

    Args:
        guest: a guest on fresh disks.
        variant: kind of guest.
        kernel: its kernel.
        traced: number of calls of the copy loop that the module has room to record; 0 for no recording.

    Raises:
        LabError: a step fails in the guest, or the allocator's pages are not where the variant wants them.
    """
    run = guest.port.run
    nodes = numa_nodes(guest) if variant.two_nodes else ()
    if variant.regions or traced:
        if nodes:
            run(f"!prefer {nodes[-1]}")
        _make_regions(guest, variant, traced)  # first, while whole blocks are free
    if variant.zswap:
        _enable_zswap(guest, variant.zswap_compressor)
    device, partition, offset = _swap_on(guest, variant)
    _fill_memory(guest, variant)
    if variant.compressor == "lz4":
        run("echo lz4 > /sys/module/hibernate/parameters/compressor")
    if offset:
        run(f"echo {offset} > /sys/power/resume_offset")
    run(f"cat /sys/class/block/{device}/dev > /sys/power/resume")
    if variant.kfence:
        use_kfence(guest)
    if not variant.secret_pages:
        run("echo shutdown > /sys/power/disk")
    if variant.swaps_out:
        run("echo 0 > /sys/power/image_size")
    run("echo 1 > /sys/power/pm_debug_messages || true")  # newer kernels print the page counts only with it
    if nodes:
        run(f"!prefer {nodes[variant.pages == 'above']}")
    report = module_report(guest)
    record = GuestRecord(
        session=guest.session,
        release=kernel.release,
        kernel=kernel.name,
        variant=variant,
        partition=partition,
        offset=offset,
        regions=report.regions,
        frames=frames_of_region(guest, "locked"),
        direct_map=direct_map_counters(guest),
        allocator=report.allocator,
    )
    if variant.two_nodes:
        require_arranged(record)
    return record


def _enable_zswap(guest: RunningGuest, compressor: str) -> None:
    """Enable zswap. Raises LabUnavailable if the kernel has none, or not this compressor."""
    wanted = {"compressor": compressor} if compressor else {}
    for name, value in {**wanted, "enabled": "Y"}.items():
        if guest.port.ask(f"echo {value} > {ZSWAP}/{name} && grep -qx {value} {ZSWAP}/{name}").status:
            raise LabUnavailable(f"the kernel has no zswap whose {name} can be {value}")


def _make_regions(guest: RunningGuest, variant: Variant, traced: int) -> None:
    """Load the module that takes regions out of the direct map, and see that its probe works.

    Raises:
        LabUnavailable: no block fits, or no allocation of a provoked split fails although some are to fail later.
        LabError: the module cannot be loaded.
    """
    parameters = [f"make={_listed(variant.regions)}", f"seed={variant.seed}", f"allocator={_allocator(guest)}"]
    if traced:
        parameters.append(f"trace={traced}")
    if variant.fail_allocations:
        parameters += [f"skip={variant.skip_allocations}", f"fail={variant.fail_allocations}"]
    loaded = guest.port.ask(f"!insmod /modules/{REGION_MODULE} {' '.join(parameters)}", MODULE_SECONDS)
    if any(line.endswith(NO_BLOCK) for line in loaded.lines):
        regions = ", ".join(dict.fromkeys(variant.regions))
        raise LabUnavailable(f"the guest has no free block for {regions} that one entry of its direct map maps")
    if loaded.status:
        raise LabError(f"the module cannot be loaded: {' / '.join(loaded.lines)}", log=guest.qemu.last_log_lines())
    guest.port.run(f"echo control > {REPORT}")
    if variant.fail_allocations:
        require_control(module_report(guest))
    guest.port.run(f"echo arm > {REPORT}")
    if variant.has_threads:
        start_threads(guest)  # last: the provoked splits wait for the lock that a thread waits for


def _allocator(guest: RunningGuest) -> str:
    """Return the kernel's own name of the innermost function that allocates pages; empty if it has no such symbol."""
    return next((one.symbol for one in listed_functions(guest, ALLOCATORS)), "")


def _listed(regions: Sequence[str]) -> str:
    """Return regions as the module's parameter: a run of equal ones is said once, with its length."""
    runs = ((region, len(list(run))) for region, run in groupby(regions))
    return ",".join(region if count == 1 else f"{region}*{count}" for region, count in runs)


def require_control(report: ModuleReport) -> None:
    """Require that the probe made the first of two provoked splits fail and saw the second.

    Raises:
        LabUnavailable: it did not: what it is to fail later would not fail.
    """
    control = report.control
    if (control.get("failed"), control.get("seen"), control.get("error")) != ("1", "1", "0"):
        said = ", ".join(f"{key} {value}" for key, value in control.items()) or "the module did not try"
        raise LabUnavailable(f"an allocation cannot be made to fail in this guest: of two provoked splits: {said}")


def _swap_on(guest: RunningGuest, variant: Variant) -> tuple[str, int | None, int]:
    """Make the guest's swap area, enable it, and return its block device, its partition and `resume_offset`."""
    run = guest.port.run
    if variant.swap is Swap.FILE:
        run("mount -t ext4 /dev/vda /mnt")
        run(f"dd if=/dev/zero of=/mnt/swapfile bs=1M count={variant.memory_mib} 2>/dev/null", SWAP_FILE_SECONDS)
        run("chmod 600 /mnt/swapfile && mkswap /mnt/swapfile && swapon /mnt/swapfile && sync")
        (extent,) = (facts_of(line) for line in run("!extent /mnt/swapfile"))
        return "vda", None, int(extent["block"])
    device, partition = ("vda1", 1) if variant.swap is Swap.PARTITION else ("vda", None)
    if variant.huge_pages:  # only of a disk that does not rotate are slots given out by clusters
        run("echo 0 > /sys/block/vda/queue/rotational")
    run(f"mkswap /dev/{device} && swapon /dev/{device}")
    return device, partition, 0


def use_kfence(guest: RunningGuest) -> None:
    """Switch KFENCE on and use it until each of its slots was used twice.

    Raises:
        LabUnavailable: the kernel has no KFENCE that can be switched on at run time.
        LabError: it is hardly used.
    """
    if guest.port.ask(f"mount -t debugfs debugfs /sys/kernel/debug && test -e {KFENCE_PARAMETERS}").status:
        raise LabUnavailable("the kernel has no KFENCE, or no debugfs")
    guest.port.run(f"echo 1 > {KFENCE_PARAMETERS}/sample_interval")
    done = 0
    for _ in range(CHURNS):
        guest.port.run(CHURN)
        (stat,) = guest.port.run(f"grep '^total allocations' {KFENCE_STATS}")
        done = int(stat.split()[-1])
        if done > 2 * KFENCE_SLOTS + 1:
            return
    raise LabError(f"KFENCE made {done} allocations, too few to use its {KFENCE_SLOTS} slots again")


def _fill_memory(guest: RunningGuest, variant: Variant) -> None:
    """Fill regions of memory with pages that contain their own identity."""
    run = guest.port.run
    # Locked pages keep their frames; a kernel without CONFIG_COMPACTION has no such file and moves none.
    compacted = "/proc/sys/vm/compact_unevictable_allowed"
    run(f"[ ! -e {compacted} ] || echo 0 > {compacted}")
    run(f"!fill locked {LOCKED_PAGES} {SEED:#x}")
    run(f"!fill loose {LOOSE_PAGES} {SEED + 1:#x}")
    if variant.huge_pages:
        run(f"echo always > {HUGE}/enabled && echo force > {HUGE}/shmem_enabled")
        run(f"!fill huge {HUGE_PAGES * variant.huge_pages} {SEED + 3:#x}")
        run(f"seq 1 {HUGE_FILE_LINES} > {HUGE_FILE}", HUGE_FILE_SECONDS)
    if variant.secret_pages:
        run(f"!fill secret {variant.secret_pages} {SEED + 2:#x}")
