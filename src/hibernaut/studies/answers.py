# SPDX-License-Identifier: GPL-2.0-or-later
"""The answers: all studies run, all claims judged. `docs/answers.md` is made of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hibernaut.exploration.layouts import Side
from hibernaut.exploration.pool import local_pool
from hibernaut.exploration.replay import run_text
from hibernaut.exploration.sweep import Progress, run_sweep
from hibernaut.studies.claims import CLAIMS
from hibernaut.studies.costs import COSTED_WAYS, Cost, way_cost
from hibernaut.studies.judge import Judge, Judged, Studied
from hibernaut.studies.placements import Placement, placements
from hibernaut.studies.questions import COMING, STUDIES, Study

__all__ = ["Answers", "answer"]


@dataclass(frozen=True)
class Answers:
    """The answers to all questions of the studies.

    Attributes:
        studied: the studies.
        judged: the claims about them.
        placements: see `placements`; empty without the study "6.13-rc".
        costs: the cost of each of `COSTED_WAYS`; empty without a study of `COMING`.
    """

    studied: tuple[Studied, ...]
    judged: tuple[Judged, ...]
    placements: Mapping[tuple[Side, ...], Placement]
    costs: tuple[Cost, ...]

    @property
    def holds(self) -> bool:
        """Whether every claim holds."""
        return not any(judged.against for judged in self.judged)

    @property
    def runs(self) -> Mapping[str, str]:
        """The run that comes with each claim, as the text of its file, by the claim's name."""
        return {one.claim.name: run_text(one.shown.played) for one in self.judged if one.shown is not None}


def answer(
    folder: Path,
    studies: Sequence[Study] = STUDIES,
    *,
    scheduler: str | None = None,
    processes: int | None = None,
    progress: Callable[[Study, Progress], None] | None = None,
) -> Answers:
    """Run the studies and judge the claims.

    Args:
        folder: folder of the studies' results; a study whose results it holds is resumed.
        studies: the studies; claims about others are left out.
        scheduler: see `run_sweep`.
        processes: see `run_sweep`.
        progress: called after every machine.

    Raises:
        FormatError, HibernautError: as `run_sweep`.
    """
    studied: list[Studied] = []
    names = {study.name for study in studies}
    judge = Judge([claim for claim in CLAIMS if set(claim.studies) <= names])
    with local_pool(processes) if scheduler is None and processes != 1 else nullcontext() as workers:
        for study in studies:

            def told(so_far: Progress, study: Study = study) -> None:
                if progress is not None:
                    progress(study, so_far)

            path = folder / f"{study.name.replace(' ', '-')}.jsonl"
            tallies = run_sweep(
                study.sweep,
                path,
                scheduler=scheduler,
                processes=processes,
                workers=workers,
                each=partial(judge.ask, study),
                progress=told,
            )
            studied.append(Studied(study, tallies, path))
    costs = tuple(map(way_cost, COSTED_WAYS)) if names & {study.name for study in COMING} else ()
    return Answers(tuple(studied), judge.judged(studied), placements(studied), costs)
