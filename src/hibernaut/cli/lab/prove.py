# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut lab prove`: every case on every kernel."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Annotated, cast

import typer

from hibernaut.cli.lab.options import (
    DEFAULT_KERNEL,
    AccelOption,
    CacheOption,
    DryRunOption,
    KeepOption,
    LabOptions,
    MirrorOption,
    show_plan,
)
from hibernaut.cli.options import OutputOptions, among
from hibernaut.cli.terminal import say
from hibernaut.errors import LabUnavailable
from hibernaut.lab.cases.case import CaseResult
from hibernaut.lab.cases.runner import prove
from hibernaut.lab.cases.table import CASES, QUICK, cases_of
from hibernaut.lab.host.kernels import ALL_LINES, KERNEL_LINES
from hibernaut.lab.laboratory import Lab
from hibernaut.lab.variants import variant_named
from hibernaut.report.documents import CaseDocument, CasesDocument, ProveDocument
from hibernaut.report.support import support_page
from hibernaut.report.text import columns, support_text
from hibernaut.volumes.output import write_file

__all__ = ["prove_"]


def prove_(
    output: OutputOptions,
    kernel: Annotated[
        list[str] | None,
        typer.Option(
            "--kernel",
            metavar="LINE",
            help=f"Kernel line; repeatable. Default: {', '.join(KERNEL_LINES)}, and on all others the cases that every "
            "line must pass.",
            autocompletion=among(ALL_LINES),
        ),
    ] = None,
    case: Annotated[
        list[str] | None,
        typer.Option("--case", metavar="TEXT", help="Cases with this text in their name; repeatable. Default: all."),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help=f"A few cases on Linux {DEFAULT_KERNEL}: reading, rewriting, a takeover, a copy. Default: no.",
        ),
    ] = False,
    jobs: Annotated[
        int, typer.Option("--jobs", min=1, max=64, metavar="N", help="Number of cases at a time. Default: 2.")
    ] = 2,
    write: Annotated[
        Path | None,
        typer.Option(
            "--write",
            metavar="FILE",
            help="Add the results to this page (docs/support.md), in place of earlier ones. Default: no page.",
        ),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the cases and stop. Default: no.")] = False,
    keep: KeepOption = None,
    cache: CacheOption = None,
    mirror: MirrorOption = None,
    accel: AccelOption = "tcg",
    dry_run: DryRunOption = False,
) -> None:
    """Run every case on every kernel and print the table.

    The exit status is 1 unless all cases pass; a kernel that is not named and not in the archive any more
    is skipped.
    """
    if write and not write.absolute().parent.is_dir():
        raise typer.BadParameter(f"{write.parent} is not a folder; make it first", param_hint="--write")
    if keep and keep.exists() and any(keep.iterdir()):
        raise typer.BadParameter(f"{keep} is not empty; give a new or empty folder", param_hint="--keep")
    cases = cases_of(QUICK if quick and not case else case)
    lines = kernel or ([DEFAULT_KERNEL] if quick else list(KERNEL_LINES))
    others = [] if kernel or quick else [name for name in ALL_LINES if name not in KERNEL_LINES]
    if list_:
        listed: CasesDocument = {"cases": [{"name": one.name, "must": one.must} for one in cases]}
        return output.answer(
            listed, lambda found: "\n".join(columns([one["name"], one["must"]] for one in found["cases"]))
        )
    if dry_run:
        guests = (LabOptions(name).planned(variant_named("lzo"), Path("DIR"), gdb=True) for name in lines)
        return show_plan(output, *guests)

    def lab(line: str) -> Lab:
        return LabOptions(line, cache=cache, mirror=mirror, accel=accel).lab()

    def proved_on(line: str) -> Iterator[CaseResult]:
        chosen = [one for one in cases if one.every_line]
        try:
            return prove([lab(line)], chosen, jobs, keep)
        except LabUnavailable as error:
            return iter([case.skipped(line, str(error)) for case in chosen])

    results = []
    for result in chain(prove([lab(line) for line in lines], cases, jobs, keep), *map(proved_on, others)):
        results.append(result)
        say(f"{result.word}  {result.kernel}  {result.case}  {result.seconds:.0f} s", not output.text)
    results.sort(key=lambda one: list(ALL_LINES).index(one.kernel))
    proved = any(one.passed for one in results) and all(one.passed or not one.release for one in results)
    document: ProveDocument = {"passed": proved, "results": [_row(one) for one in results]}
    if write:
        earlier = write.read_text() if write.is_file() else ""
        write_file(write, support_page(document, [one.name for one in CASES], earlier).encode(), public=True)
    output.answer(document, support_text)
    if not document["passed"]:
        raise typer.Exit(1)
    return None


def _row(result: CaseResult) -> CaseDocument:
    row = {**dataclasses.asdict(result), "seconds": round(result.seconds), "result": result.word}
    return cast(CaseDocument, row)
