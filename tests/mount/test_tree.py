# SPDX-License-Identifier: GPL-2.0-or-later
"""The tree of virtual files: listed, opened and computed on demand, once."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier

import numpy as np
import pytest
from numpy.typing import NDArray

from hibernaut.errors import HibernautError
from hibernaut.mount.tree import ComputedFile, PlacedFile, VirtualFolder, node_at


class Bytes:
    """A volume of some bytes."""

    name = "bytes"

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size_bytes = len(data)

    def pread(self, offset: int, size_bytes: int) -> bytes:
        """See `Volume`."""
        return self._data[offset : offset + size_bytes]

    def pread_into(self, offset: int, out: NDArray[np.uint8]) -> int:
        """See `Volume`."""
        data = self.pread(offset, len(out))
        out[: len(data)] = np.frombuffer(data, dtype=np.uint8)
        return len(data)


def test_a_path_leads_through_folders() -> None:
    """Names lead to files and folders; behind a file, and behind a name that is not there, is nothing."""
    file = ComputedFile(lambda: b"text")
    inner = VirtualFolder({"exe": file})
    root = VirtualFolder({"processes": VirtualFolder({"1": inner}), "file": file})
    assert node_at(root, "/") is root
    assert node_at(root, "/processes/1") is inner
    assert node_at(root, "/processes/1/exe") is file
    assert [node_at(root, path) for path in ("/file/x", "/processes/2", "/nothing", "/../file")] == [None] * 4


def test_a_folder_is_listed_when_it_is_entered() -> None:
    """Not before, and once; its neighbours are not listed."""
    listed = Counter[str]()

    def entries(name: str) -> dict[str, ComputedFile]:
        listed[name] += 1
        return {f"{name}.txt": ComputedFile(lambda: b"")}

    root = VirtualFolder({name: VirtualFolder(partial(entries, name)) for name in "ab"})
    assert sorted(root.entries()) == ["a", "b"]
    assert node_at(root, "/a") is not None
    assert listed == {}
    assert node_at(root, "/a/a.txt") is not None
    assert node_at(root, "/a/b.txt") is None
    assert listed == {"a": 1}


def test_a_file_is_computed_when_it_is_read() -> None:
    """Its length is unknown before; looking at it computes nothing."""
    computed = Counter[str]()

    def content() -> bytes:
        computed["file"] += 1
        return b"content"

    file = ComputedFile(content)
    assert file.size_bytes() is None
    assert computed == {}
    assert (file.read(0, 3), file.read(3, 100), file.read(7, 1)) == (b"con", b"tent", b"")
    assert file.size_bytes() == 7
    assert computed == {"file": 1}


def test_readers_at_once_compute_once() -> None:
    """Several threads that are first at the same time get the same bytes, of one computation."""
    computed = Counter[str]()
    together = Barrier(4)

    def content() -> bytes:
        computed["file"] += 1
        return bytes(100)

    file = ComputedFile(content)

    def read(_number: int) -> bytes:
        together.wait()
        return file.read(0, 100)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(read, range(4))) == [bytes(100)] * 4
    assert computed == {"file": 1}


def test_a_failure_is_not_kept() -> None:
    """A source that could not be read can be read later."""
    tries = Counter[str]()

    def volume() -> Bytes:
        tries["volume"] += 1
        if tries["volume"] == 1:
            raise HibernautError("not yet")
        return Bytes(b"now")

    file = PlacedFile(volume)
    with pytest.raises(HibernautError, match="not yet"):
        file.size_bytes()
    assert (file.size_bytes(), file.read(1, 9)) == (3, b"ow")
