# SPDX-License-Identifier: GPL-2.0-or-later
"""GDB's remote protocol against a stub that is a thread of the test."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import cast

import pytest

from hibernaut.errors import LabError
from hibernaut.lab.vm.gdb import Debugger
from hibernaut.lab.vm.qemu import Qemu

MEMORY = bytes(range(256)) * 16
BASE = 0xFFFF_FFFF_8100_0000


class Stub:
    """QEMU's side: says twice that attaching stopped the guest, as QEMU does, then answers."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.seen: list[bytes] = []
        self.refuse = False
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def connect(self, _name: str) -> socket.socket:
        """Return this side's socket, as Qemu does."""
        return self.ours

    def last_log_lines(self) -> tuple[str, ...]:
        """Return no log lines."""
        return ()

    def _send(self, body: bytes) -> None:
        self.theirs.sendall(b"$" + body + b"#%02x" % (sum(body) & 0xFF))

    def _serve(self) -> None:
        pending = b""
        while received := self.theirs.recv(4096):
            pending += received
            while (start := pending.find(b"$")) >= 0 and len(pending) >= (end := pending.find(b"#", start)) + 3 > 3:
                body, checksum = pending[start + 1 : end], pending[end + 1 : end + 3]
                assert int(checksum, 16) == sum(body) & 0xFF
                pending = pending[end + 3 :]
                self.seen.append(body)
                self._answer(body)

    def _answer(self, body: bytes) -> None:
        if body == b"?":
            self._send(b"T05thread:01;")
            self._send(b"T05thread:01;")
        elif body.startswith(b"m"):
            address, size = (int(part, 16) for part in body[1:].split(b","))
            at = address - BASE
            self._send(MEMORY[at : at + size].hex().encode() if 0 <= at < len(MEMORY) else b"E14")
        elif body.startswith(b"H"):
            self._send(b"OK")
        elif body[:1] in (b"Z", b"z"):
            self._send(b"" if self.refuse else b"OK")
        elif body == b"c":
            self._send(b"T05hwbreak:;")


@pytest.fixture
def stub() -> Iterator[Stub]:
    """A debugger stub on a socket pair."""
    made = Stub()
    yield made
    made.ours.close()
    made.thread.join(5)
    made.theirs.close()


def test_memory_is_read_in_pieces(stub: Stub) -> None:
    """More than one packet holds, and across the second word that the guest has stopped."""
    assert Debugger(cast(Qemu, stub)).read(BASE + 1, 3000) == MEMORY[1:3001]
    assert sum(body.startswith(b"m") for body in stub.seen) == 3


def test_no_memory_there(stub: Stub) -> None:
    """A read that the stub refuses names the address."""
    with pytest.raises(LabError, match="no memory at 0x1000 in the guest"):
        Debugger(cast(Qemu, stub)).read(0x1000, 8)


def test_breakpoints_are_of_the_hardware(stub: Stub) -> None:
    """Z1, not Z0: the guest's memory, which is about to be saved, must not hold an int3."""
    debugger = Debugger(cast(Qemu, stub))
    debugger.add_breakpoint(BASE)
    debugger.resume()
    debugger.wait_for_stop(5)
    debugger.remove_breakpoint(BASE)
    assert stub.seen[2:] == [b"Z1,ffffffff81000000,1", b"c", b"z1,ffffffff81000000,1"]


def test_a_refused_breakpoint(stub: Stub) -> None:
    """A breakpoint that the stub refuses is an error."""
    debugger = Debugger(cast(Qemu, stub))
    stub.refuse = True
    with pytest.raises(LabError, match="refused a breakpoint"):
        debugger.add_breakpoint(BASE)


def test_a_look_whether_it_has_stopped(stub: Stub) -> None:
    """A guest that runs has not stopped; once it reports a stop, it has."""
    debugger = Debugger(cast(Qemu, stub))
    assert not debugger.stopped(0.01)
    debugger.resume()
    assert debugger.stopped(5)


def test_a_guest_that_ends_instead_of_stopping(stub: Stub) -> None:
    """A connection that closes while a stop is awaited is an error."""
    debugger = Debugger(cast(Qemu, stub))
    stub.theirs.shutdown(socket.SHUT_RDWR)
    with pytest.raises(LabError, match="did not reach a breakpoint within 5 s"):
        debugger.wait_for_stop(5)
