# SPDX-License-Identifier: GPL-2.0-or-later
"""Failures and signals at each call of each command: one line, an exit status, whole files, nothing left behind."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.cli.run import NEXT, hibernaut, refused
from tests.conftest import REPOSITORY
from tests.crashes.calls import Recorder
from tests.crashes.conftest import Recordings
from tests.crashes.disk import Disk, State
from tests.crashes.scenarios import HIDDEN, SCENARIOS, Recording, Scenario

COMMANDS = [scenario for scenario in SCENARIOS if scenario.words]
FEW = [one for one in COMMANDS if one.name in ("save", "rewrite --in-place", "explore --results, command")]
ERRORS = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS)
SIGNALS = {"SIGINT": (130, "interrupted"), "SIGTERM": (143, "terminated"), "SIGKILL": (-9, "")}


def state_in(folder: Path) -> State:
    """Return the content of a folder."""
    return {
        str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }


def states_of(recording: Recording) -> tuple[State, State]:
    """Return the state before a command and the one after it."""
    disk = Disk(recording.tree)
    before = disk.now()
    for call in recording.calls:
        disk.do(call)
    return before, disk.now()


def verdict(recording: Recording, folder: Path) -> str:
    """Return the verdict on what is in a folder. Raises AssertionError if it is half, or a hidden file is left."""
    before, after = states_of(recording)
    found = state_in(folder)
    assert not [path for path in found if HIDDEN.search(path)]
    constant = recording.scenario.constant
    states = [
        {path: content if content is None else constant(path, content) for path, content in state.items()}
        for state in (before, after, found)
    ]
    told = recording.scenario.judge(*states)
    assert not told.startswith("half"), told
    return told


@pytest.mark.parametrize("scenario", COMMANDS, ids=lambda scenario: scenario.name)
def test_errors_at_each_call(recordings: Recordings, tmp_path: Path, small: Path, scenario: Scenario) -> None:
    """The disk is full, broken, beyond the quota, read-only: one line with the place and the next step, status 2."""
    recording = recordings(scenario.name)
    seen = set()
    for at in range(len(recording.calls)):
        for number in ERRORS if scenario.name == "save" else (ERRORS[at % len(ERRORS)],):
            folder = tmp_path / f"{at}-{number}"
            folder.mkdir()
            scenario.prepare(folder)

            def fail(call: int, at: int = at, number: int = number) -> None:
                if call == at:
                    raise OSError(number, os.strerror(number))

            with Recorder(folder, fail).watching(), scenario.around():
                result = hibernaut(*scenario.command(folder, small))
            context = f"{recording.calls[at]}: {result.err}"
            assert result.status == 2, context
            assert result.out == "", context
            lines = result.err.splitlines()
            assert len(lines) == 1, context
            assert os.strerror(number) in lines[0], context
            assert str(folder) in lines[0], context
            assert NEXT.search(lines[0]), context
            seen.add(verdict(recording, folder))
    assert seen - {"new"}


def jobs(scenario: Scenario, recording: Recording, small: Path, work: Path) -> Iterator[dict[str, object]]:
    """Run a command once for each of its calls and each signal; yield the results."""
    job = {
        "name": scenario.name, "image": str(small), "work": str(work), "signals": list(SIGNALS),
        "calls": len(recording.calls),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "tests.crashes.forks", json.dumps(job)],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        yield json.loads(line)


@pytest.mark.parametrize("scenario", FEW, ids=lambda scenario: scenario.name)
def test_signals_at_each_call(recordings: Recordings, tmp_path: Path, small: Path, scenario: Scenario) -> None:
    """Ctrl-C and SIGTERM: one line, status 130 and 143, nothing left. SIGKILL: nothing is left after the next run."""
    see_signals(recordings(scenario.name), tmp_path, small)


@pytest.mark.parametrize("scenario", [one for one in COMMANDS if one not in FEW], ids=lambda scenario: scenario.name)
def test_signals_at_each_call_of_all_others(
    recordings: Recordings, tmp_path: Path, small: Path, scenario: Scenario
) -> None:
    """The same, of every other command."""
    see_signals(recordings(scenario.name), tmp_path, small)


def see_signals(recording: Recording, tmp_path: Path, small: Path) -> None:
    """Run a command with each signal at each call, and check what it prints and leaves."""
    scenario = recording.scenario
    results = list(jobs(scenario, recording, small, tmp_path))
    assert len(results) == len(SIGNALS) * len(recording.calls)
    for result in results:
        name, at = str(result["signal"]), result["call"]
        status, words = SIGNALS[name]
        folder = tmp_path / f"{name}-{at}" / "folder"
        context = (result, recording.calls[int(str(at))])
        assert result["status"] == status, context
        printed = str(result["printed"])
        if name == "SIGKILL":
            assert printed == "", context
            for path in folder.rglob("*"):
                os.utime(path, (0, 0))
            if scenario.name == "seal-key" and verdict(recording, folder) != "old":  # a key is never replaced
                assert "File exists" in refused(*scenario.command(folder, small))
                continue
            before, after = states_of(recording)
            if scenario.judge(before, after, state_in(folder)) == "none":
                assert "no image" in refused(*scenario.command(folder, small))
            else:
                scenario.run(folder, small)
                assert verdict(recording, folder) == "new", context
            continue
        assert re.fullmatch(
            rf"hibernaut: {words}(; .* now holds (the old image or none|no image|the new image or none))?\n", printed
        ), context
        assert result["temporary"] == [], context
        told = verdict(recording, folder)
        if "now holds" in printed:
            holds = printed.partition(" now holds ")[2].strip()
            assert told in {"the old image or none": ("old", "none"), "no image": ("none",)}.get(
                holds, ("new", "none")
            ), context
        elif "in-place" in scenario.name:
            assert told == "old", context


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"a file system cannot be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


LARGE = [
    one
    for one in COMMANDS
    if one.words[0] in ("save", "rewrite", "convert") and "in-place" not in one.name and "kdump" not in one.name
]
"""Commands whose output does not fit into 64 KiB."""


def test_a_full_and_a_read_only_file_system(small_disk: Path, small: Path) -> None:
    """A real file system of 64 KiB, and then read-only: one line, status 2, the old file as it was, nothing else."""
    (small_disk / "out").write_bytes(b"old")
    for remount, words in ((None, "No space left on device"), ("ro", "Read-only file system")):
        if remount:
            subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
        for scenario in LARGE:
            result = hibernaut(*scenario.command(small_disk, small))
            assert result.status == 2, (scenario.name, result)
            (line,) = result.err.splitlines()
            assert words in line
            assert str(small_disk / ("manifest" if remount and "manifest" in scenario.name else "out")) in line
            assert NEXT.search(line)
            assert state_in(small_disk) == {"out": b"old"}


def test_results_on_a_full_file_system(small_disk: Path) -> None:
    """The sweep ends in one line; resumed with room, it takes the records that were written, and ends as ever."""
    scenario = next(one for one in COMMANDS if one.name == "explore --results, command")
    words = scenario.command(small_disk, small_disk)
    assert hibernaut(*words).status == scenario.status
    whole = (small_disk / "results.jsonl").read_bytes()
    head, *records = whole.splitlines(keepends=True)
    blanks = b" " * (4096 - len(head + records[0]) - len(records[1]) // 2 - 1)
    (small_disk / "results.jsonl").write_bytes(head + records[0][:-1] + blanks + b"\n")  # JSON takes blanks
    filler = small_disk / "filler"
    with filler.open("ab", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass
    result = hibernaut(*words)
    assert result.status == 2
    assert "No space left on device" in result.err
    assert str(small_disk / "results.jsonl") in result.err
    assert len((small_disk / "results.jsonl").read_bytes()) == 4096
    filler.unlink()
    assert hibernaut(*words).status == scenario.status
    assert (small_disk / "results.jsonl").read_bytes().replace(b" ", b"") == whole.replace(b" ", b"")
