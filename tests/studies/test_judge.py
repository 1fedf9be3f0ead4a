# SPDX-License-Identifier: GPL-2.0-or-later
"""The judge: it counts what contradicts a claim, and is asked of every machine, whichever run it is from."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from hibernaut.exploration.families import Family
from hibernaut.exploration.layouts import RegionKind
from hibernaut.exploration.plan import Sweep
from hibernaut.exploration.sweep import run_sweep
from hibernaut.studies.claims import CLAIMS
from hibernaut.studies.judge import Judge, Studied
from hibernaut.studies.questions import Study

SWEEP = Sweep(Family(regions=(0, 1), kinds=(RegionKind.BLOCK,)), ("remap", "fixmap"))
STUDY = Study("small", "one region of 2 MiB, or none", SWEEP)
SAFE = replace(CLAIMS[0], studies=("small",), ways=("fixmap",), shows=("remap", lambda outcome: outcome.loses))


def test_each_claim_is_counted_by_itself(tmp_path: Path) -> None:
    """One that holds, one that some machines contradict, one about another way, and one about another study."""
    wrong = replace(SAFE, holds=lambda trial: not trial.machine.regions)
    judge = Judge([SAFE, wrong, replace(wrong, ways=("remap",)), replace(wrong, studies=("another",))])
    tallies = run_sweep(SWEEP, tmp_path / "small.jsonl", processes=1, each=partial(judge.ask, STUDY))
    holds, some, other_way, nothing = judge.judged([Studied(STUDY, tallies, tmp_path / "small.jsonl")])
    machines, runs = tallies["fixmap"].machines, tallies["fixmap"].runs
    assert machines > 1
    assert (holds.machines, holds.runs, holds.against, holds.first_against) == (machines, runs, 0, None)
    assert (some.machines, some.against) == (machines, machines - 1)
    assert some.first_against is not None
    assert some.first_against.startswith("small: fixmap: ")
    assert (other_way.runs, other_way.against) == (tallies["remap"].runs, machines - 1)
    assert (nothing.machines, nothing.runs, nothing.against, nothing.shown) == (0, 0, 0, None)
    assert holds.shown is not None


def test_records_of_an_earlier_run_are_asked_too(tmp_path: Path) -> None:
    """A sweep that is resumed, all or some of whose machines are in its file, gives the same judgement."""
    path = tmp_path / "small.jsonl"
    found = []
    for kept in (0, 2, None):
        if kept is not None:
            lines = path.read_text().splitlines(keepends=True)[: 1 + kept] if path.exists() else []
            path.write_text("".join(lines)) if lines else path.unlink(missing_ok=True)
        judge = Judge([SAFE])
        tallies = run_sweep(SWEEP, path, processes=1, each=partial(judge.ask, STUDY))
        found.append(judge.judged([Studied(STUDY, tallies, path)])[0])
    assert len({(one.machines, one.runs, one.against) for one in found}) == 1
    assert found[0].machines > 2
