# SPDX-License-Identifier: GPL-2.0-or-later
"""The options of a kernel's configuration that a trial needs, and what becomes impossible without them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hibernaut.errors import FormatError
from hibernaut.lab.host.kernels import GuestKernel
from hibernaut.lab.host.trees import Configuration, configuration_of_tree

__all__ = [
    "NEEDS",
    "Lack",
    "NeededOption",
    "configuration_of",
    "digest_of",
    "fragment",
    "lacking",
    "read_configuration",
]


@dataclass(frozen=True)
class NeededOption:
    """An option that a trial needs.

    Attributes:
        option: its name.
        why: what it is for, a clause.
        modular: whether a module will do.
        situation: name of the only situation that needs it; None if every guest does.
    """

    option: str
    why: str
    modular: bool = False
    situation: str | None = None


@dataclass(frozen=True)
class Lack:
    """An option that a configuration lacks.

    Attributes:
        need: the need that is not met.
        found: the option's value in the configuration: "n" or "m".
    """

    need: NeededOption
    found: str

    @property
    def text(self) -> str:
        """One line: the option, its value, what it is for, and what cannot be done without it."""
        consequence = f"without it `{self.need.situation}` is not exercised" if self.need.situation else "needed"
        return f"{self.need.option} is {self.found}: {self.need.why} ({consequence})"


NEEDS = (
    NeededOption("CONFIG_64BIT", "the laboratory is of x86-64"),
    NeededOption("CONFIG_HIBERNATION", "it is what is judged"),
    NeededOption("CONFIG_SWAP", "the image goes to a swap area"),
    NeededOption("CONFIG_MODULES", "a module takes pages out of the direct map"),
    NeededOption("CONFIG_KALLSYMS", "the copy is found by its symbol"),
    NeededOption("CONFIG_KPROBES", "the module finds functions, and makes allocations fail"),
    NeededOption("CONFIG_BLK_DEV_INITRD", "the guest's program is in an initramfs"),
    NeededOption("CONFIG_RD_GZIP", "the initramfs is compressed with gzip"),
    NeededOption("CONFIG_BINFMT_ELF", "the guest's program is an ELF file"),
    NeededOption("CONFIG_BINFMT_SCRIPT", "commands are scripts"),
    NeededOption("CONFIG_PROC_FS", "the guest reads its state there"),
    NeededOption("CONFIG_PROC_PAGE_MONITOR", "the guest reads the frames of its pages"),
    NeededOption("CONFIG_SYSFS", "hibernation is started there"),
    NeededOption("CONFIG_DEVTMPFS", "the guest has no device nodes of its own"),
    NeededOption("CONFIG_TMPFS", "the guest works in it"),
    NeededOption("CONFIG_TTY", "commands and answers go over a serial line"),
    NeededOption("CONFIG_SERIAL_8250", "commands and answers go over a serial line"),
    NeededOption("CONFIG_SERIAL_8250_CONSOLE", "the kernel's messages are read there"),
    NeededOption("CONFIG_PRINTK", "the kernel's messages are quoted"),
    NeededOption("CONFIG_PCI", "the disks are PCI devices"),
    NeededOption("CONFIG_VIRTIO_PCI", "the disks are virtio devices", modular=True),
    NeededOption("CONFIG_VIRTIO_BLK", "the disks are virtio devices", modular=True),
    NeededOption("CONFIG_CRYPTO_LZO", "images are compressed with it by default", modular=True),
    NeededOption("CONFIG_ACPI", "the guest powers off, and has nodes"),
    NeededOption("CONFIG_NUMA", "the allocator's pages lie on another node than the block", situation="torn-lists"),
    NeededOption("CONFIG_ACPI_NUMA", "the firmware tells the nodes by ACPI", situation="torn-lists"),
    NeededOption("CONFIG_DEBUG_LIST", "a torn list is noticed where it is used", situation="torn-lists"),
    NeededOption("CONFIG_KFENCE", "it is the situation", situation="kfence"),
    NeededOption("CONFIG_DEBUG_FS", "KFENCE tells there how much it was used", situation="kfence"),
)
"""Options, the general ones first. A configuration of a release that has no such option lacks it all the same."""


def read_configuration(path: Path) -> Configuration:
    """Return the configuration in a file: a .config, or /proc/config.gz.

    Raises:
        FormatError: it is not one.
        OSError: it cannot be read.
    """
    found = Configuration.read(path)
    if not found.values:
        raise FormatError(
            "not a configuration: no CONFIG_ line", source=str(path), advice="give the kernel's .config or config.gz"
        )
    return found


def configuration_of(kernel: GuestKernel) -> Configuration | None:
    """Return the configuration of a kernel, from the files beside it; None if there is none."""
    if kernel.tree is not None:
        return configuration_of_tree(kernel.tree)
    places = (kernel.modules / "config", kernel.vmlinuz.with_name(f"config-{kernel.release}"))
    path = next((one for one in places if one.is_file()), None)
    return None if path is None else read_configuration(path)


def lacking(configuration: Configuration) -> list[Lack]:
    """Return the needs that a configuration does not meet, the general ones first."""
    return [
        Lack(need, value)
        for need in NEEDS
        if (value := configuration.values.get(need.option.removeprefix("CONFIG_"), "n"))
        not in (("y", "m") if need.modular else ("y",))
    ]


def fragment(needs: Iterable[NeededOption] = NEEDS) -> str:
    """Return a fragment of a configuration with all that a trial needs, for scripts/kconfig/merge_config.sh."""
    lines = ["# What `hibernaut lab judge` needs of a kernel."]
    for need in needs:
        where = f"; only for `{need.situation}`" if need.situation else ""
        lines += [f"# {need.why}{where}", f"{need.option}=y"]
    return "\n".join(lines)


def digest_of(configuration: Configuration) -> str:
    """Return a digest of a configuration that comments and the order of its lines do not change: 16 hex digits."""
    lines = "".join(f"{name}={value}\n" for name, value in sorted(configuration.values.items()))
    return hashlib.sha256(lines.encode()).hexdigest()[:16]
