# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut demo`: every way in every situation on small simulated machines, in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hibernaut.cli.options import OutputOptions, SimulatedRulesOption
from hibernaut.cli.picture_options import DemoPictureOptions
from hibernaut.lab.host.temporary import temporary_folder
from hibernaut.report.machines import cell_document, demo_document
from hibernaut.report.text import demo_text
from hibernaut.studies.demo import demo_image
from hibernaut.studies.matrix import run_matrix

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hibernaut.linux.rules import KernelRules
    from hibernaut.report.frame_picture import StyledLine
    from hibernaut.studies.matrix import Cell

__all__ = ["demo"]

CURE = "Fixmap"
DRAWN_SITUATION = "2M hole, table above"
DRAWN_WAYS = {"Remap": "remap", CURE: "fixmap"}
"""Situation and ways whose copy is drawn: names of the ways in tables, and in runs."""
SHOWN_CELL = ("Remap", "2M hole, 1st allocation fails")
"""Way and situation whose kernel log is shown."""


def demo(
    output: OutputOptions,
    drawn: DemoPictureOptions,
    keep: Annotated[
        Path | None, typer.Option("--keep", metavar="FILE", help="Keep the image in this file. Default: it is removed.")
    ] = None,
    rules: SimulatedRulesOption = None,
) -> None:
    """Hibernate and resume simulated machines in every situation by every way, and check each resumed one.

    Mutants are among the ways. Then an image by Fixmap is written and read back, and the copy of one machine is drawn.

    The exit status is 0 if Fixmap saves every machine unchanged.
    """
    drawn.check(output)
    cells = list(run_matrix(rules=rules))
    with temporary_folder("demo") as folder:
        path = keep or folder / "image"
        image = demo_image(path)
    shown = next(cell for cell in cells if (cell.way.name, cell.situation.name) == SHOWN_CELL)
    output.answer(demo_document(cells, shown, image), demo_text)
    drawn.draw(lambda width, plain: _pictures(cells, rules, width, plain), output)
    if image.wrong_pages or any(cell.result != "unchanged" for cell in cells if cell.way.name == CURE):
        raise typer.Exit(1)


def _pictures(cells: Sequence[Cell], rules: KernelRules | None, width: int, plain: bool) -> list[StyledLine]:
    """Return the lines of the pictures: one machine, by mainline's way and by the one that saves all."""
    from hibernaut.report.run_picture import demo_pictures
    from hibernaut.studies.demo import demo_scenes

    chosen = [cell for cell in cells if cell.situation.name == DRAWN_SITUATION and cell.way.name in DRAWN_WAYS]
    runs = ((cell_document(cell), demo_scenes(DRAWN_WAYS[cell.way.name], cell.situation, rules)) for cell in chosen)
    return demo_pictures(runs, width, plain=plain)
