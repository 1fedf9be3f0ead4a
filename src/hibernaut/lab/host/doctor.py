# SPDX-License-Identifier: GPL-2.0-or-later
"""What the laboratory needs, what of it is here, and the commands that bring the rest."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from hibernaut.errors import LabUnavailable
from hibernaut.lab.host.cache import Cache
from hibernaut.lab.host.debian import KEYRING, configured_mirrors
from hibernaut.lab.host.kernels import KERNEL_LINES
from hibernaut.lab.host.programs import MODULES, PROGRAMS

__all__ = ["Finding", "Need", "cures", "examine"]


@dataclass(frozen=True)
class Need:
    """What the laboratory cannot do without (`required`), or can."""

    name: str
    purpose: str
    required: bool = True


@dataclass(frozen=True)
class Finding:
    """One thing looked for.

    Attributes:
        need: what.
        there: whether it is here.
        where: where, or why not.
        packages: Debian packages that bring it.
        modules: Python packages that bring it.
    """

    need: Need
    there: bool
    where: str
    packages: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()


def examine(cache: Cache) -> list[Finding]:
    """Look for everything; nothing is changed or downloaded."""
    found = [
        Finding(Need(one.name, one.purpose), bool(one.find()), one.find() or "missing", tuple(one.package.split()))
        for one in PROGRAMS
    ]
    for name, purpose in MODULES.items():
        there = importlib.util.find_spec(name) is not None
        found.append(Finding(Need(name, purpose), there, "installed" if there else "missing", modules=(name,)))
    keys = KEYRING.exists()
    found.append(
        Finding(
            Need("archive keys", "sign Debian's packages"),
            keys,
            str(KEYRING) if keys else "missing",
            ("debian-archive-keyring",),
        )
    )
    try:
        configured_mirrors()
        found.append(Finding(Need("mirror", "has Debian's packages"), True, "as apt is configured"))
    except LabUnavailable as error:
        found.append(Finding(Need("mirror", "has Debian's packages"), False, f"{error}"))
    for line in KERNEL_LINES.values():
        folder = cache.root / "kernels" / line.name
        where = str(folder) if folder.exists() else f"downloaded from {line.suite} when it is wanted"
        found.append(Finding(Need(f"Linux {line.name}", "is booted", required=False), folder.exists(), where))
        roots = sorted(cache.root.glob(f"build-roots/{line.name}.*"))
        where = str(roots[-1]) if roots else f"downloaded from {line.suite} when a module is built"
        need = Need(f"headers of {line.name}", "build the module that makes holes", required=False)
        found.append(Finding(need, bool(roots), where))
    kvm = Path("/dev/kvm").exists()
    where = "there, tried when asked for (--accel auto)" if kvm else "not there: TCG does"
    found.append(Finding(Need("/dev/kvm", "makes guests faster", required=False), kvm, where))
    return found


def cures(found: list[Finding]) -> list[str]:
    """The commands that bring what is missing and required."""
    missing = [one for one in found if one.need.required and not one.there]
    packages = sorted({package for one in missing for package in one.packages})
    modules = any(one.modules for one in missing)
    return [
        *([f"apt-get install {' '.join(packages)}"] if packages else []),
        *(["pip install 'hibernaut[lab]'"] if modules else []),
    ]
