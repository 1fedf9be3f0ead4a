# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut lab survey`: what stock kernels take out of their direct map."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Annotated

import typer

from hibernaut.cli.lab.options import AccelOption, CacheOption, DryRunOption, LabOptions, MirrorOption, show_plan
from hibernaut.cli.options import OutputOptions, among
from hibernaut.cli.terminal import say
from hibernaut.errors import LabError
from hibernaut.lab.host.kernels import ALL_LINES, line_named
from hibernaut.lab.host.programs import program
from hibernaut.lab.survey.reading import Hidden
from hibernaut.lab.survey.survey import PARAMETERS, SURVEYED, StepTaken, adapted, answer_of, survey
from hibernaut.report.documents import HiddenDocument, SurveyDocument, SurveyedKernelDocument, SurveyStepDocument
from hibernaut.report.survey import add_to_survey, kept_surveys, survey_step_text, survey_text

__all__ = ["survey_"]


def survey_(
    output: OutputOptions,
    kernel: Annotated[
        list[str] | None,
        typer.Option(
            "--kernel",
            metavar="LINE",
            help="Kernel line; repeatable. Default: all that can be booted.",
            autocompletion=among(ALL_LINES),
        ),
    ] = None,
    write: Annotated[
        Path | None,
        typer.Option(
            "--write",
            metavar="PAGE",
            help="Add the kernels to this page (docs/survey.md), whose documents lie in a folder beside it. "
            "Default: no page.",
        ),
    ] = None,
    cache: CacheOption = None,
    mirror: MirrorOption = None,
    accel: AccelOption = "tcg",
    dry_run: DryRunOption = False,
) -> None:
    """Survey kernels: which memory is out of the direct map, and whether any large entry can be not present.

    Each kernel loads and unloads modules and BPF programs, traces, plugs CPUs and memory, loads kernels by kexec,
    switches KFENCE on, and holds secret memory; after each step its page tables are read. What a kernel cannot do is
    listed with the reason; a line that Debian's archive no longer has is listed with its nearest neighbour.
    """
    lines = [line_named(name).name for name in kernel or ALL_LINES]
    if write and not write.absolute().parent.is_dir():
        raise typer.BadParameter(f"{write.parent} is not a folder; make it first", param_hint="--write")
    there = {one["kernel"] for one in kept_surveys(write)} if write else set()
    options = [LabOptions(name, cache=cache, mirror=mirror, accel=accel) for name in lines]
    if dry_run:
        planned = [one.planned(SURVEYED, Path("DIR"), adapt=adapted(PARAMETERS)) for one in options]
        return show_plan(output, *planned)
    for needed in ("qemu-system-x86_64", "setpriv", "busybox", "gcc"):
        program(needed)
    document: SurveyDocument = {"kernels": []}
    waiting = list(options)
    while waiting:
        one = _surveyed(waiting.pop(0), output)
        beside = one["release"] is None and _neighbour(one["kernel"], options)
        if beside:
            one["answer"] += f"; its nearest neighbour is {beside.kernel}"
            if beside.kernel not in there.union(lines):
                lines.append(beside.kernel)
                waiting.append(beside)
        document["kernels"].append(one)
        if write:
            add_to_survey(write, document)
    return output.answer(document, survey_text)


def _surveyed(options: LabOptions, output: OutputOptions) -> SurveyedKernelDocument:
    """Return what one kernel does; of a line whose packages are gone, why it was not surveyed."""
    started, name = time.monotonic(), options.kernel
    try:
        laboratory = options.lab()
        taken = survey(laboratory, lambda step: say(survey_step_text(name, _step(step)), not output.text))
    except LabError as error:
        return {"kernel": name, "release": None, "answer": f"not surveyed: {error.what}", "steps": [], "seconds": 0}
    return {
        "kernel": name,
        "release": laboratory.kernel.release,
        "answer": answer_of(taken),
        "steps": [_step(one) for one in taken],
        "seconds": round(time.monotonic() - started),
    }


def _neighbour(name: str, options: list[LabOptions]) -> LabOptions | None:
    """Return the options of the nearest line that can be booted, a newer one first; None if there is none."""
    known = list(ALL_LINES)
    at = known.index(name)
    for other in sorted(set(known) - {name}, key=lambda one: (abs(known.index(one) - at), known.index(one) < at)):
        beside = dataclasses.replace(options[0], kernel=other)
        try:
            beside.lab()
        except LabError:
            continue
        return beside
    return None


def _step(taken: StepTaken) -> SurveyStepDocument:
    reading = taken.reading
    return {
        "step": taken.step.name,
        "what": taken.step.what,
        "done": taken.done,
        "unable": taken.unable,
        "present_mib": None if reading is None else {size: round(mib, 3) for size, mib in reading.present_mib.items()},
        "hidden": [] if reading is None else [_hidden(one) for one in reading.hidden],
    }


def _hidden(one: Hidden) -> HiddenDocument:
    return {
        "size": one.level.size,
        "kind": one.kind,
        "owner": one.owner,
        "saved": one.saved,
        "pages": one.pages,
        "entries": one.entries,
    }
