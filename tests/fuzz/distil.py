# SPDX-License-Identifier: GPL-2.0-or-later
"""A small corpus of many files: the smallest ones that reach lines of the library that no seed reaches."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import zstandard

import hibernaut
from tests.fuzz.engine import CORPUS, MOST_FILE_BYTES, MOST_FILES, Arena, corpus_of, keep
from tests.fuzz.targets import Target

__all__ = ["distil", "lines_of"]

PACKAGE = str(Path(hibernaut.__file__).parent)
LOOKED_AT = 300
"""Most files that are run: tracing is slow."""
KEPT = 12
"""Files that are kept of what was tried; findings take the rest."""


@contextmanager
def _traced(lines: set[tuple[str, int]]) -> Iterator[None]:
    def local(frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            lines.add((frame.f_code.co_filename, frame.f_lineno))
        return local

    def each(frame: FrameType, _event: str, _: Any) -> Any:
        return local if frame.f_code.co_filename.startswith(PACKAGE) else None

    before = sys.gettrace()
    sys.settrace(each)
    try:
        yield
    finally:
        sys.settrace(before)


def lines_of(arena: Arena, data: bytes) -> set[tuple[str, int]]:
    """Return the lines of the library that reading a file reaches."""
    lines: set[tuple[str, int]] = set()
    with _traced(lines):
        arena.execute(data)
    return lines


def distil(target: Target, folder: Path) -> int:
    """Add files of a folder to the corpus of a target that reach new lines, smallest first; return its size."""
    kept = corpus_of(target)
    reached: set[tuple[str, int]] = set()
    with Arena(target, seconds=60) as arena:
        for data in (*target.seeds().values(), *kept.values()):
            reached |= lines_of(arena, data)
        paths = sorted(folder.glob("*"), key=lambda path: (path.stat().st_size, path.name))
        step = max(len(paths) // LOOKED_AT, 1)
        for path in paths[::step]:
            data = path.read_bytes()
            if len(kept) >= min(KEPT, MOST_FILES):
                break
            if not data:  # a mutation that cuts everything, the smallest file of all
                continue
            lines = lines_of(arena, data)
            if lines <= reached or len(data) > MOST_FILE_BYTES < len(zstandard.compress(data, 19)):
                continue
            reached |= lines
            keep(CORPUS / target.name, hashlib.sha256(data).hexdigest()[:12], data)
            kept = corpus_of(target)
    return len(kept)
