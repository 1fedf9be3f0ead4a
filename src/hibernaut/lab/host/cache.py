# SPDX-License-Identifier: GPL-2.0-or-later
"""The cache of downloads and builds: each part is complete or absent.

A part is made under a hidden name, synced with all that is in it, and renamed. Without the sync, a loss of power could
leave the name and not the content, and the part would be taken for complete ever after.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hibernaut.errors import LabUnavailable
from hibernaut.volumes.output import sync_file_system

__all__ = ["Cache", "default_cache"]


def default_cache() -> Path:
    """Return `$HIBERNAUT_LAB_CACHE`, else a folder in the user's cache (XDG base directories)."""
    named = os.environ.get("HIBERNAUT_LAB_CACHE")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "hibernaut" / "lab"
    except RuntimeError:
        raise LabUnavailable("this user has no home folder", advice="give a folder as --cache") from None


class Cache:
    """A folder that several processes may fill at once.

    Args:
        root: the folder, made when first needed; `default_cache()` if None.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = (root or default_cache()).absolute()

    @contextmanager
    def locked(self, name: str = "lock") -> Iterator[None]:
        """Hold a lock, exclusive among all processes of this machine.

        Args:
            name: path of its file in the cache: of the whole cache, or of a part that takes minutes to fill.
        """
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def folder(self, name: str, make: Callable[[Path], None]) -> Path:
        """Return a folder of the cache, filled by `make` if it is absent. The caller holds the lock."""
        target = self.root / name
        if target.is_dir():
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        for name in os.listdir(target.parent):  # of a process that was killed, for the lock is held here
            if re.fullmatch(rf"\.{re.escape(target.name)}\.[a-z0-9_]{{8}}", name):
                shutil.rmtree(target.parent / name, ignore_errors=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            partial.chmod(0o755)
            make(partial)
            sync_file_system(partial)
            partial.rename(target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        return target
