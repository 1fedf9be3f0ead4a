# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels of the laboratory: Debian's packages for each line, as data, and a kernel of the user's own."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from hibernaut.errors import FormatError, LabUnavailable
from hibernaut.kernel_line import LineTable
from hibernaut.lab.host.cache import Cache
from hibernaut.lab.host.debian import Archive

__all__ = ["KERNEL_LINES", "Kernel", "PackagedLine", "get_kernel", "kernel_of_files", "line_named"]


@dataclass(frozen=True)
class PackagedLine:
    """A kernel line that Debian packages.

    Attributes:
        name: name of the line.
        suite: the suite with its newest kernel.
        release: pattern of its releases.
        packages: prefixes of the names of the packages with kernel and modules; the release follows.
    """

    name: str
    suite: str
    release: str
    packages: tuple[str, ...]


KERNEL_LINES: LineTable[PackagedLine] = LineTable(
    {
        line.name: line
        for line in (
            PackagedLine("6.1", "bookworm", r"6\.1\.\d+-\d+-amd64", ("linux-image-",)),
            PackagedLine("6.12", "trixie", r"6\.12\.\d+\+deb13-amd64", ("linux-image-",)),
            PackagedLine(
                "7.3",
                "trixie-backports",
                r"7\.3\.\d+\+deb13-amd64",
                ("linux-binary-", "linux-modules-", "linux-base-"),
            ),
        )
    }
)


@dataclass(frozen=True)
class Kernel:
    """A kernel that can be booted.

    Attributes:
        name: for tables: the line's name, or the release.
        release: as `uname -r` says.
        vmlinuz: the bzImage.
        modules: the folder of its modules (lib/modules/RELEASE).
        line: the line it is of; None for a kernel of the user's own.
    """

    name: str
    release: str
    vmlinuz: Path
    modules: Path
    line: PackagedLine | None = None


def line_named(name: str) -> PackagedLine:
    """Return one of `KERNEL_LINES`. Raises LabUnavailable, with the names there are."""
    try:
        return KERNEL_LINES[name]
    except KeyError:
        known = ", ".join(KERNEL_LINES)
        raise LabUnavailable(
            f"no kernel line {name!r} (known: {known}; any other by --kernel VMLINUZ --modules DIR)"
        ) from None


def get_kernel(cache: Cache, line: PackagedLine, mirror: str | None = None) -> Kernel:
    """The newest kernel of a line: from the cache, else downloaded and unpacked, not installed.

    Once there, a kernel stays; delete the cache's `kernels/NAME` for a newer one.

    Raises:
        LabUnavailable: it cannot be had.
    """

    def make(folder: Path) -> None:
        archive = Archive(cache, line.suite, mirror)
        release = archive.newest(re.escape(line.packages[0]) + line.release).removeprefix(line.packages[0])
        archive.unpack([f"{part}{release}" for part in line.packages], folder)

    with cache.locked():
        root = cache.folder(f"kernels/{line.name}", make)
    for vmlinuz in (*root.glob("boot/vmlinuz-*"), *root.glob("usr/lib/modules/*/vmlinuz")):
        release = _release_of(vmlinuz)
        return Kernel(line.name, release, vmlinuz, root / "usr" / "lib" / "modules" / release, line)
    raise LabUnavailable(f"no kernel in the packages of {line.name}")


def kernel_of_files(vmlinuz: Path, modules: Path) -> Kernel:
    """A kernel of the user's own.

    Args:
        vmlinuz: a bzImage.
        modules: its lib/modules/RELEASE, or a folder that has this in it.

    Raises:
        FormatError: `vmlinuz` is not a bzImage.
        LabUnavailable: its modules are not there.
    """
    release = _release_of(vmlinuz)
    for folder in (modules, modules / "lib" / "modules" / release, modules / release):
        if (folder / "kernel").is_dir():
            return Kernel(release, release, vmlinuz, folder)
    raise LabUnavailable(f"{modules}: no modules of {release} there")


def _release_of(vmlinuz: Path) -> str:
    """`uname -r` of a bzImage: 0x20e of its setup header says where it lies (Documentation/arch/x86/boot.rst)."""
    with vmlinuz.open("rb") as file:
        head = file.read(0x10000)
    if head[0x202:0x206] != b"HdrS":
        raise FormatError("not a bzImage", source=str(vmlinuz), offset=0x202, expected="HdrS")
    at = 0x200 + int.from_bytes(head[0x20E:0x210], "little")
    found = re.match(rb"[0-9][!-~]*", head[at : at + 128])
    if not found:
        raise FormatError("the bzImage does not say its release", source=str(vmlinuz), offset=at)
    return found[0].decode()
