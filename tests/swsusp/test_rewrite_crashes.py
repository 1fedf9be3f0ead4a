# SPDX-License-Identifier: GPL-2.0-or-later
"""Rewriting in place: whenever it ends early, the area holds the old image, none, or the new one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hibernaut.errors import HibernautError
from hibernaut.swsusp import open_image, rewrite_image
from hibernaut.swsusp import rewrite as rewriting
from tests.swsusp.images import LAYOUT, WRITES, image_file, state_of

Operation = tuple[int, bytes] | None
"""A write (where, what) or, None, a sync."""


@dataclass
class Recorder:
    """Notes every write and sync of one file; can fail after so many."""

    path: Path
    fail_after: int | None = None
    operations: list[Operation] = field(default_factory=list)

    def note(self, fd: int, operation: Operation) -> None:
        """Record an operation on the image; fail where this is asked for."""
        if os.path.samestat(os.fstat(fd), self.path.stat()):
            if self.fail_after == len(self.operations):
                raise OSError(5, os.strerror(5))
            self.operations.append(operation)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Record every write and sync within."""
        pwrite, pwritev, fsync = os.pwrite, os.pwritev, os.fsync

        def noted_pwrite(fd: int, data: bytes, offset: int) -> int:
            self.note(fd, (offset, bytes(data)))
            return pwrite(fd, data, offset)

        def noted_pwritev(fd: int, parts: list[bytes], offset: int) -> int:
            self.note(fd, (offset, b"".join(parts)))
            return pwritev(fd, parts, offset)

        def noted_fsync(fd: int) -> None:
            self.note(fd, None)
            fsync(fd)

        with (
            mock.patch.object(os, "pwrite", noted_pwrite),
            mock.patch.object(os, "pwritev", noted_pwritev),
            mock.patch.object(os, "fsync", noted_fsync),
            mock.patch.object(rewriting, "PIECE_BYTES", 4096),  # as many writes as there are blocks
        ):
            yield


def recorded(path: Path) -> list[Operation]:
    """Return every write and sync of a rewrite, in order."""
    recorder = Recorder(path)
    with open_image(path, offset=LAYOUT.header_block) as image, recorder.watching():
        rewrite_image(image, writes=WRITES)
    return recorder.operations


def after(device: bytes, operations: list[Operation]) -> bytes:
    """Return the device after these operations."""
    changed = bytearray(device)
    for operation in operations:
        if operation is not None:
            at, data = operation
            changed[at : at + len(data)] = data
    return bytes(changed)


def crashed(device: bytes, operations: list[Operation], stop: int, lost: Callable[[int], bool]) -> bytes:
    """The disk after a loss of power: what was synced is there, of the rest each sector is or is not."""
    done = operations[:stop]
    synced = max((number + 1 for number, operation in enumerate(done) if operation is None), default=0)
    disk = bytearray(after(device, done[:synced]))
    sector = 0
    for operation in done[synced:]:
        assert operation is not None
        at, data = operation
        for start in range(0, len(data), 512):
            if not lost(sector):
                disk[at + start : at + start + 512] = data[start : start + 512]
            sector += 1
    return bytes(disk)


def test_a_process_that_ends_early_leaves_old_none_or_new(tmp_path: Path) -> None:
    """After each single write or sync, in order: first the old image, then none, then the new one."""
    path = image_file(tmp_path)
    device = path.read_bytes()
    operations = recorded(path)
    states = [state_of(after(device, operations[:stop])) for stop in range(len(operations) + 1)]
    assert [state for number, state in enumerate(states) if number == 0 or state != states[number - 1]] == [
        "old",
        "none",
        "new",
    ]
    assert state_of(path.read_bytes()) == "new"
    assert len(operations) > 30


def test_an_error_at_any_operation_leaves_old_or_none(tmp_path: Path) -> None:
    """The disk fails at the n-th write or sync, for every n: an error, and the area holds no partial image."""
    path = image_file(tmp_path)
    device = path.read_bytes()
    count = len(recorded(path))
    for stop in range(count):
        path.write_bytes(device)
        recorder = Recorder(path, fail_after=stop)
        with (
            open_image(path, offset=LAYOUT.header_block) as image,
            recorder.watching(),
            pytest.raises((HibernautError, OSError)) as caught,
        ):
            rewrite_image(image, writes=WRITES)
        state = state_of(path.read_bytes())
        assert state == ("old" if stop == 0 else "new" if stop == count - 1 else "none"), stop
        told = "the area now holds no image" if stop < count - 2 else "the area now holds the new image or none"
        assert stop == 0 or told in str(caught.value)


@given(data=st.data())
def test_a_loss_of_power_leaves_old_none_or_new(tmp_path: Path, data: st.DataObject) -> None:
    """Whatever subset of the sectors since the last sync reached the disk."""
    path = image_file(tmp_path)
    device = path.read_bytes()
    operations = recorded(path)
    stop = data.draw(st.integers(0, len(operations)))
    seed, share = data.draw(st.integers(0, 1 << 30)), data.draw(st.sampled_from([0.0, 0.05, 0.5, 0.95, 1.0]))
    luck = np.random.default_rng(seed).random(100_000) < share
    assert state_of(crashed(device, operations, stop, lambda sector: bool(luck[sector]))) in ("old", "none", "new")


def header_first(operations: list[Operation]) -> list[Operation]:
    """The new header, synced, and then the blocks."""
    return [*operations[:2], *operations[-2:], *operations[2:-2]]


def never_given_up(operations: list[Operation]) -> list[Operation]:
    """The old header stays valid while its blocks are overwritten."""
    return operations[2:]


def no_sync_before_the_header(operations: list[Operation]) -> list[Operation]:
    """A wrong order: the header is written without a sync before it."""
    return [*operations[:-3], *operations[-2:]]


def no_sync_after_giving_up(operations: list[Operation]) -> list[Operation]:
    """A wrong order: data is written without a sync after the old image is given up."""
    return [operations[0], *operations[2:]]


@pytest.mark.parametrize("wrong", [header_first, never_given_up, no_sync_before_the_header, no_sync_after_giving_up])
def test_wrong_orders_are_caught(tmp_path: Path, wrong: Callable[[list[Operation]], list[Operation]]) -> None:
    """The crash model finds a half image in each order that lacks one of the four steps."""
    path = image_file(tmp_path)
    device = path.read_bytes()
    operations = recorded(path)
    assert operations[1] is None
    assert operations[-1] is None
    assert operations[-3] is None
    luck = np.random.default_rng(1).random(100_000) < 0.5
    broken = wrong(operations)
    states = [
        state_of(crashed(device, broken, stop, lost))
        for stop in range(len(broken) + 1)
        for lost in (
            lambda _sector: False,
            lambda _sector: True,
            lambda sector: bool(luck[sector]),
            lambda sector: sector < 8,
        )
    ]
    assert any(state.startswith("half") for state in states)


def test_the_real_code_without_its_second_step_is_caught(tmp_path: Path) -> None:
    """The library itself, made to leave the old signature where it is."""
    path = image_file(tmp_path)
    device = path.read_bytes()
    with mock.patch("hibernaut.swsusp.header.SwapHeader.without_image", lambda header: header):
        operations = recorded(path)
    states = {state_of(after(device, operations[:stop])) for stop in range(len(operations) + 1)}
    assert any(state.startswith("half") for state in states)
