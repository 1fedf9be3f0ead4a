# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests with a sealed image: one that has hibernated, and machines that boot with the verifier on a disk of Python."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from hibernaut.lab.doctored import SPARE_MIB, guest_variant, python_guest
from hibernaut.lab.guest.python_disk import BUNDLE, PYTHON_MOUNT, make_python_disk
from hibernaut.lab.guest_state import RunningGuest
from hibernaut.lab.laboratory import HIBERNATE, HIBERNATE_SECONDS, POWER_OFF_SECONDS, Lab
from hibernaut.lab.preparation import prepare
from hibernaut.lab.record import IMAGE_NAME, SPARE_NAME, GuestRecord
from hibernaut.lab.variants import Swap
from hibernaut.lab.vm.disks import make_disk
from hibernaut.lab.vm.qemu import Disk, Hardware
from hibernaut.sealing.blocks import BlockFile
from hibernaut.sealing.reading_order import ReadingOrder, header_of_image, reading_order
from tests.cli.run import hibernaut
from tests.sealing.verifier_file import FOLDER, verifier_file

MEMORY_MIB, DISK_MIB = 256, 384
PYTHON = Path(sys.executable).resolve()
ENVIRONMENT = f"HIBERNAUT_CONF=/modules/verify.conf HIBERNAUT_VERIFIER={BUNDLE} HIBERNAUT_PYTHON=/tmp/python"
"""Variables with which packages/verifier/resume finds its files in a guest."""
WRAPPER = f'#!/bin/sh\nexec env -i PATH=/usr/bin OPENSSL_ia32cap=0 chroot /python {PYTHON} "$@"\n'
"""Python in the disk's root. OpenSSL's code for AVX2 takes four times as long as its plain one under emulation."""


def hibernate_sealed(lab: Lab, folder: Path) -> GuestRecord:
    """Let a guest hibernate to a disk in a folder, seal its image in a file and in its area, and return its record."""
    make_python_disk(folder / "python.img", verifier_file(folder))
    make_disk(folder / IMAGE_NAME, DISK_MIB, Swap.DISK)
    make_disk(folder / SPARE_NAME, SPARE_MIB, Swap.DISK)
    variant = guest_variant(MEMORY_MIB)
    with python_guest(lab, folder, folder / "python.img", variant=variant) as guest:
        record = prepare(guest, variant, lab.kernel)
        assert guest.port.poll(guest.port.send(HIBERNATE), HIBERNATE_SECONDS) is None
        guest.qemu.wait(POWER_OFF_SECONDS)
    assert hibernaut("seal-key", folder / "key").status == 0
    for place in (("--manifest", folder / "seal"), ()):
        assert hibernaut("seal", folder / IMAGE_NAME, "--key", folder / "key", *place).status == 0
    return record


@contextmanager
def booted(
    lab: Lab,
    folder: Path,
    files: Mapping[str, str] | None = None,
    *,
    conf: str = "",
    adapt: Callable[[Hardware], Hardware] | None = None,
) -> Iterator[RunningGuest]:
    """Boot a machine with the disks, on which nothing is written, and with the verifier, its script and key.

    Args:
        lab: the laboratory.
        folder: folder of `hibernate_sealed`.
        files: further files for /tmp of the disk of Python, by name.
        conf: further lines for verify.conf.
        adapt: function that changes the machine.
    """
    given = folder / "files"
    given.mkdir(exist_ok=True)
    shutil.copy(FOLDER / "resume", given / "resume")
    shutil.copy(folder / "key.pub", given / "seal.pub")
    shutil.copy(folder / "seal", given / "seal")
    (given / "verify.conf").write_text(f"DEVICE=/dev/vda\nKEY=/tmp/seal.pub\n{conf}\n")
    (given / "python").write_text(WRAPPER)
    for name, text in (files or {}).items():
        (given / name).write_text(text)
    disks = [Disk(folder / name, keep=False) for name in (IMAGE_NAME, SPARE_NAME, "python.img")]
    variant = guest_variant(MEMORY_MIB)
    with lab.boot(variant, folder, disks, files=sorted(given.iterdir()), adapt=adapt) as guest:
        guest.port.run(PYTHON_MOUNT.format(device="/dev/vdc"))
        names = " ".join(f"/modules/{name}" for name in ("seal", "seal.pub", *(files or {})))
        guest.port.run(f"mkdir -p /tmp; cp /modules/python /tmp/python; chmod +x /tmp/python; cp {names} /python/tmp/")
        yield guest


def order_of(image: Path) -> ReadingOrder:
    """Return the blocks of an image in the order of reading."""
    area = BlockFile(str(image))
    try:
        return reading_order(area, 0, header_of_image(area, 0))
    finally:
        area.close()
