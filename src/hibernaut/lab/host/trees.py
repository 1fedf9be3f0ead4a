# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel build trees: a kernel as `make` leaves it, in its source tree or in a folder of its own (`make O=`).

Documentation/kbuild/kbuild.rst names the files. Only they are read; nothing in the tree is changed.
"""

from __future__ import annotations

import gzip
import re
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path

from hibernaut.errors import FormatError, LabUnavailable
from hibernaut.kernel.bzimage import bzimage_release
from hibernaut.lab.host.kernels import GuestKernel

__all__ = [
    "BZIMAGE",
    "Configuration",
    "builtin_modules",
    "compiler_words",
    "configuration_of_tree",
    "kbuild_folder",
    "kernel_of_tree",
    "modules_of_tree",
]

BZIMAGE = Path("arch/x86/boot/bzImage")
CONFIG = Path(".config")
RELEASE = Path("include/config/kernel.release")
SYMBOL_VERSIONS = Path("Module.symvers")
GZIP = b"\x1f\x8b"
SETTING = re.compile(r'^CONFIG_(\w+)=(?:"(.*)"|(.*))$', re.MULTILINE)


@dataclass(frozen=True)
class Configuration:
    """The configuration of a kernel.

    Attributes:
        source: file that it was read from.
        values: value of each symbol that is set, by name without CONFIG_: y, m, a number, or a string without quotes.
    """

    source: Path
    values: dict[str, str]

    def has(self, name: str) -> bool:
        """Return whether a symbol, without CONFIG_, is y or m."""
        return self.values.get(name) in ("y", "m")

    @classmethod
    def read(cls, path: Path) -> Configuration:
        """Return the configuration in a file (.config, auto.conf, a fragment, config.gz).

        Raises:
            FormatError: it is compressed and damaged.
            OSError: it cannot be read.
        """
        raw = path.read_bytes()
        if raw.startswith(GZIP):
            try:
                raw = gzip.decompress(raw)
            except (OSError, EOFError, zlib.error) as error:
                raise FormatError(
                    f"not a configuration: {error}", source=str(path), advice="give the kernel's .config"
                ) from error
        return cls.parse(path, raw.decode("utf-8", "replace"))

    @classmethod
    def parse(cls, source: Path, text: str) -> Configuration:
        """Return the configuration in a text; of several values of a symbol, the last."""
        return cls(source, {name: quoted or word for name, quoted, word in SETTING.findall(text)})


def configuration_of_tree(tree: Path) -> Configuration:
    """Return the configuration of a build tree.

    Raises:
        FormatError: the folder is not a kernel tree.
        LabUnavailable: the tree is not configured.
        FileNotFoundError: there is no such folder.
    """
    if not tree.is_dir():
        raise FileNotFoundError(2, "No such file or directory", str(tree))
    if (tree / CONFIG).is_file():
        return Configuration.read(tree / CONFIG)
    if (tree / "Kbuild").is_file() and (tree / "Kconfig").is_file():
        raise LabUnavailable(
            f"{tree}: the kernel tree is not configured: it has no {CONFIG}",
            advice="configure and build it there, or give the folder of `make O=`",
        )
    raise FormatError(
        "not a kernel build tree",
        source=str(tree),
        expected=f"{CONFIG}, {RELEASE} and {BZIMAGE}",
        advice="give the folder in which `make` built the kernel",
    )


def kernel_of_tree(tree: Path) -> GuestKernel:
    """Return the kernel of a build tree: its own bzImage, and the modules where `make` left them.

    Args:
        tree: folder of the build: the source tree, or that of `make O=`, or a result of `hibernaut lab build`.

    Raises:
        FormatError: the folder is not a kernel tree, or its bzImage is not one, or is of another release.
        LabUnavailable: the tree is not configured, not for x86-64, or not built.
        FileNotFoundError: there is no such folder.
    """
    tree = tree.absolute()
    if not configuration_of_tree(tree).has("X86_64"):
        raise LabUnavailable(
            f"{tree}: the kernel is not for x86-64: CONFIG_X86_64 is not set in {CONFIG}",
            advice="give a tree that was built with `make ARCH=x86_64`",
        )
    for needed in (RELEASE, BZIMAGE):
        if not (tree / needed).is_file():
            raise LabUnavailable(
                f"{tree}: the kernel is not built: it has no {needed}",
                advice=f"run `make -C {tree} bzImage modules`",
            )
    release, found = (tree / RELEASE).read_text().strip(), bzimage_release(tree / BZIMAGE)
    if found != release:
        raise FormatError(
            "the bzImage is not the tree's last build",
            source=str(tree / BZIMAGE),
            expected=f"release {release} of {RELEASE}",
            found=found,
            advice=f"run `make -C {tree} bzImage modules`",
        )
    return GuestKernel(release, release, tree / BZIMAGE, tree, tree=tree)


def modules_of_tree(tree: Path) -> list[Path]:
    """Return the modules of a build tree that exist, in the order of its modules.order; none if it has no such file.

    Lines are paths below the tree: `kernel/fs/ext4/ext4.ko` up to Linux 6.1, `fs/ext4/ext4.o` in later kernels.
    """
    order = tree / "modules.order"
    found = []
    for line in order.read_text().split() if order.is_file() else []:
        path = Path(line).with_suffix(".ko")
        places = (tree / path, tree / path.relative_to("kernel")) if path.parts[0] == "kernel" else (tree / path,)
        found += [place for place in places if place.is_file()][:1]
    return found


def builtin_modules(folder: Path) -> set[str]:
    """Return the names of built-in modules, with underscores, from modules.builtin; empty without it."""
    path = folder / "modules.builtin"
    lines = path.read_text().split() if path.is_file() else []
    return {Path(line).stem.replace("-", "_") for line in lines}


def kbuild_folder(tree: Path) -> Path:
    """Return the folder that `make -C` takes to build a module against a tree: its `build` link, if it has one.

    Raises:
        LabUnavailable: it is not there.
    """
    link = tree / "build"
    folder = link if link.is_symlink() else tree
    if not (folder / "Makefile").is_file():
        raise LabUnavailable(
            f"{tree}: no module can be built: {folder} has no Makefile",
            advice="build the kernel again (`hibernaut lab build`, or make in its own tree)",
        )
    return folder


def compiler_words(configuration: Configuration) -> list[str]:
    """Return the words of `make` that choose the compiler which a tree was built with.

    Raises:
        LabUnavailable: no compiler of that kind is installed.
    """
    values = configuration.values
    text = values.get("CC_VERSION_TEXT", "gcc")
    if not configuration.has("CC_IS_CLANG"):
        name = text.split()[0]
        chosen = next((one for one in (name, "gcc") if shutil.which(one)), None)
        if chosen is None:
            raise LabUnavailable(
                f"gcc is not installed, and the kernel was built with {text}", cure="apt-get install gcc"
            )
        return [f"CC={chosen}"] if chosen != "gcc" else []
    major = int(values.get("CLANG_VERSION", "0")) // 10000
    for suffix in ("", f"-{major}"):
        if shutil.which(f"clang{suffix}"):
            # With another linker than LLVM's, only the compiler is clang (Documentation/kbuild/llvm.rst).
            return [f"LLVM={suffix or 1}"] if configuration.has("LD_IS_LLD") else [f"CC=clang{suffix}"]
    raise LabUnavailable(
        f"clang is not installed, and the kernel was built with {text}",
        cure=f"apt-get install clang-{major} lld-{major}",
    )
