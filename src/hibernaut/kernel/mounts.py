# SPDX-License-Identifier: GPL-2.0-or-later
"""Mounted file systems, files by their path, and the start of small files that the page cache has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hibernaut.errors import FormatError
from hibernaut.kernel.page_cache import file_pages
from hibernaut.kernel.paths import MAX_NAME_BYTES, MAX_PATH_PARTS, name_of, path_of
from hibernaut.kernel.reading import list_objects, rb_objects, sibling_objects, text_at
from hibernaut.memory.page import PAGE_SIZE

if TYPE_CHECKING:
    from typing import Any

    from hibernaut.kernel.kernel import Kernel

__all__ = ["Mount", "cached_start", "init_root", "link_target", "mount_of", "mounts_of_init", "resolve"]

MAX_SIBLINGS = 1 << 16
S_IFMT, S_IFDIR, S_IFLNK = 0o170000, 0o040000, 0o120000


@dataclass(frozen=True)
class Mount:
    """A mounted file system.

    Attributes:
        path: where it is mounted.
        source: device or name that was mounted.
        type: type of the file system.
        options: rw or ro.
    """

    path: str
    source: str
    type: str
    options: str


def mounts_of_init(kernel: Kernel) -> Iterator[Any]:
    """Yield each `struct mount` in the mount namespace of process 1."""
    space = kernel["init_pid_ns"].child_reaper.nsproxy.mnt_ns
    names = {member.name for member in space.type_.type.members}
    if "list" in names:
        yield from list_objects(space.list, "struct mount", "mnt_list")
        return
    # Since Linux kernel commit 2eea9ce4310d ("mounts: keep list of mounts in an rbtree") (in v6.8).
    yield from rb_objects(space.mounts, "struct mount", "mnt_node")


def mount_of(kernel: Kernel, mount: Any) -> Mount:
    """Return a mounted file system; `mount` points to a `struct mount`."""
    block = mount.mnt.mnt_sb
    read_only = (mount.mnt.mnt_flags.value_() & MNT_READONLY) or (block.s_flags.value_() & SB_RDONLY)
    return Mount(
        path_of(kernel, mount.mnt.address_of_(), mount.mnt.mnt_root),
        text_at(kernel, mount.mnt_devname.value_(), PAGE_SIZE) if mount.mnt_devname.value_() else "none",
        text_at(kernel, block.s_type.name.value_(), MAX_NAME_BYTES),
        "ro" if read_only else "rw",
    )


MNT_READONLY = 0x40
"""include/linux/mount.h."""
SB_RDONLY = 1
"""include/linux/fs.h."""


def init_root(kernel: Kernel) -> tuple[Any, Any]:
    """Return mount (`struct mount *`) and directory entry of the root of process 1."""
    from drgn import container_of

    root = kernel["init_pid_ns"].child_reaper.fs.root
    return container_of(root.mnt, "struct mount", "mnt"), root.dentry


def resolve(kernel: Kernel, path: str) -> Any | None:
    """Return the `struct inode *` at a path of process 1; None if the directory cache has no such entry.

    Symbolic links are not followed.
    """
    mount, dentry = _topmost(*init_root(kernel))
    for part in path.strip("/").split("/"):
        child = _child(kernel, dentry, part)
        if child is None:
            return None
        mount, dentry = _topmost(mount, child)
    inode = dentry.d_inode
    return inode if inode.value_() else None


def _child(kernel: Kernel, parent: Any, name: str) -> Any | None:
    """Return the entry of a name in a directory; None if it is not in the directory cache."""
    names = {member.name for member in parent.type_.type.members}
    # Since Linux kernel commit da549bdd15c2 ("dentry: switch the lists of children to hlist") (in v6.8).
    if "d_children" in names:
        children = sibling_objects(parent.d_children.first, "struct dentry", "d_sib")
    else:
        children = list_objects(parent.d_subdirs, "struct dentry", "d_child")
    wanted = len(name.encode())
    for number, child in enumerate(children):
        if number == MAX_SIBLINGS:
            return None
        if child.d_name.len.value_() == wanted and child.d_inode.value_() and name_of(kernel, child) == name:
            return child
    return None


def _topmost(mount: Any, dentry: Any) -> tuple[Any, Any]:
    """Return mount and root of what is mounted on an entry, or both as they are."""
    for _ in range(MAX_PATH_PARTS):
        for child in list_objects(mount.mnt_mounts, "struct mount", "mnt_child"):
            if child.mnt_mountpoint.value_() == dentry.value_():
                mount, dentry = child, child.mnt.mnt_root
                break
        else:
            return mount, dentry
    raise FormatError(f"more than {MAX_PATH_PARTS} mounts on one entry")


def link_target(kernel: Kernel, inode: Any) -> str | None:
    """Return the target of a symbolic link; None if it is none, or the target is not in the memory."""
    if inode.i_mode.value_() & S_IFMT != S_IFLNK:
        return None
    if inode.i_link.value_():
        return text_at(kernel, inode.i_link.value_(), PAGE_SIZE)
    content = cached_start(kernel, inode)
    return None if content is None else content.partition(b"\0")[0].decode("utf-8", "backslashreplace")


def cached_start(kernel: Kernel, inode: Any) -> bytes | None:
    """Return the first page of a file, or less if it is shorter; None if the page cache does not have it."""
    size_bytes = inode.i_size.value_()
    room = np.zeros((1, PAGE_SIZE), dtype=np.uint8)
    if size_bytes <= 0 or file_pages(kernel, inode.i_mapping).read(np.zeros(1, dtype=np.int64), None, room) != [None]:
        return None
    return room.tobytes()[:size_bytes]
