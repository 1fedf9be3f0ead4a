# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut lab golden`: test data from a real kernel."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hibernaut.cli.lab.options import DryRunOption, LabOptions, show_plan, workshop
from hibernaut.cli.options import OutputOptions
from hibernaut.cli.terminal import say
from hibernaut.lab.golden import make_golden
from hibernaut.lab.variants import variant_named

__all__ = ["golden"]


def golden(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder for images, dumps and expected.json.")],
    options: LabOptions,
    output: OutputOptions,
    dry_run: DryRunOption = False,
) -> None:
    """Make test data from a real kernel: images, RAM dumps, and the facts that a reader must find in them."""
    if dry_run:
        return show_plan(output, options.planned(variant_named("lzo"), folder, gdb=True))
    laboratory = options.lab()
    folder.mkdir(parents=True, exist_ok=True)
    with workshop(None) as shop:
        expected = make_golden(laboratory, folder, shop, lambda text: say(text, output.quiet))
    output.answer(expected, lambda made: "\n".join(f"{folder / name}.zst" for name in made))
    return None
