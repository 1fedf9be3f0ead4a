# SPDX-License-Identifier: GPL-2.0-or-later
"""Terminals, temporary files, planted links, and programs that are started.

The readers' hostile files stand beside their tests, and in tests/fuzz; unpacking of packages is tested in
tests/lab/test_debian.py, modes of outputs in tests/cli/test_private_files.py and tests/volumes/test_output.py.
"""

from __future__ import annotations

import ast
import gzip
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import hibernaut
from hibernaut import cli
from hibernaut.errors import LabUnavailable
from hibernaut.lab.host import cache
from hibernaut.lab.host.temporary import temporary_folder
from hibernaut.volumes import output
from hibernaut.volumes.compressed import unpack

SOURCE = Path(hibernaut.__file__).parent
STREAMS = ("sys.stdout.write", "sys.stderr.write", "sys.stdout.buffer.write", "sys.stderr.buffer.write")
VISIBLE = {"visible", "visible_line", "_visible", "_visible_notes"}
"""Functions whose text controls no terminal."""
PLAIN = {
    "terminal.py:_write_output": "its callers make their text visible",
    "alone.py:_print_files": "names of modules that are loaded",
}
FORBIDDEN = {"print", "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"}


def raw_writes(source: str, name: str) -> list[str]:
    """Return the writes to a terminal, by module and function, whose text is not made visible."""
    found = []
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef):
            continue
        for call in ast.walk(function):
            if isinstance(call, ast.Call) and ast.unparse(call.func) in STREAMS:
                used = {one.func.id for one in ast.walk(call) if isinstance(one, ast.Call) and hasattr(one.func, "id")}
                if not used & VISIBLE:
                    found.append(f"{name}:{function.name}")
    return found


def forbidden_calls(source: str) -> list[str]:
    """Return calls that print past the writer, or start a program by a shell."""
    calls = [one for one in ast.walk(ast.parse(source)) if isinstance(one, ast.Call)]
    found = [ast.unparse(one.func) for one in calls if ast.unparse(one.func) in FORBIDDEN]
    shells = [word for one in calls for word in one.keywords if word.arg == "shell"]
    return found + ["shell" for word in shells if not (isinstance(word.value, ast.Constant) and not word.value.value)]


def test_all_text_for_a_terminal_is_made_visible() -> None:
    """Each write to standard output or error is of text that controls no terminal."""
    assert raw_writes("def say(x):\n    sys.stderr.write(f'{x}')\n", "a.py") == ["a.py:say"]
    assert raw_writes("def say(x):\n    sys.stderr.write(visible(x))\n", "a.py") == []
    found = {one for path in SOURCE.rglob("*.py") for one in raw_writes(path.read_text(), path.name)}
    assert found == set(PLAIN)


def test_nothing_prints_past_the_writer_or_starts_a_shell() -> None:
    """A program gets words: no file's name is ever part of a shell's line."""
    assert forbidden_calls("print(1); os.system('ls'); run('ls', shell=True); run('ls', shell=False)") == [
        *("print", "os.system", "shell"),
    ]
    guests = SOURCE / "lab" / "guest"  # programs of a guest, which print to its console
    found = {path: forbidden_calls(path.read_text()) for path in SOURCE.rglob("*.py") if guests not in path.parents}
    assert {path: calls for path, calls in found.items() if calls} == {}


def test_notes_of_an_interrupt_are_made_visible(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An interrupted rewrite says what the area holds, by its name: an escape sequence in it is shown."""

    def interrupted(_: list[str]) -> int:
        error = KeyboardInterrupt()
        error.add_note("area\x1b[31m\nx now holds the old image")
        raise error

    monkeypatch.setattr(cli, "_run", interrupted)
    with pytest.raises(SystemExit, match="130"):
        cli.main()
    assert capsys.readouterr().err == "hibernaut: interrupted; area\\x1b[31m\\nx now holds the old image\n"


@pytest.fixture
def tmpdir_of_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A $TMPDIR of the test's own, and a umask that takes nothing away."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    before = os.umask(0)
    yield folder
    os.umask(before)


def test_unpacked_memory_is_private(tmpdir_of_test: Path, tmp_path: Path) -> None:
    """The spool of a compressed source has no name, and mode 0600 whatever the umask."""
    path = tmp_path / "dump.gz"
    path.write_bytes(gzip.compress(bytes(range(256)) * 64))
    with path.open("rb", buffering=0) as source, unpack(source, "gzip", str(path)) as spool:
        assert list(tmpdir_of_test.iterdir()) == []
        status = os.fstat(spool.fileno())
        assert (stat.S_IMODE(status.st_mode), status.st_nlink) == (0o600, 0)


def test_temporary_folders_are_private(tmpdir_of_test: Path) -> None:
    """Mode 0700, and 0600 for the lock beside it."""
    with temporary_folder("test") as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        locks = [one for one in tmpdir_of_test.iterdir() if one.is_file()]
        assert [stat.S_IMODE(one.stat().st_mode) for one in locks] == [0o600]


def test_a_planted_link_in_place_of_a_lock_is_refused(
    tmpdir_of_test: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guessed name: the file behind the link is neither made nor changed."""
    monkeypatch.setattr(secrets, "token_hex", lambda _: "guessed")
    with temporary_folder("test") as folder:
        lock = next(one for one in tmpdir_of_test.iterdir() if one.is_file())
    victim = tmp_path / "victim"
    lock.symlink_to(victim)
    with pytest.raises(FileExistsError), temporary_folder("test"):
        pytest.fail("it is made")
    assert not victim.exists()
    lock.unlink()
    victim.mkdir()
    folder.symlink_to(victim)
    with pytest.raises(FileExistsError), temporary_folder("test"):
        pytest.fail("it is made")
    assert list(victim.iterdir()) == []


@pytest.mark.parametrize("unnamed", [True, False])
def test_a_planted_link_in_place_of_a_partial_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unnamed: bool
) -> None:
    """Neither a file that gets a name at its end nor one that has it from the start is written through a link."""
    monkeypatch.setattr(secrets, "token_hex", lambda _: "guessed")
    if not unnamed:
        monkeypatch.setattr(output, "OPEN_FILES", str(tmp_path / "not-there"))
    victim, target = tmp_path / "victim", tmp_path / "out"
    victim.write_bytes(b"of another user")
    target.write_bytes(b"before")
    (tmp_path / ".out.guessed.partial").symlink_to(victim)
    with pytest.raises(FileExistsError, match="out"):
        output.write_file(target, b"memory")
    assert (victim.read_bytes(), target.read_bytes()) == (b"of another user", b"before")


def test_a_planted_leftover_takes_nothing_with_it(tmp_path: Path) -> None:
    """A link, a pipe and a folder with the name of a leftover: what the link leads to stays as it was."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"of another user")
    os.utime(victim, (0, 0))
    before = victim.stat()
    (tmp_path / ".out.1.partial").symlink_to(victim)
    os.mkfifo(tmp_path / ".out.2.partial")
    (tmp_path / ".out.3.partial").mkdir()
    output.write_file(tmp_path / "out", b"memory")
    assert (tmp_path / "out").read_bytes() == b"memory"
    assert victim.read_bytes() == b"of another user"
    assert victim.stat().st_mtime_ns == before.st_mtime_ns


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line that names the option, where neither $HOME nor an entry of passwd says where the home is."""
    for name in ("HIBERNAUT_LAB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(LabUnavailable, match="this user has no home folder; give a folder as --cache"):
        cache.default_cache()
