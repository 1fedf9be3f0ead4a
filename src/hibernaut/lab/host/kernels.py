# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels of the laboratory: Debian's packages for each line, as data, and a kernel of the user's own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from hibernaut.errors import LabUnavailable
from hibernaut.hibernation.real_kernel import image_rules_of_vmlinuz
from hibernaut.kernel.bzimage import bzimage_release
from hibernaut.kernel_line import LineTable, parse_release
from hibernaut.lab.host.cache import Cache
from hibernaut.lab.host.debian import Archive
from hibernaut.swsusp.rules import ImageRules

__all__ = [
    "ALL_LINES",
    "KERNEL_LINES",
    "GuestKernel",
    "PackagedLine",
    "get_kernel",
    "image_rules_of",
    "kernel_of_files",
    "line_named",
]

ONE_PACKAGE = ("linux-image-",)
SPLIT_PACKAGES = ("linux-binary-", "linux-modules-", "linux-base-")
"""Packages of Debian's kernels from 6.19 on: image, modules, and files of both."""


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
            PackagedLine("6.1", "bookworm", r"6\.1\.\d+-\d+-amd64", ONE_PACKAGE),
            PackagedLine("6.12", "trixie", r"6\.12\.\d+\+deb13-amd64", ONE_PACKAGE),
            PackagedLine("7.3", "trixie-backports", r"7\.3\.\d+\+deb13-amd64", SPLIT_PACKAGES),
        )
    }
)
"""The lines that every claim is proved on."""


def _backport(name: str, packages: tuple[str, ...]) -> PackagedLine:
    return PackagedLine(name, "trixie-backports", rf"{re.escape(name)}\.\d+\+deb13-amd64", packages)


ALL_LINES: Mapping[str, PackagedLine] = {
    line.name: line
    for line in sorted(
        (
            *KERNEL_LINES.values(),
            PackagedLine("5.10", "bullseye", r"5\.10\.\d+-\d+-amd64", ONE_PACKAGE),
            *(_backport(name, ONE_PACKAGE) for name in ("6.16", "6.17", "6.18")),
            *(_backport(name, SPLIT_PACKAGES) for name in ("6.19", "7.0", "7.1", "7.2")),
        ),
        key=lambda line: parse_release(line.name),
    )
}
"""Every line that can be booted, oldest first: those of `KERNEL_LINES`, and others that the archive may still have."""


@dataclass(frozen=True)
class GuestKernel:
    """A kernel that can be booted.

    Attributes:
        name: name in tables: that of its line, or the release.
        release: kernel release, as `uname -r` prints it.
        vmlinuz: bzImage.
        modules: folder of its modules: lib/modules/RELEASE, or the build tree.
        line: its line; None for a kernel of the user's own.
        tree: the build tree that it is taken from (`kernel_of_tree`); None for a packaged or installed kernel.
    """

    name: str
    release: str
    vmlinuz: Path
    modules: Path
    line: PackagedLine | None = None
    tree: Path | None = None


def line_named(name: str) -> PackagedLine:
    """Return one of `ALL_LINES`. Raises LabUnavailable, with the known names."""
    try:
        return ALL_LINES[name]
    except KeyError:
        known = ", ".join(ALL_LINES)
        raise LabUnavailable(
            f"no kernel line {name!r}; expected {known}",
            advice="give any other kernel as --tree BUILD-DIR, or as --kernel VMLINUZ --modules DIR",
        ) from None


def get_kernel(cache: Cache, line: PackagedLine, mirror: str | None = None) -> GuestKernel:
    """Return the newest complete kernel of a line, from the cache, or downloaded and unpacked without installing it.

    A cached kernel is kept; delete the cache's `kernels/NAME` to get a newer one.

    Raises:
        LabUnavailable: the archive has no release of it with all packages, or they cannot be downloaded.
    """

    def make(folder: Path) -> None:
        archive = Archive(cache, line.suite, mirror)
        release = archive.newest_release(line.packages, line.release)
        archive.unpack([f"{part}{release}" for part in line.packages], folder)
        _vmlinuz_in(folder, line)  # a folder without a kernel is not kept

    with cache.locked():
        root = cache.folder(f"kernels/{line.name}", make)
    vmlinuz = _vmlinuz_in(root, line)
    release = bzimage_release(vmlinuz)
    return GuestKernel(line.name, release, vmlinuz, root / "usr" / "lib" / "modules" / release, line)


def _vmlinuz_in(root: Path, line: PackagedLine) -> Path:
    """Return the bzImage in a folder of unpacked packages. Raises LabUnavailable if there is none."""
    for vmlinuz in (*root.glob("boot/vmlinuz-*"), *root.glob("usr/lib/modules/*/vmlinuz")):
        return vmlinuz
    raise LabUnavailable(f"no kernel in the packages of {line.name}", advice=f"remove {root}")


@lru_cache
def image_rules_of(kernel: GuestKernel) -> ImageRules:
    """Return how a kernel reads an image, asked of its bzImage.

    Raises:
        FormatError: the kernel is older than any known line.
        OSError: the bzImage cannot be read.
    """
    return image_rules_of_vmlinuz(kernel.vmlinuz).rules


def kernel_of_files(vmlinuz: Path, modules: Path) -> GuestKernel:
    """Return a kernel of the user's own.

    Args:
        vmlinuz: bzImage.
        modules: its lib/modules/RELEASE, or a folder with it.

    Raises:
        FormatError: `vmlinuz` is not a bzImage.
        LabUnavailable: the folder has no modules of this release.
    """
    release = bzimage_release(vmlinuz)
    for folder in (modules, modules / "lib" / "modules" / release, modules / release):
        if (folder / "kernel").is_dir():
            return GuestKernel(release, release, vmlinuz, folder)
    raise LabUnavailable(
        f"{modules} has no modules of {release}",
        advice="give the folder lib/modules/RELEASE of this kernel as --modules",
    )
