# SPDX-License-Identifier: GPL-2.0-or-later
"""The steps of the survey: what a kernel is asked to do that may change its direct map, as data."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hibernaut.errors import LabUnavailable
from hibernaut.lab.guest_state import RunningGuest
from hibernaut.lab.preparation import SEED, use_kfence

__all__ = ["DEBUGGING", "MODULES", "STEPS", "SurveyStep", "SurveyedGuest"]

MODULES = (
    "btrfs", "xfs", "f2fs", "jfs", "exfat", "udf", "squashfs", "overlay", "fuse", "nfs", "cifs", "dm_crypt",
    "dm_snapshot", "raid456", "raid10", "loop", "nbd", "zram", "bonding", "bridge", "vxlan", "wireguard", "dummy",
    "veth", "tun", "nf_tables", "sch_cake", "snd_pcm", "e1000e", "igb", "twofish_generic", "ppp_generic", "kvm",
)  # fmt: skip
"""Modules that are loaded: large ones and small ones, that need no hardware to be loaded."""
KEPT = 5
"""Every so many modules, one stays loaded."""
FILTERS = 300
SECRET_PAGES = 1292
HUGE_PAGES = 32
PLUGGED_MIB = 128
PLUG_SECONDS, UNPLUG_SECONDS = 10, 10
KEXEC_FILE_ON_CRASH, KEXEC_FILE_NO_INITRAMFS = 2, 4
TRACING = "/sys/kernel/tracing"
MEMORY = "/sys/devices/system/memory"
HIGH_BLOCK = "32"
"""First block of 128 MiB at 4 GiB, where plugged memory begins."""


@dataclass
class SurveyedGuest:
    """A guest that is surveyed.

    Attributes:
        guest: the guest.
        modules: modules in its /modules, by name, each after its dependencies.
        kernel: name of the kernel's file there; empty if there is none.
        pool: address of the kernel's variable `__kfence_pool`; None if it has none.
        loaded: names of those modules that are loaded, in this order.
    """

    guest: RunningGuest
    modules: Mapping[str, Path]
    kernel: str = ""
    pool: int | None = None
    loaded: tuple[str, ...] = ()


@dataclass(frozen=True)
class SurveyStep:
    """Something that a kernel is asked to do before a reading.

    Attributes:
        name: name in tables.
        what: noun phrase.
        run: does it in a guest, and returns what was done; raises LabUnavailable if the kernel cannot.
    """

    name: str
    what: str
    run: Callable[[SurveyedGuest], str]


def _need(reply_of: RunningGuest, command: str, what: str, seconds: float = 60) -> tuple[str, ...]:
    """Run a command and return its output. Raises LabUnavailable with the guest's words if it fails."""
    reply = reply_of.port.ask(command, seconds)
    if reply.status:
        raise LabUnavailable(f"{what}: {' / '.join(reply.lines[-2:]) or f'exit status {reply.status}'}")
    return reply.lines


def _boot(_: SurveyedGuest) -> str:
    return "booted"


def _load_modules(surveyed: SurveyedGuest) -> str:
    port = surveyed.guest.port
    refused = []
    for name in surveyed.modules:
        if port.ask(f"!insmod /modules/{name}.ko").status:
            refused.append(name)
        else:
            surveyed.loaded += (name,)
    if not surveyed.loaded:
        raise LabUnavailable("no module was loaded")
    return f"{len(surveyed.loaded)} modules loaded" + (f", {len(refused)} refused" if refused else "")


def _unload_modules(surveyed: SurveyedGuest) -> str:
    if not surveyed.loaded:
        raise LabUnavailable("no module was loaded")
    gone = 0
    for number, name in enumerate(reversed(surveyed.loaded)):
        if number % KEPT:
            gone += surveyed.guest.port.ask(f"rmmod {name}").status == 0
    return f"{gone} of {len(surveyed.loaded)} modules unloaded"


def _attach_filters(surveyed: SurveyedGuest) -> str:
    guest = surveyed.guest
    _need(guest, "cat /proc/sys/net/core/bpf_jit_enable", "no JIT compiler of BPF")
    guest.port.ask("echo 1 > /proc/sys/net/core/bpf_jit_enable")
    if guest.port.run("cat /proc/sys/net/core/bpf_jit_enable") == ("0",):
        raise LabUnavailable("the JIT compiler of BPF cannot be switched on")
    _need(guest, f"!filters {FILTERS}", "BPF")
    return f"{FILTERS} JITed BPF programs attached, half of them dropped"


def _trace(surveyed: SurveyedGuest) -> str:
    guest = surveyed.guest
    _need(guest, f"mount -t tracefs tracefs {TRACING}", "no tracefs")
    _need(guest, f"echo 'p:hlab do_nanosleep' > {TRACING}/kprobe_events", "no kprobe events")
    _need(guest, f"echo 1 > {TRACING}/events/kprobes/enable", "no kprobe events")
    if "function" not in guest.port.run(f"cat {TRACING}/available_tracers")[0].split():
        return "a kprobe enabled; the kernel has no function tracer"
    guest.port.run(f"echo 'vfs_*' > {TRACING}/set_ftrace_filter", 120)
    _need(guest, f"echo function > {TRACING}/current_tracer", "function tracer", 120)
    return "a kprobe and the function tracer enabled"


