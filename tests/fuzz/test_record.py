# SPDX-License-Identifier: GPL-2.0-or-later
"""Executions counted over runs, and the table on docs/reliability.md that is made of them."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hibernaut.swsusp import index_file
from tests.conftest import REPOSITORY
from tests.fuzz import record
from tests.fuzz.notes import Noted, Notes, read_notes
from tests.fuzz.record import HEAD, MILLION, Line, Run, add, digest_of, read_record, reader_files, rows
from tests.fuzz.targets import TARGETS

PAGE = REPOSITORY / "docs" / "reliability.md"


def table_of(page: str) -> str:
    """Return the table of executions of a page, with its head."""
    before, head, rest = page.partition(HEAD)
    assert head, before
    return head + rest[: rest.index("\n\n") + 1]


def test_the_table_is_that_of_the_record() -> None:
    """Each target's executions; HIBERNAUT_UPDATE_DOCS=1 writes them."""
    page = PAGE.read_text()
    wanted = HEAD + rows(read_record())
    if os.environ.get("HIBERNAUT_UPDATE_DOCS"):
        PAGE.write_text(page.replace(table_of(page), wanted))
    assert table_of(PAGE.read_text()) == wanted


def test_another_record_is_another_table() -> None:
    """One execution more is another table: the comparison can fail."""
    found = read_record()
    more = {name: replace(line, guided=line.guided + 1) for name, line in found.items()}
    assert rows(more) != rows(found)


def test_the_record_names_targets_that_exist() -> None:
    """A target that is renamed takes its line along. Executions since the code changed are not more than all."""
    found = read_record()
    assert set(found) <= set(TARGETS)
    for line in found.values():
        assert line.runs > 0
        assert 0 <= line.unchanged <= line.executions
        assert line.cpu_seconds > 0


