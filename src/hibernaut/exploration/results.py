# SPDX-License-Identifier: GPL-2.0-or-later
"""The file of a sweep's results: a line that describes the sweep, then one line of JSON for each machine.

A sweep that was interrupted resumes from its file: machines that have a record are not run again, a last line that is
not whole is dropped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from hibernaut.errors import FormatError
from hibernaut.exploration.plan import Sweep
from hibernaut.exploration.records import MachineRecord

__all__ = ["ResultsFile", "read_records"]

FORMAT, VERSION = "hibernaut sweep", 1
TAIL_BYTES = 1 << 16


class ResultsFile:
    """The open results of a sweep, to which records are appended. A context manager.

    Args:
        sweep: the sweep.
        path: the file; None keeps nothing.

    Raises:
        FormatError: on entry, if the file is something else or holds another sweep's results.
    """

    def __init__(self, sweep: Sweep, path: Path | None) -> None:
        self._head = json.dumps({"format": FORMAT, "version": VERSION, "sweep": sweep.as_json()})
        self._ways = set(sweep.ways)
        self._path = path
        self._file: IO[str] | None = None

    def __enter__(self) -> ResultsFile:
        if self._path is None:
            return self
        if self._path.exists() and not self._path.is_file():
            raise FormatError("not a regular file", source=str(self._path), advice="give another --results")
        fresh = not self._path.exists() or not self._path.stat().st_size
        if not fresh:
            self._check()
        self._file = self._path.open("a", encoding="utf-8")
        if fresh:
            self._file.write(self._head + "\n")
            self._file.flush()
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def _check(self) -> None:
        """Raise FormatError unless the file is this sweep's; drop what follows the last whole line."""
        assert self._path is not None
        with self._path.open("rb") as file:
            head = file.readline(len(self._head) + 2)
            if head.decode("utf-8", "replace").rstrip("\n") != self._head:
                other = head.startswith(f'{{"format": "{FORMAT}"'.encode())
                raise FormatError(
                    "results of another sweep" if other else "not a file of a sweep's results",
                    source=str(self._path),
                    expected="a new or empty file, or one with this sweep's results",
                    advice="give another --results",
                )
            end = _end_of_lines(file)
        if end != self._path.stat().st_size:
            os.truncate(self._path, end)

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
        """Append a record and flush it."""
        if self._file is not None:
            self._file.write(record.line() + "\n")
            self._file.flush()


def _end_of_lines(file: IO[bytes]) -> int:
    """Return the offset behind the last whole line, reading backwards."""
    size = file.seek(0, os.SEEK_END)
    end = size
    while end:
        start = max(0, end - TAIL_BYTES)
        file.seek(start)
        at = file.read(end - start).rfind(b"\n")
        if at >= 0:
            return start + at + 1
        end = start
    return 0


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
