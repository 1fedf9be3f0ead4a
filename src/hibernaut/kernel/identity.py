# SPDX-License-Identifier: GPL-2.0-or-later
"""Identity of a machine: the kernel's, the system's and the hardware's own facts, read from the kernel's memory.

Each fact is read apart from the others. One that is not in the memory is None, with a remark; none is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hibernaut.errors import FormatError
from hibernaut.kernel.clock import KernelClock, read_clock
from hibernaut.kernel.facts import get_num_physpages
from hibernaut.kernel.image_area import area_for_image
from hibernaut.kernel.log import LogRecord, read_log
from hibernaut.kernel.modules import MAX_MODULES
from hibernaut.kernel.mounts import Mount, cached_start, link_target, mount_of, mounts_of_init, resolve
from hibernaut.kernel.network import NetworkDevice, network_device_of, network_devices
from hibernaut.kernel.processes import MAX_PROCESSES, full_name, is_kernel_thread, processes
from hibernaut.kernel.reading import FactReader, list_objects, popcount, text_at
from hibernaut.kernel.swap_areas import SwapAreaInUse, swap_areas

if TYPE_CHECKING:
    from typing import Any

    from hibernaut.kernel.kernel import Kernel

__all__ = ["MachineIdentity", "read_identity"]

MAX_BANNER_BYTES = 1024
MAX_COMMAND_LINE_BYTES = 4096
"""x86 takes 2048 (COMMAND_LINE_SIZE); parameters of a boot configuration come on top."""
MAX_DMI_BYTES = 128
MAX_MOUNTS, MAX_DEVICES = 4096, 1024
LAST_LOG_LINES = 5
TAINT_BITS = 64
HYPERVISOR_WORD, HYPERVISOR_BIT = 4, 31
"""`X86_FEATURE_HYPERVISOR` (arch/x86/include/asm/cpufeatures.h): CPUID reports a hypervisor."""
BUILD_DATE = re.compile(r"\((\d{4}-\d\d-\d\d)\)|([A-Z][a-z]{2} [A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d (?:\w+ )?\d{4})$")
"""In the version of a kernel: a distribution's own date, or the one of `date`."""
MACHINE_ID = re.compile(rb"[0-9a-f]{32}\n?")
"""Content of /etc/machine-id (machine-id(5))."""
ZONEINFO = "/zoneinfo/"


@dataclass(frozen=True)
class MachineIdentity:
    """Facts of a machine; None for one that is not known, and `remarks` has the reason.

    Attributes:
        banner: `Linux version ...`.
        release: kernel release, as `uname -r` prints it.
        build: version of the kernel, as `uname -v` prints it.
        build_date: the date in it.
        build_id: build ID of vmlinux, in hexadecimal.
        levels: levels of paging.
        kaslr_offset: offset of the kernel image from its linked address.
        taint: mask of the reasons why the kernel is tainted.
        taint_letters: their letters.
        hostname: name of the machine.
        domain: its NIS domain.
        machine_id: content of /etc/machine-id, if the page cache has it.
        command_line: command line of the kernel.
        clock: wall clock, boot and clock source.
        zone: time zone by the link /etc/localtime, if the directory cache has it.
        minutes_west: time zone that the kernel was given (`sys_tz`), in minutes west of Greenwich.
        cpus: CPUs that are present; all but one are offline while memory is copied.
        cpu_model: model of the boot CPU.
        vendor: DMI vendor of the system.
        product: DMI name of the product.
        bios: DMI version of the firmware.
        hypervisor: the hypervisor by the kernel; "none"; or "unknown" if only CPUID reports one.
        ram_pages: pages of RAM (`get_num_physpages`).
        swap: swap areas in use.
        image_area: number of the one that the kernel writes its image to.
        modules: names of the loaded modules.
        mounts: mounted file systems of process 1.
        network: network devices.
        dm_crypt: device number of each open dm-crypt device; "?" if the kernel cut it.
        log: last records of the kernel's log.
        remarks: a sentence on each fact that is unknown or not whole.
    """

    banner: str | None
    release: str | None
    build: str | None
    build_date: str | None
    build_id: str | None
    levels: int
    kaslr_offset: int | None
    taint: int | None
    taint_letters: str | None
    hostname: str | None
    domain: str | None
    machine_id: str | None
    command_line: str | None
    clock: KernelClock | None
    zone: str | None
    minutes_west: int | None
    cpus: int | None
    cpu_model: str | None
    vendor: str | None
    product: str | None
    bios: str | None
    hypervisor: str | None
    ram_pages: int | None
    swap: tuple[SwapAreaInUse, ...] | None
    image_area: int | None
    modules: tuple[str, ...] | None
    mounts: tuple[Mount, ...] | None
    network: tuple[NetworkDevice, ...] | None
    dm_crypt: tuple[str, ...] | None
    log: tuple[LogRecord, ...] | None
    remarks: tuple[str, ...]


