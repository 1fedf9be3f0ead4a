# SPDX-License-Identifier: GPL-2.0-or-later
"""The digest of a file as it is on disk, read in pieces."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

__all__ = ["sha256_of"]

PIECE_BYTES = 4 << 20


def sha256_of(path: str | os.PathLike[str], progress: Callable[[int], None] | None = None) -> tuple[int, str]:
    """Return length and SHA-256 of a file or block device, nothing unpacked.

    Args:
        path: the file.
        progress: called with the number of bytes read since the last call.

    Raises:
        OSError: it cannot be read.
    """
    digest, size_bytes = hashlib.sha256(), 0
    with Path(path).open("rb", buffering=0) as file:
        piece = bytearray(PIECE_BYTES)
        while got := file.readinto(piece):
            digest.update(memoryview(piece)[:got])
            size_bytes += got
            if progress:
                progress(got)
    return size_bytes, digest.hexdigest()
