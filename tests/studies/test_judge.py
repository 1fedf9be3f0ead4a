# SPDX-License-Identifier: GPL-2.0-or-later
"""The judge: it counts what contradicts a claim, and reads the records of a study once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hibernaut.exploration.families import Family
from hibernaut.exploration.layouts import RegionKind
from hibernaut.exploration.plan import Sweep
from hibernaut.exploration.results import read_records
from hibernaut.exploration.sweep import run_sweep
from hibernaut.studies.claims import CLAIMS
from hibernaut.studies.judge import Studied, judge
from hibernaut.studies.questions import Study

SWEEP = Sweep(Family(regions=(0, 1), kinds=(RegionKind.BLOCK,)), ("remap", "fixmap"))
STUDY = Study("small", "one region of 2 MiB, or none", SWEEP)
SAFE = replace(CLAIMS[0], studies=("small",), ways=("fixmap",), shows=("remap", lambda outcome: outcome.loses))


def test_each_claim_is_counted_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that holds, one that some machines contradict, one about another way, and one about another study."""
    tallies = run_sweep(SWEEP, tmp_path / "small.jsonl", processes=1)
    reads: list[Path] = []

    def read(path: Path) -> Iterator[Any]:
        reads.append(path)
        return read_records(path)

    monkeypatch.setattr("hibernaut.studies.judge.read_records", read)
    wrong = replace(SAFE, holds=lambda trial: not trial.machine.regions)
    claims = [SAFE, wrong, replace(wrong, ways=("remap",)), replace(wrong, studies=("another",))]
    holds, some, other_way, nothing = judge(claims, [Studied(STUDY, tallies, tmp_path / "small.jsonl")])
    machines = tallies["fixmap"].machines
    assert machines > 1
    assert (holds.machines, holds.runs, holds.against, holds.first_against) == (
        machines,
        tallies["fixmap"].runs,
        0,
        None,
    )
    assert (some.machines, some.against) == (machines, machines - 1)
    assert some.first_against is not None
    assert some.first_against.startswith("small: fixmap: ")
    assert (other_way.runs, other_way.against) == (tallies["remap"].runs, machines - 1)
    assert (nothing.machines, nothing.runs, nothing.against, nothing.shown) == (0, 0, 0, None)
    assert holds.shown is not None
    assert reads == [tmp_path / "small.jsonl"]
