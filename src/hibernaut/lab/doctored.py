# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut doctor` inside guests: situations that keep a machine from hibernating or coming back, and healthy ones.

Python and hibernaut are on a third disk (`guest.python_disk`), on which nothing is written. Guests have `resume=` on
their command line, which their initramfs ignores: the laboratory resumes by /sys/power/resume.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hibernaut.errors import LabError
from hibernaut.lab.guest.initramfs import modules_with_dependencies
from hibernaut.lab.guest.python_disk import PYTHON_COMMAND, PYTHON_MOUNT
from hibernaut.lab.guest_state import RunningGuest
from hibernaut.lab.laboratory import HIBERNATE, HIBERNATE_SECONDS, POWER_OFF_SECONDS, Lab
from hibernaut.lab.preparation import prepare
from hibernaut.lab.record import IMAGE_NAME, SPARE_NAME
from hibernaut.lab.variants import Swap, Variant, variant_named
from hibernaut.lab.vm.disks import make_disk
from hibernaut.lab.vm.port import unescaped
from hibernaut.lab.vm.qemu import Disk, Hardware

__all__ = [
    "ON_A_RUNNING_GUEST",
    "ON_THE_NEXT_BOOT",
    "Diagnosed",
    "GuestSituation",
    "NextBoot",
    "diagnose_next_boots",
    "diagnose_running",
    "hibernate_diagnosed",
]

MEMORY_MIB = 512
SPARE_MIB = 32
"""Room for less than the image of such a guest, compressed."""
DOCTOR_SECONDS = 900
"""A command of Python takes a minute or two in an emulated guest."""
FAILS = ("would fail", "warning")
PREDICTED = re.compile(r"about (\d+) (?:of|pages)")
COMPRESSED = re.compile(r"(\d+) kbytes by")


@dataclass(frozen=True)
class GuestSituation:
    """A situation of a guest.

    Attributes:
        name: its name.
        commands: commands that bring it about, each of which must succeed.
        checks: checks that would fail or warn then, and no others.
        undo: commands that end it.
    """

    name: str
    commands: tuple[str, ...] = ()
    checks: frozenset[str] = frozenset()
    undo: tuple[str, ...] = ()


@dataclass(frozen=True)
class Diagnosed:
    """The outcome of a situation.

    Attributes:
        name: name of the situation.
        expected: checks that had to fail or warn.
        found: those that did, with their findings.
        pages: pages of the next image, as predicted; None where the guest could not hibernate.
        compressed_kib: its size after compression, as predicted; None unless memory was measured.
    """

    name: str
    expected: frozenset[str]
    found: Mapping[str, str]
    pages: int | None
    compressed_kib: int | None = None

    @property
    def passed(self) -> bool:
        """Whether the checks are the expected ones."""
        return frozenset(self.found) == self.expected


VDA = "cat /sys/class/block/vda/dev > /sys/power/resume"
INSERT_ZRAM = (
    "for each in lz4hc_compress lz4_compress 842_compress zsmalloc zram; do"
    " [ ! -e /modules/$each.ko ] || grep -q ^$each /proc/modules || insmod /modules/$each.ko; done"
)
NO_SWAP = frozenset({"swap"})
"""A machine that has not begun to use its swap areas, since an image is in one."""

