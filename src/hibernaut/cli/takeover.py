# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut takeover`: a real kernel's hibernation, saved by us."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from hibernaut.cli.lab.options import (
    GUEST_SECTION,
    DryRunOption,
    GuestOptions,
    KeepOption,
    LabOptions,
    show_plan,
    workshop,
)
from hibernaut.cli.options import OutputOptions, among
from hibernaut.cli.terminal import print_text
from hibernaut.lab.takeover import take_over
from hibernaut.lab.variants import VARIANTS
from hibernaut.report.documents import TakeoverDocument

__all__ = ["takeover"]


@dataclass(frozen=True)
class TakeoverGuestOptions(GuestOptions):
    """Options that choose a guest; by default one whose stock kernel crashes."""

    variant: Annotated[
        str,
        typer.Option(
            "--variant",
            metavar="NAME",
            rich_help_panel=GUEST_SECTION,
            help="Kind of guest; `hibernaut lab variants` lists them. Default: hole-2m-fails.",
            autocompletion=among(one.name for one in VARIANTS),
        ),
    ] = "hole-2m-fails"


def takeover(
    guest: TakeoverGuestOptions,
    options: LabOptions,
    output: OutputOptions,
    resume_stock: Annotated[
        bool,
        typer.Option("--resume-stock", help="Also resume from the kernel's own image, if it makes one. Default: no."),
    ] = False,
    keep: KeepOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Stop a real kernel before it copies anything, save it through the fixmap, and resume a stock kernel from that.

    A guest hibernates under QEMU up to the copy loop of swsusp_save. There its RAM is dumped, and the guest continues
    on its own for comparison. From the dump alone an image is built on a second disk, from which a fresh machine
    resumes. PASS if the resumed guest finds its pages and its direct map unchanged, else FAIL and exit status 1.
    `hibernaut lab doctor` lists the needs of this command.
    """
    variant = guest.guest()
    if dry_run:
        return show_plan(output, options.planned(variant, keep or Path("DIR"), gdb=True))
    laboratory = options.lab()
    steps: list[tuple[str, str]] = []

    def tell(step: str, what: str) -> None:
        steps.append((step, what))
        if output.text:
            print_text(f"{step:12}{what}")

    with workshop(keep) as folder:
        taken = take_over(laboratory, variant, folder, resume_stock=resume_stock, tell=tell)
    document: TakeoverDocument = {
        "passed": taken.passed,
        "kernel": laboratory.kernel.release,
        "variant": variant.name,
        "steps": [{"step": step, "what": what} for step, what in steps],
        "stock": {"outcome": taken.stock.outcome, "reason": taken.stock.reason},
        "stock_resumed": taken.stock_resumed.reason if taken.stock_resumed else None,
        "resumed": taken.resumed.reason,
        "direct_map_findings": [str(one) for one in taken.findings],
    }
    output.answer(document, lambda _: "PASS" if taken.passed else "FAIL")
    if not taken.passed:
        raise typer.Exit(1)
    return None
