# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands of the laboratory without a guest: dry runs, refusals, missing programs."""

from __future__ import annotations

import importlib.util
import shlex
import sys
from pathlib import Path

import pytest

from hibernaut.lab.host import programs
from hibernaut.lab.host.kernels import GuestKernel
from hibernaut.lab.laboratory import Lab
from tests.cli.run import hibernaut, refused
from tests.lab.records import RECORD


@pytest.mark.parametrize(
    "words",
    [
        ("boot",), ("hibernate", "DIR"), ("hibernate", "DIR", "--dump-before", "--variant", "la57"), ("dump", "OUT"),
        ("golden", "DIR"), ("prove", "--kernel", "6.12"),
    ],
)  # fmt: skip
def test_dry_run_prints_the_command_and_touches_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    """Not even QEMU or a kernel need be there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HIBERNAUT_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(programs, "SYSTEM_FOLDERS", ())
    result = hibernaut("lab", *words, "--dry-run")
    assert result.status == 0, result.err
    command = shlex.split(result.out)
    assert command[:4] == ["setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64"]
    assert "-no-reboot" in command
    assert "panic=-1" in command[command.index("-append") + 1]
    assert not any("tcp" in word or "hostfwd" in word for word in command)
    assert ("max" in command) is ("la57" in words)
    assert list(tmp_path.iterdir()) == []


def test_takeover_and_resume_have_a_dry_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--dry-run prints QEMU's command line and starts nothing."""
    monkeypatch.chdir(tmp_path)
    assert "chardev:gdb" in hibernaut("takeover", "--dry-run").out
    RECORD.save(tmp_path)
    (tmp_path / "swap.img").touch()
    (tmp_path / "spare.img").touch()
    assert f"{tmp_path}/swap.img" in hibernaut("lab", "resume", tmp_path, "--dry-run").out


def test_without_qemu_the_line_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any command that needs a program that is not here: one line, status 2; and the doctor names all of them."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(programs, "SYSTEM_FOLDERS", ())
    line = refused("lab", "boot", "--cache", tmp_path / "cache")
    assert "is not installed" in line
    assert "apt-get install" in line
    result = hibernaut("lab", "doctor", "--json")
    assert result.status == 1
    assert result.document["ready"] is False
    (first, *_) = result.document["cures"]
    for package in ("qemu-system-x86", "busybox-static", "gcc", "e2fsprogs"):
        assert package in first.split()


@pytest.mark.parametrize("name", ["capstone", "drgn"])
def test_without_the_extra_nothing_is_booted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A takeover that could not end does not begin."""
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted, *_: None if wanted == name else real(wanted))
    monkeypatch.setattr(
        "hibernaut.cli.lab.options.LabOptions.lab", lambda _: Lab(GuestKernel("6.1", "6.1.0", tmp_path, tmp_path))
    )
    line = refused("takeover")
    assert f"{name} is not installed" in line
    assert line.endswith(f"try: {sys.executable} -m pip install capstone drgn")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("boot", "--kernel", "5.4"), "no kernel line '5.4'"),
        (("boot", "--variant", "x"), "no guest variant 'x'"),
        (("boot", "--accel", "xen"), "expected tcg, kvm, auto"),
        (("boot", "--kernel", "no-such-vmlinuz", "--modules", "x"), "No such file or directory: no-such-vmlinuz"),
        (("boot", "--modules", "x"), "needs a kernel of your own"),
        (("resume", "nowhere"), "No such file"),
        (("prove", "--case", "nothing like it"), "no case matches"),
        (("prove", "--write", "no/such/folder"), "no/such is not a folder"),
        (("boot", "--region", "3m:above"), "unknown region '3m:above'; expected 2m:above"),
    ],
)
def test_wrong_words(words: tuple[str, ...], said: str) -> None:
    """Wrong options are usage errors that say which."""
    result = hibernaut("lab", *words)
    assert result.status == 2
    assert said in unwrapped(result.err)
    assert "Traceback" not in result.err


def unwrapped(text: str) -> str:
    """A message out of its box, in one line."""
    return " ".join(text.replace("│", " ").split())


def test_existing_files_are_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest's disks overwrite nothing."""
    (tmp_path / "mine").write_text("precious")
    monkeypatch.setattr("hibernaut.cli.lab.options.LabOptions.lab", lambda *_: None)
    for words, said in [
        (("lab", "hibernate", tmp_path), "is not empty"),
        (("lab", "prove", "--keep", tmp_path), "is not empty"),
        (("takeover", "--keep", tmp_path), "is not empty"),
        (("lab", "dump", tmp_path / "mine"), "already exists"),
    ]:
        result = hibernaut(*words)
        assert result.status == 2
        assert said in unwrapped(result.err)
    assert (tmp_path / "mine").read_text() == "precious"
    assert list(tmp_path.iterdir()) == [tmp_path / "mine"]
