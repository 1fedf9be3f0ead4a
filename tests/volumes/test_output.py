# SPDX-License-Identifier: GPL-2.0-or-later
"""Files that appear complete or not at all, and are private."""

from __future__ import annotations

import mmap
import os
import resource
import signal
import stat
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from hibernaut.volumes import output
from hibernaut.volumes.output import BulkOutput, replacing, write_file


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


@pytest.fixture(params=[False, True], ids=["without-a-name", "named"])
def has_name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether a new file has a hidden name while it is written, as on a file system without unnamed files."""
    if request.param:
        monkeypatch.setattr(os, "O_TMPFILE", os.O_DIRECTORY)  # what an old kernel makes of it: EISDIR
    return bool(request.param)


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("before", [None, 0o666, 0o640, 0o600, 0o400, 0])
def test_private_from_the_first_moment_on(tmp_path: Path, has_name: bool, before: int | None) -> None:
    """Neither the partial file nor the whole one has a bit that 0600 or the replaced file lacks."""
    target = tmp_path / "out"
    if before is not None:
        target.touch()
        target.chmod(before)
    expected = 0o600 if before is None else 0o600 & before
    with replacing(target) as fd:
        assert stat.S_IMODE(os.fstat(fd).st_mode) == expected
        others = [path for path in tmp_path.iterdir() if path != target]
        assert [mode(path) for path in others] == ([expected] if has_name else [])
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


@pytest.mark.parametrize("made", ["file", "dangling link", "folder"])
def test_a_new_file_replaces_nothing(tmp_path: Path, made: str) -> None:
    """With anything of that name there, nothing is written, whether it came before or meanwhile."""

    def occupy(path: Path) -> None:
        if made == "file":
            path.write_bytes(b"other")
        elif made == "folder":
            path.mkdir()
        else:
            path.symlink_to("nothing")

    def write_while_occupied(path: Path) -> None:
        with replacing(path, new=True) as fd:
            os.write(fd, b"new")
            occupy(path)

    for name in ("before", "meanwhile"):
        path = tmp_path / name
        if name == "before":
            occupy(path)
        with pytest.raises(FileExistsError, match=name):
            write_while_occupied(path)
        assert not path.is_file() or path.read_bytes() == b"other"
        assert path.is_symlink() == (made == "dangling link")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["before", "meanwhile"]
    write_file(tmp_path / "free", b"new", new=True)
    assert (tmp_path / "free").read_bytes() == b"new"


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


def test_a_killed_writer_leaves_nothing(tmp_path: Path, has_name: bool) -> None:
    """Without a name nothing stays; a hidden file stays until the next writer of the target finds no lock on it."""
    target = tmp_path / "out"
    target.write_bytes(b"old")
    child = os.fork()
    if not child:
        with replacing(target) as fd:
            os.write(fd, b"new")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    left = [path for path in tmp_path.iterdir() if path != target]
    assert len(left) == has_name
    assert target.read_bytes() == b"old"
    for path in left:
        os.utime(path, (0, 0))
    with replacing(target) as fd:
        os.write(fd, b"third")
        assert not any(path in tmp_path.iterdir() for path in left)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.usefixtures("has_name")
def test_a_writer_at_work_is_not_a_leftover(tmp_path: Path) -> None:
    """Its lock, or its youth, protects it: a second writer of the same target does not remove it."""
    target = tmp_path / "out"
    with replacing(target) as first:
        for path in tmp_path.iterdir():
            os.utime(path, (0, 0))
        write_file(target, b"second")
        os.write(first, b"first")
    assert target.read_bytes() == b"first"
    young = tmp_path / ".out.0000.partial"
    young.touch()
    write_file(target, b"third")
    assert young.exists()


def test_errors_name_the_output_and_the_byte(tmp_path: Path) -> None:
    """A file that may not grow: the message has the name that the caller gave, not the hidden one."""
    target = tmp_path / "out"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(OSError, match=f"File too large, at byte 10000: '{target}'"):
            write_file(target, bytes(20_000))
    finally:
        signal.signal(signal.SIGXFSZ, ignored)
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_a_file_that_gets_the_number_of_another_keeps_its_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the close of one output and its rename, another thread's output may get the same descriptor."""
    real = os.close
    nested: list[Path] = []

    def close(fd: int) -> None:
        real(fd)
        if not nested:
            nested.append(tmp_path / "second")
            with replacing(nested[0]) as again:
                assert again == fd
                assert output._names[again] == str(nested[0])

    with replacing(tmp_path / "first") as fd:
        os.write(fd, b"first")
        monkeypatch.setattr(os, "close", close)
        monkeypatch.setattr(output, "_give_name", _named_by_hand)
    assert nested
    assert not output._names
    assert (tmp_path / "first").read_bytes() == b"first"


