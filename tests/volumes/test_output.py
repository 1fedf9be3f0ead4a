# SPDX-License-Identifier: GPL-2.0-or-later
"""Files that appear complete or not at all, and are private."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from hibernaut.volumes import output
from hibernaut.volumes.output import replacing, write_file


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


@pytest.fixture(params=[0, 0o022, 0o777], ids=["umask 0", "umask 022", "umask 777"])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    """One of three umasks, in force."""
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    """Return the permission bits of a file."""
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("before", [None, 0o666, 0o640, 0o600, 0o400, 0])
def test_private_from_the_first_moment_on(tmp_path: Path, before: int | None) -> None:
    """Neither the partial file nor the whole one has a bit that 0600 or the replaced file lacks."""
    target = tmp_path / "out"
    if before is not None:
        target.touch()
        target.chmod(before)
    expected = 0o600 if before is None else 0o600 & before
    with replacing(target):
        (partial,) = (path for path in tmp_path.iterdir() if path != target)
        assert mode(partial) == expected
    assert mode(target) == expected


@pytest.mark.parametrize("before", [None, 0o666, 0o640, 0o600])
def test_public_files_follow_the_umask(tmp_path: Path, umask: int, before: int | None) -> None:
    """Pages, records and runs hold no memory; one that replaces a private file stays private."""
    target = tmp_path / "out"
    if before is not None:
        target.touch()
        target.chmod(before)
    write_file(target, b"page", public=True)
    assert mode(target) == 0o666 & ~umask & (0o777 if before is None else before)
    if os.geteuid() == 0 or mode(target) & 0o400:
        assert target.read_bytes() == b"page"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("public", [False, True])
def test_the_owner_stays(tmp_path: Path, public: bool) -> None:
    """A file of another user that root replaces keeps its owner and group."""
    target = tmp_path / "out"
    target.touch()
    target.chmod(0o660)
    os.chown(target, 65534, 65533)
    write_file(target, b"new", public=public)
    new = target.stat()
    assert (new.st_uid, new.st_gid, stat.S_IMODE(new.st_mode) & ~0o060) == (65534, 65533, 0o600)


def test_a_group_that_cannot_be_kept_gets_no_successor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the owner cannot be changed, the rights of the old group do not pass to another one."""
    target = tmp_path / "out"
    target.touch()
    target.chmod(0o660)
    real = target.stat()

    def refuse(_fd: int, _uid: int, _gid: int) -> None:
        raise PermissionError(1, "not permitted")

    monkeypatch.setattr(os, "fchown", refuse)
    monkeypatch.setattr(
        output, "_status", lambda _path: os.stat_result((*real[:4], real.st_uid + 1, real.st_gid + 1, *real[6:]))
    )
    write_file(target, b"new", public=True)
    assert mode(target) == 0o600


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
