# SPDX-License-Identifier: GPL-2.0-or-later
"""Copying of files that are mostly holes."""

from __future__ import annotations

from hibernaut.errors import FormatError
from hibernaut.volumes.files import PlainFile
from hibernaut.volumes.output import set_size, write_all
from hibernaut.volumes.volume import Volume

__all__ = ["copy_sparse"]

COPY_BYTES = 16 << 20


def copy_sparse(source: Volume, fd: int) -> None:
    """Copy a whole volume into an empty file, keeping the holes of a file.

    Raises:
        FormatError: the source ends early.
        OSError: as the system reports it.
    """
    for at, end in source.data_extents() if isinstance(source, PlainFile) else [(0, source.size_bytes)]:
        while at < end:
            piece = source.pread(at, min(COPY_BYTES, end - at))
            if not piece:
                raise FormatError("the file ends while being copied", source=source.name, offset=at)
            write_all(fd, memoryview(piece), at)
            at += len(piece)
    set_size(fd, source.size_bytes)
