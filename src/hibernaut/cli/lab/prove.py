# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut lab prove`: every case on every kernel."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, cast

import typer

from hibernaut.cli.common import JsonOption, QuietOption, console, print_json, say
from hibernaut.cli.lab.options import (
    DEFAULT_KERNEL,
    AccelOption,
    CacheOption,
    DryRunOption,
    KeepOption,
    LabOptions,
    MirrorOption,
)
from hibernaut.lab.cases.case import CaseResult
from hibernaut.lab.cases.runner import prove
from hibernaut.lab.cases.table import QUICK, cases_of
from hibernaut.lab.host.kernels import KERNEL_LINES
from hibernaut.lab.variants import variant_named
from hibernaut.report.documents import CaseDocument, ProveDocument
from hibernaut.report.text import columns, support_page, support_text
from hibernaut.volumes.output import write_file

__all__ = ["prove_"]


def prove_(
    kernel: Annotated[
        list[str] | None, typer.Option("--kernel", metavar="LINE", help="Kernel line; repeatable. Default: all lines.")
    ] = None,
    case: Annotated[
        list[str] | None,
        typer.Option("--case", metavar="TEXT", help="Cases with this text in their name; repeatable. Default: all."),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option("--quick", help=f"A few cases on Linux {DEFAULT_KERNEL}: reading, rewriting, a takeover, a copy."),
    ] = False,
    jobs: Annotated[int, typer.Option("--jobs", min=1, max=64, help="Number of cases at a time.")] = 2,
    write: Annotated[
        Path | None, typer.Option("--write", metavar="FILE", help="Write the table as a page (docs/support.md).")
    ] = None,
    keep: KeepOption = None,
    list_: Annotated[bool, typer.Option("--list", help="List the cases and stop.")] = False,
    cache: CacheOption = None,
    mirror: MirrorOption = None,
    accel: AccelOption = "tcg",
    dry_run: DryRunOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run every case on every kernel and print the table.

    The exit status is 1 unless all cases pass.
    """
    if write and not write.absolute().parent.is_dir():
        raise typer.BadParameter(f"{write.parent} is not a folder", param_hint="--write")
    if keep and keep.exists() and any(keep.iterdir()):
        raise typer.BadParameter(f"{keep} is not empty; give a new or empty folder", param_hint="--keep")
    cases = cases_of(QUICK if quick and not case else case)
    lines = kernel or ([DEFAULT_KERNEL] if quick else list(KERNEL_LINES))
    if list_:
        return console().print("\n".join(columns([one.name, one.must] for one in cases)))
    if dry_run:
        for name in lines:
            LabOptions(name).dry_run(variant_named("lzo"), Path("DIR"), gdb=True)
        return None
    labs = [LabOptions(name, cache=cache, mirror=mirror, accel=accel).lab() for name in lines]
    results = []
    for result in prove(labs, cases, jobs, keep):
        results.append(result)
        say(f"{result.word}  {result.kernel}  {result.case}  {result.seconds:.0f} s", quiet or json)
    _print_results(results, write, json, quiet)
    return None


def _print_results(results: list[CaseResult], write: Path | None, json: bool, quiet: bool) -> None:
    document: ProveDocument = {"passed": all(one.passed for one in results), "results": [_row(one) for one in results]}
    if write:
        write_file(write, support_page(document).encode(), public=True)
    if json:
        print_json(document)
    elif not quiet:
        console().print(support_text(document))
    if not document["passed"]:
        raise typer.Exit(1)


def _row(result: CaseResult) -> CaseDocument:
    row = {**dataclasses.asdict(result), "seconds": round(result.seconds), "result": result.word}
    return cast(CaseDocument, row)
