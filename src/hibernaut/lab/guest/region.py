# SPDX-License-Identifier: GPL-2.0-or-later
"""The build of the kernel module that takes regions out of the direct map (guest/region).

The module is built by `chroot` in a folder with Debian's headers, compiler and make for that kernel, unpacked and not
installed, so that it fits kernels of other suites than this machine's.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from hibernaut.errors import LabUnavailable
from hibernaut.lab.guest.initramfs import GUEST_FOLDER
from hibernaut.lab.host.cache import Cache
from hibernaut.lab.host.debian import Archive
from hibernaut.lab.host.kernels import Kernel
from hibernaut.lab.host.programs import program, run

__all__ = ["REGION_MODULE", "region_module"]

REGION_MODULE = "hlab_region.ko"
SOURCES = GUEST_FOLDER / "region"
TOOLS = ("make", "binutils", "bash", "dash", "coreutils", "sed", "grep", "gawk", "findutils", "perl-base")
"""Packages with programs that the build runs, besides the dependencies of the headers."""

SCRIPT = r"""
set -e
mount --rbind /dev "$1/dev"
mount --rbind /proc "$1/proc"
exec chroot "$1" /bin/bash -ec '
    export PATH=/usr/bin:/bin LC_ALL=C
    [ -e /usr/bin/sh ] || ln -s bash /usr/bin/sh
    [ -e /usr/bin/awk ] || ln -s gawk /usr/bin/awk
    make -s -C "/usr/src/linux-headers-$1" M=/module modules >/module/log 2>&1' build "$2"
"""


def region_module(cache: Cache, kernel: Kernel, mirror: str | None = None) -> Path:
    """Return the module for a kernel, from the cache if it was built before.

    Raises:
        LabUnavailable: the kernel is not one of Debian's, a package cannot be downloaded, or the build fails.
    """
    if kernel.line is None:
        raise LabUnavailable(
            f"{kernel.release} is not one of Debian's kernels: there are no headers to build the module with"
        )
    line, release = kernel.line, kernel.release
    sources = sorted(path for path in SOURCES.iterdir() if path.is_file())
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]

    def make_root(folder: Path) -> None:
        archive = Archive(cache, line.suite, mirror)
        archive.unpack(archive.with_dependencies([f"linux-headers-{release}", *TOOLS]), folder)
        for name in ("dev", "module", "proc", "tmp"):
            (folder / name).mkdir(exist_ok=True)

    def build(folder: Path) -> None:
        root = cache.folder(f"build-roots/{release}", make_root)
        workshop = root / "module"
        shutil.rmtree(workshop)
        workshop.mkdir()
        for path in sources:
            shutil.copy(path, workshop)
        user = [] if os.geteuid() == 0 else ["--map-root-user"]
        command = [program("unshare"), "--mount", *user, "/bin/sh", "-c", SCRIPT, "sh", str(root), release]
        try:
            run(command, doing="building the kernel module")
        except LabUnavailable:
            log = workshop / "log"
            printed = log.read_text(errors="replace").splitlines() if log.exists() else []
            errors = [line for line in printed if "error" in line.lower()]
            if not errors:
                raise
            raise LabUnavailable(f"building the kernel module for {release} failed: {errors[0]}") from None
        shutil.copy(workshop / REGION_MODULE, folder)

    with cache.locked():
        return cache.folder(f"modules/{release}-{digest}", build) / REGION_MODULE
