# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks, dumps and logs of guests are private, whatever the umask: a guest's memory is in them."""

from __future__ import annotations

import json
import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from hibernaut.errors import LabError
from hibernaut.lab.confirm import confirm
from hibernaut.lab.golden import _pack
from hibernaut.lab.host.programs import Program
from hibernaut.lab.laboratory import Hibernated, Lab
from hibernaut.lab.prediction import Prediction
from hibernaut.lab.variants import Swap
from hibernaut.lab.vm.disks import copy_disk, make_disk
from hibernaut.lab.vm.qemu import Qemu
from tests.lab.records import RECORD


class FakeProcess:
    """A QEMU that is there."""

    def poll(self) -> int | None:
        """Return None: the process runs."""
        return None


class FakeMonitor:
    """QEMU's monitor on a socket, whose dumps are one line of text.

    Args:
        folder: where the socket goes.
    """

    def __init__(self, folder: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(folder / "monitor"))
        self._socket.listen()
        self.modes: list[int] = []
        self.fails = False
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self._socket.accept()
        with connection, connection.makefile("rw") as stream:
            stream.write('{"QMP": {}}\n')
            stream.flush()
            for line in stream:
                stream.write(json.dumps(self._answer(json.loads(line))) + "\n")
                stream.flush()

    def _answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        if asked["execute"] != "dump-guest-memory":
            return {"return": {}}
        path = asked["arguments"]["protocol"].removeprefix("file:")
        with open(path, "wb") as file:  # as QEMU opens it: made if it is not there, emptied if it is
            self.modes.append(stat.S_IMODE(os.fstat(file.fileno()).st_mode))
            file.write(b"half" if self.fails else b"the guest's RAM")
        return {"error": {"desc": "no space"}} if self.fails else {"return": {}}

    def close(self) -> None:
        """Wait for the thread and close the socket."""
        self._thread.join()
        self._socket.close()


@pytest.fixture
def monitored(tmp_path: Path) -> Iterator[tuple[Qemu, FakeMonitor]]:
    """A guest that is nothing but its monitor."""
    folder = tmp_path / "sockets"
    folder.mkdir()
    monitor = FakeMonitor(folder)
    guest = Qemu(cast(Any, FakeProcess()), folder)
    guest.execute("query-status")
    yield guest, monitor
    guest._open.close()
    monitor.close()


@pytest.fixture(autouse=True, params=[0, 0o022], ids=["umask 0", "umask 022"])
def _umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    """Return the permission bits of a file."""
    return stat.S_IMODE(path.stat().st_mode)


def a_file(path: Path) -> Path:
    """Write a file that stands for RAM."""
    path.write_bytes(b"RAM" * 5000)
    return path


WRITERS: dict[str, Callable[[Path, Path], None]] = {
    "whole disk": lambda path, _folder: make_disk(path, 16, Swap.DISK),
    "disk with a partition": lambda path, _folder: make_disk(path, 16, Swap.PARTITION),
    "disk with a file system": lambda path, _folder: make_disk(path, 16, Swap.FILE),
    "copied disk": lambda path, folder: copy_disk(a_file(folder / "source"), path),
    "packed dump": lambda path, folder: _pack(a_file(folder / "source"), path),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize(("before", "after"), [(None, 0o600), (0o600, 0o600), (0o640, 0o600)])
def test_files_of_the_laboratory(writer: str, before: int | None, after: int, tmp_path: Path) -> None:
    """New ones are 0600; those that replace another are not more open than it was."""
    if writer == "disk with a file system" and Program("mkfs.ext4", "e2fsprogs", "").find() is None:
        pytest.skip("mkfs.ext4 is not installed")
    path = tmp_path / "file"
    if before is not None:
        path.touch()
        path.chmod(before)
    WRITERS[writer](path, tmp_path)
    assert mode(path) == after
    assert path.stat().st_size > 0


@pytest.mark.parametrize("before", [None, 0o600, 0o640])
def test_a_dump_of_a_guest(monitored: tuple[Qemu, FakeMonitor], before: int | None, tmp_path: Path) -> None:
    """QEMU writes into a file that is private already; what was there before stays if it cannot."""
    guest, monitor = monitored
    path = tmp_path / "dump.elf"
    if before is not None:
        path.write_bytes(b"old")
        path.chmod(before)
    monitor.fails = True
    with pytest.raises(LabError, match="no space"):
        guest.dump(path)
    assert (path.read_bytes() if path.exists() else None) == (None if before is None else b"old")
    monitor.fails = False
    guest.dump(path)
    assert path.read_bytes() == b"the guest's RAM"
    assert (mode(path), monitor.modes) == (0o600, [0o600, 0o600])
    assert sorted(one.name for one in tmp_path.iterdir()) == ["dump.elf", "sockets"]


def test_logs_of_a_guest(tmp_path: Path) -> None:
    """A kernel's log has registers and stacks in it."""

    class FakeLab:
        def hibernate(self, _variant: object, folder: Path) -> Hibernated:
            return Hibernated("died", "x", folder, RECORD, "RAX: 0123456789abcdef\n", 1.0)

    confirm(cast(Lab, FakeLab()), Prediction((), 0, "died", (), ()), tmp_path)
    (log,) = tmp_path.iterdir()
    assert mode(log) == 0o600
    assert log.read_text() == "RAX: 0123456789abcdef\n"
