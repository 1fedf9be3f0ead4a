# SPDX-License-Identifier: GPL-2.0-or-later
"""Fuzz readers: `python -m tests.fuzz [TARGET ...]`, or `make fuzz`. Findings end with status 1."""

from __future__ import annotations

import argparse
import fcntl
import subprocess
import sys
from pathlib import Path

from tests.fuzz.distil import distil
from tests.fuzz.engine import Arena, Finding, keep, minimised
from tests.fuzz.notes import read_notes
from tests.fuzz.record import MILLION, Line, Run, add, read_record
from tests.fuzz.targets import TARGETS

__all__ = ["main"]

SPARE_SECONDS = 300
"""Seconds beyond its time after which a target's process is ended."""


def main() -> int:
    """Fuzz the targets one after another and print a line for each. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"default: all of {', '.join(TARGETS)}")
    parser.add_argument("--seconds", type=int, default=60, help="time for each target (default: 60)")
    parser.add_argument("--executions", type=int, default=MILLION, help="most executions of each (default: 10^6)")
    parser.add_argument("--seed", type=int, help="of the mutations (default: 1; with --record, the number of the run)")
    parser.add_argument("--record", action="store_true", help="add the executions to tests/fuzz/executions.jsonl")
    parser.add_argument("--mutations-only", action="store_true", help="without coverage, even if atheris is installed")
    parser.add_argument("--folder", type=Path, default=Path("build/fuzz"), help="of the results (default: build/fuzz)")
    parser.add_argument("--distil", action="store_true", help="put what reaches new code into tests/fuzz/corpus")
    asked = parser.parse_args()
    unknown = sorted(set(asked.targets) - set(TARGETS))
    if unknown:
        parser.error(f"no target {unknown[0]}; expected: {', '.join(TARGETS)}")
    if asked.record and asked.seed is not None:
        parser.error("--seed is not to be combined with --record, which takes another seed for each run")
    found = 0
    for name in asked.targets or TARGETS:
        found += _target(name, asked)
    return 1 if found else 0


def _target(name: str, asked: argparse.Namespace) -> int:
    """Fuzz one target in a process of its own; returns the number of findings."""
    folder = (asked.folder / name).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / "lock").open("w")  # until this function ends
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        message = f"{folder}: another run of {name} counts its executions there; give another --folder"
        print(message, file=sys.stderr)  # noqa: T201
        sys.exit(2)
    (folder / "notes").unlink(missing_ok=True)
    seed = asked.seed or 1
    if asked.record:
        seed = read_record().get(name, Line(name)).runs + 1
    words = [sys.executable, "-m", "tests.fuzz.guided", name, str(folder), "--seconds", str(asked.seconds)]
    words += ["--executions", str(asked.executions), "--seed", str(seed)]
    if asked.mutations_only:
        words.append("--mutations-only")
    ended: str | None = None
    try:
        done = subprocess.run(words, capture_output=True, timeout=asked.seconds + SPARE_SECONDS, check=False)
        if done.returncode:
            ended = f"exit status {done.returncode}: " + done.stderr.decode(errors="replace")[-600:]
    except subprocess.TimeoutExpired:
        ended = "no end"
    noted = read_notes(folder)
    findings = [] if ended is None else [Finding(name, noted.last, f"process ended: {ended}")]
    with Arena(TARGETS[name]) as arena:
        for path in sorted(folder.glob("found/*.txt")):
            data = path.with_suffix("").read_bytes()
            again = arena.execute(data)
            if again is not None:
                findings.append(minimised(arena, again))
            else:
                findings.append(Finding(name, data, f"{path.read_text().strip()}, not again in another process"))
    run = Run(noted.executions, noted.guided, noted.cpu_seconds)
    how = "guided by coverage" if noted.guided else "mutations alone"
    print(f"{name}: {noted.executions} executions, {how}, {len(findings)} findings", flush=True)  # noqa: T201
    if asked.record and noted.executions:
        print(f"  {add(TARGETS[name], run).executions} executions recorded", flush=True)  # noqa: T201
    for finding in findings:
        path = keep(folder, finding.name, finding.data)
        print(f"  {finding.message}\n  {path}", flush=True)  # noqa: T201
    if asked.distil:
        print(f"  {distil(TARGETS[name], folder / 'corpus')} files in its corpus", flush=True)  # noqa: T201
    return len(findings)


if __name__ == "__main__":
    sys.exit(main())
