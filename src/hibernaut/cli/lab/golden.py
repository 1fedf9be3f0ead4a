# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut lab golden`: test data from a real kernel."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hibernaut.cli.common import JsonOption, QuietOption, console, print_json, say
from hibernaut.cli.lab.options import DryRunOption, LabOptions, workshop
from hibernaut.lab.golden import make_golden
from hibernaut.lab.variants import variant_named

__all__ = ["golden"]


def golden(
    *,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder for images, dumps and expected.json.")],
    options: LabOptions,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Make test data from a real kernel: images, RAM dumps, and the facts that a reader must find in them."""
    if dry_run:
        return options.dry_run(variant_named("lzo"), folder, gdb=True)
    laboratory = options.lab()
    folder.mkdir(parents=True, exist_ok=True)
    with workshop(None) as shop:
        expected = make_golden(laboratory, folder, shop, lambda text: say(text, quiet))
    if json:
        print_json(expected)
    elif not quiet:
        console().print("\n".join(f"{folder / name}.zst" for name in expected))
    return None
