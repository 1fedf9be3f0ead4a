# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut demo`: every way in every situation on small simulated machines, in seconds."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from hibernaut.cli.common import (
    JsonOption,
    QuietOption,
    RulesOption,
    console,
    print_json,
    refuse_same_file,
)
from hibernaut.hibernation import Fixmap, hibernate
from hibernaut.linux import build_machine
from hibernaut.report.documents import DemoDocument, DemoImageDocument
from hibernaut.report.machines import cell_document
from hibernaut.report.text import demo_text, hex_or_none
from hibernaut.studies.demo import demo_layout
from hibernaut.studies.matrix import SITUATIONS, run_matrix
from hibernaut.swsusp import open_image
from hibernaut.swsusp.info import ImageInfo
from hibernaut.swsusp.writer import NewArea, write_image

__all__ = ["demo"]

CURE = "Fixmap"
CRASH = ("Remap", "2M hole, 1st allocation fails")


def demo(
    keep: Annotated[Path | None, typer.Option("--keep", help="Keep the image that is written in this file.")] = None,
    rules: RulesOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Hibernate and resume simulated machines in every situation, by every way, mutants too; check each resumed one.

    Then an image by Fixmap is written and read back. The exit status is 0 if Fixmap saves every machine as it was.
    """
    cells = list(run_matrix(rules=rules))
    with tempfile.TemporaryDirectory() as folder:
        path = keep or Path(folder) / "image"
        refuse_same_file(path)
        image = _write_and_check(path)
    crash = next(cell for cell in cells if (cell.way.name, cell.situation.name) == CRASH)
    document: DemoDocument = {
        "ways": list(dict.fromkeys(cell.way.name for cell in cells)),
        "situations": [{"name": one.name, "what": one.what} for one in SITUATIONS],
        "cells": [cell_document(cell) for cell in cells],
        "crash": {
            "way": crash.way.name,
            "situation": crash.situation.name,
            "log": list(crash.after.log.lines),
        },
        "image": image,
    }
    if json:
        print_json(document)
    elif not quiet:
        console().print(demo_text(document))
    if image["wrong_pages"] or any(cell.result != "unchanged" for cell in cells if cell.way.name == CURE):
        raise typer.Exit(1)


def _write_and_check(path: Path) -> DemoImageDocument:
    """Write an image of the demonstration's machine, open it as a stranger would, and compare every page."""
    original = build_machine(demo_layout())
    snapshot = hibernate(original.fork(), Fixmap())
    info = ImageInfo.blank(cr3=snapshot.cr3, physical_pages=original.memory.ranges.total_pages)
    written = write_image(path, snapshot.memory, snapshot.pfns, info, NewArea(), compressor="lzo", zero_pages=False)
    wrong = 0
    with open_image(path) as image:
        listed = np.array_equal(image.pfns, snapshot.pfns)
        for pfns, pages in image.chunks():
            expected, present = original.memory.gather(pfns)
            wrong += int((~present | (pages != expected).any(axis=1)).sum())
    return {
        "pages": written.saved_pages,
        "crc32": hex_or_none(written.crc32),
        "blocks": written.blocks,
        "listed_as_saved": listed,
        "wrong_pages": wrong,
    }
