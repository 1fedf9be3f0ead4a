# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut lab judge` without a guest: lists, configurations, and the exit statuses that `git bisect run` reads."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hibernaut.errors import LabError, LabUnavailable
from hibernaut.lab.host.kernels import GuestKernel
from hibernaut.lab.laboratory import Lab
from hibernaut.lab.trial.configuration import NEEDS
from hibernaut.lab.trial.findings import Finding, Word
from hibernaut.lab.trial.situations import CONTROL, SITUATIONS
from hibernaut.lab.trial.trial import Tried
from hibernaut.report.judge import CONTROL_CASE
from tests.cli.run import hibernaut, refused

BY_NAME = {one.name: one for one in SITUATIONS}
WORDS = {"c": Word.CURED, "n": Word.NOT_CURED, "x": Word.NOT_EXERCISED, "u": Word.UNCLEAR}


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Tried]:
    """Results of the trial that the command runs; a test fills them."""
    made: list[Tried] = []

    def tried(*_: Any, **__: Any) -> Iterator[Tried]:
        return iter(made)

    kernel = GuestKernel("6.1", "6.1.0-1-amd64", tmp_path / "vmlinuz", tmp_path)
    monkeypatch.setattr("hibernaut.cli.lab.judge.try_kernel", tried)
    monkeypatch.setattr("hibernaut.cli.lab.judge.program", str)
    monkeypatch.setattr("hibernaut.cli.lab.options.LabOptions.lab", lambda _: Lab(kernel))
    return made


def outcomes(words: str) -> list[Tried]:
    """Return results: the control, 4k, 4k-twice, ... with a letter each."""
    return [
        Tried(situation, Finding(WORDS[word], ("why",), ("BUG: x",)), 1, 2.6)
        for situation, word in zip(SITUATIONS, words, strict=False)
    ]


@pytest.mark.parametrize(
    ("words", "options", "status"),
    [
        ("ccc", (), 0),
        ("ccx", (), 0),
        ("cnc", (), 1),
        ("cnu", (), 1),
        ("ccu", (), 125),
        ("cx", (), 125),
        ("ncc", (), 125),
        ("ccc", ("--bisect-for", "stock"), 1),
        ("cnc", ("--bisect-for", "stock"), 0),
        ("ccu", ("--bisect-for", "stock"), 125),
        ("ccc", ("--expect", "cured"), 0),
        ("cnc", ("--expect", "cured"), 1),
        ("cnn", ("--expect", "stock"), 0),
        ("cnx", ("--expect", "stock"), 0),
        ("cnc", ("--expect", "stock"), 1),
        ("ccu", ("--expect", "stock"), 125),
    ],
)
def test_the_exit_status_is_the_verdict(
    results: list[Tried], words: str, options: tuple[str, ...], status: int
) -> None:
    """0 is good, 1 bad, 125 cannot be judged: `git bisect run` skips it."""
    results += outcomes(words)
    result = hibernaut("lab", "judge", *options)
    assert result.status == status, result.out + result.err
    assert hibernaut("lab", "judge", *options, "--json").document["verdict"] in result.out


def test_the_control_passes_or_fails(results: list[Tried]) -> None:
    """Nothing is out of the direct map in it, so nothing is cured; the document has the same words for every case."""
    assert CONTROL.name == CONTROL_CASE
    results += outcomes("cc")
    said = hibernaut("lab", "judge").out
    assert re.search(r"^plain \(.*\): passes$", said, re.MULTILINE)
    assert re.search(r"^4k \(.*\): cured$", said, re.MULTILINE)
    results[:] = outcomes("nc")
    said = hibernaut("lab", "judge").out
    assert re.search(r"^plain \(.*\): fails$", said, re.MULTILINE)
    assert "cannot judge: the control does not pass" in said


def test_the_document(results: list[Tried]) -> None:
    """Kernel, control, situations with their reasons and the kernel's words, verdict."""
    results += outcomes("cn")
    document = hibernaut("lab", "judge", "--json").document
    assert document["verdict"] == "not cured"
    assert document["why"] == "4k: why"
    assert document["control"] is True
    assert document["configuration"] is None
    assert document["cases"][1] == {
        "case": "4k",
        "what": BY_NAME["4k"].what,
        "verdict": "not cured",
        "why": ["why"],
        "kernel_lines": ["BUG: x"],
        "tries": 1,
        "seconds": 3,
    }


