# SPDX-License-Identifier: GPL-2.0-or-later
"""A tree of files that do not exist on a disk: a folder is listed, a file computed, when it is first asked for.

Safe to use from several threads.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

if TYPE_CHECKING:
    from hibernaut.volumes.volume import Volume

__all__ = ["ComputedFile", "PlacedFile", "VirtualFile", "VirtualFolder", "node_at"]

Value = TypeVar("Value")


class _Once(Generic[Value]):
    """A value that is computed when it is first asked for, by one thread; after an exception, again."""

    def __init__(self, compute: Callable[[], Value]) -> None:
        self._compute = compute
        self._lock = threading.Lock()
        self._values: list[Value] = []

    @property
    def known(self) -> Value | None:
        """The value; None as long as it is not computed."""
        return self._values[0] if self._values else None

    def __call__(self) -> Value:
        """Return the value. Raises what its computation raises."""
        with self._lock:
            if not self._values:
                self._values.append(self._compute())
        return self._values[0]


class VirtualFile(ABC):
    """A file that is read by position. Its content never changes."""

    @abstractmethod
    def size_bytes(self) -> int | None:
        """Return the length; None as long as the content is not computed, which asking for the length does not start.

        Raises:
            HibernautError, OSError: the source cannot be read.
        """

    @abstractmethod
    def read(self, offset: int, size_bytes: int) -> bytes:
        """Return bytes: fewer than requested only at the end, none beyond it. Raises as `size_bytes`."""


class PlacedFile(VirtualFile):
    """A file whose length is known before its content is read: a volume.

    Args:
        volume: function that returns it; called once, when the file is first looked at.
    """

    def __init__(self, volume: Callable[[], Volume]) -> None:
        self._volume = _Once(volume)

    def size_bytes(self) -> int:
        """See `VirtualFile`."""
        return self._volume().size_bytes

    def read(self, offset: int, size_bytes: int) -> bytes:
        """See `VirtualFile`."""
        return self._volume().pread(offset, size_bytes)


class ComputedFile(VirtualFile):
    """A file whose content is computed as a whole when it is first read.

    Args:
        content: function that returns it; called once.
    """

    def __init__(self, content: Callable[[], bytes]) -> None:
        self._content = _Once(content)

    def size_bytes(self) -> int | None:
        """See `VirtualFile`."""
        known = self._content.known
        return None if known is None else len(known)

    def read(self, offset: int, size_bytes: int) -> bytes:
        """See `VirtualFile`."""
        return self._content()[offset : offset + size_bytes]


class VirtualFolder:
    """A folder.

    Args:
        entries: its entries by name; or a function that returns them, called once, when the folder is first entered.
    """

    def __init__(self, entries: Mapping[str, Node] | Callable[[], Mapping[str, Node]]) -> None:
        self._entries = _Once(entries if callable(entries) else lambda: entries)

    def entries(self) -> Mapping[str, Node]:
        """Return the entries by name. Raises as `VirtualFile.size_bytes`."""
        return self._entries()


Node: TypeAlias = VirtualFile | VirtualFolder


def node_at(root: VirtualFolder, path: str) -> Node | None:
    """Return what a path from the root on leads to, such as `/processes/1/exe`; None if there is no such entry.

    Raises:
        HibernautError, OSError: a folder on the way cannot be listed.
    """
    node: Node | None = root
    for name in filter(None, path.split("/")):
        if not isinstance(node, VirtualFolder):
            return None
        node = node.entries().get(name)
    return node
