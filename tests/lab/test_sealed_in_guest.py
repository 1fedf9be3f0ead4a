# SPDX-License-Identifier: GPL-2.0-or-later
"""Seals in guests: a whole image resumes through the script of the initramfs, a changed one is stopped.

QEMU, which sees each read of the disk, is the witness of the order in which a kernel reads.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hibernaut.lab.doctored import SPARE_MIB, guest_variant, python_guest
from hibernaut.lab.guest.python_disk import BUNDLE, make_python_disk
from hibernaut.lab.guest_state import RunningGuest
from hibernaut.lab.laboratory import HIBERNATE, HIBERNATE_SECONDS, POWER_OFF_SECONDS, Lab
from hibernaut.lab.preparation import prepare
from hibernaut.lab.record import IMAGE_NAME, SPARE_NAME, GuestRecord
from hibernaut.lab.variants import Swap
from hibernaut.lab.verification import verify_resumed
from hibernaut.lab.vm.disks import make_disk
from hibernaut.lab.vm.port import unescaped
from hibernaut.sealing.blocks import BlockFile
from hibernaut.sealing.reading_order import header_of_image, reading_order
from tests.cli.run import hibernaut
from tests.sealing.verifier_file import FOLDER, verifier_file

SWITCH = "HIBERNAUT_SEALED"
"""Number of single-byte changes that a guest tries, a second or two each under emulation: above 300, pytest needs a
larger --timeout. Without it, no guest boots."""
pytestmark = pytest.mark.skipif(SWITCH not in os.environ, reason=f"minutes of guests: {SWITCH}=100 boots them")
MEMORY_MIB, DISK_MIB = 256, 384
PYTHON = Path(sys.executable).resolve()
ENVIRONMENT = f"HIBERNAUT_CONF=/modules/verify.conf HIBERNAUT_VERIFIER={BUNDLE} HIBERNAUT_PYTHON=/tmp/python"
READ = re.compile(r"virtio_blk_handle_read vdev (\S+) req \S+ sector (\d+) nsectors (\d+)\n")
DRIVER = f"""
import json, os, sys
sys.path.insert(0, "{BUNDLE}")
from hibernaut.sealing.blocks import BlockFile
from hibernaut.sealing.in_window import manifest_in_area
from hibernaut.sealing.keys import read_public_key
from hibernaut.sealing.verification import verify_image

def state():
    area = BlockFile("/dev/vda")
    try:
        return verify_image(area, manifest).state
    except ValueError:
        return "no image"
    finally:
        area.close()

manifest, _ = manifest_in_area(BlockFile("/dev/vda"), read_public_key("/tmp/seal.pub"))
disk = os.open("/dev/vda", os.O_RDWR)
seen = []
for at, xor in json.load(open("/tmp/changes.json")):
    (before,) = os.pread(disk, 1, at)
    os.pwrite(disk, bytes([before ^ xor]), at)
    os.fsync(disk)
    seen.append(state())
    os.pwrite(disk, bytes([before]), at)
    os.fsync(disk)