def _named_by_hand(fd: int, path: Path) -> None:
    path.write_bytes(Path(f"/proc/self/fd/{fd}").read_bytes())


def aligned(size_bytes: int) -> memoryview:
    """Bytes that begin at a page, each its place modulo 251."""
    room = memoryview(mmap.mmap(-1, size_bytes))
    room[:] = bytes(at % 251 for at in range(251)) * (size_bytes // 251) + bytes(range(size_bytes % 251))
    return room


@pytest.fixture(params=["direct", "refused at opening", "refused at writing", "short"])
def direct_writes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The direct writes that are made, in bytes, on file systems of several kinds."""
    made: list[int] = []
    pwritev, kind = os.pwritev, request.param
    direct: set[int] = set()
    opened = os.open

    def open_(path: str, flags: int, *mode: int, **more: int) -> int:
        if flags & os.O_DIRECT and kind == "refused at opening":
            raise OSError(22, "Invalid argument")
        fd = opened(path, flags & ~os.O_DIRECT, *mode, **more)  # a tmpfs may have none
        if flags & os.O_DIRECT:
            direct.add(fd)
        return fd

    def written(fd: int, parts: list[memoryview], offset: int) -> int:
        if fd in direct:
            made.append(sum(len(part) for part in parts))
            if kind == "refused at writing":
                raise OSError(22, "Invalid argument")
            if kind == "short":
                return pwritev(fd, [parts[0][:4096]], offset)
        return pwritev(fd, parts, offset)

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "pwritev", written)
    return made


def test_bulk_is_the_same_however_it_is_written(tmp_path: Path, direct_writes: list[int], request: Any) -> None:
    """Aligned or not, past the cache or through it, after a refusal or a short write: the bytes are the same."""
    data = aligned(1 << 20)
    with replacing(tmp_path / "out") as fd, BulkOutput(fd, output.DIRECT_FILE_BYTES) as bulk:
        bulk.write([data], 0)
        bulk.write([data[:4096], data[4096:]], 1 << 20)
        aligned_writes = len(direct_writes)
        bulk.write([data[1:]], 2 << 20)  # its address is not aligned
        bulk.write([data], (3 << 20) + 8)
        bulk.write([data[:4096]], 5 << 20)  # too short to wait for the disk
        assert len(direct_writes) == aligned_writes
    whole = bytes(data)
    expected = whole + whole + whole[1:] + bytes(1) + bytes(8) + whole
    written = (tmp_path / "out").read_bytes()
    assert written[: len(expected)] == expected
    assert written[5 << 20 :] == whole[:4096]
    assert aligned_writes == (0 if "opening" in request.node.callspec.id else 2)


@pytest.fixture
def allocations(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The parts of files that get blocks, from and to, in bytes."""
    made: list[tuple[int, int]] = []
    allocate = os.posix_fallocate

    def allocated(fd: int, at: int, size_bytes: int) -> None:
        made.append((at, at + size_bytes))
        allocate(fd, at, size_bytes)

    monkeypatch.setattr(os, "posix_fallocate", allocated)
    monkeypatch.setattr(output, "ALLOCATED_BYTES", 17 << 19)
    return made


@pytest.mark.parametrize("direct_writes", ["direct"], indirect=True)
def test_a_growing_file_has_its_blocks_ahead_of_its_writes(
    tmp_path: Path, direct_writes: list[int], allocations: list[tuple[int, int]]
) -> None:
    """Few allocations, no gap between them, none behind the expected size; a file with holes gets its writes' only."""
    data = aligned(1 << 20)
    expected_bytes = output.DIRECT_FILE_BYTES
    with replacing(tmp_path / "grows") as fd, BulkOutput(fd, expected_bytes, grows=True) as bulk:
        for number in (1, 0, *range(2, 24)):  # threads come in another order than the file's
            bulk.write([data], number << 20)
            assert all(first[1] == second[0] for first, second in pairwise(allocations))
            assert allocations[0][0] == 0
            assert allocations[-1][1] >= (number + 1) << 20
        assert allocations == [(0, 21 << 19), (21 << 19, 39 << 19), (39 << 19, 57 << 19)]
        bulk.write([data], expected_bytes - (1 << 20))
        assert allocations[3:] == [(57 << 19, expected_bytes)]
        bulk.write([data], expected_bytes)  # what cannot be compressed takes more than its pages
        assert allocations[4:] == [(expected_bytes, expected_bytes + (1 << 20))]
        output.set_size(fd, 24 << 20)
        assert os.fstat(fd).st_blocks * 512 <= 25 << 20
    assert (tmp_path / "grows").read_bytes() == bytes(data) * 24
    allocations.clear()
    with replacing(tmp_path / "holes") as fd, BulkOutput(fd, expected_bytes) as bulk:
        for number in (0, 3, 2, 9):
            bulk.write([data], number << 20)
    assert allocations == [(number << 20, (number + 1) << 20) for number in (0, 3, 2, 9)]
    assert len(direct_writes) == 24 + 2 + 4


@pytest.mark.parametrize("direct_writes", ["direct"], indirect=True)
def test_a_write_fits_where_blocks_ahead_of_it_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, direct_writes: list[int]
) -> None:
    """On a disk that is nearly full each write asks for blocks again, since other files may have been removed."""
    data, left, asked = aligned(1 << 20), [False, True, False], []

    def allocate(_fd: int, at: int, size_bytes: int) -> None:
        asked.append((at, size_bytes))
        if not left[len(asked) - 1]:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", allocate)
    monkeypatch.setattr(output, "ALLOCATED_BYTES", 1 << 20)
    with replacing(tmp_path / "out") as fd, BulkOutput(fd, output.DIRECT_FILE_BYTES, grows=True) as bulk:
        for number in range(4):
            bulk.write([data], number << 20)
        output.set_size(fd, 4 << 20)
    assert asked == [(0, 2 << 20), (1 << 20, 2 << 20), (3 << 20, 2 << 20)]
    assert direct_writes == [1 << 20] * 4
    assert (tmp_path / "out").read_bytes() == bytes(data) * 4


