# SPDX-License-Identifier: GPL-2.0-or-later
"""The build of the kernel module that takes regions out of the direct map (guest/region).

For a kernel of Debian's, the module is built by `chroot` in a folder with Debian's headers, compiler and make for that
kernel, unpacked and not installed, so that it fits kernels of other suites than this machine's. For a kernel of a build
tree, it is built against that tree, with this machine's compiler, in a copy of the module's sources.
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
from hibernaut.lab.host.kernels import GuestKernel
from hibernaut.lab.host.programs import completed, first_error, program, run
from hibernaut.lab.host.temporary import temporary_folder
from hibernaut.lab.host.trees import CONFIG, SYMBOL_VERSIONS, compiler_words, configuration_of_tree, kbuild_folder

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


def region_module(cache: Cache, kernel: GuestKernel, mirror: str | None = None) -> Path:
    """Return the module for a kernel, from the cache if it was built before.

    Raises:
        LabUnavailable: the kernel is neither one of Debian's nor that of a build tree, a package cannot be downloaded,
            the kernel has no modules, or the build fails.
    """
    sources = sorted(path for path in SOURCES.iterdir() if path.is_file())
    if kernel.tree is not None:
        return _built_against_tree(cache, kernel.tree, kernel.release, sources)
    if kernel.line is None:
        raise LabUnavailable(
            f"{kernel.release} is not one of Debian's kernels: there are no headers to build the module with",
            advice="give the kernel's build tree as --tree",
        )
    line, release = kernel.line, kernel.release
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
            error = first_error(log.read_text(errors="replace")) if log.exists() else None
            if error is None:
                raise
            raise LabUnavailable(f"building the kernel module for {release} failed: {error}") from None
        shutil.copy(workshop / REGION_MODULE, folder)

    with cache.locked():
        return cache.folder(f"modules/{release}-{digest}", build) / REGION_MODULE


def _built_against_tree(cache: Cache, tree: Path, release: str, sources: list[Path]) -> Path:
    """Return the module for the kernel of a build tree. It is built again if the tree's configuration changes."""
    configuration = configuration_of_tree(tree)
    if not configuration.has("MODULES"):
        raise LabUnavailable(
            f"{tree}: the kernel loads no modules: CONFIG_MODULES is not set in {CONFIG}",
            advice="set CONFIG_MODULES=y and build it again; only guests without regions work so",
        )
    versions = tree / SYMBOL_VERSIONS
    known = versions.read_bytes() if versions.is_file() else b""
    parts = [release.encode(), (tree / CONFIG).read_bytes(), known, *(path.read_bytes() for path in sources)]
    digest = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:16]

    def build(folder: Path) -> None:
        compiler = compiler_words(configuration)
        # Without the table of exported symbols, modpost cannot resolve any; the kernel does when it loads the module.
        unresolved = [] if known else ["KBUILD_MODPOST_WARN=1"]
        with temporary_folder("module") as copy:
            for path in sources:
                shutil.copy(path, copy)
            words = ["-C", str(kbuild_folder(tree)), f"M={copy}", "ARCH=x86_64", *compiler, *unresolved, "modules"]
            done = completed([program("make"), "-s", *words])
            if done.returncode:
                error = first_error(done.stderr) or f"exit status {done.returncode}"
                raise LabUnavailable(
                    f"building the kernel module against {tree} failed: {error}",
                    advice=f"run `make -C {tree} bzImage modules` first",
                )
            shutil.copy(copy / REGION_MODULE, folder)

    with cache.locked():
        return cache.folder(f"modules/{release}-{digest}", build) / REGION_MODULE
