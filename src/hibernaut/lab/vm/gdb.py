# SPDX-License-Identifier: GPL-2.0-or-later
"""The part of GDB's remote protocol that stops a guest at an address and reads its memory there."""

from __future__ import annotations

import socket
import time
from contextlib import suppress

from hibernaut.errors import LabError
from hibernaut.lab.vm.qemu import Qemu

__all__ = ["Debugger"]

ANSWER_SECONDS = 30
STOPPED = (b"T", b"S")
"""First bytes of the packets that report a stop of the guest."""
READ_BYTES = 1024
"""QEMU's packets hold 4096 characters."""


class Debugger:
    """A debugger on a running guest's only CPU. Attaching stops the guest.

    Every method raises LabError if QEMU does not answer.
    """

    def __init__(self, guest: Qemu) -> None:
        self._guest = guest
        self._socket: socket.socket = guest.connect("gdb")
        self._pending = b""
        self._send(b"?")
        self.wait_for_stop(ANSWER_SECONDS)
        self._command(b"Hg0")

    def read(self, address: int, size_bytes: int) -> bytes:
        """Return memory at a virtual address, as the CPU sees it now."""
        data = b""
        while len(data) < size_bytes:
            count = min(READ_BYTES, size_bytes - len(data))
            answer = self._command(b"m%x,%x" % (address + len(data), count))
            try:
                data += bytes.fromhex(answer.decode())
            except ValueError:
                raise LabError(f"no memory at {address + len(data):#x} in the guest") from None
        return data

    def add_breakpoint(self, address: int) -> None:
        """Set a hardware breakpoint, which leaves memory unchanged."""
        self._expect_ok(b"Z1,%x,1" % address)

    def remove_breakpoint(self, address: int) -> None:
        """Remove a breakpoint."""
        self._expect_ok(b"z1,%x,1" % address)

    def resume(self) -> None:
        """Let the guest run."""
        self._send(b"c")

    def wait_for_stop(self, seconds: float) -> None:
        """Wait until a breakpoint is hit. Raises LabError if none is hit in time."""
        if not self.stopped(seconds):
            raise LabError(
                f"the guest did not reach a breakpoint within {seconds:.0f} s", log=self._guest.last_log_lines()
            )

    def stopped(self, seconds: float) -> bool:
        """Return whether a breakpoint is hit within so many seconds."""
        end = time.monotonic() + seconds
        while (packet := self._packet(end - time.monotonic())) is not None:
            if packet.startswith(STOPPED):
                return True
        return False

    def close(self) -> None:
        """Detach; the guest continues."""
        self._send(b"D")
        self._socket.close()

    def _expect_ok(self, packet: bytes) -> None:
        answer = self._command(packet)
        if answer != b"OK":
            raise LabError(f"QEMU refused a breakpoint: {answer.decode('ascii', 'replace')}")

    def _command(self, packet: bytes) -> bytes:
        """Send a packet and return its answer. The second of QEMU's reports of the stop on attaching is skipped."""
        self._send(packet)
        answer = self._receive(ANSWER_SECONDS)
        while answer.startswith(STOPPED):
            answer = self._receive(ANSWER_SECONDS)
        return answer

    def _send(self, packet: bytes) -> None:
        with suppress(ConnectionError):  # the missing answer reports that QEMU is gone
            self._socket.sendall(b"$%s#%02x" % (packet, sum(packet) & 0xFF))

    def _receive(self, seconds: float) -> bytes:
        packet = self._packet(seconds)
        if packet is None:
            raise LabError("QEMU's debugger does not answer", log=self._guest.last_log_lines())
        return packet

    def _packet(self, seconds: float) -> bytes | None:
        """Return the body of the next packet, skipping acknowledgements; None if there is none in time."""
        end = time.monotonic() + seconds
        while True:
            start = self._pending.find(b"$")
            stop = self._pending.find(b"#", start)
            if 0 <= start < stop and len(self._pending) >= stop + 3:
                body, self._pending = self._pending[start + 1 : stop], self._pending[stop + 3 :]
                with suppress(ConnectionError):
                    self._socket.sendall(b"+")
                return body
            self._socket.settimeout(max(end - time.monotonic(), 0.001))
            try:
                received = self._socket.recv(1 << 16)
            except (TimeoutError, ConnectionError):
                received = b""
            if not received:
                return None
            self._pending += received
