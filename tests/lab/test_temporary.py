# SPDX-License-Identifier: GPL-2.0-or-later
"""Temporary folders and parts of the cache: gone afterwards, and after a kill with the next run."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

import pytest

from hibernaut.lab.host.cache import Cache
from hibernaut.lab.host.temporary import kept_or_temporary, remove_leftovers, temporary_folder


@pytest.fixture
def tmpdir_of_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_nothing_stays(tmpdir_of_test: Path) -> None:
    """Neither folder nor lock, after an exception as well."""
    with temporary_folder("x") as folder:
        (folder / "file").touch()
        assert folder.parent == tmpdir_of_test
    with pytest.raises(KeyError), temporary_folder("x"):
        raise KeyError
    assert not list(tmpdir_of_test.iterdir())


def test_leftovers_of_a_killed_process_are_removed(tmpdir_of_test: Path) -> None:
    """Its folder and lock; not those of a process that lives, nor young ones, nor folders of others."""
    child = os.fork()
    if not child:
        with temporary_folder("x") as folder:
            (folder / "ram").write_bytes(bytes(1 << 16))
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    (left,) = (path for path in tmpdir_of_test.iterdir() if path.is_dir())
    (tmpdir_of_test / "hibernaut-other").mkdir()
    assert remove_leftovers() == []  # young
    os.utime(left.with_name(f"{left.name}.lock"), (0, 0))
    with temporary_folder("y") as mine:
        os.utime(mine.with_name(f"{mine.name}.lock"), (0, 0))
        assert remove_leftovers() == [left]
        assert mine.exists()
    assert [path.name for path in tmpdir_of_test.iterdir()] == ["hibernaut-other"]


def test_a_link_in_place_of_a_folder_is_not_followed(
    tmpdir_of_test: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A link that another user put there does not lead the removal elsewhere."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "precious").touch()
    (tmpdir_of_test / "hibernaut-x").symlink_to(elsewhere)
    lock = tmpdir_of_test / "hibernaut-x.lock"
    lock.touch()
    os.utime(lock, (0, 0))
    remove_leftovers()
    assert (elsewhere / "precious").exists()


def test_a_folder_to_keep_is_kept(tmp_path: Path) -> None:
    """With a folder to keep things in, nothing is temporary."""
    with kept_or_temporary(tmp_path, "a") as folder:
        (folder / "log").touch()
    assert (tmp_path / "a" / "log").exists()


def test_half_made_parts_of_the_cache_are_removed(tmp_path: Path) -> None:
    """Those of the same part: the lock says that its maker has ended."""
    cache = Cache(tmp_path)
    for name in (".6.1.abcd_123", ".6.12.abcd_123", ".6.1.notes"):
        (tmp_path / "kernels" / name).mkdir(parents=True)
    with cache.locked():
        cache.folder("kernels/6.1", lambda folder: (folder / "vmlinuz").touch())
    assert {path.name for path in (tmp_path / "kernels").iterdir()} == {"6.1", ".6.12.abcd_123", ".6.1.notes"}


def test_a_kill_between_lock_and_folder_leaves_nothing_for_good(tmpdir_of_test: Path) -> None:
    """The lock is there before its folder: whatever a kill leaves has a lock, by which the next process removes it."""
    child = os.fork()
    if not child:
        os.mkdir = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
        with temporary_folder("x"):
            pass
    os.waitpid(child, 0)
    (left,) = tmpdir_of_test.iterdir()
    assert left.name.endswith(".lock")
    os.utime(left, (0, 0))
    remove_leftovers()
    assert not list(tmpdir_of_test.iterdir())
