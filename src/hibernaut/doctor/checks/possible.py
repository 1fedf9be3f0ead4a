# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether the machine can hibernate at all.

`hibernation_available` (kernel/power/hibernate.c) is false under `nohibernate`, lockdown, open secret memory or active
memory of CXL: /sys/power/state then lacks `disk`, and a write of `disk` fails with EPERM. Read in linux-source-6.1
6.1.192-2, -6.12 6.12.118-1 and -7.3 7.3.4-1~bpo13+1.
"""

from __future__ import annotations

from hibernaut.doctor.facts import Facts
from hibernaut.doctor.finding import (
    CheckFinding,
    CheckOutcome,
    FactRead,
    failing,
    first_line,
    ok,
    unknown_for_lack_of,
    warning,
)

__all__ = [
    "available",
    "configuration",
    "control_groups",
    "cxl_memory",
    "direct_map",
    "kfence",
    "lockdown",
    "nohibernate",
    "secret_memory",
    "sleep_settings",
    "tdx",
]

NOT_PERMITTED = "write error: Operation not permitted"
"""The shell's words for EPERM at `echo disk > /sys/power/state`."""
NOT_SUPPORTED = (
    "Sleep verb 'hibernate' is not configured or configuration is not supported by kernel",
    'Sleep verb "hibernate" not supported',
)
"""Words of systemd-logind 257 and 252 if /sys/power/state lacks `disk` (Debian's packages)."""
DISABLED = "Sleep verb 'hibernate' is disabled by config"
"""Words of systemd-logind 257 for AllowHibernation=no."""
KFENCE_OFF = {"n", "0"}


def available(facts: Facts) -> CheckFinding:
    """Return whether the kernel offers hibernation now: all of its reasons together."""
    state, disk = facts.power_state, facts.power_disk
    if state.value is None:
        return unknown_for_lack_of(state, advice="give the running system, or a copy of its root")
    read = FactRead.of(state, " ".join(state.value))
    if "disk" in state.value:
        return ok("the kernel offers hibernation", read)
    if disk.value is not None:
        return failing(
            "the kernel does not offer hibernation now",
            read,
            FactRead.of(disk),
            words=(NOT_PERMITTED, *NOT_SUPPORTED),
            advice="see the checks nohibernate, lockdown, secret-memory and cxl",
        )
    return failing(
        "the kernel has no hibernation",
        read,
        FactRead.of(disk),
        words=NOT_SUPPORTED,
        advice="use a kernel with CONFIG_HIBERNATION",
    )


def configuration(facts: Facts) -> CheckFinding:
    """Return whether the kernel was built with hibernation."""
    config = facts.config
    if config.value is None:
        if facts.power_disk.known:
            return ok("the kernel has hibernation: /sys/power/disk exists", FactRead.of(facts.power_disk))
        return unknown_for_lack_of(config, advice="give the kernel's configuration as --config")
    value = config.value.get("CONFIG_HIBERNATION", "n")
    read = FactRead.of(config, f"CONFIG_HIBERNATION={value}")
    if value == "y":
        return ok("the kernel is built with hibernation", read)
    return failing(
        "the kernel is built without hibernation",
        read,
        words=NOT_SUPPORTED,
        advice="use a kernel with CONFIG_HIBERNATION=y",
    )


def nohibernate(facts: Facts) -> CheckFinding:
    """Return whether the command line disables hibernation or resuming."""
    line = facts.command_line
    if line.value is None:
        return unknown_for_lack_of(line, advice="give /proc/cmdline as --cmdline")
    read = FactRead.of(line, line.value.text)
    value = line.value.last("hibernate") or ""
    if line.value.has("nohibernate") or (value.startswith("no") and not value.startswith(("noresume", "nocompress"))):
        return failing(
            "the command line disables hibernation",
            read,
            words=(NOT_PERMITTED, *NOT_SUPPORTED),
            advice="remove nohibernate or hibernate=no from the command line of the boot loader",
        )
    if line.value.has("noresume") or value.startswith("noresume"):
        return failing(
            "the command line has noresume: the kernel writes an image, and the next boot ignores it",
            read,
            advice="remove noresume from the command line of the boot loader",
        )
    return ok("the command line does not disable hibernation", read)


def sleep_settings(facts: Facts) -> CheckFinding:
    """Return whether systemd's sleep.conf.d(5) allows hibernation."""
    settings = facts.sleep_settings
    if settings.value is None:
        if settings.reason == "there is no such file":
            return ok("systemd's defaults allow hibernation", FactRead.of(settings))
        return unknown_for_lack_of(settings, advice="give its root as --root")
    value = settings.value.get("AllowHibernation", "yes")
    read = FactRead.of(settings, f"AllowHibernation={value}")
    if value.lower() in ("no", "n", "false", "f", "0", "off"):
        return failing(
            "systemd's settings forbid hibernation",
            read,
            words=(DISABLED,),
            advice="remove AllowHibernation=no from sleep.conf and its drop-ins",
        )
    return ok("systemd's settings allow hibernation", read)


