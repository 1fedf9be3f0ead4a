# SPDX-License-Identifier: GPL-2.0-or-later
"""The file of a sweep's results: a line that describes the sweep, then one line of JSON for each machine.

A sweep that was interrupted resumes from its file: machines that have a record are not run again.

The file begins with its first line, or does not exist: it is made by `replacing`. Records are appended, and synced once
`SYNC_RECORDS` are not, or fewer that took `SYNC_STEPS` together, and at the end. After a loss of power, the records
since the last sync may be missing, cut, or have sectors that read as zeroes, in any order (a file system may write the
size of a file before its data). JSON has no zero bytes: the file is cut where the first line begins that has one, or
that has no end, and the cut is synced before anything is appended behind it.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from hibernaut.errors import FormatError, HibernautError
from hibernaut.exploration.plan import Sweep
from hibernaut.exploration.records import MachineRecord
from hibernaut.volumes.output import set_size, sync, write_file

__all__ = ["ResultsFile", "read_records"]

FORMAT, VERSION = "hibernaut sweep", 1
PIECE_BYTES = 1 << 20
SYNC_RECORDS = 64
"""Records after which the file is synced: a sync takes some milliseconds, as a small machine does."""
SYNC_STEPS = 100_000
"""Steps of the searches after which it is synced: some seconds of work."""


class ResultsFile:
    """The open results of a sweep, to which records are appended. A context manager.

    Args:
        sweep: the sweep.
        path: the file; None keeps nothing.

    Raises:
        FormatError: on entry, if the file is something else or holds another sweep's results.
        HibernautError: on entry, if another process appends to it.
        OSError: it cannot be made or written.
    """

    def __init__(self, sweep: Sweep, path: Path | None) -> None:
        self._head = json.dumps({"format": FORMAT, "version": VERSION, "sweep": sweep.as_json()})
        self._ways = set(sweep.ways)
        self._path = path
        self._file: IO[bytes] | None = None
        self._unsynced_records = 0
        self._unsynced_steps = 0

    def __enter__(self) -> ResultsFile:
        if self._path is None:
            return self
        if self._path.exists() and not self._path.is_file():
            raise FormatError("not a regular file", source=str(self._path), advice="give another --results")
        if not self._path.exists() or not self._path.stat().st_size:
            write_file(self._path, f"{self._head}\n".encode(), public=True)
        file = self._path.open("ab+", buffering=0)
        try:
            self._claim(file)
            self._check(file)
        except BaseException:
            file.close()
            raise
        self._file = file
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._file is None:
            return
        try:
            self._sync()
        except OSError:
            if kind is None:  # else the error that ended the sweep has the reason
                raise
        finally:
            self._file.close()

    def _claim(self, file: IO[bytes]) -> None:
        """Lock the file. Raises HibernautError if another process has it locked."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise HibernautError(
                f"{self._path}: another process writes its results there", advice="give another --results"
            ) from None
        except OSError:  # a file system without locks
            pass

    def _check(self, file: IO[bytes]) -> None:
        """Raise FormatError unless the file is this sweep's; drop what follows the last line that is whole."""
        assert self._path is not None
        file.seek(0)
        head = file.read(len(self._head) + 1)
        if head != f"{self._head}\n".encode():
            other = head.startswith(f'{{"format": "{FORMAT}"'.encode())
            raise FormatError(
                "results of another sweep" if other else "not a file of a sweep's results",
                source=str(self._path),
                expected="a new or empty file, or one with this sweep's results",
                advice="give another --results",
            )
        end = _end_of_lines(file)
        if end != os.fstat(file.fileno()).st_size:
            set_size(file.fileno(), end)
            sync(file.fileno())  # else new records might reach the disk between the sectors of old ones

    def earlier(self) -> Iterator[MachineRecord]:
        """Yield the records that the file holds already. Raises FormatError if one is not of this sweep's ways."""
        if self._path is None:
            return
        for number, record in read_records(self._path):
            if set(record.ways) != self._ways:
                named = ", ".join(sorted(record.ways)) or "none"
                raise _bad_line(self._path, number, f"ways are {named}, not {', '.join(sorted(self._ways))}")
            yield record

    def write(self, record: MachineRecord) -> None:
        """Append a record. Raises OSError, with the file."""
        if self._file is None:
            return
        data = memoryview(f"{record.line()}\n".encode())
        try:
            while len(data):
                data = data[self._file.write(data) :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error
        self._unsynced_records += 1
        self._unsynced_steps += sum(way.steps for way in record.ways.values())
        if self._unsynced_records >= SYNC_RECORDS or self._unsynced_steps >= SYNC_STEPS:
            self._sync()

    def _sync(self) -> None:
        assert self._file is not None
        if self._unsynced_records:
            sync(self._file.fileno())
            self._unsynced_records = self._unsynced_steps = 0


def _end_of_lines(file: IO[bytes]) -> int:
    """Return the offset behind the last line that is whole and has no zero byte before or in it."""
    end = at = 0
    file.seek(0)
    while piece := file.read(PIECE_BYTES):
        zero = piece.find(b"\0")
        line_end = piece.rfind(b"\n", 0, None if zero < 0 else zero)
        if line_end >= 0:
            end = at + line_end + 1
        if zero >= 0:
            break
        at += len(piece)
    return end


def read_records(path: Path) -> Iterator[tuple[int, MachineRecord]]:
    """Yield the records of a sweep's file with their line numbers.

    Raises:
        FormatError: a line is not a record.
    """
    with path.open("rb") as file:
        next(file, None)
        for number, line in enumerate(file, 2):
            try:
                record = MachineRecord.from_line(line.decode())
            except ValueError as error:
                raise _bad_line(path, number, str(error)) from None
            yield number, record


def _bad_line(path: Path, number: int, what: str) -> FormatError:
    return FormatError(
        f"line {number} is not a record of this sweep: {what}", source=str(path), advice="give another --results"
    )
