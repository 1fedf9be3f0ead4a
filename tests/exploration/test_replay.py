# SPDX-License-Identifier: GPL-2.0-or-later
"""Saved runs: complete files whose replays are identical, byte for byte."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hibernaut.errors import FormatError, HibernautError
from hibernaut.exploration.families import Family
from hibernaut.exploration.fingerprint import fingerprint
from hibernaut.exploration.layouts import RegionKind
from hibernaut.exploration.operations import Operation, operations_of
from hibernaut.exploration.play import FamilyMachine, Played, SourceMachine, Written, play
from hibernaut.exploration.replay import read_run, replay, run_document, run_text, write_run
from hibernaut.hibernation.source_machine import machine_from_memory
from hibernaut.linux.build import build_machine
from hibernaut.linux.environment import Replay
from hibernaut.linux.machine import Machine

FAMILY = Family(regions=(1,), kinds=(RegionKind.BLOCK,))
MACHINE = FamilyMachine(FAMILY, (0, 0, 0, 0, 0, 0, 0, 0, 0, 0))


def remap(choices: tuple[int, ...] = (1,)) -> Written:
    """Return a run by remap on the machine of `MACHINE`, not yet played."""
    return Written(MACHINE, "6.1", operations_of(MACHINE.chosen()[0], "remap"), choices)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A saved run."""
    path = tmp_path / "run.json"
    write_run(path, play(remap()))
    return path


def test_the_file_reads_like_a_log(saved: Path) -> None:
    """Schedule, the injected failure, the kernel's messages, the outcome."""
    found = json.loads(saved.read_text())
    assert found["schedule"][-1] == "allocation 1 fails: injected"
    assert found["schedule"][0] == "region 1: 2 MiB not present, as one entry"
    assert found["injected"] == ["allocation 1 fails: injected"]
    assert "PM: hibernation: Failed to remap page" in found["log"]
    assert (found["outcome"], found["violated"], found["warned"]) == ("died", ["no-fault"], True)


def test_a_run_without_failure_reports_none() -> None:
    """The report always has the injected failures: here none."""
    assert run_document(play(remap(())))["injected"] == ["nothing"]


def test_it_replays_byte_for_byte(saved: Path) -> None:
    """The replay is identical to the file; a changed byte anywhere in the outcome is reported."""
    played, difference = replay(saved)
    assert difference is None
    assert run_text(played) == saved.read_text()
    saved.write_text(saved.read_text().replace("Failed to remap", "Succeeded to remap"))
    assert "Succeeded to remap" in str(replay(saved)[1])


def test_it_ends_as_another_way_would(saved: Path) -> None:
    """With the way exchanged for fixmap the choices do not fit: nothing is asked there."""
    found = json.loads(saved.read_text())
    found["operations"][0]["way"] = "fixmap"
    saved.write_text(json.dumps(found))
    with pytest.raises(HibernautError, match="asks for 0 choices"):
        replay(saved)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "something"},
        {"version": 2},
        {"machine": {}},
        {"machine": {"family": {}, "unit": [9]}},
        {"machine": {"family": {"regions": [1]}, "unit": []}},
        {"rules": "2.4"},
        {"rules": 6.1},
        {"operations": {}},
        {"operations": [{"do": "fly"}]},
        {"operations": [{"do": "hibernate", "way": "fly"}]},
        {"operations": [{"do": "alloc", "pages": 1 << 30}]},
        {"operations": [{"do": "alloc", "cpu": 3}]},
        {"operations": [{"do": "alloc", "pages": True}]},
        {"operations": [{"do": "alloc"}] * 1001},
        {"choices": [-1]},
        {"choices": [2]},
        {"choices": "0"},
        {"choices": [0] * 50},
    ],
)
def test_a_damaged_file_is_refused(saved: Path, change: dict[str, Any]) -> None:
    """Any damage gives one error of ours, no other."""
    saved.write_text(json.dumps({**json.loads(saved.read_text()), **change}))
    with pytest.raises(HibernautError):
        replay(saved)


@given(st.data())
def test_a_file_with_a_missing_part(data: st.DataObject) -> None:
    """Any field missing, or of another kind: an error of ours, or the difference."""
    found = run_document(play(remap()))
    key = data.draw(st.sampled_from(sorted(found)))
    junk = st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=3)
    value = data.draw(junk | st.dictionaries(st.text(max_size=3), junk, max_size=2))
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(HibernautError):
        path = Path(folder) / "run.json"
        path.write_text(json.dumps({**found, key: value}))
        replay(path)


@pytest.mark.parametrize("content", [b"", b"[1]", b"\xff\xfe", b"[" * 100_000, b"{}"])
def test_files_that_are_not_a_run_are_refused(tmp_path: Path, content: bytes) -> None:
    """Not JSON, not UTF-8, endless nesting, another document."""
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises(FormatError, match="not a saved run"):
        read_run(path)


def source(kind: int) -> Machine:
    """Return a machine on the memory of a simulated one, with one region of a kind."""
    built = build_machine(Family().choose(Replay([1, kind, 0])).layout)
    return machine_from_memory(built.memory, built.cr3, saveable=built.memory.ranges.lowest(0x9F))


def test_a_run_on_a_source_needs_that_source(tmp_path: Path) -> None:
    """It is known by its page tables, list and free frames; another one is refused, and so is none."""
    machine = source(1)
    written = Written(
        SourceMachine("dump.elf", fingerprint(machine)), "6.1", (Operation("hibernate", way="remap"),), ()
    )
    played: Played = play(written, machine)
    path = tmp_path / "run.json"
    write_run(path, played)
    assert replay(path, lambda *_: machine)[1] is None
    with pytest.raises(HibernautError, match="give that file"):
        replay(path)
    other = source(2)
    with pytest.raises(HibernautError, match="another machine"):
        replay(path, lambda *_: other)


def test_the_sentences_of_a_file_do_not_change(saved: Path) -> None:
    """A file counts "1 pages", as every file did before: one that was saved then replays byte for byte."""
    found = json.loads(saved.read_text())
    (violation,) = replay(saved).played.run.violations
    assert str(violation).endswith(": 1 page from frame 0x40000")
    assert found["findings"] == [f"{violation}".replace("1 page ", "1 pages ")]


@pytest.mark.parametrize(
    ("operations", "words"),
    [
        ([{"do": "set_memory_4k", "pfn": 262_656, "pages": 262_144}], "out of all bounds"),
        ([{"do": "set_memory_np", "pages": 40_000}] * 2, "operations are of 80000 pages, more than 65536"),
        ([{"do": "hibernate", "way": "remap"}] * 5, "hibernates more than 4 times"),
    ],
)
def test_a_run_that_asks_for_hours_is_refused(saved: Path, operations: list[dict[str, Any]], words: str) -> None:
    """Refused before it starts: each page can become a hole, and each hole is copied by itself."""
    saved.write_text(json.dumps({**json.loads(saved.read_text()), "operations": operations}))
    with pytest.raises(FormatError, match=words):
        replay(saved)


def test_a_pipe_is_not_a_saved_run(tmp_path: Path) -> None:
    """A FIFO without a writer would be waited for."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(FormatError, match="not a regular file"):
        replay(path)
