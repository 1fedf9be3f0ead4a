# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut lab fuzz-resume`: a kernel is given changed images, and does what `inspect --for-kernel` says, or not."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hibernaut.cli.lab.options import DryRunOption, KeepOption, LabOptions, show_plan, workshop
from hibernaut.cli.options import OutputOptions
from hibernaut.cli.terminal import say
from hibernaut.lab.parser.campaign import TriedImage, try_images
from hibernaut.lab.variants import variant_named
from hibernaut.report.documents import ParserDocument, TriedImageDocument
from hibernaut.report.parser import add_to_parser, has_findings, parser_text, tried_text
from hibernaut.report.text import hex_or_none

__all__ = ["fuzz_resume"]

VARIANTS = ("lzo", "lz4", "none")
"""Kinds of guest whose image has nothing but what every image has."""


def fuzz_resume(
    options: LabOptions,
    output: OutputOptions,
    images: Annotated[
        int, typer.Option("--images", metavar="N", min=1, max=1 << 20, help="Changed images. Default: 100.")
    ] = 100,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", min=0, max=1 << 63, help="Seed of the changes. Default: 1.")
    ] = 1,
    jobs: Annotated[
        int, typer.Option("--jobs", metavar="N", min=1, max=64, help="Machines at a time. Default: 2.")
    ] = 2,
    variant: Annotated[
        str,
        typer.Option(
            "--variant",
            metavar="NAME",
            help="Kind of guest: lzo, lz4 from Linux 6.9 on, or none, whose image is not compressed. Default: lzo.",
        ),
    ] = "lzo",
    several: Annotated[
        bool, typer.Option("--several", help="Change two to four places of each image. Default: one place.")
    ] = False,
    write: Annotated[
        Path | None,
        typer.Option(
            "--write",
            metavar="PAGE",
            help="Add the images to this page (docs/parser.md), whose lines lie in a folder beside it. "
            "Default: no page.",
        ),
    ] = None,
    keep: KeepOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Give a kernel changed images, and compare what it does with the prediction.

    A guest hibernates. Another machine boots up to the moment at which its kernel would read the image, and its state
    is saved: from there it resumes from each changed image. Fields of the header and of the info page, entries and
    links of the swap map, lengths and bytes of units, listed frames and bytes of pages are changed; the last three also
    with the CRC made right. With --several, an image that ends otherwise than predicted, crashes the parser or resumes
    wrong is reduced to the fewest changes that still do.

    A kernel with KASAN, UBSAN or DEBUG_LIST, and with LKDTM, must report a fault of each that is provoked first; its
    reports while it reads are shown with the outcome.

    The exit status is 0 if every image ended as predicted, 1 if one did not, or the kernel crashed or reported while
    it read.
    """
    if variant not in VARIANTS:
        raise typer.BadParameter(f"unknown kind {variant!r}; expected {', '.join(VARIANTS)}", param_hint="--variant")
    if write and not write.absolute().parent.is_dir():
        raise typer.BadParameter(f"{write.parent} is not a folder; make it first", param_hint="--write")
    chosen = variant_named(variant)
    if dry_run:
        return show_plan(output, options.planned(chosen, keep or Path("DIR")))
    laboratory = options.lab()
    document: ParserDocument = {"release": laboratory.kernel.release, "images": []}
    try:
        with workshop(keep) as folder:
            for one in try_images(
                laboratory,
                chosen,
                folder,
                images=images,
                seed=seed,
                jobs=jobs,
                several=several,
                tell=lambda step: say(step, not output.text),
            ):
                document["images"].append(_document(one))
                say(tried_text(document["images"][-1]), not output.text)
    finally:  # after an interrupt, too: an image takes seconds
        if write and document["images"]:
            add_to_parser(write, document)
    output.answer(document, parser_text)
    if has_findings(document):
        raise typer.Exit(1)
    return None


def _document(tried: TriedImage) -> TriedImageDocument:
    return {
        "compressor": tried.compressor,
        "changes": [
            {
                "part": one.part,
                "index": one.index,
                "value": f"{one.value:#x}",
                "was": hex_or_none(one.was),
                "mends_crc": one.mends_crc,
            }
            for one in tried.changes
        ],
        "change": "; ".join(map(str, tried.changes)) or "nothing",
        "outcome": tried.outcome,
        "says": tried.says,
        "reports": list(tried.reports),
        "predicted": tried.predicted.end,
        "words": tried.predicted.words,
        "reason": tried.predicted.reason,
        "as_predicted": tried.agrees,
        "is_case": tried.is_case,
    }
