# SPDX-License-Identifier: GPL-2.0-or-later
"""Executions of a run, their CPU time and the file that was read last, in memory that outlives the process.

They are kept in a mapped file: a fault in a library, which ends the process at once, loses nothing, and a note takes
a microsecond, where writing a file took longer than most executions.
"""

from __future__ import annotations

import mmap
import struct
import time
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Noted", "Notes", "read_notes"]

HEAD = struct.Struct("<QQdQ")
"""Number of executions, whether they are guided by coverage, CPU time, length of the last file in bytes."""


@dataclass(frozen=True)
class Noted:
    """The notes of a run.

    Attributes:
        executions: number of executions that were begun.
        guided: whether coverage guides the mutations.
        cpu_seconds: CPU time from the first execution to the last one, mutations included.
        last: the file that was read last.
    """

    executions: int
    guided: bool
    cpu_seconds: float
    last: bytes


class Notes:
    """Notes of one run in a folder. The ones of an earlier run are replaced.

    Args:
        folder: folder of the notes.
        guided: whether coverage guides the mutations.
        most_bytes: size of the largest file that is read.
    """

    def __init__(self, folder: Path, *, guided: bool, most_bytes: int) -> None:
        self._guided = guided
        with _path(folder).open("w+b") as file:
            file.truncate(HEAD.size + most_bytes)
            self._map = mmap.mmap(file.fileno(), 0)
        self._start: float | None = None
        HEAD.pack_into(self._map, 0, 0, guided, 0.0, 0)

    def executed(self, earlier: int, data: bytes) -> None:
        """Note the file that is read next, after some earlier executions."""
        self._map[HEAD.size : HEAD.size + len(data)] = data
        now = time.process_time()
        self._start = now if self._start is None else self._start
        HEAD.pack_into(self._map, 0, earlier + 1, self._guided, now - self._start, len(data))


def read_notes(folder: Path) -> Noted:
    """Return the notes of a run, those of no execution if it did not begin."""
    if not _path(folder).exists():
        return Noted(0, False, 0.0, b"")
    content = _path(folder).read_bytes()
    executions, guided, seconds, size = HEAD.unpack_from(content)
    return Noted(executions, bool(guided), seconds, content[HEAD.size : HEAD.size + size])


def _path(folder: Path) -> Path:
    return folder / "notes"