ON_A_RUNNING_GUEST = (
    GuestSituation("healthy"),
    GuestSituation(
        "wrong offset",
        ("echo 34816 > /sys/power/resume_offset",),
        frozenset({"resume-device"}),
        ("echo 0 > /sys/power/resume_offset",),
    ),
    GuestSituation("no swap", ("swapoff /dev/vda",), frozenset({"swap", "resume-device"}), ("swapon /dev/vda",)),
    GuestSituation(
        "zram first",
        (
            "swapoff /dev/vda",
            INSERT_ZRAM,
            "echo 0:0 > /sys/power/resume",
            "echo 512M > /sys/block/zram0/disksize",
            "mkswap /dev/zram0",
            "swapon /dev/zram0",
            "swapon /dev/vda",
        ),
        frozenset({"zram", "resume-device"}),
        ("swapoff /dev/zram0", VDA),
    ),
    GuestSituation(
        "image too large",
        (
            "swapoff /dev/vda",
            "mkswap /dev/vdb",
            "swapon /dev/vdb",
            "cat /sys/class/block/vdb/dev > /sys/power/resume",
        ),
        frozenset({"swap-space", "resume-device"}),
        ("swapoff /dev/vdb", "swapon /dev/vda", VDA),
    ),
    GuestSituation(
        "KFENCE on",
        ("echo 100 > /sys/module/kfence/parameters/sample_interval",),
        frozenset({"kfence"}),
        ("echo 0 > /sys/module/kfence/parameters/sample_interval",),
    ),
    GuestSituation("secret memory", ("!fill secret 100 0x5",), frozenset({"secret-memory", "available", "kfence"})),
    GuestSituation(
        "lockdown",
        ("echo integrity > /python/sys/kernel/security/lockdown",),
        frozenset({"lockdown", "secret-memory", "available", "kfence"}),
    ),
)
"""Situations of one guest of 6.12, one after the other: KFENCE's pool, secret memory and lockdown last to its end."""


@dataclass(frozen=True)
class NextBoot:
    """A machine that boots after another one has hibernated to vda.

    Attributes:
        name: its name.
        checks: checks that would fail or warn there, and no others.
        memory_mib: its memory.
        disks: number of its disks: for another one the firmware's tables take some more pages from RAM.
        line: line of its kernel; None for that of the machine that hibernated.
        commands: commands before.
    """

    name: str
    checks: frozenset[str]
    memory_mib: int = MEMORY_MIB
    disks: int = 3
    line: str | None = None
    commands: tuple[str, ...] = ()


ON_THE_NEXT_BOOT = (
    NextBoot("same machine", NO_SWAP),
    NextBoot("moved e820", NO_SWAP | {"memory-map", "memory-size"}, disks=4),
    NextBoot("other memory size", NO_SWAP | {"memory-map", "memory-size"}, memory_mib=MEMORY_MIB + 64),
    NextBoot("other kernel", NO_SWAP | {"kernel"}, line="7.3"),
    NextBoot("image used up", NO_SWAP | {"image", "last-resume", "resume-device"}, disks=4, commands=(VDA,)),
    NextBoot("torn image", NO_SWAP | {"image"}, commands=("dd if=/dev/urandom of=/dev/vda bs=4096 seek=3000 count=4",)),
)
"""Machines that boot after a guest of 6.12 has hibernated."""


def guest_variant(memory_mib: int = MEMORY_MIB) -> Variant:
    """Return the kind of guest."""
    return dataclasses.replace(variant_named("lzo"), memory_mib=memory_mib)


def with_resume(hardware: Hardware) -> Hardware:
    """Return a machine whose command line names vda to resume from."""
    return dataclasses.replace(hardware, parameters=f"{hardware.parameters} resume=/dev/vda")


@contextmanager
def python_guest(
    lab: Lab, folder: Path, python: Path, *, variant: Variant, disks: int = 3, keep: bool = True,
    files: Sequence[Path] = (),
) -> Iterator[RunningGuest]:  # fmt: skip
    """Boot a guest with Python, and yield it; it is killed on leaving.

    Args:
        lab: the laboratory.
        folder: folder with its disks.
        python: disk of `make_python_disk`.
        variant: kind of guest.
        disks: number of disks; those from the third on are the one with Python.
        keep: whether it writes to its first two disks.
        files: further files for its /modules.

    Raises:
        LabUnavailable, LabError: it does not boot, or Python's disk cannot be mounted.
    """
    given = [Disk(folder / IMAGE_NAME, keep), Disk(folder / SPARE_NAME, keep), *[Disk(python, False)] * (disks - 2)]
    with lab.boot(variant, folder, given, files=files, adapt=with_resume) as guest:
        guest.port.run(PYTHON_MOUNT.format(device="/dev/vdc"))
        yield guest


