# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's port: commands in, lines out. guest/guest.c, the other end, documents the protocol."""

from __future__ import annotations

import re
import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from hibernaut.errors import LabError
from hibernaut.lab.vm.qemu import Qemu

__all__ = ["Line", "Port", "Reply", "facts_of", "unescaped"]

POKE_SECONDS = 2
"""Silence after which an empty line is sent, which the guest ignores: an emulated serial line can lose an interrupt,
and the next byte recovers it."""

LINE = re.compile(r"@ (?P<session>\S+) (?P<sequence>\d+) (?P<kind>hello|out|end) ?(?P<text>.*)")
ESCAPED = re.compile(r"(?:\\x[0-9a-f]{2})+")


class Line(NamedTuple):
    """One line of the protocol from the guest."""

    session: str
    sequence: int
    kind: str
    text: str


@dataclass(frozen=True)
class Reply:
    """Result of a command.

    Attributes:
        session: session of the machine that answered; after a resume, that of the saved machine.
        status: exit status.
        lines: output of the command.
    """

    session: str
    status: int
    lines: tuple[str, ...]


def facts_of(line: str) -> dict[str, str]:
    """Return the KEY=VALUE words of a line."""
    return dict(word.split("=", 1) for word in line.split() if "=" in word)


def unescaped(line: str) -> str:
    r"""Return a line of output as the command wrote it: guest.c sends a backslash and what is not ASCII as `\xNN`."""
    return ESCAPED.sub(lambda found: bytes.fromhex(found[0].replace("\\x", "")).decode("utf-8", "replace"), line)


class Port:
    """The host's end of the port of a running guest.

    Attributes:
        ended: whether the guest has closed its end, because QEMU ends or has ended.
        is_lost: asked while the guest is silent, with the seconds of silence; once it says yes, the wait ends.
        lost: whether a wait ended so.
    """

    def __init__(self, guest: Qemu) -> None:
        self._guest = guest
        self._socket: socket.socket = guest.connect("port")
        self._pending = b""
        self._sequence = 0
        self._seen: list[Line] = []
        """Lines since the last end that was waited for."""
        self.ended = False
        self.is_lost: Callable[[float], bool] = lambda _silent_seconds: False
        self.lost = False

    def hello(self, seconds: float) -> Line:
        """Wait until the guest has booted. Raises LabError if it does not boot in time."""
        return self._expect("hello", None, seconds, "the guest did not boot")[-1]

    def send(self, command: str) -> int:
        """Send a command without waiting and return the sequence number of its reply."""
        self._sequence += 1
        self._socket.sendall(f"{self._sequence} {command}\n".encode())
        return self._sequence

    def reply(self, sequence: int | None, seconds: float, doing: str) -> Reply:
        """Wait for the end of a command and return its result.

        Args:
            sequence: number of the command; None for whichever ends first, including one sent to the machine that has
                been resumed since.
            seconds: how long to wait.
            doing: what the guest does meanwhile, for the error.

        Raises:
            LabError: the guest ended, or timed out.
        """
        return _reply(self._expect("end", sequence, seconds, doing))

    def poll(self, sequence: int, seconds: float) -> Reply | None:
        """Return the result of a command if it ends within so many seconds, else None; see `ended`."""
        lines = self._until("end", sequence, seconds)
        return None if lines is None else _reply(lines)

    def run(self, command: str, seconds: float = 60) -> tuple[str, ...]:
        """Run a command and return its output. Raises LabError, also if its exit status is not 0."""
        reply = self.ask(command, seconds)
        if reply.status:
            said = f": {reply.lines[-1]}" if reply.lines else ""
            raise LabError(f"{command!r} failed in the guest{said}", log=self._guest.last_log_lines())
        return reply.lines

    def ask(self, command: str, seconds: float = 60) -> Reply:
        """Run a command and return its result, whatever its exit status. Raises LabError if it does not end."""
        return self.reply(self.send(command), seconds, f"running {command!r}")

    def _expect(self, kind: str, sequence: int | None, seconds: float, doing: str) -> list[Line]:
        lines = self._until(kind, sequence, seconds)
        if lines is None:
            silent = "crashed" if self.lost else f"timed out after {seconds:.0f} s"
            why = "ended" if self.ended else silent
            raise LabError(f"{doing}: the guest {why}", log=self._guest.last_log_lines())
        return lines

    def _until(self, kind: str, sequence: int | None, seconds: float) -> list[Line] | None:
        """Return all lines up to one of a kind; None if it does not come in time, and keep the others for later."""
        end = time.monotonic() + seconds
        seen = self._seen
        while not (seen and seen[-1].kind == kind and sequence in (None, seen[-1].sequence)):
            line = self._line(end - time.monotonic())
            if line is None:
                return None
            seen.append(line)
        self._seen = []
        return seen

    def _line(self, seconds: float) -> Line | None:
        """Return the next line of the protocol; None when time is up, or the guest has ended or is lost."""
        silent_since = time.monotonic()
        end = silent_since + seconds
        while True:
            raw, newline, rest = self._pending.partition(b"\n")
            if newline:
                self._pending = rest
                match = LINE.fullmatch(raw.decode("ascii", "replace").rstrip("\r"))
                if match:
                    return Line(match["session"], int(match["sequence"]), match["kind"], match["text"])
                continue
            left = end - time.monotonic()
            try:
                if not select.select([self._socket], [], [], max(0, min(left, POKE_SECONDS)))[0]:
                    self.lost = self.lost or self.is_lost(time.monotonic() - silent_since)
                    if left <= 0 or self.lost:
                        return None
                    self._socket.sendall(b"\n")
                    continue
                received = self._socket.recv(1 << 16)
            except ConnectionError:
                received = b""
            if not received:
                self.ended = True
                return None
            self._pending += received
            silent_since = time.monotonic()


def _reply(lines: list[Line]) -> Reply:
    """Return the result that lines up to an end amount to; output counts only from the session that ended."""
    end = lines[-1]
    said = tuple(line.text for line in lines if line.kind == "out" and line.session == end.session)
    return Reply(end.session, int(end.text or 0), said)
