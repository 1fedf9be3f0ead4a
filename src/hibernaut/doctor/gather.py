# SPDX-License-Identifier: GPL-2.0-or-later
"""Gather the facts: of the running system or a mounted root, and of files that a user attaches. Nothing is written."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TypeVar

from hibernaut.doctor.devices import SwapPlace, block_devices, place_of_swap_file
from hibernaut.doctor.evidence import Evidence, RootFolder, attached_text, unknown
from hibernaut.doctor.facts import Facts
from hibernaut.doctor.kernel_buffer import KMSG, kernel_buffer
from hibernaut.doctor.live_memory import own_pages
from hibernaut.doctor.log import BootLog, boots_in
from hibernaut.doctor.memory_map import map_in_log, map_of_folder
from hibernaut.doctor.settings import (
    CommandLine,
    HibernateLocation,
    bracketed,
    parse_command_line,
    parse_config,
    parse_counters,
    parse_crypttab,
    parse_fstab_swaps,
    parse_hibernate_location,
    parse_ini,
    parse_meminfo,
    parse_shell,
    parse_swaps,
    parse_zoneinfo,
)
from hibernaut.errors import FormatError
from hibernaut.kernel_line import parse_release

__all__ = [
    "AttachedFiles",
    "facts_of_files",
    "facts_of_root",
    "joined_facts",
    "with_counts_of_now",
    "with_facts_of_log",
]

T = TypeVar("T")

NOT_THAT = "it has another content than such a file"
CONFIG_BYTES = 1 << 21
ENDED = (os.strerror(errno.ENOENT), os.strerror(errno.ESRCH))
"""Reasons why the files of a process that has ended meanwhile cannot be read."""
KERNEL_LOG_BYTES = 1 << 24
SECRET_MAPPING = "/secretmem"  # nosec B105 # no password: a name of the kernel's
"""Name of the file of `memfd_secret` in /proc/PID/maps (mm/secretmem.c, `secretmem_file_create`)."""
MOST_PROCESSES = 4096
LOCATION = "sys/firmware/efi/efivars/HibernateLocation-8cf2644b-4b0b-428f-9387-6d876050dc67"
"""systemd's variable (src/shared/hibernate-util.c)."""
FACS_HARDWARE_SIGNATURE = 8
"""struct acpi_table_facs (include/acpi/actbl.h): signature, length, hardware signature."""
BOOT_FILES = ("vmlinuz", "vmlinux", "bzImage", "initrd", "initramfs", "booster")
"""Beginnings of the names of kernels and initramfs in /boot: Debian's, Fedora's, SUSE's, Arch's."""
NOT_BOOTED = ("fallback", "rescue", "kdump", "old", "bak")
"""Words in the names of those that are not started by default."""
INITRAMFS_TOOLS = ("etc/initramfs-tools/initramfs.conf", "etc/initramfs-tools/conf.d/resume")
LOGS = ("var/log/kern.log", "var/log/messages")


@dataclass(frozen=True)
class AttachedFiles:
    """Files that a user attaches to a report; None for those that are not given.

    Attributes:
        logs: logs of boots, the oldest first.
        command_line: /proc/cmdline.
        swaps: /proc/swaps.
        meminfo: /proc/meminfo.
        config: configuration of the kernel.
    """

    logs: tuple[Path, ...] = ()
    command_line: Path | None = None
    swaps: Path | None = None
    meminfo: Path | None = None
    config: Path | None = None

    @property
    def any(self) -> bool:
        """Whether there is one."""
        return bool(self.logs or self.command_line or self.swaps or self.meminfo or self.config)


def joined_facts(one: Facts, other: Facts) -> Facts:
    """Return the facts of the one, and those of the other where it has none; the logs of both, if they are of boots.

    The kernel's own buffer is of this boot: logs that are attached besides it are of boots before, or of the same.
    """
    chosen = {field.name: getattr(one, field.name).otherwise(getattr(other, field.name)) for field in fields(Facts)}
    attached, running = one.boots.value, other.boots.value
    if attached and running and running[0].origin == KMSG and not attached[-1].is_of_boot(running[0]):
        chosen["boots"] = _evidence_of((*attached, *running))
    return Facts(**chosen)


# ---- files of a report ----


