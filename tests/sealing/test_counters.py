# SPDX-License-Identifier: GPL-2.0-or-later
"""The kept counter: an image that is older than the newest one, or was used, is refused."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hibernaut.errors import FormatError
from hibernaut.sealing import counters
from hibernaut.sealing.counters import MOST_COUNT, CounterFile, counter_of
from tests.cli.run import hibernaut, refused
from tests.sealing.sealed import LAYOUT, PAGES, blocks_of, changed
from tests.sealing.verifier_file import verifier_file
from tests.swsusp import naive

PYTHON = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
DEVICE = naive.build(PAGES, LAYOUT)
PLACE = ("--offset", 2)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an image and a pair of keys, which is the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "image").write_bytes(DEVICE)
    assert hibernaut("seal-key", "key").status == 0
    return tmp_path


def seal(manifest: str) -> int:
    """Seal the image with the kept counter and return that of the seal."""
    done = hibernaut("seal", "image", *PLACE, "--key", "key", "--manifest", manifest, "--counter-file", "c", "--json")
    return int(done.document["counter"])


def verify(manifest: str, *options: object) -> tuple[int, str]:
    """Verify the image with the kept counter and return status and line."""
    given = ("--key", "key.pub", "--manifest", manifest, "--counter-file", "c")
    done = hibernaut("verify", "image", *PLACE, *given, *options)
    return done.status, done.out


def kept(folder: Path) -> int:
    """Return the number in the file, by reading it as text."""
    return int((folder / "c").read_text())


def test_an_image_of_yesterday_is_older_than_the_one_of_today(folder: Path) -> None:
    """Each seal has a counter of its own; the newest one is whole, again and again, and the one before is refused."""
    assert (seal("m1"), seal("m2")) == (1, 2)
    assert kept(folder) == 2
    for _ in range(2):
        status, line = verify("m2")
        assert status == 0
        assert line.endswith("counter 2; from now on, counters below 2 are refused\n")
    assert verify("m1") == (1, "image: older: counter 1, and at least 2 is asked for\n")
    assert kept(folder) == 2


def test_an_image_is_accepted_once(folder: Path) -> None:
    """With --once the same image is older the second time; the next seal is accepted again."""
    seal("m1")
    assert verify("m1", "--once")[0] == 0
    assert kept(folder) == 2
    assert verify("m1", "--once")[0] == 1
    assert seal("m2") == 3
    assert verify("m2", "--once")[0] == 0


def test_a_machine_that_only_verifies_learns_from_whole_images(folder: Path) -> None:
    """The file of another machine, behind the seals, is raised to the counter of a whole image, never by another."""
    seal("m1")
    assert (seal("m2"), seal("m3")) == (2, 3)
    (folder / "c").write_text("1\n")
    (folder / "image").write_bytes(changed(DEVICE, blocks_of(DEVICE)[1][4] * 4096, b"other"))
    assert verify("m3")[0] == 1
    assert kept(folder) == 1
    (folder / "image").write_bytes(DEVICE)
    assert verify("m2")[0] == 0
    assert kept(folder) == 2
    assert verify("m1")[0] == 1


def test_a_counter_is_raised_before_the_manifest_is_written(folder: Path) -> None:
    """If the manifest cannot be written, its counter is used up: no two images ever have the same one."""
    seal("m1")
    given = ("--key", "key", "--manifest", "nowhere/m", "--counter-file", "c")
    assert "No such file" in refused("seal", "image", *PLACE, *given)
    assert kept(folder) == 2
    assert seal("m3") == 3


def test_a_counter_that_cannot_be_raised_ends_without_a_verdict(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A medium that is full or read-only: status 2, although the image is whole, and the file is as before."""
    seal("m1")

    def fails(path: Path, _data: bytes) -> None:
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(counters, "write_file", fails)
    line = refused("verify", "image", *PLACE, "--key", "key.pub", "--manifest", "m1", "--counter-file", "c", "--once")
    assert "Read-only file system" in line
    assert kept(folder) == 1


def test_an_image_that_is_not_sealed_uses_no_counter(folder: Path) -> None:
    """Plain swap in place of an image: refused, and the image that was sealed before stays acceptable."""
    seal("m1")
    (folder / "image").write_bytes(changed(DEVICE, 2 * 4096 + 4086, b"SWAPSPACE2"))
    refused("seal", "image", *PLACE, "--key", "key", "--manifest", "m2", "--counter-file", "c")
    (folder / "image").write_bytes(DEVICE)
    assert verify("m1")[0] == 0


