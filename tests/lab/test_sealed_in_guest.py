# SPDX-License-Identifier: GPL-2.0-or-later
"""Seals in guests: a whole image resumes through the script of the initramfs, a changed one is stopped.

QEMU, which sees each read of the disk, is the witness of the order in which a kernel reads.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from hibernaut.lab.laboratory import HIBERNATE_SECONDS, Lab
from hibernaut.lab.record import IMAGE_NAME, GuestRecord
from hibernaut.lab.verification import verify_resumed
from tests.lab.sealed_changes import PARTS, RECORD, WaitingVerifier, batches, changes, read_record, unread_blocks
from tests.lab.sealed_guest import ENVIRONMENT, booted, hibernate_sealed, order_of

SWITCH = "HIBERNAUT_SEALED"
"""Number of single-byte changes that guests try, a second of CPU time each; else `FEW`."""
FEW = 11
"""Changes with at least one in each part."""
LEAST_RECORDED = 1000
READ = re.compile(r"virtio_blk_handle_read vdev (\S+) req \S+ sector (\d+) nsectors (\d+)\n")


@pytest.fixture(scope="module")
def sealed(lab_61: Lab, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, GuestRecord]:
    """Let a guest hibernate and seal its image; return the folder of its disks and its record."""
    folder = tmp_path_factory.mktemp("sealed")
    return folder, hibernate_sealed(lab_61, folder)


def blocks_in_order(image: Path) -> list[int]:
    """Return the blocks that are covered, in the order of reading."""
    order = order_of(image)
    return [order.header_block, *order.map_blocks, *order.entries]


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
    """Single-byte changes in blocks of every kind; whole images between them resume, and so do changes elsewhere."""
    folder, record = sealed
    order = order_of(folder / IMAGE_NAME)
    unread = unread_blocks(folder / IMAGE_NAME, order)
    number = int(os.environ.get(SWITCH, FEW))
    chosen = list(changes(order, unread, number, seed=3, each=min(number, 50)))
    waiting = WaitingVerifier(lab_61, record, folder)
    tried = [one for batch in batches(chosen) for one in waiting.tried(batch)]
    assert [(one.part, one.at, one.bits) for one in tried] == [(one.part, one.at, one.bits) for one in chosen]
    assert {one.part for one in tried} == set(PARTS)
    assert [one for one in tried if one.outcome != expected_outcome(one.part)] == []


def expected_outcome(part: str) -> str:
    """Return the outcome of a change in a part."""
    return "resumed" if part in ("unread block", "nothing") else "stopped"


def test_the_record_has_no_exception() -> None:
    """Each change is distinct and was stopped, in every part of an image; a change elsewhere, or none, resumed."""
    head, tried = read_record()
    covered = [one for one in tried if expected_outcome(one.part) == "stopped"]
    assert len({(one.at, one.bits) for one in covered}) == len(covered) == head["changes"]
    assert len(covered) >= LEAST_RECORDED
    assert {one.part for one in tried} == set(PARTS)
    assert [one for one in tried if one.outcome != expected_outcome(one.part)] == []
    for one in tried:
        if one.outcome == "resumed":
            assert "whole: a kernel reads" in one.line
        else:
            assert "not resuming: " in one.line
            assert f"block {one.at // 4096}, " in one.line or "not an image" in one.line
    page = (RECORD.parents[2] / "docs/reliability.md").read_text()
    assert f"{len(covered)} of {len(covered)} single-byte changes" in page
    assert f"{len(tried) - len(covered)} resumed" in page