def facts_of_files(files: AttachedFiles) -> Facts:
    """Return the facts that attached files state.

    Raises:
        FormatError: a file is of another kind.
        OSError: a file cannot be read.
    """
    boots = tuple(boot for path in files.logs for boot in boots_in(attached_text(path), str(path)))
    found = Facts()
    return replace(
        found,
        boots=_evidence_of(boots) if boots else found.boots,
        command_line=_attached(files.command_line, parse_command_line, "the line of /proc/cmdline", found.command_line),
        swaps=_attached(files.swaps, parse_swaps, "/proc/swaps, with its header", found.swaps),
        meminfo=_attached(files.meminfo, parse_meminfo, "/proc/meminfo", found.meminfo),
        config=_attached(files.config, parse_config, "lines such as CONFIG_HIBERNATION=y", found.config),
    )


def _attached(path: Path | None, parse: Callable[[str], T], expected: str, default: Evidence[T]) -> Evidence[T]:
    """Return the fact in a file. Raises FormatError, OSError."""
    if path is None:
        return default
    text = attached_text(path)
    try:
        return Evidence(parse(text), str(path))
    except (ValueError, IndexError) as error:
        raise FormatError(
            str(error) or NOT_THAT, source=str(path), expected=expected, advice="give that file of the machine"
        ) from error


def _evidence_of(boots: Sequence[BootLog]) -> Evidence[tuple[BootLog, ...]]:
    return Evidence(tuple(boots), ", ".join(dict.fromkeys(boot.origin for boot in boots)))


def with_facts_of_log(facts: Facts) -> Facts:
    """Return facts with those that the log of this boot states, where they have none."""
    last = facts.this_boot
    if last is None:
        return facts

    def stated(value: T | None, missing: str) -> Evidence[T]:
        return unknown(last.origin, missing) if value is None else Evidence(value, last.origin)

    words = last.command_line
    said = replace(
        Facts(),
        release=stated(last.release, "the log has no line `Linux version`"),
        command_line=stated(parse_command_line(words) if words else None, "the log has no line `Command line`"),
        physical_pages=stated(last.physical_pages, "the log has no line `Memory: ... available`"),
        memory_map=map_in_log(last.kernel_texts, last.origin),
    )
    return joined_facts(facts, said)


# ---- a root folder ----


def facts_of_root(root: RootFolder) -> Facts:
    """Return the facts that /proc, /sys, /etc, /boot and /var of a root folder state."""
    release = root.text("proc/sys/kernel/osrelease").parsed(lambda text: text.strip() or None, NOT_THAT)
    facts = Facts(
        release=release,
        config=_config(root, release.value),
        command_line=_command_line(root),
        power_state=root.text("sys/power/state").parsed(lambda text: tuple(text.split()), NOT_THAT),
        power_disk=root.text("sys/power/disk").parsed(str.strip, NOT_THAT),
        resume_device=root.text("sys/power/resume").parsed(_device_number, NOT_THAT),
        resume_offset=_number(root, "sys/power/resume_offset"),
        image_size=_number(root, "sys/power/image_size"),
        reserved_size=_number(root, "sys/power/reserved_size"),
        lockdown=root.text("sys/kernel/security/lockdown").parsed(bracketed, NOT_THAT),
        secret_holders=_secret_holders(root),
        cxl_memories=_cxl_memories(root),
        kfence_interval=_number(root, "sys/module/kfence/parameters/sample_interval"),
        swaps=root.text("proc/swaps").parsed(parse_swaps, NOT_THAT),
        meminfo=root.text("proc/meminfo").parsed(parse_meminfo, NOT_THAT),
        counters=root.text("proc/vmstat").parsed(parse_counters, NOT_THAT),
        memory_map=map_of_folder(root),
        physical_pages=root.text("proc/zoneinfo").parsed(_present_pages, NOT_THAT),
        hw_sig=_hw_sig(root),
        crypttab=root.text("etc/crypttab").parsed(parse_crypttab, NOT_THAT),
        fstab_swaps=root.text("etc/fstab").parsed(parse_fstab_swaps, NOT_THAT),
        devices=block_devices(root),
        location=_location(root),
        systemd=_systemd(root),
        sleep_settings=_sleep_settings(root),
        installed=_installed(root),
        boot_files=_boot_files(root),
        initramfs=_initramfs(root),
        cgroups=_cgroups(root),
    )
    facts = replace(facts, swap_places=_swap_places(root, facts))
    boots = kernel_buffer() if root.is_running else _logs(root)
    return with_counts_of_now(replace(facts, boots=boots), root)


