# SPDX-License-Identifier: GPL-2.0-or-later
"""Fuzz readers: `python -m tests.fuzz [TARGET ...]`, or `make fuzz`. Findings end with status 1."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from tests.fuzz.distil import distil
from tests.fuzz.engine import Arena, Finding, keep, minimised
from tests.fuzz.targets import TARGETS

__all__ = ["main"]

MILLION = 10**6
SPARE_SECONDS = 300
"""Seconds beyond its time after which a target's process is ended."""


def main() -> int:
    """Fuzz the targets one after another and print a line for each. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"default: all of {', '.join(TARGETS)}")
    parser.add_argument("--seconds", type=int, default=60, help="time for each target (default: 60)")
    parser.add_argument("--executions", type=int, default=MILLION, help="most executions of each (default: 10^6)")
    parser.add_argument("--seed", type=int, default=1, help="of the mutations (default: 1)")
    parser.add_argument("--mutations-only", action="store_true", help="without coverage, even if atheris is installed")
    parser.add_argument("--folder", type=Path, default=Path("build/fuzz"), help="of the results (default: build/fuzz)")
    parser.add_argument("--distil", action="store_true", help="put what reaches new code into tests/fuzz/corpus")
    asked = parser.parse_args()
    unknown = sorted(set(asked.targets) - set(TARGETS))
    if unknown:
        parser.error(f"no target {unknown[0]}; expected: {', '.join(TARGETS)}")
    found = 0
    for name in asked.targets or TARGETS:
        found += _target(name, asked)
    return 1 if found else 0


def _target(name: str, asked: argparse.Namespace) -> int:
    """Fuzz one target in a process of its own; returns the number of findings."""
    folder = (asked.folder / name).resolve()
    (folder / "count").unlink(missing_ok=True)
    words = [sys.executable, "-m", "tests.fuzz.guided", name, str(folder), "--seconds", str(asked.seconds)]
    words += ["--executions", str(asked.executions), "--seed", str(asked.seed)]
    if asked.mutations_only:
        words.append("--mutations-only")
    ended: str | None = None
    try:
        done = subprocess.run(words, capture_output=True, timeout=asked.seconds + SPARE_SECONDS, check=False)
        if done.returncode:
            ended = f"exit status {done.returncode}: " + done.stderr.decode(errors="replace")[-600:]
    except subprocess.TimeoutExpired:
        ended = "no end"
    count = json.loads((folder / "count").read_text()) if (folder / "count").exists() else {"executions": 0}
    findings = [] if ended is None else [Finding(name, (folder / "last").read_bytes(), f"process ended: {ended}")]
    with Arena(TARGETS[name]) as arena:
        for path in sorted(folder.glob("found/*.txt")):
            again = arena.execute(path.with_suffix("").read_bytes())
            if again is not None:
                findings.append(minimised(arena, again))
    how = "guided by coverage" if count.get("guided") else "mutations alone"
    print(f"{name}: {count['executions']} executions, {how}, {len(findings)} findings", flush=True)  # noqa: T201
    for finding in findings:
        path = keep(folder, finding.name, finding.data)
        print(f"  {finding.message}\n  {path}", flush=True)  # noqa: T201
    if asked.distil:
        print(f"  {distil(TARGETS[name], folder / 'corpus')} files in its corpus", flush=True)  # noqa: T201
    return len(findings)


if __name__ == "__main__":
    sys.exit(main())
