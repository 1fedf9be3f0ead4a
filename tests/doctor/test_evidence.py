# SPDX-License-Identifier: GPL-2.0-or-later
"""FactRead files: bounded, inside the root folder, and never of another kernel."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from hibernaut.doctor import evidence
from hibernaut.doctor.evidence import RootFolder, attached_text
from hibernaut.doctor.gather import facts_of_root
from hibernaut.errors import FormatError
from tests.doctor.machines import root_folder


def test_links_stay_inside_the_root(tmp_path: Path) -> None:
    """An absolute link, one upwards and a circle, as a process with that root follows them."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/real").write_text("inside")
    (tmp_path / "etc/absolute").symlink_to("/etc/real")
    (tmp_path / "etc/upwards").symlink_to("../../../../../etc/real")
    (tmp_path / "etc/circle").symlink_to("circle")
    (tmp_path / "etc/passwd").symlink_to("/etc/shadow-of-the-host")
    root = RootFolder(tmp_path)
    assert root.text("etc/absolute").value == root.text("etc/upwards").value == "inside"
    assert root.text("etc/circle").reason == "Too many levels of symbolic links"
    assert not root.text("etc/passwd").known


def test_files_of_the_running_kernel_are_not_those_of_a_mounted_root(tmp_path: Path) -> None:
    """/proc below a root that is mounted for a repair belongs to the rescue system."""
    (tmp_path / "proc").symlink_to("/proc")  # inside the root it leads to itself
    assert not RootFolder(tmp_path).text("proc/swaps").known


def test_reads_are_bounded(tmp_path: Path) -> None:
    """A file without an end is read up to a limit; a folder, a pipe and a device are refused at once."""
    (tmp_path / "large").write_bytes(b"x" * 5000)
    root = RootFolder(tmp_path)
    assert len(root.content("large", 100).value or b"") == 100
    os.mkfifo(tmp_path / "pipe")
    assert root.text("pipe").reason == "this is not a regular file"
    assert root.text("").reason == "this is not a regular file"
    assert root.text("absent").reason == "No such file or directory"


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "empty"),
        (b"\n \n", "empty"),
        (b"text\0more", "zero byte"),
        (b"LPKSHHRH" + bytes(100), "systemd's own format"),
        (b"x" * 2000, "too large"),
        (gzip.compress(b"x" * 2000, mtime=0), "too large"),
        (gzip.compress(b"text", mtime=0)[:-9], "empty"),
        (b"\x1f\x8bnonsense", "damaged gzip"),
    ],
)
def test_hostile_files_are_named(tmp_path: Path, content: bytes, what: str) -> None:
    """Each kind of unusable file has its own line."""
    (tmp_path / "file").write_bytes(content)
    if what == "empty" and content.startswith(b"\x1f\x8b"):
        assert attached_text(tmp_path / "file", 1000) in ("", "text")
        return
    with pytest.raises(FormatError, match=what):
        attached_text(tmp_path / "file", 1000)


def test_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file is opened for reading only."""
    flags: list[int] = []
    opened = os.open

    def watch(path: os.PathLike[str], mode: int) -> int:
        flags.append(mode)
        return opened(path, mode)

    monkeypatch.setattr(os, "open", watch)
    (tmp_path / "file").write_text("text")
    attached_text(tmp_path / "file")
    RootFolder(tmp_path).text("file")
    assert len(flags) == 2
    assert all(mode & os.O_ACCMODE == os.O_RDONLY for mode in flags)


def test_processes_whose_mappings_are_unreadable_are_not_called_free_of_secrets(tmp_path: Path) -> None:
    """A process that has ended meanwhile does not count; one that cannot be read, or only in part, does."""
    folder = root_folder(tmp_path)
    (folder / "proc/7").mkdir()
    gathered = facts_of_root(RootFolder(folder)).secret_holders
    assert gathered.value == ()
    (folder / "proc/7/maps").mkdir()
    gathered = facts_of_root(RootFolder(folder)).secret_holders
    assert (gathered.value, gathered.reason) == (
        None,
        "the mappings of process 7 cannot be read: this is not a regular file",
    )
    (folder / "proc/7/maps").rmdir()
    (folder / "proc/7/maps").write_text("00400000-00401000 r-xp 00000000 00:02 5 /bin/sh\n" * 50_000)
    assert "too many mappings" in facts_of_root(RootFolder(folder)).secret_holders.reason


def test_a_folder_is_the_running_kernels_only_if_something_is_mounted_there(tmp_path: Path) -> None:
    """Files of a report in a folder `sys` are read where the system that reads them has no /sys mounted, too."""
    for name in ("report/sys", "system/sys"):
        (tmp_path / name).mkdir(parents=True)
    assert not evidence._same_mount(tmp_path / "report/sys", tmp_path / "system/sys")
    assert evidence._same_mount(Path("/proc/self"), Path("/proc"))
