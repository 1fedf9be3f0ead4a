# SPDX-License-Identifier: GPL-2.0-or-later
"""Executions counted over runs, in `executions.jsonl`: a line a target, which `make fuzz RECORD=1` adds to.

The numbers are those of the engine. An execution counts whatever is changed later, and those since the engine or the
reader was changed last are counted apart: the reader is all files of the library that reading the target's seeds
enters, the engine the files beside this one that make, repair and run a mutation.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from tests.fuzz.distil import lines_of
from tests.fuzz.engine import Arena, corpus_of
from tests.fuzz.targets import TARGETS, Target

__all__ = ["HEAD", "MILLION", "RECORD", "Line", "Run", "add", "digest_of", "read_record", "reader_files", "rows"]

RECORD = Path(__file__).with_name("executions.jsonl")
MILLION = 10**6
ENGINE = tuple(Path(__file__).with_name(f"{name}.py") for name in ("engine", "guided", "mend", "mutate", "targets"))
TRACED_SECONDS = 60
HEAD = (
    "| target | executions | guided by coverage | since the code changed | CPU time of each | corpus | 10^6 |\n"
    "|---|---|---|---|---|---|---|\n"
)


@dataclass(frozen=True)
class Run:
    """One run of a target, as the engine counted it.

    Attributes:
        executions: number of executions.
        guided: whether coverage guided them.
        cpu_seconds: CPU time of executions and mutations, without the start of the process.
    """

    executions: int
    guided: bool
    cpu_seconds: float


@dataclass(frozen=True)
class Line:
    """All recorded runs of a target.

    Attributes:
        target: name of the target.
        runs: number of runs. Each has its own seed of the mutations, its number.
        guided: executions guided by coverage.
        mutations: executions of mutations alone.
        unchanged: executions since the engine or the reader was changed last.
        cpu_seconds: CPU time of executions and mutations in all runs.
        seeds: number of seeds in the last run.
        files: number of files in the corpus in the last run.
        engine: digest of the engine in the last run.
        reader: digest of the reader in the last run.
    """

    target: str
    runs: int = 0
    guided: int = 0
    mutations: int = 0
    unchanged: int = 0
    cpu_seconds: float = 0.0
    seeds: int = 0
    files: int = 0
    engine: str = ""
    reader: str = ""

    @property
    def executions(self) -> int:
        """Number of all executions."""
        return self.guided + self.mutations

    def after(self, run: Run) -> Line:
        """Return the line with one more run, of the same code."""
        return replace(
            self,
            runs=self.runs + 1,
            guided=self.guided + (run.executions if run.guided else 0),
            mutations=self.mutations + (0 if run.guided else run.executions),
            unchanged=self.unchanged + run.executions,
            cpu_seconds=round(self.cpu_seconds + run.cpu_seconds, 3),
        )


def read_record(path: Path = RECORD) -> dict[str, Line]:
    """Return the lines by target; none if the file does not exist.

    Raises:
        ValueError: a line is not one of this record, or a target has two.
    """
    found: dict[str, Line] = {}
    for number, text in enumerate(path.read_text().splitlines() if path.exists() else (), 1):
        values = json.loads(text)
        kinds = {field.name: type(field.default) if field.name != "target" else str for field in fields(Line)}
        if {name: type(value) for name, value in values.items()} != kinds or values["target"] in found:
            raise ValueError(f"{path}, line {number}: not a line of a record of executions")
        found[values["target"]] = Line(**values)
    return found


def add(target: Target, run: Run, path: Path = RECORD) -> Line:
    """Add a run to the record and return the target's line. Runs of several processes can be added at once."""
    engine, reader = digest_of(ENGINE), digest_of(reader_files(target))
    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = read_record(path)
        line = found.get(target.name, Line(target.name))
        if (line.engine, line.reader) != (engine, reader):
            line = replace(line, engine=engine, reader=reader, unchanged=0)
        line = replace(line.after(run), seeds=len(target.seeds()), files=len(corpus_of(target)))
        found[target.name] = line
        order = list(TARGETS)
        lines = sorted(found.values(), key=lambda one: order.index(one.target))
        path.write_text("".join(json.dumps(asdict(one)) + "\n" for one in lines))
        os.fsync(lock.fileno())
    return line


def reader_files(target: Target) -> list[Path]:
    """Return the files of the library that reading the seeds of a target enters."""
    with Arena(target, seconds=TRACED_SECONDS) as arena:
        return sorted({Path(name) for data in target.seeds().values() for name, _ in lines_of(arena, data)})


def digest_of(paths: Iterable[Path]) -> str:
    """Return a digest of the names and contents of files: 12 digits."""
    whole = hashlib.sha256()
    for path in paths:
        whole.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()[:12]


def rows(record: dict[str, Line]) -> str:
    """Return the rows of the table in docs/reliability.md, and one of all targets together."""
    lines = [record.get(name, Line(name)) for name in TARGETS]
    reached = sum(line.executions >= MILLION for line in lines)
    guided, unchanged = sum(line.guided for line in lines), sum(line.unchanged for line in lines)
    executions, seconds = sum(line.executions for line in lines), sum(line.cpu_seconds for line in lines)
    files = f"{sum(line.seeds for line in lines)} + {sum(line.files for line in lines)}"
    goal = f"{reached} of {len(lines)}"
    if reached < len(lines):
        goal += f", {_time(sum(map(_seconds_left, lines)))} more"
    together = f"{executions} | {guided} | {unchanged} | {_time(seconds)} together | {files} | {goal}"
    return "".join(map(_row, lines)) + f"| all | {together} |\n"


def _row(line: Line) -> str:
    each, goal = "not run", "not begun"
    if line.executions:
        each = f"{line.cpu_seconds / line.executions * 1000:.2f} ms"
        goal = f"{_time(_seconds_left(line))} more" if line.executions < MILLION else "reached"
    return (
        f"| {line.target} | {line.executions} | {line.guided} | {line.unchanged} | {each} | "
        f"{line.seeds} + {line.files} | {goal} |\n"
    )


def _seconds_left(line: Line) -> float:
    """Return the CPU time of the executions that the goal lacks at the speed so far; 0 without an execution."""
    left = max(MILLION - line.executions, 0)
    return left * line.cpu_seconds / line.executions if line.executions else 0.0


def _time(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 7200 else f"{seconds / 60:.0f} min"
