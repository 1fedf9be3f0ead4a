# SPDX-License-Identifier: GPL-2.0-or-later
"""The facts of a machine that its hibernation depends on, each with its origin or the reason why it is not known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hibernaut.doctor.devices import BlockDevices, SwapPlace
from hibernaut.doctor.evidence import NOT_GIVEN, Evidence, unknown
from hibernaut.doctor.log import BootLog
from hibernaut.doctor.memory_map import MemoryMap
from hibernaut.doctor.settings import CommandLine, CryptMapping, HibernateLocation, SwapEntry, ZoneCounts
from hibernaut.doctor.source_facts import SourceFacts

__all__ = ["Facts"]


def _missing(origin: str) -> Callable[[], Evidence[Any]]:
    """Return a function that returns a fact that is not known; `origin` names the file that would state it."""
    return lambda: unknown(origin, NOT_GIVEN)


@dataclass(frozen=True)
class Facts:
    """Facts of a machine.

    Attributes:
        release: release of its kernel.
        config: the kernel's configuration, by option.
        command_line: the kernel's command line.
        power_state: words of /sys/power/state.
        power_disk: text of /sys/power/disk.
        resume_device: major and minor number in /sys/power/resume.
        resume_offset: /sys/power/resume_offset, pages.
        image_size: /sys/power/image_size, bytes.
        reserved_size: /sys/power/reserved_size, bytes.
        lockdown: the kernel's lockdown: none, integrity, confidentiality.
        secret_holders: processes with secret memory open.
        cxl_memories: names of memory devices of CXL.
        kfence_interval: KFENCE's sample interval now, ms; 0 if it is off.
        swaps: swap areas in use, in the kernel's order.
        meminfo: /proc/meminfo, bytes.
        zones: counts of pages.
        counters: /proc/vmstat.
        own_pages: pages of this process, which ends before the machine hibernates.
        memory_map: the firmware's memory map of this boot.
        physical_pages: `get_num_physpages()` of this boot.
        hw_sig: hardware signature of ACPI's FACS; 0 if there is none.
        crypttab: encrypted devices that are opened at boot.
        fstab_swaps: swap areas of fstab(5).
        devices: block devices and their names.
        swap_places: places of swap files, by their paths.
        location: the EFI variable HibernateLocation.
        systemd: whether systemd runs the machine.
        sleep_settings: settings of sleep.conf.d(5).
        installed: releases of the kernels in /boot and /usr/lib/modules.
        boot_files: kernels and initramfs in /boot, and when each was written, in s since 1970.
        initramfs: settings about resuming of the tools that make an initramfs, by "tool: setting".
        cgroups: groups with a limit on swap, and their limit and use in bytes.
        boots: logs of boots, the oldest first; the last is this one.
        source: the image or dump that is given.
    """

    release: Evidence[str] = field(default_factory=_missing("uname -r"))
    config: Evidence[Mapping[str, str]] = field(default_factory=_missing("--config"))
    command_line: Evidence[CommandLine] = field(default_factory=_missing("--cmdline"))
    power_state: Evidence[tuple[str, ...]] = field(default_factory=_missing("/sys/power/state"))
    power_disk: Evidence[str] = field(default_factory=_missing("/sys/power/disk"))
    resume_device: Evidence[str] = field(default_factory=_missing("/sys/power/resume"))
    resume_offset: Evidence[int] = field(default_factory=_missing("/sys/power/resume_offset"))
    image_size: Evidence[int] = field(default_factory=_missing("/sys/power/image_size"))
    reserved_size: Evidence[int] = field(default_factory=_missing("/sys/power/reserved_size"))
    lockdown: Evidence[str] = field(default_factory=_missing("/sys/kernel/security/lockdown"))
    secret_holders: Evidence[tuple[str, ...]] = field(default_factory=_missing("/proc/*/maps"))
    cxl_memories: Evidence[tuple[str, ...]] = field(default_factory=_missing("/sys/bus/cxl/devices"))
    kfence_interval: Evidence[int] = field(default_factory=_missing("/sys/module/kfence/parameters/sample_interval"))
    swaps: Evidence[tuple[SwapEntry, ...]] = field(default_factory=_missing("--swaps"))
    meminfo: Evidence[Mapping[str, int]] = field(default_factory=_missing("--meminfo"))
    zones: Evidence[ZoneCounts] = field(default_factory=_missing("/proc/zoneinfo"))
    counters: Evidence[Mapping[str, int]] = field(default_factory=_missing("/proc/vmstat"))
    own_pages: Evidence[int] = field(default_factory=_missing("/proc/self/status"))
    memory_map: Evidence[MemoryMap] = field(default_factory=_missing("--dmesg"))
    physical_pages: Evidence[int] = field(default_factory=_missing("--dmesg"))
    hw_sig: Evidence[int] = field(default_factory=_missing("/sys/firmware/acpi/tables/FACS"))
    crypttab: Evidence[tuple[CryptMapping, ...]] = field(default_factory=_missing("/etc/crypttab"))
    fstab_swaps: Evidence[tuple[str, ...]] = field(default_factory=_missing("/etc/fstab"))
    devices: Evidence[BlockDevices] = field(default_factory=_missing("/sys/class/block"))
    swap_places: Evidence[Mapping[str, SwapPlace]] = field(default_factory=_missing("swap files"))
    location: Evidence[HibernateLocation] = field(default_factory=_missing("HibernateLocation"))
    systemd: Evidence[bool] = field(default_factory=_missing("/run/systemd/system"))
    sleep_settings: Evidence[Mapping[str, str]] = field(default_factory=_missing("/etc/systemd/sleep.conf"))
    installed: Evidence[tuple[str, ...]] = field(default_factory=_missing("/boot/vmlinuz-*"))
    boot_files: Evidence[Mapping[str, int]] = field(default_factory=_missing("/boot"))
    initramfs: Evidence[Mapping[str, str]] = field(default_factory=_missing("/etc"))
    cgroups: Evidence[tuple[tuple[str, int, int], ...]] = field(default_factory=_missing("/sys/fs/cgroup"))
    boots: Evidence[tuple[BootLog, ...]] = field(default_factory=_missing("--dmesg"))
    source: Evidence[SourceFacts] = field(default_factory=_missing("--image"))

    @property
    def this_boot(self) -> BootLog | None:
        """The log of this boot; None if there is none."""
        return self.boots.value[-1] if self.boots.value else None

    @property
    def whole_log(self) -> Evidence[BootLog]:
        """The log of this boot, from its first line on."""
        boot = self.this_boot
        if boot is None:
            return unknown(self.boots.origin, self.boots.reason)
        return Evidence(boot, boot.origin) if boot.is_whole else unknown(boot.origin, "it begins after the boot")

    @property
    def earlier_boot(self) -> BootLog | None:
        """The log of the boot before this one; None if there is none."""
        return self.boots.value[-2] if self.boots.value and len(self.boots.value) > 1 else None