def _stop_tracing(surveyed: SurveyedGuest) -> str:
    guest = surveyed.guest
    _need(guest, f"echo nop > {TRACING}/current_tracer", "no tracefs", 120)
    _need(guest, f"echo 0 > {TRACING}/events/kprobes/enable; echo > {TRACING}/kprobe_events", "no kprobe events")
    return "both disabled"


def _reserve_huge_pages(surveyed: SurveyedGuest) -> str:
    setting = "/proc/sys/vm/nr_hugepages"
    _need(surveyed.guest, f"echo {HUGE_PAGES} > {setting}", "no hugetlb pages")
    return f"{surveyed.guest.port.run(f'cat {setting}')[0]} hugetlb pages of 2 MiB"


def _load_kernel(surveyed: SurveyedGuest) -> str:
    _need(surveyed.guest, f"!kexec /modules/{surveyed.kernel} {KEXEC_FILE_NO_INITRAMFS}", "kexec_file_load")
    return "a kernel loaded by kexec_file_load"


def _load_crash_kernel(surveyed: SurveyedGuest) -> str:
    flags = KEXEC_FILE_NO_INITRAMFS | KEXEC_FILE_ON_CRASH
    _need(surveyed.guest, f"!kexec /modules/{surveyed.kernel} {flags}", "kexec_file_load for a crash")
    return "a kernel loaded for a crash"


def _plug_cpu(surveyed: SurveyedGuest) -> str:
    switch = "/sys/devices/system/cpu/cpu1/online"
    _need(surveyed.guest, f"echo 0 > {switch} && echo 1 > {switch}", "CPU 1")
    return "CPU 1 taken offline and online"


def _plug_memory(surveyed: SurveyedGuest) -> str:
    guest = surveyed.guest
    _need(guest, f"echo offline > {MEMORY}/auto_online_blocks", "no memory hotplug")
    guest.qemu.execute("object-add", **{"qom-type": "memory-backend-ram", "id": "more", "size": PLUGGED_MIB << 20})
    guest.qemu.execute("device_add", driver="pc-dimm", id="dimm", memdev="more")
    block = f"{MEMORY}/memory{HIGH_BLOCK}"
    _wait(guest, f"test -e {block}", PLUG_SECONDS, "the kernel does not notice memory that is plugged in")
    _need(guest, f"echo online_movable > {block}/state", "plugged memory does not go online")
    return f"{PLUGGED_MIB} MiB plugged in and online"


def _unplug_memory(surveyed: SurveyedGuest) -> str:
    guest = surveyed.guest
    block = f"{MEMORY}/memory{HIGH_BLOCK}"
    _need(guest, f"test -e {block}", "no memory is plugged in")
    _need(guest, f"echo offline > {block}/state", "plugged memory does not go offline")
    guest.qemu.execute("device_del", id="dimm")
    _wait(guest, f"test ! -e {block}", UNPLUG_SECONDS, "the kernel does not give plugged memory back")
    return "taken offline and unplugged"


def _wait(guest: RunningGuest, command: str, seconds: float, failure: str) -> None:
    """Run a command until it succeeds. Raises LabUnavailable if it does not in time."""
    end = time.monotonic() + seconds
    while guest.port.ask(command).status:
        if time.monotonic() > end:
            raise LabUnavailable(failure)
        time.sleep(0.2)


def _switch_on_kfence(surveyed: SurveyedGuest) -> str:
    use_kfence(surveyed.guest)
    return "KFENCE switched on, each slot used twice"


def _hold_secrets(surveyed: SurveyedGuest) -> str:
    _need(surveyed.guest, f"!fill secret {SECRET_PAGES} {SEED:#x}", "memfd_secret")
    return f"{SECRET_PAGES} pages of memfd_secret held"


STEPS = (
    SurveyStep("boot", "after boot", _boot),
    SurveyStep("modules", "many modules loaded", _load_modules),
    SurveyStep("modules-gone", "most of them unloaded", _unload_modules),
    SurveyStep("bpf", "JITed BPF programs, half of them dropped", _attach_filters),
    SurveyStep("tracing", "kprobe and function tracer", _trace),
    SurveyStep("tracing-off", "both disabled", _stop_tracing),
    SurveyStep("hugetlb", "hugetlb pages", _reserve_huge_pages),
    SurveyStep("kexec", "kernel loaded by kexec", _load_kernel),
    SurveyStep("kexec-crash", "kernel loaded for a crash", _load_crash_kernel),
    SurveyStep("cpu", "CPU taken offline and online", _plug_cpu),
    SurveyStep("kfence", "KFENCE switched on at run time", _switch_on_kfence),
    SurveyStep("secret", "secret memory held", _hold_secrets),
    SurveyStep("memory", "memory plugged in", _plug_memory),
    SurveyStep("memory-gone", "memory unplugged", _unplug_memory),
)
"""The steps, in the order in which one guest takes them; each reading has what the steps before it left."""

DEBUGGING = (
    ("DEBUG_PAGEALLOC", SurveyStep("debug-pagealloc", "booted with debug_pagealloc=on", _boot), "debug_pagealloc=on"),
    ("PAGE_POISONING", SurveyStep("page-poison", "booted with page_poison=1", _boot), "page_poison=1"),
    ("KFENCE", SurveyStep("kfence-at-boot", "booted with KFENCE switched on", _boot), "kfence.sample_interval=1"),
)
"""Steps with a boot of their own: symbol of the configuration without CONFIG_, step, parameters."""
