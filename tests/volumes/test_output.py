# SPDX-License-Identifier: GPL-2.0-or-later
"""Files that appear complete or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hibernaut.volumes.output import replacing


def test_success_replaces(tmp_path: Path) -> None:
    """The new file takes the old one's place when the block is left, and nothing else stays behind."""
    target = tmp_path / "out"
    target.write_bytes(b"old")
    with replacing(target) as fd:
        os.write(fd, b"new")
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_failure_leaves_everything_as_it_was(tmp_path: Path, error: type[BaseException]) -> None:
    """After an exception, the user's own interrupt too, the old file is there and the partial one is gone."""
    target = tmp_path / "out"
    target.write_bytes(b"old")

    def fail() -> None:
        with replacing(target) as fd:
            os.write(fd, b"half")
            raise error

    with pytest.raises(error):
        fail()
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_unusual_targets(tmp_path: Path) -> None:
    """A directory, a pipe and a missing folder are refused before anything is made; a link's target is replaced."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(IsADirectoryError), replacing(tmp_path):
        pass
    with pytest.raises(FileExistsError), replacing(tmp_path / "pipe"):
        pass
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "missing" / "out"):
        pass
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    with replacing(tmp_path / "link") as fd:
        os.write(fd, b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "pipe", "real"]
