# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut lab judge`: does a kernel's hibernation save every page and leave the direct map as it was?"""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hibernaut.cli.lab.options import DryRunOption, LabOptions, show_plan
from hibernaut.cli.options import OutputOptions, among
from hibernaut.cli.terminal import say
from hibernaut.errors import LabError
from hibernaut.lab.host.programs import program
from hibernaut.lab.laboratory import Lab
from hibernaut.lab.trial.configuration import (
    NEEDS,
    Lack,
    configuration_of,
    digest_of,
    fragment,
    lacking,
    read_configuration,
)
from hibernaut.lab.trial.situations import CONTROL, SITUATIONS, situations_named
from hibernaut.lab.trial.trial import CANNOT_JUDGE, CURED, KernelVerdict, Tried, try_kernel, verdict_on
from hibernaut.report.documents import CasesDocument, JudgedCaseDocument, JudgeDocument, NeedsDocument
from hibernaut.report.judge import add_to_page, judge_text, judged_case_text, kept_verdicts, needs_text
from hibernaut.report.text import columns

__all__ = ["judge"]

JUDGE_SECTION = "Trial"
PROGRAMS = ("qemu-system-x86_64", "setpriv", "busybox", "gcc")
"""Programs without which no kernel can be judged."""
GOOD, BAD, SKIP = 0, 1, 125
"""Exit statuses as `git bisect run` reads them; 255, a wrong command line, ends the bisection."""


class Wanted(StrEnum):
    """A verdict that a user expects or searches."""

    CURED = "cured"
    STOCK = "stock"


def _option(*names: str, text: str, **declared: object) -> object:
    return typer.Option(*names, rich_help_panel=JUDGE_SECTION, help=text, **declared)  # type: ignore[arg-type]


def judge(
    options: LabOptions,
    output: OutputOptions,
    module: Annotated[
        Path | None,
        _option("--module", metavar="KO", text="Our module, built for this kernel. Default: it is built."),
    ] = None,
    case: Annotated[
        list[str] | None,
        _option(
            "--case",
            metavar="NAME",
            text="Case to try besides the control; repeatable. Default: all.",
            autocompletion=among(one.name for one in SITUATIONS),
        ),
    ] = None,
    expect: Annotated[
        Wanted | None,
        _option(
            "--expect",
            text="Exit with 0 only if every case that is exercised is so: cured, or stock for not cured. Default: the "
            "exit status is the verdict.",
        ),
    ] = None,
    bisect_for: Annotated[
        Wanted,
        _option("--bisect-for", text="Kernel that is good for `git bisect`: cured, or stock. Default: cured."),
    ] = Wanted.CURED,
    tries: Annotated[
        int, _option("--tries", min=1, max=20, metavar="N", text="Guests in a case while it is unclear. Default: 3.")
    ] = 3,
    quick: Annotated[
        bool,
        _option(
            "--quick",
            text="One boot a case, resumed by the kernel's test_resume: it shows crashes, allocations and changed "
            "entries, not garbage. Default: no.",
        ),
    ] = False,
    jobs: Annotated[int, _option("--jobs", min=1, max=64, metavar="N", text="Guests at a time. Default: 2.")] = 2,
    list_: Annotated[bool, _option("--list", text="List the cases and stop. Default: no.")] = False,
    config: Annotated[
        bool,
        _option("--config", text="Print the fragment of a configuration that a trial needs, and stop. Default: no."),
    ] = False,
    check_config: Annotated[
        Path | None,
        _option(
            "--check-config",
            metavar="FILE",
            text="Say what a .config lacks for a trial and why, and stop. Default: the kernel is tried.",
        ),
    ] = None,
    keep: Annotated[
        Path | None,
        _option(
            "--keep", metavar="DIR", text="Folder, new or empty, that keeps disks and logs. Default: they are removed."
        ),
    ] = None,
    write: Annotated[
        Path | None,
        _option(
            "--write",
            metavar="PAGE",
            text="Add the verdict to this page (docs/judged.md), whose documents lie in a folder beside it. "
            "Default: no page.",
        ),
    ] = None,
    name: Annotated[
        str | None, _option("--name", metavar="NAME", text="Name of the kernel on the page. Default: its release.")
    ] = None,
    dry_run: DryRunOption = False,
) -> None:
    """Judge a kernel: let it hibernate with pages missing in the direct map, and say whether it is cured.

    Cured: no allocation in the copy, every kernel page table equal before and after it, an image that lacks no table,
    data and direct map whole after the resume, and a machine that continues to work. Not cured: with the kernel's
    words, the pages, the entries.

    The exit status is for `git bisect run`: 0 cured, 1 not cured, 125 if the kernel cannot be judged, 255 for a wrong
    command line.
    """
    if list_:
        listed: CasesDocument = {"cases": [{"name": one.name, "must": one.what} for one in SITUATIONS]}
        return output.answer(
            listed, lambda found: "\n".join(columns([one["name"], one["must"]] for one in found["cases"]))
        )
    if config:
        return output.answer(_needs([Lack(need, "") for need in NEEDS], None), lambda _: fragment())
    if check_config is not None:
        found = lacking(read_configuration(check_config))
        output.answer(_needs(found, check_config), needs_text)
        raise typer.Exit(BAD if found else GOOD)
    situations = situations_named(case)
    if write and not write.absolute().parent.is_dir():
        raise typer.BadParameter(f"{write.parent} is not a folder; make it first", param_hint="--write")
    if write:
        kept_verdicts(write)  # a damaged one is refused before guests boot
    if keep and keep.exists() and any(keep.iterdir()):
        raise typer.BadParameter(f"{keep} is not empty; give a new or empty folder", param_hint="--keep")
    if dry_run:
        return show_plan(output, *(options.planned(one.variant, Path("DIR"), gdb=True) for one in situations))
    for needed in PROGRAMS:
        program(needed)  # what this machine lacks is not the kernel's fault
    started = time.monotonic()
    try:
        laboratory = options.lab()
        laboratory.module = module
        results = []
        for result in try_kernel(laboratory, situations, tries=tries, jobs=jobs, quick=quick, keep=keep):
            results.append(result)
            say(judged_case_text(_case(result)), not output.text)
    except LabError as error:
        say(str(error))
        raise typer.Exit(SKIP) from None
    verdict, why = verdict_on(results)
    document = _document(laboratory, results, verdict, why, quick, time.monotonic() - started)
    if write:
        add_to_page(write, name or laboratory.kernel.release, document)
    output.answer(document, judge_text)
    raise typer.Exit(_status(results, verdict, expect, bisect_for))


