# SPDX-License-Identifier: GPL-2.0-or-later
"""Names and paths out of the kernel's directory cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hibernaut.errors import FormatError
from hibernaut.kernel.reading import text_at

if TYPE_CHECKING:
    from typing import Any

    from hibernaut.kernel.kernel import Kernel

__all__ = ["MAX_NAME_BYTES", "MAX_PATH_PARTS", "name_of", "path_of", "path_within"]

MAX_NAME_BYTES = 255
MAX_PATH_PARTS = 256


def path_of(kernel: Kernel, vfsmount: Any, dentry: Any) -> str:
    """Return the path of a directory entry below the root of its mount namespace (as `prepend_path`).

    Raises:
        FormatError: it has no end, or a name is not in the memory.
    """
    from drgn import container_of

    mount = container_of(vfsmount, "struct mount", "mnt")
    parts: list[str] = []
    for _ in range(MAX_PATH_PARTS):
        if dentry.value_() == mount.mnt.mnt_root.value_():
            if mount.mnt_parent.value_() == mount.value_():
                return "/" + "/".join(reversed(parts))
            dentry, mount = mount.mnt_mountpoint, mount.mnt_parent
            continue
        if dentry.d_parent.value_() == dentry.value_():  # of a file system without a path, as a socket's
            return "/".join(reversed([*parts, name_of(kernel, dentry)]))
        parts.append(name_of(kernel, dentry))
        dentry = dentry.d_parent
    raise FormatError(f"a path of more than {MAX_PATH_PARTS} parts")


def path_within(kernel: Kernel, inode: Any) -> str | None:
    """Return the path of an inode in its file system, without its leading slash; None if no name leads to it.

    Raises:
        FormatError: it has no end, or a name is not in the memory.
    """
    from drgn import container_of

    if not inode.i_dentry.first.value_():
        return None
    dentry = container_of(inode.i_dentry.first, "struct dentry", "d_u.d_alias")
    parts: list[str] = []
    for _ in range(MAX_PATH_PARTS):
        if dentry.d_parent.value_() == dentry.value_():
            return "/".join(reversed(parts))
        parts.append(name_of(kernel, dentry))
        dentry = dentry.d_parent
    raise FormatError(f"a path of more than {MAX_PATH_PARTS} parts")


def name_of(kernel: Kernel, dentry: Any) -> str:
    """Return the name of a directory entry. Raises FormatError if it is not in the memory."""
    length = min(dentry.d_name.len.value_(), MAX_NAME_BYTES)
    return text_at(kernel, dentry.d_name.name.value_(), length) if length else ""