def test_runs_are_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guided executions and others are added apart. A changed reader begins the count of the present code anew."""
    path = tmp_path / "record"
    add(TARGETS["trace"], Run(5, True, 1.0), path)
    line = add(TARGETS["machine"], Run(100, True, 2.5), path)
    assert line == replace(line, runs=1, guided=100, mutations=0, unchanged=100, cpu_seconds=2.5, seeds=2)
    line = add(TARGETS["machine"], Run(40, False, 0.25), path)
    assert (line.runs, line.guided, line.mutations, line.executions, line.unchanged) == (2, 100, 40, 140, 140)
    assert line.cpu_seconds == 2.75
    assert list(read_record(path)) == ["machine", "trace"]
    assert read_record(path)["machine"] == line
    monkeypatch.setattr(record, "reader_files", lambda _target: [Path(__file__)])
    changed = add(TARGETS["machine"], Run(1, True, 0.1), path)
    assert (changed.executions, changed.unchanged, changed.engine) == (141, 1, line.engine)
    monkeypatch.setattr(record, "ENGINE", (Path(__file__),))
    again = add(TARGETS["machine"], Run(2, True, 0.1), path)
    assert (again.executions, again.unchanged, again.reader) == (143, 2, changed.reader)
    assert read_record(path)["trace"].executions == 5


def test_a_reader_is_the_files_that_its_seeds_enter() -> None:
    """The reader of index files is among those of the target `index`, and not among those of `btf`."""
    index = Path(index_file.__file__)
    assert index in reader_files(TARGETS["index"])
    assert index not in reader_files(TARGETS["btf"])


def test_a_digest_follows_each_file(tmp_path: Path) -> None:
    """Names, contents and their order."""
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("a")
    two.write_text("b")
    digests = {digest_of([one, two]), digest_of([two, one]), digest_of([one])}
    two.write_text("c")
    assert len({*digests, digest_of([one, two])}) == 4


def test_the_goal_is_reached_or_its_time_is_named() -> None:
    """Hours of CPU time by the time of an execution so far."""
    done = Line("machine", guided=MILLION - 1, mutations=1, unchanged=7, cpu_seconds=500.0, seeds=2, files=3)
    part = Line("trace", mutations=MILLION // 2, cpu_seconds=3600.0)
    lines = rows({"machine": done, "trace": part}).splitlines()
    assert "| machine | 1000000 | 999999 | 7 | 0.50 ms | 2 + 3 | reached |" in lines
    assert "| trace | 500000 | 0 | 0 | 7.20 ms | 0 + 0 | 60 min more |" in lines
    assert "| btf | 0 | 0 | 0 | not run | 0 + 0 | not begun |" in lines
    together = "| all | 1500000 | 999999 | 7 | 68 min together | 2 + 3"
    assert lines[-1] == f"{together} | 1 of {len(TARGETS)}, 60 min more |"
    assert "| trace | 500000 | 0 | 0 | 14.40 ms | 0 + 0 | 2.0 h more |" in rows(
        {"trace": replace(part, cpu_seconds=7200.0)}
    )
    assert len(lines) == len(TARGETS) + 1


@pytest.mark.parametrize(
    "line", [{"target": "machine"}, {"target": "machine", "runs": "1"}, {**Line("machine").__dict__, "extra": 1}]
)
def test_a_line_that_is_not_one_of_a_record(tmp_path: Path, line: dict[str, object]) -> None:
    """Missing, wrong and further values are refused, and a target that comes twice."""
    path = tmp_path / "record"
    path.write_text(json.dumps(line) + "\n")
    with pytest.raises(ValueError, match="line 1: not a line of a record"):
        read_record(path)
    path.write_text(2 * (json.dumps(Line("machine").__dict__) + "\n"))
    with pytest.raises(ValueError, match="line 2: not a line of a record"):
        read_record(path)


def test_notes_outlive_a_process(tmp_path: Path) -> None:
    """A process that is killed has left its number of executions and the file that it read last."""
    program = (
        "import os, sys; from pathlib import Path; from tests.fuzz.notes import Notes\n"
        "notes = Notes(Path(sys.argv[1]), guided=True, most_bytes=100)\n"
        "for number in range(7): notes.executed(number, b'file %d' % number); sum(range(2_000_000))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    assert read_notes(tmp_path) == Noted(0, False, 0.0, b"")
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=REPOSITORY, check=False)
    assert done.returncode == -signal.SIGKILL
    noted = read_notes(tmp_path)
    assert noted == Noted(7, True, noted.cpu_seconds, b"file 6")
    assert noted.cpu_seconds > 0
    Notes(tmp_path, guided=False, most_bytes=10)
    assert read_notes(tmp_path) == Noted(0, False, 0.0, b"")


def test_the_command_records_what_the_engine_counted(tmp_path: Path) -> None:
    """Each run has another seed: the same executions are not counted twice. A seed cannot be chosen."""
    program = (
        "import sys; from pathlib import Path; import tests.fuzz.record as record, tests.fuzz.__main__ as command\n"
        "path = Path(sys.argv.pop(1))\n"
        "command.add = lambda target, run: record.add(target, run, path)\n"
        "command.read_record = lambda: record.read_record(path)\n"
        "sys.exit(command.main())\n"
    )
    path, folder = tmp_path / "record", tmp_path / "fuzz"
    words = [sys.executable, "-c", program, str(path), "--folder", str(folder), "--mutations-only", "--record"]
    words += ["--executions", "30", "lzo-rle"]
    last = []
    for total in (30, 60):
        done = subprocess.run(words, capture_output=True, text=True, cwd=REPOSITORY, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == (f"lzo-rle: 30 executions, mutations alone, 0 findings\n  {total} executions recorded\n")
        last.append(read_notes(folder / "lzo-rle").last)
    assert last[0] != last[1]
    line = read_record(path)["lzo-rle"]
    assert (line.runs, line.guided, line.mutations) == (2, 0, 60)
    wrong = subprocess.run([*words, "--seed", "3"], capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert wrong.returncode == 2
    assert "--seed is not to be combined with --record" in wrong.stderr


def test_two_runs_in_one_folder(tmp_path: Path) -> None:
    """The second one is refused: it would take the executions of the first one for its own."""
    (tmp_path / "lzo-rle").mkdir()
    words = [sys.executable, "-m", "tests.fuzz", "--folder", str(tmp_path), "--executions", "5", "lzo-rle"]
    with (tmp_path / "lzo-rle" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run(words, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "lzo-rle: another run of lzo-rle counts its executions there; give another --folder" in done.stderr
    assert read_notes(tmp_path / "lzo-rle").executions == 0
    done = subprocess.run(words, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert done.returncode == 0
    assert read_notes(tmp_path / "lzo-rle").executions == 5
