# SPDX-License-Identifier: GPL-2.0-or-later
"""Swap files in file systems: ext2 to ext4, XFS, Btrfs. By dissect, an extra.

Only the place of a file's first page is asked of the library: the kernel writes its image to blocks of the device, not
of the file, and finds all of them by what this page says.
"""

from __future__ import annotations

import itertools
import stat
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from hibernaut.errors import FormatError
from hibernaut.volumes.declarations import SWAP_MARKS, SWAP_PAGE_SIZES
from hibernaut.volumes.extras import decoding, need
from hibernaut.volumes.volume import StreamVolume, Volume, VolumeFile

__all__ = ["SwapFile", "file_in", "file_system_of", "swap_files"]

EXT_MAGIC = (1024 + 56, b"\x53\xef")
XFS_MAGIC = (0, b"XFSB")
BTRFS_MAGIC = (0x10040, b"_BHRfS_M")
MAGICS = {"ext4": EXT_MAGIC, "xfs": XFS_MAGIC, "btrfs": BTRFS_MAGIC}
PAGE_SIZE = 4096
"""Pages of the machines whose images are read."""
USUAL = (
    "/swapfile", "/swap.img", "/swap", "/swap/swapfile", "/.swapfile", "/swapfile1", "/var/swap", "/var/swapfile",
    "/var/swap/swapfile", "/var/cache/swap/swapfile0", "/@swap/swapfile", "/swapvol/swapfile", "/hibernate.img",
)  # fmt: skip
"""Names that installers and manuals give to swap files."""
MOST_ENTRIES = 20_000
"""Directory entries that a search by signature looks at."""
SKIPPED = frozenset(("proc", "sys", "dev", "usr", "lost+found", "snap", "node_modules"))
SMALLEST_BYTES = 10 * PAGE_SIZE
"""mkswap(8) makes no smaller area."""
FSTAB_BYTES = 1 << 16
TOPS = ("", "/@", "/root", "/@rootfs")
"""Subvolumes that distributions install to; "" is the top of the file system itself."""
MISSING = (FileNotFoundError, NotADirectoryError)
"""dissect's own errors of these names are theirs, too."""
CHECK = "check the file system with its own tool"

T = TypeVar("T")


@dataclass(frozen=True)
class SwapFile:
    """A swap file.

    Attributes:
        path: its path in the file system.
        block: block of its swap header on the device, 4096 bytes each: the kernel's `resume_offset`.
        size_bytes: its length.
    """

    path: str
    block: int
    size_bytes: int


def file_system_of(volume: Volume) -> str | None:
    """Return the kind of file system on a volume: ext4 (2 to 4), xfs, btrfs; None for any other volume."""
    for name, (at, magic) in MAGICS.items():
        if volume.pread(at, len(magic)) == magic:
            return name
    return None


def file_in(volume: Volume, kind: str, path: str) -> SwapFile | Volume:
    """Return a file by its path: a swap file, or the bytes of any other as a volume, such as a dump's.

    Raises:
        FormatError: there is no such file, it is not a regular file, or the file system is damaged.
        HibernautError: a library is not installed.
    """
    system = _open(volume, kind)
    with decoding(f"{path} in the {kind} file system", volume.name, advice=CHECK):
        try:
            node = system.get(path)
            found = _as_swap_file(volume, kind, system, node, path)
        except MISSING as error:
            raise FormatError(
                f"there is no {path} in the {kind} file system", source=volume.name, advice="give one that `find` lists"
            ) from error
        if found is not None:
            return found
        _, is_file, size_bytes = _facts(kind, node)
        if not is_file or not size_bytes:
            raise FormatError(f"{path} is not a file with data", source=volume.name, advice="give another path")
        return StreamVolume(node.open(), size_bytes, f"{volume.name}, {path}", advice=CHECK)


def swap_files(volume: Volume, kind: str, problems: list[str]) -> Iterator[SwapFile]:
    """Yield the swap files: those of /etc/fstab, of usual names, and others with a signature in the first entries.

    Args:
        volume: the file system.
        kind: as `file_system_of` names it.
        problems: what could not be read is added here, a line each.

    Raises:
        FormatError: the file system is damaged.
        HibernautError: a library is not installed.
    """
    system = _open(volume, kind)
    seen: set[int] = set()
    for path, node in itertools.chain(_named(volume, kind, system, problems), _walked(volume, kind, system, problems)):
        found = _tried(partial(_as_swap_file, volume, kind, system, node, path), volume, path, problems)
        if found is not None and found.block not in seen:
            seen.add(found.block)
            yield found


class _Top:
    """A Btrfs file system with all its subvolumes, by paths from its top."""

    def __init__(self, system: Any) -> None:
        self.system = system

    def get(self, path: str) -> Any:
        """Return a node by its path from the top."""
        return self.system.fs_tree.get(path)


def _tried(read: Callable[[], T], volume: Volume, path: str, problems: list[str]) -> T | None:
    """Return what a function reads; None if nothing is there, or if it is damaged, which is added to the problems."""
    try:
        with decoding(path, volume.name, advice=CHECK):
            return read()
    except MISSING:
        return None
    except FormatError as error:
        problems.append(str(error))
        return None