def with_counts_of_now(facts: Facts, root: RootFolder) -> Facts:
    """Return facts with the pages in use now, and those of this process: at one instant.

    Every module that this process loads and every file that it reads stays in the page cache when it ends, and is
    saved: the later the pages are counted, the better.
    """
    return replace(
        facts,
        own_pages=Evidence(own_pages() if root.is_running else None, "/proc/self/status"),
        zones=root.text("proc/zoneinfo").parsed(parse_zoneinfo, NOT_THAT),
    )


def _swap_places(root: RootFolder, facts: Facts) -> Evidence[Mapping[str, SwapPlace]]:
    """Return the places of the swap files in use, which only the running system's root can ask for."""
    files = [one.name for one in facts.swaps.value or () if one.kind == "file"]
    mountinfo = root.text("proc/self/mountinfo").value
    if not root.is_running or facts.devices.value is None or mountinfo is None:
        return unknown(files[0] if files else "swap files", "only the running system shows where a file lies")
    found = {name: place_of_swap_file(Path(name), mountinfo, facts.devices.value) for name in files}
    missing = [one for one in found.values() if not one.known]
    if missing:
        return unknown(missing[0].origin, missing[0].reason)
    return Evidence({name: one.value for name, one in found.items() if one.value}, "/proc/swaps")


def _number(root: RootFolder, name: str) -> Evidence[int]:
    return root.text(name).parsed(lambda text: int(text.strip()), NOT_THAT)


def _device_number(text: str) -> str | None:
    return text.strip() if re.fullmatch(r"\d+:\d+", text.strip()) else None


def _present_pages(text: str) -> int | None:
    zones = parse_zoneinfo(text)
    return zones.present if zones else None


def _config(root: RootFolder, release: str | None) -> Evidence[Mapping[str, str]]:
    """Return the configuration of the kernel that runs, or of the only one that is installed."""
    import gzip

    packed = root.content("proc/config.gz", CONFIG_BYTES)
    if packed.value is not None:
        return packed.parsed(lambda data: parse_config(gzip.decompress(data).decode("ascii", "replace")), NOT_THAT)
    if release is not None:
        for name in (f"boot/config-{release}", f"lib/modules/{release}/config", f"usr/lib/modules/{release}/config"):
            found = root.text(name, CONFIG_BYTES)
            if found.known:
                return found.parsed(parse_config, NOT_THAT)
        return unknown(root.shown(f"boot/config-{release}"), "there is no such file")
    installed = [name for name in root.names("boot").value or () if name.startswith("config-")]
    if len(installed) == 1:
        return root.text(f"boot/{installed[0]}", CONFIG_BYTES).parsed(parse_config, NOT_THAT)
    return unknown(root.shown("boot/config-*"), "which kernel runs is not known")


def _command_line(root: RootFolder) -> Evidence[CommandLine]:
    """Return the command line of the kernel that runs; of a mounted root, that which its tools give to kernels."""
    running = root.text("proc/cmdline").parsed(parse_command_line, NOT_THAT)
    if running.known or root.is_running:
        return running
    stored = root.text("etc/kernel/cmdline")
    if stored.known:
        return stored.parsed(lambda text: parse_command_line(" ".join(text.split())), NOT_THAT)
    grub = root.text("etc/default/grub").parsed(parse_shell, NOT_THAT)
    if grub.value is None:
        return running
    names = ("GRUB_CMDLINE_LINUX", "GRUB_CMDLINE_LINUX_DEFAULT")
    return Evidence(parse_command_line(" ".join(grub.value.get(name, "") for name in names)), grub.origin)


