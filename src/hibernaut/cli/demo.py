# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut demo`: every way in every situation on small simulated machines, in seconds."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from hibernaut.cli.options import OutputOptions, SimulatedRulesOption
from hibernaut.report.machines import demo_document
from hibernaut.report.text import demo_text
from hibernaut.studies.demo import demo_image
from hibernaut.studies.matrix import run_matrix

__all__ = ["demo"]

CURE = "Fixmap"
SHOWN_CELL = ("Remap", "2M hole, 1st allocation fails")
"""Way and situation whose kernel log is shown."""


def demo(
    output: OutputOptions,
    keep: Annotated[
        Path | None, typer.Option("--keep", metavar="FILE", help="Keep the image in this file. Default: it is removed.")
    ] = None,
    rules: SimulatedRulesOption = None,
) -> None:
    """Hibernate and resume simulated machines in every situation by every way, and check each resumed one.

    Mutants are among the ways. Then an image by Fixmap is written and read back.

    The exit status is 0 if Fixmap saves every machine unchanged.
    """
    cells = list(run_matrix(rules=rules))
    with tempfile.TemporaryDirectory() as folder:
        path = keep or Path(folder) / "image"
        image = demo_image(path)
    shown = next(cell for cell in cells if (cell.way.name, cell.situation.name) == SHOWN_CELL)
    output.answer(demo_document(cells, shown, image), demo_text)
    if image.wrong_pages or any(cell.result != "unchanged" for cell in cells if cell.way.name == CURE):
        raise typer.Exit(1)
