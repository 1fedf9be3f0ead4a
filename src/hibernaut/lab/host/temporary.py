# SPDX-License-Identifier: GPL-2.0-or-later
"""Temporary folders, each with a lock beside it while it is used: the next process removes what a killed one leaves."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

__all__ = ["kept_or_temporary", "remove_leftovers", "temporary_folder"]

PREFIX, SUFFIX = "hibernaut-", ".lock"
LEFTOVER_SECONDS = 10
"""Age from which a lock that is free means a leftover: it is taken right after it is made."""


@contextmanager
def temporary_folder(purpose: str) -> Iterator[Path]:
    """Yield a new folder in $TMPDIR, which is removed afterwards; once a process, leftovers of others are removed.

    Args:
        purpose: part of its name.

    Raises:
        OSError: it cannot be made.
    """
    _remove_leftovers_once()
    folder = Path(tempfile.gettempdir()) / f"{PREFIX}{purpose}-{secrets.token_hex(4)}"
    lock = folder.with_name(folder.name + SUFFIX)
    # The lock first: a folder without one would stay after a kill.
    fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with suppress(OSError):  # a file system without locks keeps its leftovers
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        folder.mkdir(mode=0o700)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.unlink(missing_ok=True)
        os.close(fd)


@contextmanager
def kept_or_temporary(keep: Path | None, name: str) -> Iterator[Path]:
    """Yield the folder of that name in `keep`, made if it is absent; a temporary one if `keep` is None."""
    if keep is None:
        with temporary_folder(name) as folder:
            yield folder
        return
    folder = keep / name
    folder.mkdir(parents=True, exist_ok=True)
    yield folder


@cache
def _remove_leftovers_once() -> None:
    remove_leftovers()


def remove_leftovers() -> list[Path]:
    """Remove the temporary folders of this user's processes that have ended without doing so, and return them."""
    removed = []
    for lock in Path(tempfile.gettempdir()).glob(f"{PREFIX}*{SUFFIX}"):
        with suppress(OSError):
            fd = os.open(lock, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                status = os.fstat(fd)
                if status.st_uid == os.geteuid() and time.time() - status.st_mtime > LEFTOVER_SECONDS:
                    folder = lock.with_name(lock.name.removesuffix(SUFFIX))
                    if not folder.is_symlink():
                        shutil.rmtree(folder, ignore_errors=True)
                    lock.unlink()
                    removed.append(folder)
            finally:
                os.close(fd)
    return removed