def _status(results: list[Tried], verdict: KernelVerdict, expect: Wanted | None, bisect_for: Wanted) -> int:
    """Return the exit status of a verdict."""
    if verdict == CANNOT_JUDGE:
        return SKIP
    if expect is None:
        return GOOD if (verdict == CURED) == (bisect_for == Wanted.CURED) else BAD
    wanted = "cured" if expect is Wanted.CURED else "not cured"
    exercised = [one for one in results if one.situation is not CONTROL and one.finding.word != "not exercised"]
    return GOOD if exercised and all(one.finding.word == wanted for one in exercised) else BAD


def _case(one: Tried) -> JudgedCaseDocument:
    return {
        "case": one.situation.name,
        "what": one.situation.what,
        "verdict": one.finding.word.value,
        "why": list(one.finding.why),
        "kernel_lines": list(one.finding.kernel_lines),
        "tries": one.tries,
        "seconds": round(one.seconds),
    }


def _document(
    lab: Lab, results: list[Tried], verdict: KernelVerdict, why: str, quick: bool, seconds: float
) -> JudgeDocument:
    configuration = configuration_of(lab.kernel)
    control = next((one for one in results if one.situation is CONTROL), None)
    return {
        "kernel": lab.kernel.name,
        "release": lab.kernel.release,
        "configuration": None if configuration is None else digest_of(configuration),
        "lacks": [] if configuration is None else [one.text for one in lacking(configuration)],
        "quick": quick,
        "control": control is not None and control.finding.word == "cured",
        "cases": [_case(one) for one in results],
        "verdict": verdict,
        "why": why,
        "seconds": round(seconds),
    }


def _needs(lacks: list[Lack], path: Path | None) -> NeedsDocument:
    return {
        "configuration": None if path is None else str(path),
        "options": [
            {"option": one.need.option, "why": one.need.why, "case": one.need.situation, "found": one.found}
            for one in lacks
        ],
    }
