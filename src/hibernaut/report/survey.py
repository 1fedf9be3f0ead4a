# SPDX-License-Identifier: GPL-2.0-or-later
"""The survey of kernels as text and as a page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from hibernaut.errors import FormatError
from hibernaut.kernel_line import parse_release
from hibernaut.report.documents import HiddenDocument, SurveyDocument, SurveyedKernelDocument, SurveyStepDocument
from hibernaut.report.text import columns, counted, markdown
from hibernaut.volumes.output import make_folder, write_file

__all__ = ["add_to_survey", "kept_surveys", "survey_page", "survey_step_text", "survey_text"]

QUESTION = "Can there be any huge not-present mapping today?"
SAVED = {"yes": "saved", "no": "not saved", "refused": "kernel refuses to hibernate", "unknown": "unknown"}


def survey_step_text(kernel: str, step: SurveyStepDocument) -> str:
    """Return one step as a line: the kernel, what was done, and what is hidden."""
    return f"{kernel:5}  {step['step']:15}  {step['done'] or 'not done'}: {_outcome(step)}"


def survey_text(document: SurveyDocument) -> str:
    """Return the steps of each kernel, and its answer."""
    lines = [QUESTION]
    for kernel in document["kernels"]:
        lines += ["", f"{_title(kernel)}: {kernel['answer']}"]
        lines += columns([f"  {one['step']}", one["done"] or "not done", _outcome(one)] for one in kernel["steps"])
    return "\n".join(lines)


def _title(kernel: SurveyedKernelDocument) -> str:
    return f"Linux {kernel['release'] or kernel['kernel']}"


def _outcome(step: SurveyStepDocument) -> str:
    """Return what was read after a step, or why nothing was."""
    if step["unable"]:
        return step["unable"]
    return "; ".join(map(_hidden_text, step["hidden"])) or "nothing is out of the direct map"


def _hidden_text(hidden: HiddenDocument) -> str:
    size, kind, pages = hidden["size"], hidden["kind"], counted(hidden["pages"], "page")
    of_entries = "" if size == "4K" else f" in {hidden['entries']} of {size}"
    return f"{pages}{of_entries} {kind} ({hidden['owner']}, {SAVED[hidden['saved']]})"


def add_to_survey(page: Path, document: SurveyDocument) -> None:
    """Keep each surveyed kernel in the folder beside a page, and write the page anew from all that are there.

    Args:
        page: the page; its folder has the same name without the suffix.
        document: the survey; an older one of the same kernel line is replaced.

    Raises:
        FormatError: a file in the folder is not a surveyed kernel.
        OSError: a file cannot be read or written.
    """
    folder = page.with_suffix("")
    kernels = {one["kernel"]: one for one in kept_surveys(page)}
    make_folder(folder)
    for one in document["kernels"]:
        kernels[one["kernel"]] = one
        text = json.dumps(one, indent=1) + "\n"
        write_file(folder / f"{one['kernel']}.json", text.encode(), public=True)
    ordered = sorted(kernels.values(), key=lambda one: parse_release(one["kernel"]))
    write_file(page, survey_page(ordered).encode(), public=True)


def kept_surveys(page: Path) -> list[SurveyedKernelDocument]:
    """Return the surveyed kernels in the folder beside a page. Raises FormatError, OSError."""
    return [_kept(path) for path in sorted(page.with_suffix("").glob("*.json"))]


def _kept(path: Path) -> SurveyedKernelDocument:
    try:
        found = json.loads(path.read_text())
        return cast(SurveyedKernelDocument, {key: found[key] for key in SurveyedKernelDocument.__annotations__})
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError("not a surveyed kernel", source=str(path), advice="remove it") from error


def survey_page(kernels: Sequence[SurveyedKernelDocument]) -> str:
    """Return the survey of several kernels as a page in Markdown."""
    lines = [
        "# Survey of stock kernels",
        "",
        "Written by `hibernaut lab survey --write docs/survey.md`. Results are never edited by hand. Each kernel is "
        "one of Debian's, under QEMU, with 2 CPUs. One guest with 3 GiB of memory takes all steps in this order, so "
        "that a reading has what the steps before it left; steps that need a parameter have a boot of their own, with "
        "512 MiB. Each reading is of the page tables in the guest's RAM while it is stopped.",
        "",
        f"**{QUESTION}**",
        "",
    ]
    lines += [f"- {_title(one)}: {markdown(one['answer'])}" for one in kernels]
    for one in (one for one in kernels if one["steps"]):
        lines += ["", f"## {_title(one)}", "", "| step | done | present, MiB: 4K, 2M, 1G | out of the direct map |"]
        lines += ["|---|---|---|---|"]
        lines += [_row(step) for step in one["steps"]]
    return "\n".join(lines) + "\n"


def _row(step: SurveyStepDocument) -> str:
    present = (
        ", ".join(f"{step['present_mib'][size]:.0f}" for size in ("4K", "2M", "1G")) if step["present_mib"] else ""
    )
    return f"| {step['what']} | {markdown(step['done'] or 'not done')} | {present} | {markdown(_outcome(step))} |"
