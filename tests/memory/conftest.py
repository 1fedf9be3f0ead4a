# SPDX-License-Identifier: GPL-2.0-or-later
"""A fixture that opens made-up dump files and closes them again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hibernaut.memory.dump import Dump, Refusal
from hibernaut.volumes.files import PlainFile, open_plain

Reader = Callable[[PlainFile], Dump | Refusal]


class Opening:
    """Opens files with a reader; closed when the test ends."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: list[PlainFile] = []

    def __call__(self, reader: Reader, content: bytes | Path) -> Dump | Refusal:
        """Return the answer of a reader for a file, or for a file with these bytes."""
        path = content if isinstance(content, Path) else self._folder / f"dump-{len(self._open)}"
        if isinstance(content, bytes):
            path.write_bytes(content)
        self._open.append(open_plain(path))
        return reader(self._open[-1])

    def dump(self, reader: Reader, content: bytes | Path) -> Dump:
        """The dump that a reader accepts."""
        answer = self(reader, content)
        assert isinstance(answer, Dump), answer
        return answer

    def refusal(self, reader: Reader, content: bytes | Path) -> str:
        """The reason for which a reader declines."""
        answer = self(reader, content)
        assert isinstance(answer, Refusal)
        return answer.reason

    def close(self) -> None:
        """Close every file that was opened."""
        for plain in self._open:
            plain.close()


@pytest.fixture
def opening(tmp_path: Path) -> Iterator[Opening]:
    """See `Opening`."""
    made = Opening(tmp_path)
    yield made
    made.close()