def _secret_holders(root: RootFolder) -> Evidence[tuple[str, ...]]:
    """Return the processes with a mapping of secret memory; one that holds an open file only is found by its link."""
    origin = root.shown("proc/*/maps")
    names = root.names("proc")
    if names.value is None:
        return unknown(origin, names.reason)
    processes = [name for name in names.value if name.isdecimal()]
    if not processes:
        return unknown(origin, "there are no processes")
    holders: list[str] = []
    unread: dict[str, str] = {}
    for process in processes[:MOST_PROCESSES]:
        maps = root.content(f"proc/{process}/maps", CONFIG_BYTES)
        if maps.value is None:
            if maps.reason not in ENDED:
                unread[process] = maps.reason
            continue
        if len(maps.value) >= CONFIG_BYTES:
            unread[process] = "too many mappings"
        links = root.names(f"proc/{process}/fd").value or ()
        is_open = any((root.link(f"proc/{process}/fd/{one}") or "").startswith(SECRET_MAPPING) for one in links)
        if is_open or any(f" {SECRET_MAPPING}{end}".encode() in maps.value for end in (" ", "\n")):
            name = (root.text(f"proc/{process}/comm").value or "").strip()
            holders.append(f"{process} ({name})" if name else process)
    if not holders and (unread or len(processes) > MOST_PROCESSES):
        if not unread:
            return unknown(origin, f"there are more than {MOST_PROCESSES} processes")
        first, reason = next(iter(unread.items()))
        others = f" and of {len(unread) - 1} more" if len(unread) > 1 else ""
        return unknown(origin, f"the mappings of process {first}{others} cannot be read: {reason}")
    return Evidence(tuple(holders), origin)


def _cxl_memories(root: RootFolder) -> Evidence[tuple[str, ...]]:
    """Return memory devices of CXL: `cxl_mem_probe` counts each (`cxl_mem_active_inc`)."""
    names = root.names("sys/bus/cxl/devices")
    if names.value is not None:
        return Evidence(tuple(name for name in names.value if re.fullmatch(r"mem\d+", name)), names.origin)
    if root.names("sys/bus").known:
        return Evidence((), names.origin)  # without the bus there is no device
    return unknown(names.origin, names.reason)


def _hw_sig(root: RootFolder) -> Evidence[int]:
    tables = root.names("sys/firmware/acpi/tables")
    if tables.value is not None and "FACS" not in tables.value:
        return Evidence(0, tables.origin)
    found = root.content("sys/firmware/acpi/tables/FACS", 64)
    end = FACS_HARDWARE_SIGNATURE + 4
    return found.parsed(
        lambda facs: int.from_bytes(facs[FACS_HARDWARE_SIGNATURE:end], "little") if len(facs) >= end else None,
        NOT_THAT,
    )


def _location(root: RootFolder) -> Evidence[HibernateLocation]:
    found = root.content(LOCATION)
    if not found.known and not root.names("sys/firmware/efi").known and root.names("sys/firmware").known:
        return unknown(found.origin, "the machine was not booted by UEFI")
    return found.parsed(parse_hibernate_location, NOT_THAT)


def _systemd(root: RootFolder) -> Evidence[bool]:
    for name in ("run/systemd/system", "usr/lib/systemd/system", "lib/systemd/system"):
        if root.names(name).known:
            return Evidence(True, root.shown(name))
    return Evidence(False, root.shown("usr/lib/systemd/system"))


def _sleep_settings(root: RootFolder) -> Evidence[Mapping[str, str]]:
    """Return the settings of systemd's sleep.conf and its drop-ins, of which the last by name count."""
    files = {"": "etc/systemd/sleep.conf"}
    for folder in ("usr/lib/systemd/sleep.conf.d", "run/systemd/sleep.conf.d", "etc/systemd/sleep.conf.d"):
        names = [name for name in root.names(folder).value or () if name.endswith(".conf")]
        files.update({name: f"{folder}/{name}" for name in names})
    found: dict[str, str] = {}
    read = []
    for _, path in sorted(files.items()):
        text = root.text(path)
        if text.value is not None:
            read.append(text.origin)
            found.update(parse_ini(text.value))
    if not read:
        return unknown(root.shown("etc/systemd/sleep.conf"), "there is no such file")
    return Evidence(found, ", ".join(read))


def _installed(root: RootFolder) -> Evidence[tuple[str, ...]]:
    """Return the releases of installed kernels: of their images in /boot, and in the folders of their modules."""
    found = {name.removeprefix("vmlinuz-") for name in root.names("boot").value or () if name.startswith("vmlinuz-")}
    for folder in ("usr/lib/modules", "lib/modules"):
        names = root.names(folder).value or ()
        found.update(name for name in names if root.names(f"{folder}/{name}").value and _is_release(name))
    if not found:
        return unknown(root.shown("boot/vmlinuz-*"), "there is no kernel")
    return Evidence(tuple(sorted(found)), root.shown("boot/vmlinuz-*"))


def _is_release(name: str) -> bool:
    """Return whether a name is a release; of others, such as vmlinuz-linux, the version is not known."""
    with suppress(FormatError):
        return bool(parse_release(name))
    return False


