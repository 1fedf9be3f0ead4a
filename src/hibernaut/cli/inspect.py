# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut inspect IMAGE`: what is in a hibernation image, and is it intact?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hibernaut.cli.common import (
    BaseOption,
    JsonOption,
    OffsetOption,
    PartitionOption,
    QuietOption,
    console,
    print_json,
    progress_bar,
)
from hibernaut.cli.machine import machine_named
from hibernaut.errors import FormatError
from hibernaut.kernel_line import RulesFrom
from hibernaut.report.images import digests_of, inspect_document, verdict_document
from hibernaut.report.text import inspection_text
from hibernaut.swsusp import inspect_image
from hibernaut.swsusp.rules import ImageRules, image_rules_for_release, image_rules_probed
from hibernaut.swsusp.verdict import ResumingMachine, verdict_on
from hibernaut.volumes.files import open_plain

__all__ = ["inspect"]


def inspect(
    image: Annotated[Path, typer.Argument(help="The swap area: a partition's image, or a disk's; compressed or not.")],
    offset: OffsetOption = 0,
    partition: PartitionOption = None,
    base: BaseOption = None,
    digests: Annotated[
        bool, typer.Option("--digests", help="Also SHA-256 of the frame list and of the pages.")
    ] = False,
    for_kernel: Annotated[
        str | None,
        typer.Option(
            "--for-kernel",
            metavar="RELEASE",
            help="Would this kernel resume from it? 6.1, or in full. Default: the one that runs on MACHINE.",
        ),
    ] = None,
    on_machine: Annotated[
        str | None,
        typer.Option(
            "--on-machine",
            metavar="MACHINE",
            help="And on this machine? `this`, a RAM dump or another image of it, or a JSON file of its facts.",
        ),
    ] = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Say what is in a hibernation image and whether it is intact; exit status 1 if it is not."""
    asked = _asked(for_kernel, on_machine)
    with open_plain(image) as file, progress_bar(f"reading {image}", None, quiet) as advance:
        found = inspect_image(file, offset=offset, partition=partition, base=base, progress=advance)
        document = inspect_document(found, offset)
        if digests and found.image and not found.problems:
            document["sha256_pfns"], document["sha256_stored_pages"] = digests_of(found.image)
        verdict = verdict_on(found, *asked[:2]) if asked else None
        if asked and verdict:
            document["verdict"] = verdict_document(verdict, asked[2])
    if json:
        print_json(document)
    elif not quiet:
        console().print(inspection_text(document))
    if found.problems or (verdict and verdict.resumes is False):
        raise typer.Exit(1)


def _asked(for_kernel: str | None, on_machine: str | None) -> tuple[ImageRules, ResumingMachine, RulesFrom] | None:
    """Kernel and machine of a verdict, and where the rules come from; None if none is asked for.

    Raises:
        FormatError, OSError: the machine or its kernel is not known.
    """
    if for_kernel is None and on_machine is None:
        return None
    machine = machine_named(on_machine) if on_machine is not None else ResumingMachine("a machine that is not known")
    if for_kernel is not None:
        return image_rules_for_release(for_kernel), machine, "line"
    if machine.release is None:
        raise FormatError("does not say which kernel runs there; give --for-kernel", source=on_machine)
    probed = image_rules_probed(machine.kernel, machine.release)
    return probed.rules, machine, probed.rules_from
