# SPDX-License-Identifier: GPL-2.0-or-later
"""The options of a kernel's configuration that a trial needs, and what becomes impossible without them."""

from __future__ import annotations

import gzip
import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hibernaut.errors import FormatError
from hibernaut.lab.host.kernels import Kernel

__all__ = ["NEEDS", "Lack", "Need", "configuration_of", "digest_of", "fragment", "lacking", "read_configuration"]

MAX_BYTES = 16 << 20
OTHER_FILE = "give the kernel's .config or /proc/config.gz"


@dataclass(frozen=True)
class Need:
    """An option that a trial needs.

    Attributes:
        option: its name.
        why: what it is for, a clause.
        modular: whether a module will do.
        situation: name of the only situation that needs it; None if every guest does.
        since: first release that has the option, as a pair; None for all.
        other: options of which one will do in its place.
    """

    option: str
    why: str
    modular: bool = False
    situation: str | None = None
    since: tuple[int, int] | None = None
    other: tuple[str, ...] = ()


@dataclass(frozen=True)
class Lack:
    """An option that a configuration lacks.

    Attributes:
        need: the need that is not met.
        found: the option's value in the configuration: "n" or "m".
    """

    need: Need
    found: str

    @property
    def text(self) -> str:
        """One line: the option, its value, what it is for, and what cannot be done without it."""
        consequence = f"without it `{self.need.situation}` is not exercised" if self.need.situation else "needed"
        return f"{self.need.option} is {self.found}: {self.need.why} ({consequence})"


NEEDS = (
    Need("CONFIG_64BIT", "the laboratory is of x86-64"),
    Need("CONFIG_HIBERNATION", "it is what is judged"),
    Need("CONFIG_SWAP", "the image goes to a swap area"),
    Need("CONFIG_MODULES", "a module takes pages out of the direct map"),
    Need("CONFIG_KALLSYMS", "the copy is found by its symbol"),
    Need("CONFIG_KPROBES", "the module finds functions, and makes allocations fail"),
    Need("CONFIG_BLK_DEV_INITRD", "the guest's program is in an initramfs"),
    Need("CONFIG_RD_GZIP", "the initramfs is compressed with gzip"),
    Need("CONFIG_BINFMT_ELF", "the guest's program is an ELF file"),
    Need("CONFIG_BINFMT_SCRIPT", "commands are scripts"),
    Need("CONFIG_PROC_FS", "the guest reads its state there"),
    Need("CONFIG_PROC_PAGE_MONITOR", "the guest reads the frames of its pages"),
    Need("CONFIG_SYSFS", "hibernation is started there"),
    Need("CONFIG_DEVTMPFS", "the guest has no device nodes of its own"),
    Need("CONFIG_TMPFS", "the guest works in it"),
    Need("CONFIG_TTY", "commands and answers go over a serial line"),
    Need("CONFIG_SERIAL_8250", "commands and answers go over a serial line"),
    Need("CONFIG_SERIAL_8250_CONSOLE", "the kernel's messages are read there"),
    Need("CONFIG_PRINTK", "the kernel's messages are quoted"),
    Need("CONFIG_PCI", "the disks are PCI devices"),
    Need("CONFIG_VIRTIO_PCI", "the disks are virtio devices", modular=True),
    Need("CONFIG_VIRTIO_BLK", "the disks are virtio devices", modular=True),
    Need("CONFIG_CRYPTO_LZO", "images are compressed with it by default", modular=True),
    Need("CONFIG_ACPI", "the guest powers off, and has nodes"),
    Need("CONFIG_NUMA", "the allocator's pages lie on another node than the block", situation="torn-lists"),
    Need("CONFIG_ACPI_NUMA", "the firmware tells the nodes by ACPI", situation="torn-lists"),
    Need("CONFIG_DEBUG_LIST", "a torn list is noticed where it is used", situation="torn-lists"),
    Need("CONFIG_KFENCE", "it is the situation", situation="kfence", since=(5, 12)),
    Need("CONFIG_DEBUG_FS", "KFENCE tells there how much it was used", situation="kfence"),
)
"""Options, the general ones first. A configuration of a release that has no such option lacks it all the same."""

SETTING = re.compile(r"(?:(CONFIG_\w+)=(.*)|# (CONFIG_\w+) is not set)")


def read_configuration(path: Path) -> dict[str, str]:
    """Return the options of a configuration: a .config, or /proc/config.gz.

    Raises:
        FormatError: it is not one.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        raw = file.read(MAX_BYTES)
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.decompress(raw)[:MAX_BYTES]
        except (OSError, EOFError) as error:
            raise FormatError(f"not a configuration: {error}", source=str(path), advice=OTHER_FILE) from error
    found: dict[str, str] = {}
    for line in raw.decode("utf-8", "replace").splitlines():
        match = SETTING.fullmatch(line.strip())
        if match:
            found[match[1] or match[3]] = match[2] or "n"
    if not found:
        raise FormatError("not a configuration: no CONFIG_ line", source=str(path), advice=OTHER_FILE)
    return found


def configuration_of(kernel: Kernel) -> dict[str, str] | None:
    """Return the configuration of a kernel, from the files beside it; None if there is none."""
    places = [kernel.modules / "config", kernel.vmlinuz.with_name(f"config-{kernel.release}")]
    tree = kernel.modules if (kernel.modules / ".config").is_file() else getattr(kernel, "tree", None)
    places += [tree / ".config"] if tree else []
    path = next((one for one in places if one.is_file()), None)
    return None if path is None else read_configuration(path)


def lacking(configuration: Mapping[str, str]) -> list[Lack]:
    """Return the needs that a configuration does not meet, the general ones first."""
    return [
        Lack(need, value)
        for need in NEEDS
        if (value := configuration.get(need.option, "n")) not in (("y", "m") if need.modular else ("y",))
    ]


def fragment(needs: Iterable[Need] = NEEDS) -> str:
    """Return a fragment of a configuration with all that a trial needs, for scripts/kconfig/merge_config.sh."""
    lines = ["# What `hibernaut lab judge` needs of a kernel."]
    for need in needs:
        where = f"; only for `{need.situation}`" if need.situation else ""
        lines += [f"# {need.why}{where}", f"{need.option}=y"]
    return "\n".join(lines)


def digest_of(configuration: Mapping[str, str]) -> str:
    """Return a digest of a configuration that comments and the order of its lines do not change: 16 hex digits."""
    lines = "".join(f"{name}={value}\n" for name, value in sorted(configuration.items()) if value != "n")
    return hashlib.sha256(lines.encode()).hexdigest()[:16]
