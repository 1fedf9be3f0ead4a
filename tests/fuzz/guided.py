# SPDX-License-Identifier: GPL-2.0-or-later
"""One target in a process of its own: guided by coverage where atheris is installed, else by mutations alone.

A reader that ends the process (a fault in a library, an endless loop in C) ends this one only; `__main__` finds the
file that it read, and the number of executions, in `notes`. Findings are kept in `found/`, files that reach new code
in `corpus/`.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import resource
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

__all__ = ["main"]

MOST_SECONDS_IN_C = 120
"""Seconds after which libFuzzer ends an execution that no signal interrupts."""


class Findings:
    """Findings that one run of a target leaves in a folder, the first one of each defect."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "found"
        self._keys: set[str] = set()
        self._folder.mkdir(parents=True, exist_ok=True)

    def keep(self, finding: Any) -> None:
        """Keep a finding, unless one of its defect was kept."""
        if finding.key not in self._keys:
            self._keys.add(finding.key)
            (self._folder / finding.name).write_bytes(finding.data)
            (self._folder / f"{finding.name}.txt").write_text(finding.message + "\n")


def main() -> None:
    """Fuzz one target for some seconds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("target")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=int, required=True)
    parser.add_argument("--executions", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--mutations-only", action="store_true")
    asked = parser.parse_args()
    atheris: Any = None
    if not asked.mutations_only and importlib.util.find_spec("atheris") is not None:
        atheris = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["hibernaut"]) if atheris else nullcontext():
        from tests.fuzz.engine import Arena, corpus_of, fuzz
        from tests.fuzz.notes import Notes
        from tests.fuzz.targets import TARGETS
    target = TARGETS[asked.target]
    findings = Findings(asked.folder)
    notes = Notes(asked.folder, guided=atheris is not None, most_bytes=target.most_bytes)
    with Arena(target) as arena:
        inputs = [*target.seeds().values(), *corpus_of(target).values()]
        corpus = asked.folder / "corpus"
        corpus.mkdir(exist_ok=True)
        if atheris is None:
            inputs += [path.read_bytes() for path in sorted(corpus.iterdir())]
            end = time.monotonic() + asked.seconds
            found = fuzz(
                arena,
                asked.executions,
                seed=asked.seed,
                inputs=inputs,
                proceeds=lambda: time.monotonic() < end,
                before=notes.executed,
            )
            for finding in found:
                findings.keep(finding)
            return
        for number, data in enumerate(inputs):
            (corpus / f"seed-{number}").write_bytes(data)

        def one(data: bytes) -> None:
            notes.executed(arena.executions, data)
            finding = arena.execute(data)
            if finding is not None:
                findings.keep(finding)

        def mutator(data: bytes, most: int, seed: int) -> bytes:
            rng = random.Random(seed)
            if rng.random() < 0.2:
                return target.repaired(atheris.Mutate(data, most))[:most]
            return target.mutated(data, rng, inputs)[:most]

        # The instrumented library is large: what libFuzzer itself maps must not count as a reader's.
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        options = {
            "max_total_time": asked.seconds,
            "runs": asked.executions,
            "seed": asked.seed,
            "max_len": target.most_bytes,
            "timeout": MOST_SECONDS_IN_C,
            "rss_limit_mb": 0,
            "len_control": 0,
            "verbosity": 0,
            "artifact_prefix": f"{asked.folder}/ended-",
        }
        words = [sys.argv[0], *(f"-{name}={value}" for name, value in options.items()), str(corpus)]
        atheris.Setup(words, one, custom_mutator=mutator)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