def lockdown(facts: Facts) -> CheckFinding:
    """Return whether lockdown forbids hibernation: LOCKDOWN_HIBERNATION is below LOCKDOWN_INTEGRITY_MAX."""
    level = facts.lockdown
    words = ("Lockdown: systemd-logind: hibernation is restricted; see man kernel_lockdown.7", NOT_PERMITTED)
    advice = "turn off Secure Boot or lockdown, or use suspend to RAM"
    said = first_line(facts.this_boot, "hibernation is restricted; see man kernel_lockdown.7")
    if level.value is None:
        if said:
            return failing("the kernel's lockdown forbids hibernation", said, words=words, advice=advice)
        begun = first_line(facts.this_boot, "Kernel is locked down from")
        if begun:
            return failing("the kernel is locked down since boot", begun, words=words, advice=advice)
        if facts.whole_log.known:
            return ok("the log of this boot does not mention lockdown", FactRead(facts.whole_log.origin, "no message"))
        return unknown_for_lack_of(level, advice="give /sys/kernel/security/lockdown with its root, as --root")
    read = FactRead.of(level)
    if level.value == "none":
        return ok("the kernel is not locked down", read)
    return failing(f"the kernel is locked down ({level.value})", read, words=words, advice=advice)


def secret_memory(facts: Facts) -> CheckFinding:
    """Return whether secret memory (memfd_secret) is open, with which the kernel does not hibernate."""
    source, holders = facts.source.value, facts.secret_holders
    users = source.machine.secret_users if source else None
    if source and users:
        return failing(
            f"secret memory was open in {source.name} ({users} open)",
            FactRead(source.name, f"secretmem_users {users}"),
            words=(NOT_PERMITTED,),
            advice="end the processes that use memfd_secret, or start the kernel with secretmem.enable=0",
        )
    if holders.value is None:
        if source and users == 0:
            return ok("no secret memory was open", FactRead(source.name, "secretmem_users 0"))
        line = facts.command_line.value
        if line and line.last("secretmem.enable") in ("0", "n", "N", "off"):
            return ok("secret memory is disabled", FactRead.of(facts.command_line, line.text))
        return unknown_for_lack_of(holders, advice="run as root on the machine itself")
    if not holders.value:
        return ok("no process has secret memory open", FactRead.of(holders, "no mapping of secretmem"))
    return failing(
        f"secret memory is open: {', '.join(holders.value)}",
        FactRead.of(holders, ", ".join(holders.value)),
        words=(NOT_PERMITTED, *NOT_SUPPORTED),
        advice="end these processes, or start the kernel with secretmem.enable=0",
    )


def cxl_memory(facts: Facts) -> CheckFinding:
    """Return whether memory of CXL is active (`cxl_mem_active`, drivers/cxl/core/suspend.c)."""
    found = facts.cxl_memories
    if found.value is None:
        return unknown_for_lack_of(found, advice="run it on the machine itself")
    if not found.value:
        return ok("the machine has no memory of CXL", FactRead.of(found, "no memory device"))
    read = FactRead.of(found, ", ".join(found.value))
    return failing(
        f"memory of CXL is active: {', '.join(found.value)}",
        read,
        words=(NOT_PERMITTED,),
        advice="unbind the cxl_mem driver from these devices, or use another way to sleep",
    )


def tdx(facts: Facts) -> CheckFinding:
    """Return whether hibernation and TDX exclude each other here.

    A host's TDX module is not initialized while hibernation is available (`tdx_init`, arch/x86/virt/vmx/tdx/tdx.c).
    Read in linux-source-7.3 7.3.4-1~bpo13+1: so a host that runs TDX guests was booted with nohibernate.
    """
    said = first_line(facts.this_boot, "initialization failed: Hibernation support is enabled")
    if said:
        return warning(
            "hibernation is available, so the kernel does not initialize TDX",
            said,
            words=("virt/tdx: initialization failed: Hibernation support is enabled",),
            advice="choose one of the two: nohibernate on the command line enables TDX",
        )
    used = first_line(facts.this_boot, "Memory Encryption Features active: Intel TDX")
    if used:
        return failing(
            "this is a TDX guest, whose memory is encrypted with a key of this run",
            used,
            advice="shut it down instead, or save the guest on its host",
        )
    log = facts.whole_log
    if log.known:
        return ok("the log of this boot does not mention TDX", FactRead(log.origin, "no message"))
    return unknown_for_lack_of(log, advice="give the log of this boot as --dmesg")


