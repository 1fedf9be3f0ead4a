# SPDX-License-Identifier: GPL-2.0-or-later
"""The file of a sweep: resumed where it was interrupted, and never mistaken for another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hibernaut.errors import FormatError
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
    with pytest.raises(FormatError, match="line 7 is not a record"):
        run_sweep(SMALL, path, processes=1)