def diagnose(guest: RunningGuest, name: str, expected: frozenset[str], *options: str) -> Diagnosed:
    """Run `hibernaut doctor` in a guest. Raises LabError if it does not print its document."""
    command = " ".join((PYTHON_COMMAND, "-m hibernaut doctor --json", *options))
    lines = guest.port.ask(command, DOCTOR_SECONDS).lines
    try:
        document: dict[str, Any] = json.loads("\n".join(map(unescaped, lines)))
    except ValueError as error:
        raise LabError(f"the doctor of {name!r} printed no document", log=lines[-6:]) from error
    found = {one["check"]: f"{one['outcome']}: {one['summary']}" for one in document["checks"]
             if one["outcome"] in FAILS}  # fmt: skip
    sizes = [PREDICTED.search(one["summary"]) for one in document["checks"] if one["check"] == "image-size"]
    pages = int(sizes[0][1]) if sizes and sizes[0] else None
    measured = [COMPRESSED.match(read["value"]) for one in document["checks"] if one["check"] == "swap-space"
                for read in one["read"]]  # fmt: skip
    sized = next((int(match[1]) for match in measured if match), None)
    return Diagnosed(name, expected, found, pages, sized)


def diagnose_running(
    lab: Lab, folder: Path, python: Path, situations: Sequence[GuestSituation] = ON_A_RUNNING_GUEST
) -> Iterator[Diagnosed]:
    """Yield the outcome of each situation of a running guest.

    Raises:
        LabUnavailable, LabError: the guest does not boot, or a situation cannot be brought about.
    """
    variant = guest_variant()
    make_disk(folder / IMAGE_NAME, MEMORY_MIB * 3 // 2, Swap.DISK)
    make_disk(folder / SPARE_NAME, SPARE_MIB, Swap.DISK)
    zram = modules_with_dependencies(lab.kernel.modules, ("zram",)).values()
    with python_guest(lab, folder, python, variant=variant, files=tuple(zram)) as guest:
        prepare(guest, variant, lab.kernel)
        for situation in situations:
            for command in situation.commands:
                guest.port.run(command)
            yield diagnose(guest, situation.name, situation.checks)
            for command in situation.undo:
                guest.port.run(command)


def hibernate_diagnosed(lab: Lab, folder: Path, python: Path) -> tuple[Diagnosed, str]:
    """Let a guest hibernate to vda right after `hibernaut doctor` has measured its memory; return finding and log.

    Raises:
        LabUnavailable, LabError: the guest does not boot or does not hibernate.
    """
    variant = guest_variant()
    make_disk(folder / IMAGE_NAME, MEMORY_MIB * 3 // 2, Swap.DISK)
    make_disk(folder / SPARE_NAME, SPARE_MIB, Swap.DISK)
    with python_guest(lab, folder, python, variant=variant) as guest:
        prepare(guest, variant, lab.kernel)
        found = diagnose(guest, "healthy, then hibernated", frozenset())
        sequence = guest.port.send(HIBERNATE)
        if guest.port.poll(sequence, HIBERNATE_SECONDS) is not None or not guest.port.ended:
            raise LabError("the guest did not hibernate", log=guest.qemu.last_log_lines())
        guest.qemu.wait(POWER_OFF_SECONDS)
        return found, guest.qemu.console()


def diagnose_next_boots(
    labs: Mapping[str | None, Lab], folder: Path, python: Path, boots: Sequence[NextBoot] = ON_THE_NEXT_BOOT
) -> Iterator[Diagnosed]:
    """Yield the outcome on each machine that boots after `hibernate_diagnosed`; nothing is written to its disks.

    Args:
        labs: laboratories by the line of a boot; that of None for the kernel that hibernated.
        folder: folder with the disks.
        python: disk of `make_python_disk`.
        boots: the machines.

    Raises:
        LabUnavailable, LabError: a machine does not boot.
    """
    for boot in boots:
        variant = guest_variant(boot.memory_mib)
        lab = labs[boot.line]
        with python_guest(lab, folder, python, variant=variant, disks=boot.disks, keep=False) as guest:
            for command in boot.commands:
                guest.port.ask(command)
            yield diagnose(guest, boot.name, boot.checks, "--root / --image /dev/vda")
