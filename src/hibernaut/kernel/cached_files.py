# SPDX-License-Identifier: GPL-2.0-or-later
"""Files that a kernel has in its page cache, and those of tmpfs: found, listed, put together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hibernaut.errors import FormatError, HibernautError
from hibernaut.kernel.page_cache import FilePages, file_pages
from hibernaut.kernel.paths import path_of, path_within
from hibernaut.kernel.program import ask, each
from hibernaut.kernel.reading import list_objects
from hibernaut.memory.page import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from typing import Any

    from hibernaut.kernel.kernel import Kernel
    from hibernaut.kernel.swapped_pages import SwappedPages

__all__ = ["CachedFile", "FileContent", "cached_files", "find_file", "read_file"]

MAX_FILES = 1 << 24
MAX_FILE_SYSTEMS = 1 << 16
CHUNK_PAGES = 1 << 12
S_IFMT, S_IFREG = 0o170000, 0o100000
MAX_SIZE = 1 << 60


@dataclass(frozen=True, eq=False)
class CachedFile:
    """A regular file with pages in memory or in swap.

    Attributes:
        path: its path, with the first place where its file system is mounted; None if no name of it is in the memory.
        file_system: kind of the file system, such as tmpfs or ext4.
        inode: its number.
        size_bytes: its length.
        pages: its pages.
    """

    path: str | None
    file_system: str
    inode: int
    size_bytes: int
    pages: FilePages

    @property
    def total_pages(self) -> int:
        """Pages of the file, held or not."""
        return -(-self.size_bytes // PAGE_SIZE)


@dataclass(frozen=True)
class FileContent:
    """Result of reading a file.

    Attributes:
        read_pages: pages whose content is known, holes of tmpfs included.
        missing: page of the file and reason, for each page that is nowhere.
    """

    read_pages: int
    missing: tuple[tuple[int, str], ...]


def cached_files(kernel: Kernel) -> Iterator[CachedFile]:
    """Yield the regular files that have pages, by file system.

    Raises:
        FormatError: the lists of file systems or of files are not in the memory, or damaged.
    """
    for block in _file_systems(kernel):
        kind = ask(kernel, "file system", lambda block: _text(block.s_type.name.string_()), block)
        if kind == "hugetlbfs":  # it counts in huge pages
            continue
        root = _mount_point(kernel, block)
        for inode in _inodes(kernel, block):
            found = ask(kernel, "inode", _file, kernel, inode, kind, root)
            if found is not None:
                yield found


def find_file(kernel: Kernel, path: str) -> CachedFile:
    """Return the file at a path, as process 1 sees it.

    Raises:
        HibernautError: there is no such file among the names that the kernel has in memory, or it is not a regular one.
        FormatError: as `cached_files`.
    """
    from drgn.helpers.linux.fs import path_lookup
    from drgn.helpers.linux.pid import find_task

    def look_up() -> Any:
        task = find_task(kernel.drgn(), 1)
        try:
            return path_lookup(task.fs.root.address_of_(), path.encode())
        except Exception as error:
            if type(error) is Exception:  # drgn's own, of a name that is not in the cache of names
                raise HibernautError(
                    f"{path} is not in the kernel's cache of names", advice="list the files that it has in memory"
                ) from error
            raise

    found = ask(kernel, path, look_up)
    inode = ask(kernel, path, lambda: found.dentry.d_inode)
    if not inode or ask(kernel, path, lambda: int(inode.i_mode) & S_IFMT) != S_IFREG:
        raise HibernautError(f"{path} is not a regular file")
    return ask(
        kernel,
        path,
        lambda: CachedFile(
            path,
            _text(inode.i_sb.s_type.name.string_()),
            int(inode.i_ino),
            _size(kernel, inode),
            file_pages(kernel, inode.i_mapping),
        ),
    )


def read_file(file: CachedFile, swapped: SwappedPages | None) -> Iterator[tuple[int, bytes, list[str | None]]]:
    """Yield the content of a file in order: first page, bytes, and for each page None or the reason why it is nowhere.

    Pages that are nowhere are zero.
    """
    for first in range(0, file.total_pages, CHUNK_PAGES):
        count = min(CHUNK_PAGES, file.total_pages - first)
        room = np.zeros((count, PAGE_SIZE), dtype=np.uint8)
        reasons = file.pages.read(np.arange(first, first + count, dtype=np.int64), swapped, room)
        content = room.reshape(-1)[: file.size_bytes - (first << PAGE_SHIFT)].tobytes()
        yield first, content, reasons


def _file_systems(kernel: Kernel) -> Iterator[Any]:
    blocks = list_objects(kernel["super_blocks"], "struct super_block", "s_list")
    return each(kernel, "super_blocks", blocks, MAX_FILE_SYSTEMS)


def _inodes(kernel: Kernel, block: Any) -> Iterator[Any]:
    return each(kernel, "s_inodes", list_objects(block.s_inodes, "struct inode", "i_sb_list"), MAX_FILES)


def _file(kernel: Kernel, inode: Any, kind: str, root: str | None) -> CachedFile | None:
    """Return a file with its pages, None if it is not a regular one or has none."""
    if int(inode.i_mode) & S_IFMT != S_IFREG:
        return None
    tree = inode.i_data.i_pages
    if not tree.xa_head:
        return None
    pages = file_pages(kernel, inode.i_data.address_of_())
    if not len(pages.indices):
        return None
    return CachedFile(_path(kernel, inode, root), kind, int(inode.i_ino), _size(kernel, inode), pages)


def _size(kernel: Kernel, inode: Any) -> int:
    size = int(inode.i_size)
    if not 0 <= size < MAX_SIZE:
        raise kernel.damaged(f"a file of {size} bytes", f"0 to {MAX_SIZE}")
    return size


def _path(kernel: Kernel, inode: Any, root: str | None) -> str | None:
    try:
        within = ask(kernel, "path of a file", path_within, kernel, inode)
    except FormatError:
        return None
    if not within:
        return None
    return within if root is None else f"{root.rstrip('/')}/{within}"


def _mount_point(kernel: Kernel, block: Any) -> str | None:
    """Return the first place where a file system is mounted; None if it is nowhere, as those of the kernel's own."""
    import drgn

    def first() -> str | None:
        mounts = block.s_mounts
        if mounts.type_.kind == drgn.TypeKind.STRUCT:
            mount = next(list_objects(mounts, "struct mount", "mnt_instance"), None)
        else:  # a pointer to the first one
            mount = mounts if mounts.value_() else None
        return None if mount is None else path_of(kernel, mount.mnt.address_of_(), mount.mnt.mnt_root)

    try:
        return ask(kernel, "mount", first)
    except FormatError:
        return None


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")
