# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut answers`: every claim about the ways of saving a page, judged by every run."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from hibernaut.cli.options import OutputOptions, among, refuse_same_file, report_option
from hibernaut.cli.progress import sweep_progress
from hibernaut.cli.sweep_options import SweepOptions
from hibernaut.exploration.sweep import Progress
from hibernaut.lab.host.temporary import temporary_folder
from hibernaut.report.answers import answers_document, answers_page, write_answers
from hibernaut.report.page import need_report_extra
from hibernaut.studies.answers import answer
from hibernaut.studies.questions import STUDIES, Study
from hibernaut.volumes.output import make_folder, write_file

__all__ = ["answers_"]


def answers_(
    sweep: SweepOptions,
    output: OutputOptions,
    write: Annotated[
        Path | None,
        typer.Option(
            "--write",
            metavar="PAGE",
            help="Write the page to this file, and the runs to a folder beside it. Default: print the page.",
        ),
    ] = None,
    study: Annotated[
        list[str] | None,
        typer.Option(
            "--study",
            metavar="NAME",
            help="Only this study and the claims about it; repeatable. Default: all studies.",
            autocompletion=among(one.name for one in STUDIES),
        ),
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(
            "--results",
            metavar="DIR",
            help="Folder for all results; it is resumed if it exists. Default: results are not kept.",
        ),
    ] = None,
    report: Annotated[Path | None, report_option("the run of each claim as a strip of pictures")] = None,
) -> None:
    """Run all studies and judge every claim about the ways of saving a page: the page docs/answers.md.

    The exit status is 1 if a claim does not hold.
    """
    if report is not None:
        need_report_extra()
        refuse_same_file(report, write, option="--report")
    names = [one.name for one in STUDIES]
    for name in study or ():
        if name not in names:
            raise typer.BadParameter(f"no study {name!r}; expected {', '.join(names)}", param_hint="--study")
    chosen = [one for one in STUDIES if not study or one.name in study]
    if write is not None:  # before minutes of work whose result could not be written
        make_folder(write.parent / write.stem)
    with ExitStack() as stack:
        folder = results
        if folder is None:
            folder = stack.enter_context(temporary_folder("answers"))
        make_folder(folder)
        told = stack.enter_context(sweep_progress(output.quiet))

        def progress(one: Study, so_far: Progress) -> None:
            told(so_far, one.name)

        answers = answer(folder, chosen, scheduler=sweep.scheduler, processes=sweep.processes, progress=progress)
        if report is not None:
            from hibernaut.report.exploration_page import answers_report

            write_file(report, answers_report(answers).encode(), public=True)
    if write is not None:
        write_answers(write, answers)
    if output.json or write is None:
        page = answers_page(answers, "answers" if write is None else write.stem)
        output.answer(answers_document(answers), lambda _: page)
    if not answers.holds:
        raise typer.Exit(1)
