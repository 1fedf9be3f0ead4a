# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's monitor against a stub that is a thread of the test."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Any, cast

import pytest

from hibernaut.errors import LabError
from hibernaut.lab.vm import qemu
from hibernaut.lab.vm.qemu import Qemu


class SilentMonitor:
    """QEMU's side: greets, answers so many commands, and then says nothing."""

    def __init__(self, answers: int) -> None:
        self.ours, self._theirs = socket.socketpair()
        self._answers = answers
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Close both ends."""
        self.ours.close()
        self._thread.join()
        self._theirs.close()

    def _serve(self) -> None:
        self._theirs.sendall(b'{"QMP": {}}\n')
        pending = b""
        while received := self._theirs.recv(4096):
            pending += received
            while b"\n" in pending:
                _, _, pending = pending.partition(b"\n")
                if self._answers:
                    self._answers -= 1
                    self._theirs.sendall(b'{"return": {}}\n')


@pytest.mark.parametrize("answers", [0, 1])
def test_a_monitor_that_does_not_answer(answers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that QEMU never answers is an error that names it, not a wait without an end."""
    monitor = SilentMonitor(answers)
    guest = Qemu(cast(Any, None), tmp_path)
    monkeypatch.setattr(guest, "connect", lambda _name: monitor.ours)
    monkeypatch.setattr(qemu, "ANSWER_SECONDS", 0.05)
    with pytest.raises(LabError, match=r"monitor did not answer (query-status|qmp_capabilities) within"):
        guest.execute("query-status")
    guest._open.close()
    monitor.close()
