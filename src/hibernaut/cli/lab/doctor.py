# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut lab doctor`: the needs of the laboratory."""

from __future__ import annotations

import typer

from hibernaut.cli.common import JsonOption, QuietOption, console, print_json
from hibernaut.cli.lab.options import CacheOption
from hibernaut.lab.host.cache import Cache
from hibernaut.lab.host.doctor import cures, examine
from hibernaut.report.documents import DoctorDocument, NeedDocument
from hibernaut.report.text import doctor_text

__all__ = ["doctor"]


def doctor(cache: CacheOption = None, json: JsonOption = False, quiet: QuietOption = False) -> None:
    """List the needs of the laboratory, those that are missing, and the commands that install them.

    The exit status is 1 if a required one is missing.
    """
    found = examine(Cache(cache))
    commands = cures(found)
    ready = all(one.there for one in found if one.need.required)
    rows: list[NeedDocument] = [
        {"name": one.need.name, "purpose": one.need.purpose, "required": one.need.required, "there": one.there,
         "where": one.where}
        for one in found
    ]  # fmt: skip
    document: DoctorDocument = {"ready": ready, "found": rows, "cures": commands}
    if json:
        print_json(document)
    elif not quiet:
        console().print(doctor_text(document))
    if not ready:
        raise typer.Exit(1)