print(json.dumps([seen, state()]))
"""


@pytest.fixture(scope="module")
def sealed(lab_61: Lab, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, GuestRecord]:
    """Let a guest hibernate and seal its image in its area; return the folder of its disks and its record."""
    folder = tmp_path_factory.mktemp("sealed")
    make_python_disk(folder / "python.img", verifier_file(folder))
    make_disk(folder / IMAGE_NAME, DISK_MIB, Swap.DISK)
    make_disk(folder / SPARE_NAME, SPARE_MIB, Swap.DISK)
    variant = guest_variant(MEMORY_MIB)
    with python_guest(lab_61, folder, folder / "python.img", variant=variant) as guest:
        record = prepare(guest, variant, lab_61.kernel)
        assert guest.port.poll(guest.port.send(HIBERNATE), HIBERNATE_SECONDS) is None
        guest.qemu.wait(POWER_OFF_SECONDS)
    assert hibernaut("seal-key", folder / "key").status == 0
    assert hibernaut("seal", folder / IMAGE_NAME, "--key", folder / "key").status == 0
    return folder, record


@contextmanager
def booted(lab: Lab, folder: Path, changes: str = "[]") -> Iterator[RunningGuest]:
    """Boot a machine with the disks, on which nothing is written, and with the verifier, its script and key."""
    files = folder / "files"
    files.mkdir(exist_ok=True)
    shutil.copy(FOLDER / "resume", files / "resume")
    shutil.copy(folder / "key.pub", files / "seal.pub")
    (files / "verify.conf").write_text("DEVICE=/dev/vda\nKEY=/tmp/seal.pub\n")
    (files / "python").write_text(f'#!/bin/sh\nexec env -i PATH=/usr/bin chroot /python {PYTHON} "$@"\n')
    (files / "driver").write_text(DRIVER)
    (files / "changes.json").write_text(changes)
    given = sorted(files.iterdir())
    variant = guest_variant(MEMORY_MIB)
    with python_guest(lab, folder, folder / "python.img", variant=variant, keep=False, files=given) as guest:
        guest.port.run(
            "mkdir -p /tmp; cp /modules/python /tmp/python; chmod +x /tmp/python; "
            "cp /modules/seal.pub /modules/driver /modules/changes.json /python/tmp/"
        )
        yield guest


def blocks_in_order(image: Path) -> list[int]:
    """Return the blocks that are covered, in the order of reading."""
    area = BlockFile(str(image))
    order = reading_order(area, 0, header_of_image(area, 0))
    area.close()
    return [0, *order.map_blocks, *order.entries]


def test_a_whole_image_resumes(lab_61: Lab, sealed: tuple[Path, GuestRecord]) -> None:
    """The script verifies and resumes; the guest finds its memory as it was."""
    folder, record = sealed
    with booted(lab_61, folder) as guest:
        guest.port.send(f"{ENVIRONMENT} sh /modules/resume")
        reply = guest.port.reply(None, HIBERNATE_SECONDS, "resuming")
        console = guest.qemu.console()
        assert reply.session == record.session, console[-2000:]
        passed, reason, _ = verify_resumed(guest, record, reply)
        assert passed, reason
    assert "hibernaut: /dev/vda: whole: a kernel reads" in console


def test_qemu_sees_the_kernel_read_these_blocks_in_this_order(lab_61: Lab, sealed: tuple[Path, GuestRecord]) -> None:
    """QEMU traces reads of vda: the sealed blocks one after another, then pages that the resumed machine swaps in."""
    folder, record = sealed
    expected = blocks_in_order(folder / IMAGE_NAME)
    with booted(lab_61, folder) as guest:
        guest.qemu.execute("trace-event-set-state", name="virtio_blk_handle_read", enable=True)
        guest.port.send("cat /sys/class/block/vda/dev > /sys/power/resume")
        assert guest.port.reply(None, HIBERNATE_SECONDS, "resuming").session == record.session
        guest.port.run("dd if=/dev/vdb of=/dev/null bs=4k count=2000")  # QEMU writes its trace in pieces
        text = (guest.qemu.folder / "errors").read_text()
    reads: dict[str, list[int]] = {}
    for device, sector, sectors in READ.findall(text):
        first = int(sector) // 8
        reads.setdefault(device, []).extend(range(first, first + int(sectors) // 8))
    traced = next(blocks for blocks in reads.values() if blocks[1:2] == expected[1:2])
    assert traced[: len(expected)] == expected
    assert not set(traced[len(expected) :]) & set(expected)


def test_each_changed_image_is_stopped_before_the_kernel_looks(lab_61: Lab, sealed: tuple[Path, GuestRecord]) -> None:
    """Single-byte changes in blocks of every kind are seen in the guest, and the script does not resume.

    The kernel has not begun then: the signature, which it would replace first, is still there.
    """
    folder, _ = sealed
    pick = random.Random(3)
    covered = blocks_in_order(folder / IMAGE_NAME)
    number = int(os.environ[SWITCH])
    blocks = [*covered[:14], covered[-1], *pick.choices(covered, k=max(number - 15, 0))]
    changes = [(block * 4096 + pick.randrange(4096), pick.randrange(1, 256)) for block in blocks]
    last = covered[-1] * 4096 + 4095
    with booted(lab_61, folder, json.dumps(changes)) as guest:
        reply = guest.port.ask("/tmp/python -I -S /tmp/driver", 60 + 20 * len(changes))
        assert reply.status == 0, reply.lines[-5:]
        *_, answer = map(unescaped, reply.lines)
        seen, whole = json.loads(answer)
        assert whole == "whole"
        assert [
            at for (at, _), status in zip(changes, seen, strict=True) if status not in ("touched", "no image")
        ] == []
        guest.port.run(f"printf X | dd of=/dev/vda bs=1 seek={last} conv=notrunc; sync")
        reply = guest.port.ask(f"{ENVIRONMENT} sh /modules/resume", 600)
        assert reply.status == 1
        assert "not resuming: /dev/vda: touched: block" in unescaped(reply.lines[-1])
        signature = guest.port.run("dd if=/dev/vda bs=1 skip=4086 count=9")
        assert "Image signature found" not in guest.qemu.console()
    assert any("S1SUSPEND" in line for line in signature)