def kfence(facts: Facts) -> CheckFinding:
    """Return whether KFENCE was switched on at run time.

    Its pool is ordinary memory then, with which mainline kernels save pages and give them back without RW; KFENCE sets
    PRESENT alone and faults when it writes. Switched on at boot, the pool is reserved and not saved.
    """
    words = ("BUG: unable to handle page fault for address", "RIP: 0010:__kfence_alloc")
    advice = "start the kernel with kfence.sample_interval=100, or with 0 and do not switch KFENCE on"
    late = _late_kfence(facts)
    if late and facts.kfence_interval.value == 0:
        return warning(
            "KFENCE's pool was made at run time, and KFENCE is off now: do not switch it on again",
            late,
            FactRead.of(facts.kfence_interval),
            words=words,
            advice=advice,
        )
    if late:
        return failing(
            "KFENCE was switched on at run time: the kernel may crash when it resumes its devices",
            late,
            words=words,
            advice=advice,
        )
    now, line, config = facts.kfence_interval, facts.command_line, facts.config
    if config.value is not None and config.value.get("CONFIG_KFENCE", "n") == "n":
        return ok("the kernel is built without KFENCE", FactRead.of(config, "CONFIG_KFENCE=n"))
    if now.value is None:
        if facts.whole_log.known:
            return ok("KFENCE was not switched on after boot", FactRead(facts.whole_log.origin, "no message"))
        return unknown_for_lack_of(now, advice="give the log of this boot as --dmesg")
    if now.value == 0:
        return ok("KFENCE is off", FactRead.of(now))
    at_boot = line.value.last("kfence.sample_interval") if line.value else None
    if at_boot is None and config.value is not None:
        at_boot = config.value.get("CONFIG_KFENCE_SAMPLE_INTERVAL")
    if at_boot is None:
        return unknown_for_lack_of(config, line, advice="give the kernel's configuration as --config")
    read = (FactRead.of(now), FactRead(line.origin, f"at boot {at_boot}"))
    if at_boot.strip() in KFENCE_OFF:
        return failing(
            "KFENCE was off at boot and is on now: the kernel may crash when it resumes its devices",
            *read,
            words=words,
            advice=advice,
        )
    return ok("KFENCE is on since boot: its pool is reserved and not saved", *read)


def _late_kfence(facts: Facts) -> FactRead | None:
    """Return the line of the log that reports a pool made after the first process was started."""
    boot = facts.this_boot
    started = False
    for line in boot.lines if boot else ():
        started = started or (line.program == "kernel" and line.text.startswith("Run /"))  # `run_init_process`
        if boot and started and line.text.startswith("kfence: initialized - using "):
            return FactRead.of_line(boot, line)
    return None


def direct_map(facts: Facts) -> CheckFinding:
    """Return whether large blocks are missing from the direct map, which the copy has to split."""
    source = facts.source
    if source.value is None:
        return unknown_for_lack_of(source, advice="give a dump, or /proc/kcore as root, as --image")
    machine, name = source.value.machine, source.value.name
    if machine.large_holes is None:
        reason = machine.problems[-1] if machine.problems else source.value.detail
        return CheckFinding(
            CheckOutcome.NOT_KNOWN,
            f"{name} does not show the direct map: {reason}",
            advice="give a dump, or /proc/kcore as root, as --image",
        )
    if machine.lost_pages:
        return failing(
            f"the image is torn: the page table of {machine.lost_pages} pages is not in it, so the machine resumes and"
            " crashes when it accesses them",
            FactRead(name, f"{machine.lost_pages} pages without a page table"),
            words=("BUG: unable to handle page fault for address", "CPA detected W^X violation"),
            advice="do not resume from it; see `hibernaut map` and docs/explanation/copy-loop.md",
        )
    if machine.large_holes:
        read = FactRead(name, f"{machine.large_holes} large entries not present, {machine.hole_pages} pages to save")
        text = f"{machine.large_holes} large blocks are not in the direct map: the copy has to split them"
        if machine.torn_holes:
            return failing(
                f"{text}, and {machine.torn_holes} of the images' tables would be lost",
                read,
                words=("PM: hibernation: Failed to remap page", "BUG: unable to handle page fault for address"),
                advice="use a kernel that copies such pages through a slot of the fixmap, see `hibernaut audit`",
            )
        return warning(
            f"{text}, each with an allocation that may fail",
            read,
            words=("PM: hibernation: Failed to remap page",),
            advice="use a kernel that copies such pages through a slot of the fixmap, see `hibernaut audit`",
        )
    return ok("no large block is missing from the direct map", FactRead(name, "no large entry that is not present"))


def control_groups(facts: Facts) -> CheckFinding:
    """Return whether control groups keep the kernel from swapping out what it has to swap out."""
    groups = facts.cgroups
    if groups.value is None:
        return unknown_for_lack_of(groups, advice="run it on the machine itself")
    total = facts.meminfo.value.get("MemTotal", 0) if facts.meminfo.value else 0
    held = sum(max(0, use - limit) for _, limit, use in groups.value)
    text = ", ".join(f"{name}: {limit} bytes of swap, {use} in use" for name, limit, use in groups.value[:8])
    read = FactRead.of(groups, text or "no limit")
    if total and held > total // 2:
        return warning(
            "control groups with a limit on swap hold more than half of the memory: the kernel cannot swap it out to"
            " make room for the image",
            read,
            words=("PM: hibernation: Image allocation is ? pages short", "PM: hibernation: Error -12 creating image"),
            advice="raise memory.swap.max of these groups, or end what runs in them",
        )
    return ok("no limit on swap keeps the kernel from making room", read)
