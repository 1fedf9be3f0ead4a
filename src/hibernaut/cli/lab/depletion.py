# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut lab depletion`: a guest whose kernel runs out of pages for tables in the copy, with nothing injected."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hibernaut.cli.lab.options import DryRunOption, KeepOption, LabOptions, show_plan, workshop
from hibernaut.cli.options import OutputOptions
from hibernaut.lab.depletion import deplete_guest, depletion_variant, resume_depleted
from hibernaut.lab.variants import MAX_REGIONS
from hibernaut.report.depletion import depleted_text, depletion_document
from hibernaut.report.documents import DepletedGuestDocument

__all__ = ["depletion"]


def depletion(
    options: LabOptions,
    output: OutputOptions,
    blocks: Annotated[
        int,
        typer.Option(
            "--blocks",
            metavar="N",
            min=1,
            max=MAX_REGIONS,
            help="Blocks of 2 MiB out of the direct map. Default: 64.",
        ),
    ] = 64,
    splits: Annotated[
        int | None,
        typer.Option(
            "--splits",
            metavar="N",
            min=0,
            max=1 << 20,
            help="Splits that are to find a page: a driver takes the other pages while devices are frozen. Default: it "
            "takes none.",
        ),
    ] = None,
    cached: Annotated[
        int,
        typer.Option(
            "--cached", min=0, max=1 << 12, metavar="MIB", help="MiB of a disk in its page cache. Default: 0."
        ),
    ] = 0,
    memory: Annotated[
        int | None,
        typer.Option("--memory", min=256, max=1 << 16, metavar="MIB", help="RAM. Default: 1024, and 2 for each block."),
    ] = None,
    keep: KeepOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Predict from a guest's memory how many splits of its copy find a page, and let its kernel copy.

    Each block has one page to save, and takes one split. Nothing is injected: a driver takes pages between the
    allocation of the image and the copy, as drivers do. An image that is made is resumed and verified.

    The exit status is 0 if as many splits were served as predicted, 1 if not.
    """
    variant = depletion_variant(blocks, memory or 2 * blocks + 1024)
    if dry_run:
        return show_plan(output, options.planned(variant, keep or Path("DIR"), gdb=True))
    laboratory = options.lab()
    with workshop(keep) as folder:
        found = deplete_guest(laboratory, variant, folder, wanted=splits, cached_mib=cached)
        resumed = resume_depleted(laboratory, found, folder) if found.outcome == "hibernated" else None
    document: DepletedGuestDocument = {
        "release": found.release,
        "blocks": found.blocks,
        "before": depletion_document(found.before, blocks),
        "in_copy": depletion_document(found.in_copy, blocks),
        "kernels_image_pages": found.kernels_image_pages,
        "kernels_free_pages": found.kernels_free_pages,
        "served": found.served,
        "splits": found.splits,
        "failed": found.failed,
        "interrupts": found.interrupts,
        "outcome": found.outcome,
        "reason": found.reason,
        "resumed": None if resumed is None else resumed.reason,
        "as_predicted": found.as_predicted,
    }
    output.answer(document, depleted_text)
    if not found.as_predicted:
        raise typer.Exit(1)
    return None
