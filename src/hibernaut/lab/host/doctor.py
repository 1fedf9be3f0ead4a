# SPDX-License-Identifier: GPL-2.0-or-later
"""The needs of the laboratory: which are met on this machine, and the commands that meet the others."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from hibernaut.errors import LabUnavailable, how_to_install
from hibernaut.lab.host.cache import Cache
from hibernaut.lab.host.debian import KEYRING, configured_mirrors
from hibernaut.lab.host.kernels import KERNEL_LINES
from hibernaut.lab.host.programs import MODULES, PROGRAMS

__all__ = ["Need", "NeedStatus", "cures", "examine"]

LIBELF = Path("/usr/include/gelf.h")


@dataclass(frozen=True)
class Need:
    """A need of the laboratory; without a `required` one it cannot work."""

    name: str
    purpose: str
    required: bool = True


@dataclass(frozen=True)
class NeedStatus:
    """Status of a need on this machine.

    Attributes:
        need: the need.
        there: whether it is met.
        where: place that it was found at, or the reason why it is not met.
        packages: Debian packages that meet it.
        modules: Python packages that meet it.
    """

    need: Need
    there: bool
    where: str
    packages: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()


def examine(cache: Cache) -> list[NeedStatus]:
    """Return the status of every need; nothing is changed or downloaded."""
    found = [
        NeedStatus(
            Need(one.name, one.purpose, one.required),
            bool(one.find()),
            one.find() or "missing",
            tuple(one.package.split()),
        )
        for one in PROGRAMS
    ]
    for name, purpose in MODULES.items():
        there = importlib.util.find_spec(name) is not None
        found.append(NeedStatus(Need(name, purpose), there, "installed" if there else "missing", modules=(name,)))
    keys = KEYRING.exists()
    found.append(
        NeedStatus(
            Need("archive keys", "sign Debian's packages"),
            keys,
            str(KEYRING) if keys else "missing",
            ("debian-archive-keyring",),
        )
    )
    try:
        configured_mirrors()
        found.append(NeedStatus(Need("mirror", "has Debian's packages"), True, "as apt is configured"))
    except LabUnavailable as error:
        found.append(NeedStatus(Need("mirror", "has Debian's packages"), False, f"{error}"))
    for line in KERNEL_LINES.values():
        folder = cache.root / "kernels" / line.name
        where = str(folder) if folder.exists() else f"downloaded from {line.suite} when needed"
        found.append(NeedStatus(Need(f"Linux {line.name}", "is booted", required=False), folder.exists(), where))
        roots = sorted(cache.root.glob(f"build-roots/{line.name}.*"))
        where = str(roots[-1]) if roots else f"downloaded from {line.suite} when a module is built"
        need = Need(f"headers of {line.name}", "build the module that makes holes", required=False)
        found.append(NeedStatus(need, bool(roots), where))
    headers = LIBELF.exists()
    need = Need("headers of libelf", "build kernels", required=False)
    found.append(NeedStatus(need, headers, str(LIBELF) if headers else "missing", ("libelf-dev",)))
    kvm = Path("/dev/kvm").exists()
    where = "present; used with --accel auto if a trial boot works" if kvm else "absent; guests run under TCG"
    found.append(NeedStatus(Need("/dev/kvm", "makes guests faster", required=False), kvm, where))
    return found


def cures(found: list[NeedStatus]) -> list[str]:
    """Return the commands that meet the required needs that are not met."""
    missing = [one for one in found if one.need.required and not one.there]
    packages = sorted({package for one in missing for package in one.packages})
    modules = sorted({module for one in missing for module in one.modules})
    return [
        *([f"apt-get install {' '.join(packages)}"] if packages else []),
        *([how_to_install(*modules)] if modules else []),
    ]
