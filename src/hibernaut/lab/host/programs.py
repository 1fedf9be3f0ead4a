# SPDX-License-Identifier: GPL-2.0-or-later
"""The programs that the laboratory runs, and the packages that install them."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hibernaut.errors import LabUnavailable, how_to_install

__all__ = ["MODULES", "PROGRAMS", "Program", "completed", "first_error", "need_module", "program", "run"]

SYSTEM_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin")
"""Folders of programs for root, which an ordinary user's PATH lacks."""


@dataclass(frozen=True)
class Program:
    """An external program.

    Attributes:
        name: name of its executable.
        package: Debian packages that it needs.
        purpose: what it does in the laboratory, a verb phrase.
        required: whether the laboratory cannot work without it.
    """

    name: str
    package: str
    purpose: str
    required: bool = True

    def find(self) -> str | None:
        """Return its path, None if it is not installed."""
        path = os.pathsep.join([os.environ.get("PATH", os.defpath), *SYSTEM_FOLDERS])
        return shutil.which(self.name, path=path)


PROGRAMS = (
    Program("qemu-system-x86_64", "qemu-system-x86", "runs the guests"),
    Program("setpriv", "util-linux", "ends a guest together with its parent"),
    Program("busybox", "busybox-static", "is the guests' shell"),
    Program("gcc", "gcc libc6-dev", "builds the guests' user space"),
    Program("apt-get", "apt", "downloads kernels"),
    Program("dpkg-deb", "dpkg", "unpacks kernels"),
    Program("tar", "tar", "unpacks kernels"),
    Program("unshare", "util-linux", "builds the kernel module in a folder of its own"),
    Program("mkfs.ext4", "e2fsprogs", "makes the file system for a swap file"),
    Program("ldd", "libc-bin", "finds the libraries of Python, for guests that run hibernaut", required=False),
    Program("make", "make", "builds kernels, and modules against a build tree", required=False),
    Program("flex", "flex", "builds kernels", required=False),
    Program("bison", "bison", "builds kernels", required=False),
    Program("bc", "bc", "builds kernels", required=False),
    Program("xz", "xz-utils", "unpacks kernels' sources", required=False),
    Program("qemu-system-aarch64", "qemu-system-arm", "runs guests of arm64", required=False),
    Program("qemu-system-riscv64", "qemu-system-misc", "runs guests of riscv", required=False),
    *(
        Program(
            f"{gnu}-linux-gnu-gcc",
            f"gcc-{gnu.replace('_', '-')}-linux-gnu libc6-dev-{debian}-cross",
            f"builds the user space of {debian} guests",
            required=False,
        )
        for gnu, debian in (("aarch64", "arm64"), ("i686", "i386"), ("riscv64", "riscv64"))
    ),
)


MODULES = {"capstone": "finds the copy loop in the kernel's code", "drgn": "reads kallsyms"}
"""Python packages that the laboratory needs, and what they do."""


def need_module(name: str) -> None:
    """Require one of `MODULES`. Raises LabUnavailable if it is not installed."""
    if importlib.util.find_spec(name) is None:
        raise LabUnavailable(f"{name} is not installed (it {MODULES[name]})", cure=how_to_install(*MODULES))


def program(name: str) -> str:
    """Return the path of one of `PROGRAMS`. Raises LabUnavailable if it is not installed."""
    (wanted,) = (one for one in PROGRAMS if one.name == name)
    path = wanted.find()
    if path is None:
        raise LabUnavailable(f"{name} is not installed (it {wanted.purpose})", cure=f"apt-get install {wanted.package}")
    return path


def completed(
    command: Sequence[str | Path], *, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program in the C locale, without input, and return its exit status and what it printed.

    Args:
        command: program and arguments.
        cwd: working folder.
        env: variables added to the environment.
    """
    return subprocess.run(  # nosec B603 # words, never a shell's line
        [os.fspath(word) for word in command],
        cwd=cwd,
        env={**os.environ, "LC_ALL": "C", **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )


def run(
    command: Sequence[str | Path], *, cwd: Path | None = None, env: Mapping[str, str] | None = None, doing: str
) -> str:
    """Run a program and return its standard output.

    Args:
        command: program and arguments.
        cwd: working folder.
        env: variables added to the environment.
        doing: a noun phrase for the error, as in "`doing` failed".

    Raises:
        LabUnavailable: it failed; the message has the first line of apt's that reports an error, else the last line
            that it printed.
    """
    done = completed(command, cwd=cwd, env=env)
    if done.returncode:
        printed = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        last = printed[-1] if printed else f"exit status {done.returncode}"
        raise LabUnavailable(f"{doing} failed: {next((line for line in printed if line.startswith('E: ')), last)}")
    return done.stdout


def first_error(printed: str) -> str | None:
    """Return the first line of a build's output that reports an error; None if there is none."""
    lines = [line.strip() for line in printed.splitlines()]
    return next(
        (line for line in lines if re.search(r"\berror\b|\bundefined\b|^\*\*\*|: \*\*\*", line, re.IGNORECASE)), None
    )