@pytest.mark.parametrize("text", ["", "x\n", "-1\n", "1 2\n", "1\n2\n", "0x10\n", "9" * 30, "9223372036854775808\n"])
def test_a_file_without_a_counter_is_refused_and_stays(folder: Path, text: str) -> None:
    """By `verify` and by `seal`, in one line."""
    seal("m1")
    (folder / "c").write_text(text)
    for command in (("verify", "image", *PLACE, "--key", "key.pub"), ("seal", "image", *PLACE, "--key", "key")):
        line = refused(*command, "--manifest", "m1", "--counter-file", "c")
        assert "holds no counter" in line
    assert (folder / "c").read_text() == text


@pytest.mark.parametrize(
    ("command", "options", "words"),
    [
        ("verify", ("--counter-file", "absent"), "there is no file with a counter"),
        ("verify", ("--once",), "no counter is kept"),
        ("verify", ("--counter-file", "c", "--counter-tpm", "0x1500010"), "give either"),
        ("verify", ("--counter-tpm", "5"), "not an NV index"),
        ("seal", ("--counter-file", "c", "--counter", "4"), "leave --counter out"),
        ("seal", ("--counter-file", "image"), "is the source itself"),
        ("seal", ("--counter-file", "key"), "is the source itself"),
    ],
)
def test_refusals_are_one_line(folder: Path, command: str, options: tuple[str, ...], words: str) -> None:
    """And leave the counter as it is. Without a file there is no number to compare with: nothing is accepted."""
    seal("m1")
    key = "key" if command == "seal" else "key.pub"
    assert words in refused(command, "image", *PLACE, "--key", key, "--manifest", "m1", *options)
    assert kept(folder) == 1
    assert not (folder / "absent").exists()


def test_counters_end(tmp_path: Path) -> None:
    """At 2^63 - 1: the largest is kept, one more is refused; nothing is lowered."""
    counter = CounterFile(tmp_path / "c")
    counter.raise_to(MOST_COUNT)
    with pytest.raises(FormatError, match="at most 2"):
        counter.raise_to(counter.next_value())
    counter.raise_to(5)
    assert counter.value() == MOST_COUNT
    assert (tmp_path / "c").stat().st_mode & 0o777 == 0o600
    assert counter_of(None, None) is None


def test_the_verifier_alone_keeps_the_same_counter(folder: Path) -> None:
    """With the standard library alone: the same lines, and the file is raised; with --once, it accepts once."""
    seal("m1")
    shutil.copy("c", "d")
    verifier_file(folder)
    given = ("image", "--offset", "2", "--key", "key.pub", "--manifest", "m1", "--once", "--counter-file")
    for status in (0, 1):
        command = [PYTHON, "-I", "-S", "hibernaut-verify.pyz", *given, "c"]
        alone = subprocess.run(command, env={}, capture_output=True, text=True, check=False)
        same = hibernaut("verify", *given, "d")
        assert (alone.returncode, alone.stdout) == (same.status, same.out)
        assert alone.returncode == status
        assert (folder / "c").read_text() == (folder / "d").read_text() == "2\n"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("    least = verdict.manifest.counter + once\n", "    least = verdict.manifest.counter\n"),
        ("    counter.raise_to(least)\n", ""),
        ('    if counter is None or verdict.state != "whole":\n', "    if counter is None:\n"),
        ("        return (self.value() if self.path.exists() else 0) + 1\n", "        return 1\n"),
    ],
)
def test_mutants_are_caught(folder: Path, old: str, new: str) -> None:
    """A counter that is not raised, raised by any image, or given twice: each is seen by what is accepted then."""
    from tests.sealing.mutants import mutated

    def outcomes() -> list[object]:
        (folder / "image").write_bytes(DEVICE)
        (folder / "c").unlink(missing_ok=True)
        found: list[object] = [seal("m1"), seal("m2"), verify("m2")[0], verify("m1")[0]]
        (folder / "image").write_bytes(changed(DEVICE, blocks_of(DEVICE)[1][4] * 4096, b"other"))
        (folder / "c").write_text("1\n")
        found += [verify("m2")[0], kept(folder)]
        (folder / "image").write_bytes(DEVICE)
        return [*found, verify("m2", "--once")[0], verify("m2", "--once")[0], kept(folder)]

    expected = [1, 2, 0, 1, 1, 1, 0, 1, 3]
    assert outcomes() == expected
    with mutated("counters", old, new):
        for name in ("hibernaut.cli.seal", "hibernaut.cli.verify", "hibernaut.cli.seal_options"):
            sys.modules.pop(name, None)
        try:
            assert outcomes() != expected
        finally:
            for name in ("hibernaut.cli.seal", "hibernaut.cli.verify", "hibernaut.cli.seal_options"):
                sys.modules.pop(name, None)
