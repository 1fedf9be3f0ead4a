# SPDX-License-Identifier: GPL-2.0-or-later
"""The number of executions of a run and the file that it read last, in memory that outlives the process.

They are kept in a mapped file: a fault in a library, which ends the process at once, loses neither, and a note takes
less than a microsecond, where writing a file took longer than most executions.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Noted", "Notes", "read_notes"]

HEAD = struct.Struct("<QQQ")
"""Number of executions, whether they are guided by coverage, length of the last file in bytes."""


@dataclass(frozen=True)
class Noted:
    """The notes of a run.

    Attributes:
        executions: number of executions that were begun.
        guided: whether coverage guides the mutations.
        last: the file that was read last.
    """

    executions: int
    guided: bool
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
        HEAD.pack_into(self._map, 0, 0, guided, 0)

    def executed(self, earlier: int, data: bytes) -> None:
        """Note the file that is read next, after some earlier executions."""
        self._map[HEAD.size : HEAD.size + len(data)] = data
        HEAD.pack_into(self._map, 0, earlier + 1, self._guided, len(data))


def read_notes(folder: Path) -> Noted:
    """Return the notes of a run, those of no execution if it did not begin."""
    if not _path(folder).exists():
        return Noted(0, False, b"")
    content = _path(folder).read_bytes()
    executions, guided, size = HEAD.unpack_from(content)
    return Noted(executions, bool(guided), content[HEAD.size : HEAD.size + size])


def _path(folder: Path) -> Path:
    return folder / "notes"
