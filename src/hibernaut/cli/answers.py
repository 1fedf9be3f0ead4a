# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut answers`: what the mailing list could not know, as a page made of every run."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from hibernaut.cli.common import JsonOption, QuietOption, console, print_json
from hibernaut.cli.explore import ProcessesOption, SchedulerOption, sweep_progress
from hibernaut.exploration.sweep import Progress
from hibernaut.report.answers import answers_page
from hibernaut.studies.answers import Answers, answer
from hibernaut.studies.questions import STUDIES, Study
from hibernaut.volumes.output import write_file

__all__ = ["answers_"]


def answers_(
    write: Annotated[
        Path | None,
        typer.Option("--write", metavar="PAGE", help="Write the page there, and the runs into a folder beside it."),
    ] = None,
    study: Annotated[
        list[str] | None,
        typer.Option("--study", metavar="NAME", help="Only these studies, and the claims about them; repeatable."),
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option("--results", metavar="DIR", help="Keep all results there; those that are there are gone on with."),
    ] = None,
    scheduler: SchedulerOption = None,
    processes: ProcessesOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run all studies and judge every claim about the ways of saving a page: the page docs/answers.md.

    Without --write the page is printed. The exit status is 1 if a claim does not hold.
    """
    names = [one.name for one in STUDIES]
    for name in study or ():
        if name not in names:
            raise typer.BadParameter(f"no study {name!r} (known: {', '.join(names)})", param_hint="--study")
    chosen = [one for one in STUDIES if not study or one.name in study]
    if write is not None:  # before minutes of work whose result could not be written
        (write.parent / write.stem).mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        folder = results
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hibernaut-")))
        folder.mkdir(parents=True, exist_ok=True)
        told = stack.enter_context(sweep_progress(quiet))

        def progress(one: Study, so_far: Progress) -> None:
            told(so_far, one.name)

        answers = answer(folder, chosen, scheduler=scheduler, processes=processes, progress=progress)
        runs = "answers" if write is None else write.stem
        page = answers_page(answers, runs)
    if write is not None:
        _write(write, page, answers)
    if json:
        print_json(_document(answers))
    elif write is None and not quiet:
        console().print(page)
    if not answers.holds:
        raise typer.Exit(1)


def _write(path: Path, page: str, answers: Answers) -> None:
    """The runs first, the page that names them last."""
    answers.save(path.parent / path.stem)
    write_file(path, page.encode(), public=True)


def _document(answers: Answers) -> dict[str, Any]:
    return {
        "studies": [
            {
                "name": one.study.name,
                "scope": one.study.sweep.scope,
                "ways": {
                    name: {"machines": tally.machines, "runs": tally.runs, "states": tally.states, "cut": tally.cut}
                    for name, tally in one.tallies.items()
                },
            }
            for one in answers.studied
        ],
        "claims": [
            {
                "name": judged.claim.name,
                "title": judged.claim.title,
                "holds": not judged.against,
                "machines": judged.machines,
                "runs": judged.runs,
                "against": judged.against,
                "first_against": judged.first_against,
            }
            for judged in answers.judged
        ],
    }