@pytest.mark.parametrize(
    "words",
    [
        ("--case", "nothing"),
        ("--fly",),
        ("--expect", "good"),
        ("--tree", "nowhere", "--modules", "x"),
        ("--tries", "0"),
    ],
)
def test_a_wrong_command_line_ends_a_bisection(words: tuple[str, ...]) -> None:
    """With 2, git would take every commit for bad."""
    assert hibernaut("lab", "judge", *words).status == 255


def test_a_machine_without_qemu_ends_a_bisection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not the kernel that cannot be judged."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("hibernaut.lab.host.programs.SYSTEM_FOLDERS", ())
    assert "is not installed" in refused("lab", "judge", status=255)


@pytest.mark.parametrize("error", [LabUnavailable("no headers", cure="--module KO"), LabError("QEMU ended")])
def test_a_kernel_that_cannot_be_tried_is_skipped(monkeypatch: pytest.MonkeyPatch, error: LabError) -> None:
    """One line says why."""

    def fails(_: Any) -> Lab:
        raise error

    monkeypatch.setattr("hibernaut.cli.lab.judge.program", str)
    monkeypatch.setattr("hibernaut.cli.lab.options.LabOptions.lab", fails)
    result = hibernaut("lab", "judge")
    assert result.status == 125
    assert result.err.splitlines() == [f"hibernaut: {error}"]


def test_existing_files_stay(tmp_path: Path) -> None:
    """A folder with files in it is not used for disks."""
    (tmp_path / "mine").touch()
    assert "is not empty" in refused("lab", "judge", "--keep", tmp_path, status=255)


def test_needs_of_a_configuration(tmp_path: Path) -> None:
    """The fragment is a configuration that lacks nothing; of another one every lack is named with its reason."""
    (tmp_path / "fragment").write_text(hibernaut("lab", "judge", "--config").out)
    result = hibernaut("lab", "judge", "--check-config", tmp_path / "fragment")
    assert (result.status, result.out) == (0, f"{tmp_path}/fragment has all that a trial needs\n")
    (tmp_path / "empty").write_text("CONFIG_64BIT=y\n")
    result = hibernaut("lab", "judge", "--check-config", tmp_path / "empty")
    assert result.status == 1
    assert len(result.out.splitlines()) == len(NEEDS) - 1
    assert "CONFIG_KFENCE" in result.out
    document = hibernaut("lab", "judge", "--check-config", tmp_path / "empty", "--json").document
    assert document["options"][0]["option"] == "CONFIG_HIBERNATION"
    assert len(hibernaut("lab", "judge", "--config", "--json").document["options"]) == len(NEEDS)


def test_the_page_of_several_kernels(results: list[Tried], tmp_path: Path) -> None:
    """Each kernel is a column, by its release; a newer verdict replaces that of the same name."""
    page = tmp_path / "judged.md"
    for name, words in (("6.12 stock", "cnn"), ("6.1 cured", "ccc"), ("6.1 stock", "cnn"), ("6.1 stock", "cnx")):
        results[:] = outcomes(words)
        hibernaut("lab", "judge", "--write", page, "--name", name)
    text = page.read_text()
    assert "| case | 6.1 stock | 6.1 cured | 6.12 stock |" in text
    assert "| 4k-twice | not exercised | cured | not cured |" in text
    assert "| **verdict** | **not cured** | **cured** | **not cured** |" in text
    (tmp_path / "judged" / "notes.json").write_text("[]")
    assert "not a verdict on a kernel" in refused("lab", "judge", "--write", page, status=255)
    assert page.read_text() == text
    assert "is not a folder" in refused("lab", "judge", "--write", tmp_path / "no" / "page", status=255)


def test_the_cases_are_listed() -> None:
    """By name, with what they are."""
    listed = hibernaut("lab", "judge", "--list").out.splitlines()
    assert [line.split()[0] for line in listed] == list(BY_NAME)
