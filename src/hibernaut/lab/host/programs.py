# SPDX-License-Identifier: GPL-2.0-or-later
"""The programs that the laboratory calls: found, or named with what installs them."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hibernaut.errors import LabUnavailable

__all__ = ["MODULES", "PROGRAMS", "Program", "need_module", "program", "run"]

SYSTEM_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin")
"""Where programs for root lie, which are not on everybody's path."""


@dataclass(frozen=True)
class Program:
    """A program from outside.

    Attributes:
        name: as it is called.
        package: the Debian package that has it.
        purpose: what the laboratory wants it for.
    """

    name: str
    package: str
    purpose: str

    def find(self) -> str | None:
        """Its path, None if it is not installed."""
        path = os.pathsep.join([os.environ.get("PATH", os.defpath), *SYSTEM_FOLDERS])
        return shutil.which(self.name, path=path)


PROGRAMS = (
    Program("qemu-system-x86_64", "qemu-system-x86", "runs the guests"),
    Program("setpriv", "util-linux", "ends a guest when its parent dies"),
    Program("busybox", "busybox-static", "is the guests' shell"),
    Program("gcc", "gcc libc6-dev", "builds the guests' user space"),
    Program("apt-get", "apt", "downloads kernels"),
    Program("dpkg-deb", "dpkg", "unpacks kernels"),
    Program("tar", "tar", "unpacks kernels"),
    Program("unshare", "util-linux", "builds the kernel module in a folder of its own"),
    Program("mkfs.ext4", "e2fsprogs", "makes the file system for a swap file"),
)


MODULES = {"capstone": "finds the copy loop in the kernel's code", "drgn": "reads kallsyms"}
"""Python packages of the extra `lab`, and what for."""


def need_module(name: str) -> None:
    """See that one of `MODULES` is installed. Raises LabUnavailable if not."""
    if importlib.util.find_spec(name) is None:
        raise LabUnavailable(f"{name} is not installed (it {MODULES[name]})", cure="pip install 'hibernaut[lab]'")


def program(name: str) -> str:
    """The path of one of `PROGRAMS`. Raises LabUnavailable if it is not installed."""
    (wanted,) = (one for one in PROGRAMS if one.name == name)
    path = wanted.find()
    if path is None:
        raise LabUnavailable(f"{name} is not installed ({wanted.purpose})", cure=f"apt-get install {wanted.package}")
    return path


def run(
    command: Sequence[str | Path], *, cwd: Path | None = None, env: Mapping[str, str] | None = None, doing: str
) -> str:
    """Run a program to its end and give its standard output.

    Args:
        command: the program and its arguments.
        cwd: the folder to run in.
        env: variables to add to the environment.
        doing: a clause for the error.

    Raises:
        LabUnavailable: it failed; with the last line it said.
    """
    done = subprocess.run(
        [os.fspath(word) for word in command],
        cwd=cwd,
        env={**os.environ, "LC_ALL": "C", **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        raise LabUnavailable(f"{doing} failed: {said[-1] if said else f'exit status {done.returncode}'}")
    return done.stdout