def _boot_files(root: RootFolder) -> Evidence[Mapping[str, int]]:
    """Return when the kernels and initramfs in /boot were written, by their paths below the root."""
    found: dict[str, int] = {}
    for name in root.names("boot").value or ():
        if name.startswith(BOOT_FILES) and not any(word in name for word in NOT_BOOTED):
            written = root.modified(f"boot/{name}")
            if written is not None:
                found[f"boot/{name}"] = written
    if not found:
        return unknown(root.shown("boot"), "there is neither a kernel nor an initramfs")
    return Evidence(found, root.shown("boot"))


def _initramfs(root: RootFolder) -> Evidence[Mapping[str, str]]:
    """Return the settings about resuming of initramfs-tools, dracut and mkinitcpio, by "tool: setting"."""
    found: dict[str, str] = {}
    read: list[str] = []
    for path in INITRAMFS_TOOLS:
        text = root.text(path)
        if text.value is not None:
            read.append(text.origin)
            found["initramfs-tools"] = "installed"
            settings = parse_shell(text.value)
            if "RESUME" in settings:
                found["initramfs-tools: RESUME"] = settings["RESUME"]
    names = [f"etc/dracut.conf.d/{name}" for name in root.names("etc/dracut.conf.d").value or ()]
    names += [f"usr/lib/dracut/dracut.conf.d/{name}" for name in root.names("usr/lib/dracut/dracut.conf.d").value or ()]
    for path in ("etc/dracut.conf", *names):
        text = root.text(path)
        if text.value is not None and (path == "etc/dracut.conf" or path.endswith(".conf")):
            read.append(text.origin)
            found["dracut"] = "installed"
            for name, value in re.findall(r"^\s*(\w+)\+?=[\"']?(.*?)[\"']?\s*$", text.value, re.MULTILINE):
                if name in ("add_dracutmodules", "omit_dracutmodules", "dracutmodules") and "resume" in value.split():
                    found[f"dracut: {name}"] = "resume"
    if root.names("usr/lib/dracut/modules.d").known:
        found["dracut"] = "installed"
    text = root.text("etc/mkinitcpio.conf")
    if text.value is not None:
        read.append(text.origin)
        hooks = re.search(r"^\s*HOOKS=\(?[\"']?(.*?)[\"']?\)?\s*$", text.value, re.MULTILINE)
        found["mkinitcpio"] = "installed"
        found["mkinitcpio: HOOKS"] = hooks[1] if hooks else ""
    if not found:
        return unknown(root.shown("etc"), "neither initramfs-tools nor dracut nor mkinitcpio is configured there")
    return Evidence(found, ", ".join(read) or root.shown("usr/lib/dracut"))


def _cgroups(root: RootFolder) -> Evidence[tuple[tuple[str, int, int], ...]]:
    """Return the groups of the first two levels that limit their swap: (path, limit, memory in use), bytes."""
    top = "sys/fs/cgroup"
    first = root.names(top)
    if first.value is None or "cgroup.controllers" not in first.value:
        return unknown(first.origin, first.reason or "control groups of version 2 are not mounted there")
    groups = [name for name in first.value if "." not in name or name.endswith((".slice", ".scope", ".service"))]
    for group in tuple(groups):
        inner = root.names(f"{top}/{group}").value or ()
        groups += [f"{group}/{name}" for name in inner if name.endswith((".slice", ".scope", ".service"))]
    limited = []
    for group in groups[:MOST_PROCESSES]:
        limit, use = (root.text(f"{top}/{group}/{name}").value for name in ("memory.swap.max", "memory.current"))
        if limit and limit.strip().isdecimal() and use and use.strip().isdecimal():
            limited.append((group, int(limit), int(use)))
    return Evidence(tuple(limited), first.origin)


def _logs(root: RootFolder) -> Evidence[tuple[BootLog, ...]]:
    """Return the boots in the log files of a root folder; the kernel's own buffer only has this one."""
    boots: list[BootLog] = []
    reason = ""
    for name in LOGS:
        text = root.text(name, KERNEL_LOG_BYTES)
        if text.value is None:
            reason = reason or text.reason
            continue
        try:
            boots += boots_in(text.value, text.origin)
        except FormatError as error:
            reason = error.what
        break
    if not boots:
        return unknown(root.shown(LOGS[0]), reason)
    return Evidence(tuple(boots), boots[0].origin)
