# SPDX-License-Identifier: GPL-2.0-or-later
"""The file of a sweep: resumed where it was interrupted, and never mistaken for another."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hibernaut.errors import FormatError, HibernautError
from hibernaut.exploration import results
from hibernaut.exploration.records import MachineRecord, WayResult
from hibernaut.exploration.sweep import Progress, run_sweep
from hibernaut.exploration.tally import Tally
from tests.exploration.sweeps import SMALL, open_lines


def test_an_interrupted_sweep_is_resumed(whole: tuple[Path, dict[str, Tally]], tmp_path: Path) -> None:
    """Machines in the file do not run again, that of a torn last line does: nothing is lost or counted twice."""
    lines = open_lines(whole[0])
    for kept in range(1, len(lines)):
        path = tmp_path / f"{kept}.jsonl"
        path.write_text("\n".join(lines[:kept]) + "\n" + lines[kept][: len(lines[kept]) // 2])
        told: list[Progress] = []
        assert run_sweep(SMALL, path, processes=1, progress=told.append) == whole[1]
        assert [one.machines for one in told] == list(range(kept - 1, 6))
        assert sorted(open_lines(path)) == sorted(lines)


def test_a_record_that_is_there_twice_counts_once(whole: tuple[Path, dict[str, Tally]], tmp_path: Path) -> None:
    """Two lines of one machine, and one of a machine that the family does not have: counted once, and not at all."""
    lines = open_lines(whole[0])
    path = tmp_path / "twice.jsonl"
    foreign = json.dumps({**json.loads(lines[1]), "unit": [1, 1, 1, 1, 1, 1]})
    path.write_text("\n".join([*lines, lines[2], foreign]) + "\n")
    assert run_sweep(SMALL, path, processes=1) == whole[1]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("not a sweep\n", "not a file of a sweep's results"),
        ('{"format": "hibernaut sweep", "version": 1, "sweep": {}}\n', "results of another sweep"),
    ],
)
def test_another_file_is_left_alone(tmp_path: Path, content: str, what: str) -> None:
    """A file that is something else is refused and not touched."""
    path = tmp_path / "other"
    path.write_text(content)
    with pytest.raises(FormatError, match=what):
        run_sweep(SMALL, path, processes=1)
    assert path.read_text() == content


def test_a_damaged_line_is_named(whole: tuple[Path, dict[str, Tally]], tmp_path: Path) -> None:
    """A whole line that is not a record: refused, with its number."""
    path = tmp_path / "damaged.jsonl"
    path.write_text("\n".join([*open_lines(whole[0]), "{}"]) + "\n")
    with pytest.raises(FormatError, match="line 7 is not a record of this sweep: unit is missing"):
        run_sweep(SMALL, path, processes=1)


def _with(field: str, value: Any) -> Callable[[dict[str, Any]], bytes]:
    """Return a function that makes the line of a record in which a field of its first ending has another value."""

    def made(record: dict[str, Any]) -> bytes:
        way = record["ways"]["remap"]
        holder = next(one for one in (record, way, way["endings"][0]) if field in one)
        holder[field] = value
        return json.dumps(record).encode()

    return made


def _without(field: str) -> Callable[[dict[str, Any]], bytes]:
    def made(record: dict[str, Any]) -> bytes:
        del record["ways"]["remap"][field]
        return json.dumps(record).encode()

    return made


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (lambda _record: b"[" * 100_000, "nested too deeply"),
        (lambda _record: b'{"unit": "\xff\xfe"}', "can't decode byte"),
        (lambda _record: b"[]", "is not an object"),
        (lambda _record: b"{", "Expecting"),
        (_without("runs"), "ways remap runs is missing"),
        (_with("runs", "1"), "runs is not a number"),
        (_with("runs", True), "runs is not a number"),
        (_with("deviations", -1), "deviations is not a number"),
        (_with("states", 1 << 80), "states is not a number"),
        (_with("cut", 3), "cut is not a string"),
        (_with("endings", {}), "endings is not a list"),
        (_with("outcome", "fled"), "outcome is none of saved, refused, died"),
        (_with("warned", 1), "warned is neither true nor false"),
        (_with("violated", "same-data"), "violated is not a list"),
        (_with("death", "\ud800"), "death is not Unicode text"),
        (_with("choices", [1.5]), "choices has an element that is not a number"),
        (_with("unit", None), "unit is not a list"),
        (_with("regions", [1]), "regions has an element that is not a string"),
        (_with("ways", []), "ways is not an object"),
        (_with("ways", {}), "ways are none, not fixmap, remap"),
    ],
)
def test_each_damage_of_a_line_is_named(
    whole: tuple[Path, dict[str, Tally]], tmp_path: Path, line: Callable[[dict[str, Any]], bytes], words: str
) -> None:
    """A line of another shape: refused with its number and field, and the file stays as it was."""
    lines = open_lines(whole[0])
    path = tmp_path / "damaged.jsonl"
    content = "\n".join(lines[:2]).encode() + b"\n" + line(json.loads(lines[2])) + b"\n"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=f"line 3 is not a record of this sweep: .*{words}"):
        run_sweep(SMALL, path, processes=1)
    assert path.read_bytes() == content


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    """A FIFO has no results to resume from, and opening one waits for its other end."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(FormatError, match="not a regular file"):
        run_sweep(SMALL, path, processes=1)


@pytest.mark.parametrize("zeroes", [range(40), range(40, 80), range(500, 510), range(0)])
def test_an_end_that_reads_as_zeroes_is_dropped(
    whole: tuple[Path, dict[str, Tally]], tmp_path: Path, zeroes: range
) -> None:
    """After a loss of power, parts of the last lines may be zero, also before lines that are whole."""
    lines = open_lines(whole[0])
    path = tmp_path / "zeroes.jsonl"
    content = bytearray("".join(f"{line}\n" for line in lines).encode())
    end = len("".join(f"{line}\n" for line in lines[:3]).encode())
    for at in zeroes:
        content[end + at] = 0
    path.write_bytes(content + bytes(700))
    assert run_sweep(SMALL, path, processes=1) == whole[1]
    assert sorted(open_lines(path)) == sorted(lines)


def test_a_file_that_another_process_writes_is_refused(whole: tuple[Path, dict[str, Tally]], tmp_path: Path) -> None:
    """Two sweeps that append to one file: the second one is refused before it cuts a line that the first one writes."""
    path = tmp_path / "shared.jsonl"
    path.write_text("\n".join(open_lines(whole[0])) + '\n{"unit":')
    before = path.read_bytes()
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(HibernautError, match=r"another process writes its results there; give another --results"):
            run_sweep(SMALL, path, processes=1)
    assert path.read_bytes() == before
    assert run_sweep(SMALL, path, processes=1) == whole[1]


def test_long_machines_are_synced_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sync comes after so many records, or after so much work."""
    monkeypatch.setattr(results, "SYNC_RECORDS", 3)
    synced: list[int] = []
    path = tmp_path / "results.jsonl"
    with results.ResultsFile(SMALL, path) as file:
        monkeypatch.setattr(results, "sync", lambda _fd: synced.append(len(open_lines(path)) - 1))
        for number, steps in enumerate((1, 1, 1, 1, results.SYNC_STEPS, 1)):
            way = WayResult(1, 1, steps, None, ())
            file.write(MachineRecord((number,), (), (), {"remap": way}))
    assert synced == [3, 5, 6]