def test_small_files_and_spools_go_through_the_page_cache(tmp_path: Path, direct_writes: list[int]) -> None:
    """A small file may be read again at once, and one that is not synced must not wait for the disk."""
    data = aligned(1 << 20)
    with replacing(tmp_path / "small") as fd, BulkOutput(fd, output.DIRECT_FILE_BYTES - 1) as bulk:
        bulk.write([data], 0)
    with replacing(tmp_path / "spool") as fd, BulkOutput(fd, 1 << 40, durable=False) as bulk:
        bulk.write([data], 0)
    assert not direct_writes


@pytest.mark.usefixtures("has_name")
@pytest.mark.parametrize("call", ["open", "link", "rename"])
def test_an_interrupt_right_after_a_call_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """A signal that comes when the hidden file has just got its name: it is removed; the target is old or new."""
    target = tmp_path / "out"
    target.write_bytes(b"old")
    real = getattr(os, call)

    def interrupted(*arguments: Any, **options: Any) -> Any:
        made = real(*arguments, **options)
        if call != "open" or (isinstance(made, int) and arguments[1] & os.O_CREAT and arguments[1] & os.O_EXCL):
            raise KeyboardInterrupt
        return made

    monkeypatch.setattr(os, call, interrupted)
    with suppress(KeyboardInterrupt):
        write_file(target, b"new")
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["out"]
    assert target.read_bytes() in (b"old", b"new")


def test_errors_without_a_name_get_that_of_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fsync(2), ftruncate(2) and the hidden file's link and rename name no file, or another one than the caller."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    def write() -> None:
        with replacing(tmp_path / "out") as fd:
            output.set_size(fd, 10)

    for call in ("fsync", "ftruncate", "link", "rename"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            with pytest.raises(OSError, match=f"Input/output error: '{tmp_path / 'out'}'"):
                write()
    assert not os.listdir(tmp_path)


def test_a_new_folder_is_synced_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each folder that gets an entry is synced, from above; a folder that exists costs nothing."""
    synced: list[Path] = []
    monkeypatch.setattr(output, "sync_folder", lambda folder: synced.append(folder))
    output.make_folder(tmp_path / "one" / "two")
    assert synced == [tmp_path, tmp_path / "one"]
    output.make_folder(tmp_path / "one" / "two")
    assert len(synced) == 2
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=f"File exists: '{tmp_path / 'file'}'"):
        output.make_folder(tmp_path / "file")


def test_a_whole_file_system_is_synced(tmp_path: Path) -> None:
    """The call exists here, and its error names the folder."""
    output.sync_file_system(tmp_path)
    with pytest.raises(FileNotFoundError, match="missing"):
        output.sync_file_system(tmp_path / "missing")
    with pytest.raises(OSError, match="Bad file descriptor"):
        output._syncfs(-1)
