"""As much of GDB's remote protocol as it takes to stop a guest at an address and read its memory there."""

from __future__ import annotations

import socket
from contextlib import suppress

from hibernaut.errors import LabError
from hibernaut.lab.qemu import Qemu

__all__ = ["Debugger"]

ANSWER_SECONDS = 30
STOPPED = (b"T", b"S")
"""How packets begin that say that the guest has stopped."""
READ_BYTES = 1024
"""QEMU's packets hold 4096 characters."""


class Debugger:
    """A debugger on a running guest's only CPU. Attaching stops the guest.

    Raises LabError from every method if QEMU does not answer.
    """

    def __init__(self, guest: Qemu) -> None:
        self._guest = guest
        self._socket: socket.socket = guest.connect("gdb")
        self._pending = b""
        self._send(b"?")
        self.wait_for_stop(ANSWER_SECONDS)
        self._command(b"Hg0")

    def read(self, address: int, size_bytes: int) -> bytes:
        """Memory at a virtual address, as the CPU sees it now."""
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
        """A hardware breakpoint: memory is not changed by it."""
        self._done(b"Z1,%x,1" % address)

    def remove_breakpoint(self, address: int) -> None:
        """Take it away."""
        self._done(b"z1,%x,1" % address)

    def go_on(self) -> None:
        """Let the guest run."""
        self._send(b"c")

    def wait_for_stop(self, seconds: float) -> None:
        """Until a breakpoint is hit."""
        while not self._receive(seconds).startswith(STOPPED):
            pass

    def close(self) -> None:
        """Detach: the guest runs on."""
        self._send(b"D")
        self._socket.close()

    def _done(self, packet: bytes) -> None:
        answer = self._command(packet)
        if answer != b"OK":
            raise LabError(f"QEMU refuses a breakpoint: {answer.decode('ascii', 'replace')}")

    def _command(self, packet: bytes) -> bytes:
        """Ask and get the answer. That attaching has stopped the guest QEMU says twice: the second is no answer."""
        self._send(packet)
        answer = self._receive(ANSWER_SECONDS)
        while answer.startswith(STOPPED):
            answer = self._receive(ANSWER_SECONDS)
        return answer

    def _send(self, packet: bytes) -> None:
        with suppress(ConnectionError):  # that QEMU is gone shows when its answer is read
            self._socket.sendall(b"$%s#%02x" % (packet, sum(packet) & 0xFF))

    def _receive(self, seconds: float) -> bytes:
        """The body of the next packet; acknowledgements are passed over."""
        self._socket.settimeout(seconds)
        while True:
            start = self._pending.find(b"$")
            end = self._pending.find(b"#", start)
            if 0 <= start < end and len(self._pending) >= end + 3:
                body, self._pending = self._pending[start + 1 : end], self._pending[end + 3 :]
                with suppress(ConnectionError):
                    self._socket.sendall(b"+")
                return body
            try:
                received = self._socket.recv(1 << 16)
            except (TimeoutError, ConnectionError):
                received = b""
            if not received:
                raise LabError("the guest did not stop where it was to", log=self._guest.last_words())
            self._pending += received
