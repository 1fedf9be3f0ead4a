# SPDX-License-Identifier: GPL-2.0-or-later
"""The claims: each can fail."""

from __future__ import annotations

import pytest

from hibernaut.exploration.families import Family
from hibernaut.exploration.records import Ending, WayResult
from hibernaut.exploration.run import Outcome
from hibernaut.hibernation.owners import ONCE_RESUMED, WHILE_WRITING
from hibernaut.linux.environment import Replay
from hibernaut.studies.claims import CLAIMS, Claim
from hibernaut.studies.questions import COMING, STUDIES
from hibernaut.studies.trials import Trial


def with_endings(trial: Trial, *outcomes: Outcome) -> Trial:
    """Return a trial that ends in these outcomes."""
    endings = tuple(Ending(outcome, 1, 0, ()) for outcome in outcomes)
    return Trial(trial.machine, trial.name, WayResult(len(endings), 1, 1, None, endings))


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.name)
def test_every_claim_can_fail(claim: Claim) -> None:
    """Some outcome on some machine contradicts each claim: no claim holds for every outcome."""
    worst = (
        Outcome("saved"),
        Outcome("refused"),
        Outcome("saved", ("tables-closed", "lists-whole")),
        Outcome("saved", ("every-listed-page",), warned=True),
        Outcome("died", ("no-fault",), crash="something else"),
        Outcome("died", ("lists-whole", "no-fault"), crash="NULL, __rmqueue_pcplist"),
        Outcome("saved", ("same-direct-map",)),
        Outcome("died", ("no-fault",), crash=f"writing to a frame in __kfence_alloc, {WHILE_WRITING}"),
        Outcome("died", ("no-fault",), crash=f"writing to a frame in __kfence_alloc, {ONCE_RESUMED}"),
        Outcome("died", ("no-fault",), crash="reserved bit violation, copying a frame in swsusp_save"),
        Outcome("died", ("no-fault",), crash=f"writing to a frame in clear_page, by the next user, {WHILE_WRITING}"),
        Outcome("died", ("no-fault",), crash="clearing a frame, just allocated (clear_page)"),
    )
    family: Family = STUDIES[0].sweep.family
    units = ([0], [1, 0, 0], [1, 1, 0], [1, 1, 1])
    machines = [family.choose(Replay(layout_choices)) for layout_choices in units]
    kinds = STUDIES[1].sweep.family
    machines += [kinds.choose(Replay([1, kind, 0])) for kind in (4, 5)]
    owners = next(study for study in STUDIES if study.name == "owners").sweep.family
    machines += [owners.choose(Replay([1, kind, 0])) for kind in (2, 3)]
    unmapped = next(study for study in COMING if study.name == "unmapped").sweep.family
    machines += [unmapped.choose(Replay([1, 0, 1, 1, 1, 0, 0]))]
    roots = next(study for study in COMING if study.name == "second root").sweep.family
    machines += [roots.choose(Replay([1, 1, 0, 0, 0, 0]))]
    depletion = next(study for study in STUDIES if study.name == "depletion").sweep.family
    machines += [depletion.choose(Replay([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, mark])) for mark in (0, 9)]
    name = claim.ways[0]
    empty = WayResult(0, 0, 0, None, ())
    trials = [with_endings(Trial(machine, name, empty), outcome) for machine in machines for outcome in worst]
    assert any(not claim.holds(trial) for trial in trials)
    assert any(claim.holds(trial) for trial in trials)