def _open(volume: Volume, kind: str) -> Any:
    file = VolumeFile(volume)
    with decoding(f"the {kind} file system", volume.name, advice=CHECK):
        if kind == "ext4":
            return need("dissect.extfs").ExtFS(file)
        if kind == "xfs":
            return need("dissect.xfs").XFS(file)
        # By paths from the top, whichever subvolume is mounted by default.
        return _Top(need("dissect.btrfs").Btrfs(file))


def _named(volume: Volume, kind: str, system: Any, problems: list[str]) -> Iterator[tuple[str, Any]]:
    """Yield path and node of files that are named in /etc/fstab, and of usual names; on Btrfs, in every subvolume."""
    for top in TOPS if kind == "btrfs" else ("",):
        listed = _tried(partial(_fstab, system, top), volume, f"{top}/etc/fstab", problems) or []
        for path in dict.fromkeys(top + one for one in (*listed, *USUAL)):
            node = _tried(partial(system.get, path), volume, path, problems)
            if node is not None:
                yield path, node


def _fstab(system: Any, top: str) -> list[str]:
    text = system.get(f"{top}/etc/fstab").open().read(FSTAB_BYTES).decode("utf-8", "replace")
    rows = [line.split() for line in text.splitlines() if not line.lstrip().startswith("#")]
    return [row[0] for row in rows if len(row) > 2 and row[2] == "swap" and row[0].startswith("/")]


def _walked(volume: Volume, kind: str, system: Any, problems: list[str]) -> Iterator[tuple[str, Any]]:
    """Yield path and node of files, breadth first, as far as the limit goes."""
    left = MOST_ENTRIES
    waiting: deque[tuple[str, Any]] = deque([("", system.get("/"))])
    while waiting and left > 0:
        folder, node = waiting.popleft()
        listed = partial(_listed, kind, node, left)
        entries = _tried(listed, volume, folder or "/", problems) or []
        left -= len(entries)
        for name, entry in entries:
            path = f"{folder}/{name}"
            facts = _tried(partial(_facts, kind, entry), volume, path, problems)
            is_folder, is_file, size_bytes = facts or (False, False, 0)
            if is_folder and name not in (".", "..") and not (not folder and name in SKIPPED):
                waiting.append((path, entry))
            elif is_file and size_bytes >= SMALLEST_BYTES:
                yield path, entry


def _listed(kind: str, node: Any, most: int) -> list[tuple[str, Any]]:
    return list(itertools.islice(_entries(kind, node), most))


def _entries(kind: str, node: Any) -> Iterator[tuple[str, Any]]:
    if kind == "btrfs":
        yield from node.iterdir()
    else:
        yield from node.listdir().items()


def _facts(kind: str, node: Any) -> tuple[bool, bool, int]:
    """Return whether a node is a folder, a regular file, and its length in bytes."""
    if kind == "btrfs":
        return node.is_dir(), node.is_file(), int(node.size)
    return node.filetype == stat.S_IFDIR, node.filetype == stat.S_IFREG, int(node.size)


def _as_swap_file(volume: Volume, kind: str, system: Any, node: Any, path: str) -> SwapFile | None:
    """Return a node as a swap file, if the page where it begins on the device has a swap signature; else None.

    The page is of any size: the signature ends it.
    """
    _, is_file, size_bytes = _facts(kind, node)
    start = _PLACES[kind](system, node) if is_file and size_bytes >= SMALLEST_BYTES else None
    if start is None or start % PAGE_SIZE:
        return None
    mark_bytes = len(SWAP_MARKS[0])
    ends = (start + size for size in SWAP_PAGE_SIZES if start % size == 0)
    marked = any(volume.pread(end - mark_bytes, mark_bytes) in SWAP_MARKS for end in ends)
    return SwapFile(path, start // PAGE_SIZE, size_bytes) if marked else None


def _by_blocks(block_bytes: Callable[[Any], int]) -> Callable[[Any, Any], int | None]:
    def place(system: Any, node: Any) -> int | None:
        runs = node.dataruns  # a method of ExtFS, an attribute of XFS
        first = next(iter(runs() if callable(runs) else runs), (None, 0))[0]
        return None if first is None else int(first) * block_bytes(system)

    return place


def _btrfs_place(system: Any, node: Any) -> int | None:
    """Return the first byte of a file on the only device: the kernel takes no other for a swap file (btrfs(5))."""
    extents = node.extents()
    if not extents or extents[0].disk_offset in (None, 0) or extents[0].compression:
        return None
    logical = int(extents[0].disk_offset) + int(extents[0].offset)
    for chunk in system.system._logical_fh.chunks:
        if chunk.offset <= logical < chunk.offset + chunk.length and len(chunk.stripes) == 1:
            return int(chunk.stripes[0].offset) + logical - int(chunk.offset)
    return None


_PLACES: dict[str, Callable[[Any, Any], int | None]] = {
    "ext4": _by_blocks(lambda system: int(system.block_size)),
    "xfs": _by_blocks(lambda system: int(system.block_size)),
    "btrfs": _btrfs_place,
}
"""Function of each kind that returns the first byte of a file on its device."""