def read_identity(reader: FactReader) -> MachineIdentity:
    """Return the identity of a kernel's machine; `reader` also keeps its remarks.

    Raises:
        HibernautError: drgn is not installed.
        FormatError: drgn refuses the kernel.
    """
    kernel, fact = reader.kernel, reader.fact
    kernel.drgn()
    names = {name: fact(name, _member_of_uts(kernel, name)) for name in ("version", "nodename", "domainname")}
    build = names["version"]
    taint = fact("taint", lambda: int(kernel["tainted_mask"].value_()))
    swap = fact("swap areas", lambda: tuple(swap_areas(kernel)))
    return MachineIdentity(
        banner=_banner(reader),
        release=kernel.release or None,
        build=build,
        build_date=_build_date(build),
        build_id=kernel.facts.get("BUILD-ID"),
        levels=kernel.levels,
        kaslr_offset=fact("KASLR offset", lambda: kernel.number("KERNELOFFSET", 16)),
        taint=taint,
        taint_letters=None if taint is None else fact("letters of taint", lambda: _taint_letters(kernel, taint)),
        hostname=names["nodename"],
        domain=names["domainname"],
        machine_id=fact("machine-id", lambda: _machine_id(kernel)),
        command_line=reader.text("command line", lambda: kernel["saved_command_line"].value_(), MAX_COMMAND_LINE_BYTES),
        clock=fact("clock", lambda: read_clock(kernel)),
        zone=fact("zone", lambda: _zone(kernel)),
        minutes_west=fact("kernel's zone", lambda: int(kernel["sys_tz"].tz_minuteswest.value_())),
        cpus=fact("CPUs", lambda: popcount(kernel["__cpu_present_mask"].bits)),
        cpu_model=fact("CPU", lambda: _text(kernel["boot_cpu_data"].x86_model_id).strip()),
        vendor=fact("DMI vendor", lambda: _dmi(kernel, "DMI_SYS_VENDOR")),
        product=fact("DMI product", lambda: _dmi(kernel, "DMI_PRODUCT_NAME")),
        bios=fact("DMI BIOS version", lambda: _dmi(kernel, "DMI_BIOS_VERSION")),
        hypervisor=fact("hypervisor", lambda: _hypervisor(kernel)),
        ram_pages=fact("RAM", lambda: get_num_physpages(kernel)),
        swap=swap,
        image_area=None if swap is None else fact("area of the image", lambda: area_for_image(kernel, swap)),
        modules=reader.items(
            "modules",
            lambda: list_objects(kernel["modules"], "struct module", "list"),
            lambda module: _text(module.name),
            MAX_MODULES,
        ),
        mounts=reader.items("mounts", lambda: mounts_of_init(kernel), lambda one: mount_of(kernel, one), MAX_MOUNTS),
        network=reader.items(
            "network devices", lambda: network_devices(kernel), lambda one: network_device_of(kernel, one), MAX_DEVICES
        ),
        dm_crypt=_dm_crypt(reader),
        log=fact("log", lambda: tuple(read_log(kernel, LAST_LOG_LINES)[0])),
        remarks=tuple(reader.remarks),
    )


def _text(characters: Any) -> str:
    """Return the string in an array of characters."""
    return str(characters.string_().decode("utf-8", "backslashreplace"))


def _banner(reader: FactReader) -> str | None:
    address = reader.fact("banner", lambda: reader.kernel.symbols["linux_banner"].address)
    found = None if address is None else reader.text("banner", lambda: address, MAX_BANNER_BYTES)
    return None if found is None else found.rstrip("\n")


def _member_of_uts(kernel: Kernel, name: str) -> Callable[[], str]:
    return lambda: _text(kernel["init_uts_ns"].name.member_(name))


def _build_date(build: str | None) -> str | None:
    match = BUILD_DATE.search(build or "")
    return (match[1] or match[2]) if match else None


def _taint_letters(kernel: Kernel, mask: int) -> str:
    """Return the letters of a mask of taints (`taint_flags`, kernel/panic.c)."""
    flags = kernel["taint_flags"]
    known = kernel.symbols["taint_flags"].size // flags[0].type_.size
    return "".join(
        chr(flags[bit].c_true.value_()) if bit < known else "?" for bit in range(TAINT_BITS) if mask >> bit & 1
    )


def _machine_id(kernel: Kernel) -> str | None:
    inode = resolve(kernel, "/etc/machine-id")
    content = None if inode is None else cached_start(kernel, inode)
    return content.decode().strip() if content is not None and MACHINE_ID.fullmatch(content) else None


def _zone(kernel: Kernel) -> str | None:
    """Return the zone that /etc/localtime names (localtime(5))."""
    inode = resolve(kernel, "/etc/localtime")
    target = None if inode is None else link_target(kernel, inode)
    return target.partition(ZONEINFO)[2] or None if target is not None else None


def _dmi(kernel: Kernel, field: str) -> str | None:
    pointer = kernel["dmi_ident"][kernel[field].value_()].value_()
    return text_at(kernel, pointer, MAX_DMI_BYTES) if pointer else None


def _hypervisor(kernel: Kernel) -> str:
    """Return the hypervisor of `x86_hyper_type`; the kernel has no name for one that it does not support."""
    is_virtual = bool(kernel["boot_cpu_data"].x86_capability[HYPERVISOR_WORD].value_() >> HYPERVISOR_BIT & 1)
    if "x86_hyper_type" in kernel:
        kind = kernel["x86_hyper_type"]
        names = {number: name for name, number in kind.type_.enumerators}
        name = names.get(kind.value_())
        if name is None:
            raise FormatError(f"x86_hyper_type is {kind.value_()}, which has no name")
        if name != "X86_HYPER_NATIVE":
            return str(name).removeprefix("X86_HYPER_")
    return "unknown" if is_virtual else "none"


def _dm_crypt(reader: FactReader) -> tuple[str, ...] | None:
    """Return the numbers of the open dm-crypt devices.

    Each has a thread `dmcrypt_write/MAJOR:MINOR` (`crypt_ctr`, drivers/md/dm-crypt.c) as long as it is open.
    """
    kernel = reader.kernel

    def device(task: Any) -> str | None:
        if not is_kernel_thread(task) or not task.comm.string_().startswith(DM_CRYPT.encode()[:15]):
            return None
        name = full_name(kernel, task)
        return "?" if name is None else name.removeprefix(DM_CRYPT)

    found = reader.items("dm-crypt devices", lambda: processes(kernel), device, MAX_PROCESSES)
    return None if found is None else tuple(one for one in found if one is not None)


DM_CRYPT = "dmcrypt_write/"
